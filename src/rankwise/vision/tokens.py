"""Zero-TPrune under the family of image models, where people look for it; its home is `rankwise.compression`.

Families do not import each other: this one loads the other only when the name is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.compression.tokens.graph import zero_tprune

__all__ = ["zero_tprune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("rankwise.compression"), name)
