"""The main job: adapt one pretrained model by several methods under one budget, side by side.

``config`` and ``inputs`` (what is asked, what is read) need neither torch nor PEFT: bad input is refused before those
are imported. ``job`` trains, ``adapters`` is what it leaves.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankwise.events import OnEvent, environment
    from rankwise.jobs.adapt.adapters import load_adapted, save_adapted
    from rankwise.jobs.adapt.config import AdaptConfig
    from rankwise.jobs.adapt.job import Job, spread

__all__ = ["AdaptConfig", "Job", "OnEvent", "environment", "load_adapted", "save_adapted", "spread"]
_HOMES = {
    "AdaptConfig": "rankwise.jobs.adapt.config",
    "Job": "rankwise.jobs.adapt.job",
    "OnEvent": "rankwise.events",
    "environment": "rankwise.events",
    "load_adapted": "rankwise.jobs.adapt.adapters",
    "save_adapted": "rankwise.jobs.adapt.adapters",
    "spread": "rankwise.jobs.adapt.job",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
