"""Pretrained models by name, folder or hub id, and which of their layers a method should touch."""

from rankwise.models.loading import BUNDLED, load, load_processor, load_tokenizer, model_fingerprint, resolve
from rankwise.models.targets import blocks, linear_layers, target_modules

__all__ = [
    "BUNDLED",
    "blocks",
    "linear_layers",
    "load",
    "load_processor",
    "load_tokenizer",
    "model_fingerprint",
    "resolve",
    "target_modules",
]
