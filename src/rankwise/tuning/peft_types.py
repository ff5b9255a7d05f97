"""The names of rankwise's methods in PEFT's enum of types; nothing else, so that every method's file can import it."""

from __future__ import annotations

from aenum import extend_enum
from peft import PeftType

NAMES = ("s2lora", "bitfit", "vida", "codyra")

for _name in NAMES:
    if _name.upper() not in PeftType.__members__:
        extend_enum(PeftType, _name.upper(), _name.upper())
