"""Pretrained models by name, folder or hub id, and which of their layers a method should touch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rankwise.models.names import BUNDLED, check_model, model_fingerprint

if TYPE_CHECKING:
    from rankwise.models.loading import load, load_image_processor, load_processor, load_tokenizer, resolve
    from rankwise.models.targets import blocks, linear_layers, target_modules

__all__ = [
    "BUNDLED",
    "blocks",
    "check_model",
    "linear_layers",
    "load",
    "load_image_processor",
    "load_processor",
    "load_tokenizer",
    "model_fingerprint",
    "resolve",
    "target_modules",
]
_IN_TARGETS = ("blocks", "linear_layers", "target_modules")


def __getattr__(name: str):
    """What needs torch is imported when it is asked for: names are checked without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'targets' if name in _IN_TARGETS else 'loading'}"), name)
