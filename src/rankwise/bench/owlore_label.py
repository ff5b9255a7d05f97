"""OwLore on sentiment as text-to-label: the second part of `rankwise.bench.owlore`."""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import owlore
from rankwise.bench.evidence import Evidence
from rankwise.bench.language import LABEL
from rankwise.jobs.adapt import OnEvent


def run(out: Path, *, seeds: int = 3, steps: int = 30, on_event: OnEvent | None = None) -> Evidence:
    """Train all variants (finished ones are read back), judge the claims."""
    return owlore.run(out, seeds=seeds, steps=steps, on_event=on_event, data=LABEL, name="owlore_label")
