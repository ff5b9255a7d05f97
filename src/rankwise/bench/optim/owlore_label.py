"""OwLore on sentiment as text-to-label: the second part of `rankwise.bench.optim.owlore`."""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim import owlore
from rankwise.bench.shared.evidence import Evidence
from rankwise.bench.shared.language import BLOCKS, LABEL, first_blocks
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="owlore",
    part="label",
    about="OwLore against full AdamW, GaLore, LISA and LoRA on SmolLM2: sentiment as text-to-label",
    spreads=True,
    smoke={
        "seeds": 1, "BLOCKS": 2, "TESTED": 8, "STEPS": 1, "SCALES": (4.0,),
        "RATES": {"full": [1e-4], "galore": [4e-4], "lisa": [4e-4], "owlore": [4e-4], "lora": [1e-3]},
    },
)  # fmt: skip

TESTED = 400  # snippets
STEPS = 75
SCALES, RATES = owlore.SCALES, owlore.RATES


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back): what was answered to every test text."""
    asked = {"steps": STEPS, "scales": SCALES, "rates": RATES, "tested": TESTED}
    return owlore.compared(
        out, LABEL, model=first_blocks(out / "model", BLOCKS), seeds=seeds, on_event=on_event, **asked
    )


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The methods and the draws compared, by seed."""
    return owlore.judge(found, seeds=seeds)
