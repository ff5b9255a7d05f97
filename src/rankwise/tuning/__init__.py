"""Parameter-efficient fine-tuning: PEFT configurations, their initialisers, and export to plain LoRA."""

import peft  # noqa: F401  (its import registers our methods)

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="tuning")
