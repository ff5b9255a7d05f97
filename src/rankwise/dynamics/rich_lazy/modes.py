"""A network that is looked at while it is trained: as it was, afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def measuring(model: nn.Module, weights: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Within the block: evaluation mode, and gradients of these weights alone; modes and flags are put back."""
    modes = [(m, m.training) for m in model.modules()]
    chosen = {id(p) for p in weights}
    needs = [(p, p.requires_grad) for p in model.parameters()] if chosen else []
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())  # cuDNN has their gradients in training alone
    try:
        for module, _ in modes:
            module.training = False
        for p, _ in needs:
            p.requires_grad_(id(p) in chosen)
        plain = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), plain:
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, need in needs:
            p.requires_grad_(need)
