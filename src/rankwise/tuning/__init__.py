"""Parameter-efficient fine-tuning: PEFT configurations, their initialisers, and export to plain LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import peft  # noqa: F401  (first: its import registers our methods, which imports the modules below)

from rankwise.tuning.bitfit import BitFitConfig
from rankwise.tuning.eva import ActivationSpectra, EvaConfig, activation_spectra, initialize
from rankwise.tuning.export import export_lora, low_rank_factors
from rankwise.tuning.s2lora import S2LoraConfig

if TYPE_CHECKING:
    from rankwise.tuning.callback import S2LoraCallback

__all__ = [
    "ActivationSpectra",
    "BitFitConfig",
    "EvaConfig",
    "S2LoraCallback",
    "S2LoraConfig",
    "activation_spectra",
    "export_lora",
    "initialize",
    "low_rank_factors",
]


def __getattr__(name: str):
    """The callback needs the Trainer, which may itself be waiting for this import: it comes when it is asked for."""
    if name != "S2LoraCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rankwise.tuning.callback import S2LoraCallback

    return S2LoraCallback
