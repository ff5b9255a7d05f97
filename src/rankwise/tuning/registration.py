"""The one place that touches PEFT's registry."""

from __future__ import annotations

import warnings

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from rankwise.tuning.bitfit import BitFitConfig, BitFitModel
from rankwise.tuning.codyra import CodyraConfig, CodyraModel
from rankwise.tuning.s2lora import S2LoraConfig, S2LoraModel
from rankwise.tuning.vida import VidaConfig, VidaModel

METHODS: dict[str, tuple[type[PeftConfig], type[BaseTuner]]] = {
    "s2lora": (S2LoraConfig, S2LoraModel),
    "bitfit": (BitFitConfig, BitFitModel),
    "vida": (VidaConfig, VidaModel),
    "codyra": (CodyraConfig, CodyraModel),
}


def register() -> None:
    """Make rankwise's types known to PEFT; does nothing the second time.

    Where a later PEFT already has a method of the same name, that one stays and a warning says so.
    """
    for name, (config, model) in METHODS.items():
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name.upper()])
        if known is None:
            register_peft_method(name=name, config_cls=config, model_cls=model)
        elif known.__module__ != config.__module__:
            warnings.warn(
                f"PEFT already has a method '{name}' ({known.__module__}); rankwise's is not registered. "
                "Adapters saved by rankwise load only with rankwise's own class.",
                stacklevel=2,
            )
