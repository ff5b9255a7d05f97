"""OwLore on sentiment as text-to-label: the second part of `rankwise.bench.optim.owlore`."""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim import owlore
from rankwise.bench.shared.evidence import Evidence
from rankwise.bench.shared.language import BLOCKS, LABEL
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="owlore",
    part="label",
    about="OwLore against full AdamW, GaLore, LISA and LoRA on SmolLM2: sentiment as text-to-label",
    remark="Recorded before OwLore's projected steps were as long as full ones by default; to be measured again.",
    spreads=True,
    smoke={"seeds": 1, "steps": 1, "BLOCKS": 2, "TESTED": 8},
)

TESTED = 200  # snippets


def run(out: Path, *, seeds: int = 3, steps: int = 30, on_event: OnEvent | None = None) -> Evidence:
    """Train all variants (finished ones are read back), judge the claims."""
    return owlore.run(
        out, seeds=seeds, steps=steps, on_event=on_event, data=LABEL, name="owlore_label", sizes=(BLOCKS, TESTED)
    )
