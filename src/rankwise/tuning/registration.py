"""The one place that touches PEFT's registry."""

from __future__ import annotations

import warnings

from aenum import extend_enum
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

NAMES = ("s2lora", "bitfit")
for _name in NAMES:  # before the configurations below are made: they refer to the enum's members
    if _name.upper() not in PeftType.__members__:
        extend_enum(PeftType, _name.upper(), _name.upper())


def register() -> None:
    """Make S2-LoRA and BitFit known to PEFT; does nothing the second time.

    Where a later PEFT already has a method of the same name, that one stays and a warning says so.
    """
    from rankwise.tuning.bitfit import BitFitConfig, BitFitModel
    from rankwise.tuning.s2lora import S2LoraConfig, S2LoraModel

    methods = {"s2lora": (S2LoraConfig, S2LoraModel), "bitfit": (BitFitConfig, BitFitModel)}
    for name, (config, model) in methods.items():
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name.upper()])
        if known is None:
            register_peft_method(name=name, config_cls=config, model_cls=model)
        elif known.__module__ != config.__module__:
            warnings.warn(
                f"PEFT already has a method '{name}' ({known.__module__}); rankwise's is not registered. "
                "Adapters saved by rankwise load only with rankwise's own class.",
                stacklevel=2,
            )
