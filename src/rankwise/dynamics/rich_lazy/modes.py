"""A network that is looked at while it is trained: as it was, afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def measuring(model: nn.Module, weights: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Within the block: evaluation mode, and gradients of these weights; modes and flags are put back."""
    modes = [(m, m.training) for m in model.modules()]
    needs = [(p, p.requires_grad) for p in weights]
    try:
        for module, _ in modes:
            module.training = False
        for p, _ in needs:
            p.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, need in needs:
            p.requires_grad_(need)
