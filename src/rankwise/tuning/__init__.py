"""Parameter-efficient fine-tuning: PEFT configurations, their initialisers, and export to plain LoRA."""

from __future__ import annotations

import peft  # noqa: F401  (first: its import registers our methods, which imports the modules below)

from rankwise.tuning.bitfit import BitFitConfig
from rankwise.tuning.eva import ActivationSpectra, EvaConfig, activation_spectra, initialize
from rankwise.tuning.export import export_lora, low_rank_factors
from rankwise.tuning.s2lora import S2LoraConfig

__all__ = [
    "ActivationSpectra",
    "BitFitConfig",
    "EvaConfig",
    "S2LoraConfig",
    "activation_spectra",
    "export_lora",
    "initialize",
    "low_rank_factors",
]
