"""GaLore's claims: close to full AdamW at a fraction of its state, and the subspace must come from the gradient.

SmolLM2-135M on newspaper editorials, as in `rankwise.bench.optim.owlore`. Control: a random subspace of
the same rank, which must be worse.
"""

from __future__ import annotations

import time
from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim.owlore import difference
from rankwise.bench.shared.evidence import Claim, Evidence, paired
from rankwise.bench.shared.language import BLOCKS, TEXT, by_seed, first_blocks, row, settings, trained
from rankwise.events import OnEvent, environment

RECIPE = Recipe(
    name="galore",
    part="text",
    about="GaLore against full AdamW and a random subspace on SmolLM2",
    spreads=True,
    smoke={"seeds": 1, "steps": 2, "BLOCKS": 2, "TESTED": 2},
)

TESTED = 60  # texts
METHODS = ["full", "galore", "galore-random"]


def run(out: Path, *, seeds: int = 3, steps: int = 30, on_event: OnEvent | None = None) -> Evidence:
    """Train all variants (finished ones are read back), judge the claims."""
    start = time.perf_counter()
    config = settings(TEXT, METHODS, seeds=seeds, steps=steps, tested=TESTED, model=first_blocks(out / "model", BLOCKS))
    results, found = trained(out / "tuned", config, on_event)
    scores = {n: -by_seed(e, TEXT, "loss") for n, e in found.items()}
    untrained = results["zero_shot"][TEXT]["loss"]
    full, random = paired(scores["galore"], scores["full"]), paired(scores["galore"], scores["galore-random"])
    share = (scores["galore"].mean() + untrained) / (scores["full"].mean() + untrained)
    return Evidence(
        recipe="galore",
        title="GaLore: low-rank gradient projection",
        command=f"rankwise bench galore --seeds {seeds}",
        setting=f"SmolLM2-135M, {TEXT}, rank 36 of 576, {steps} steps of {config.batch_size} texts of up to "
        f"{config.max_length} tokens, bases drawn every {config.update_gap} steps, bfloat16 arithmetic, {seeds} seeds, "
        f"{results['examples'][TEXT]} test texts; untrained loss {untrained:.3f}; mean ± standard deviation",
        header=["method", "rate", "trained", "memory", "test loss"],
        rows=[row(e, {TEXT: "loss"}) for e in found.values()],
        claims=[
            Claim(
                text="at least 90% of what full AdamW gains over the untrained model",
                held=share >= 0.9,
                found=f"{100 * share:.0f}%; {difference(full, 'loss')}",
            ),
            Claim(
                text="control: a random subspace is worse",
                control=True,
                held=random.mean > 0 and random.p_value <= 0.125,
                found=difference(random, "loss"),
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )
