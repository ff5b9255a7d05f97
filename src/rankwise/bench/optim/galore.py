"""GaLore's claims: close to full AdamW at a fraction of its state, and the subspace must come from the gradient.

SmolLM2-135M on newspaper editorials, as in `rankwise.bench.optim.owlore`. Control: a random subspace of
the same rank, which must be worse.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim.owlore import difference
from rankwise.bench.shared.adapted import UNTRAINED
from rankwise.bench.shared.evidence import Claim, Evidence, paired
from rankwise.bench.shared.language import BLOCKS, TEXT, by_seed, first_blocks, row, settings, trained
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.jobs.items import metrics

RECIPE = Recipe(
    name="galore",
    part="text",
    about="GaLore against full AdamW and a random subspace on SmolLM2",
    spreads=True,
    smoke={"seeds": 1, "steps": 2, "BLOCKS": 2, "TESTED": 2},
)

TESTED = 60  # texts
METHODS = ["full", "galore", "galore-random"]


def measure(out: Path, *, seeds: int = 5, steps: int = 30, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back): what every test text got."""
    config = settings(TEXT, METHODS, seeds=seeds, steps=steps, tested=TESTED, model=first_blocks(out / "model", BLOCKS))
    told = {"steps": steps, "batch": config.batch_size, "tokens": config.max_length, "gap": config.update_gap}
    return {"told": told, **trained(out / "tuned", config, on_event)}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The variants compared, by seed."""
    told, untrained = found["told"], found[UNTRAINED][TEXT]
    scores = {n: -by_seed(found[n], TEXT, "loss") for n in METHODS}
    before = metrics(untrained)["loss"]
    full, random = paired(scores["galore"], scores["full"]), paired(scores["galore"], scores["galore-random"])
    ours, whole = scores["galore"].mean() + before, scores["full"].mean() + before
    share = ours / whole if whole > 0 else float("nan")  # of nothing gained there is no share
    return Evidence(
        recipe="galore",
        title="GaLore: low-rank gradient projection",
        command=f"rankwise bench galore --seeds {seeds} --jobs 2",
        setting=f"SmolLM2-135M-Instruct, {TEXT}, rank 36 of 576, {told['steps']} steps of {told['batch']} texts of up "
        f"to {told['tokens']} tokens, bases drawn every {told['gap']} steps, bfloat16 arithmetic, {seeds} seeds, "
        f"{len(untrained['tokens'])} test texts; untrained loss {before:.3f}; mean ± standard deviation",
        header=["method", "rate", "trained", "memory", "test loss"],
        rows=[row(found[n], {TEXT: "loss"}) for n in METHODS],
        claims=[
            Claim(
                text="at least 90% of what full AdamW gains over the untrained model",
                held=share >= 0.9,
                found=f"{100 * share:.0f}%; {difference(full, 'loss')}",
            ),
            Claim(
                text="control: a random subspace is worse (p ≤ 0.05)",
                control=True,
                held=random.clear(),
                found=difference(random, "loss"),
            ),
        ],
        environment=environment("bf16", 1),
    )
