"""What the family takes: numbers in their ranges, models without adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def check_ranges(settings: object, *, shares: Iterable[str], amounts: Iterable[str], least: Mapping[str, int]) -> None:
    """Refuse by name a field out of its range; None is accepted where it is the default.

    Parameters
    ----------
    settings : object
        Of a dataclass.
    shares : iterable of str
        Fields from 0 to 1.
    amounts : iterable of str
        Finite ones from 0 on.
    least : mapping of str to int
        Whole ones, and the smallest value of each.

    Raises
    ------
    ValueError
        The first that is out of range.
    """
    ranges = [
        *((name, lambda v: 0 <= v <= 1, "from 0 to 1") for name in shares),
        *((name, lambda v: math.isfinite(v) and v >= 0, "a number from 0 on") for name in amounts),
        *((name, lambda v, low=low: v >= low, f"at least {low}") for name, low in least.items()),
    ]
    for name, holds, accepted in ranges:
        value = getattr(settings, name)
        taken = holds(value) if value is not None else getattr(type(settings), name) is None
        if not taken:
            raise ValueError(f"{name}={value}; {accepted}")


def refuse_adapters(model: nn.Module, *, hint: str = "") -> None:
    """Raise where adapters lie in a model: a second set of them could not be told from the first, nor taken out."""
    if any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise ValueError(f"the model has adapters already: merge or unload them first{hint}")
