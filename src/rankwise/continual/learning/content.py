"""By which weights and examples are known again: a hash over all that they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def content_of_values(values: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors, or of what else an example holds."""
    total = hashlib.sha256()
    for name in sorted(values):
        total.update(name.encode() + _exact(values[name]))
    return total.hexdigest()


def _exact(value: Any) -> bytes:
    """All of a value: the ``repr`` of an array or a picture leaves out what is within."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        return f"{value.dtype}{tuple(value.shape)}".encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return _exact(value.tolist())
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if hasattr(value, "getbands"):  # a picture of Pillow's, which need not be installed
        return f"{value.mode}{value.size}".encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"".join(f"{k!r}:".encode() + _exact(v) + b"," for k, v in value.items())
    if isinstance(value, list | tuple):
        return b"".join(_exact(v) + b"," for v in value)
    return repr(value).encode()
