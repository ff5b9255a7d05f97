"""EVA's claims: faster convergence and a better end than LoRA at equal rank, and redistribution helps.

MiniLM learns the polarity of movie snippets with LoRA and EVA at the same total rank, on the same examples in the same
order. Ablations: equal ranks, redistributed ranks with a random start, directions of another domain. Control: the
directions of least variance must be worse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.shared.adapted import by_seed, cost, rate, runs_of, tested
from rankwise.bench.shared.evidence import Claim, Evidence, greater, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.report.tables import count

RECIPE = Recipe(
    name="eva",
    part="text",
    about="EVA against LoRA: convergence, final score, and what its parts contribute",
    spreads=True,
    smoke={
        "seeds": 1, "steps": 2, "TRAINED": 16, "TESTED": 10,
        "RATES": {
            "lora": [1e-3], "eva": [1e-3], "eva-uniform": [1e-3], "eva-uncentred": [1e-3], "eva-random": [1e-3],
            "eva-elsewhere": [1e-3], "eva-bottom": [1e-3],
        },
    },
)  # fmt: skip

TRAINED: int | None = None  # sentences at most; all
TESTED = 500  # at most
RATES: dict[str, list[float]] = {}  # grids by variant; the methods' own
VARIANTS = ["lora", "eva", "eva-uniform", "eva-uncentred", "eva-random", "eva-elsewhere", "eva-bottom"]


def measure(out: Path, *, seeds: int = 5, steps: int = 80, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back): validation losses, and what was said of every test sentence."""
    config = AdaptConfig(
        methods=VARIANTS,
        budget="1%",
        seeds=seeds,
        steps=steps,
        batch_size=16,
        max_length=48,
        learning_rates=RATES,
        train_limit=TRAINED,
        eval_limit=TESTED,
        dropout=0.0,
        precision="bf16",
        baseline=False,
        validation_points=8,
    )
    return {"told": {"steps": steps}, **runs_of(Job(config, out, on_event=on_event), leave=("nll",))}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The variants compared, by seed."""
    steps, runs = found["told"]["steps"], {n: found[n] for n in VARIANTS}
    test = {n: by_seed(run, "sentiment:movies") for n, run in runs.items()}
    points = [[t["validation_curve"] for t in run["trials"]] for run in runs.values()]
    steps_at = [s for s, _ in max((c for of in points for c in of), key=len)] or [steps]
    curves = {
        n: np.array([_padded([v for _, v in c], len(steps_at)) for c in of]) for n, of in zip(runs, points, strict=True)
    }
    reach = {n: [_steps_to(c, steps_at, curves["lora"][i, -1]) for i, c in enumerate(curves[n])] for n in curves}
    rows = [
        [
            run["title"],
            rate(run),
            count(cost(run)["trainable_parameters"]),
            plus_minus(test[n]),
            plus_minus(curves[n][:, -1], 1, 3),
            f"{np.mean(reach[n]):.0f}",
        ]
        for n, run in runs.items()
    ]
    return Evidence(
        recipe="eva",
        title="EVA: explained variance adaptation",
        command=f"rankwise bench eva --part text --seeds {seeds} --jobs 2",
        setting=f"MiniLM, movies, rank {runs['lora']['rank']} on average, {steps} steps of 16 examples, "
        f"bfloat16 arithmetic, {seeds} seeds, tests: {tested(runs.values())}; mean ± standard deviation over seeds; "
        f"steps to LoRA's final validation loss (counted as {2 * steps} where it is not reached)",
        header=["variant", "rate", "trained", "test accuracy", "validation loss", "steps to LoRA's end"],
        rows=rows,
        claims=_claims(test, curves, reach, steps),
        environment=environment("bf16", 1),
        extra={
            "steps": steps_at,
            "curves": {n: c.tolist() for n, c in curves.items()},
            "ranks": {n: runs[n]["trials"][0]["ranks"] for n in ("lora", "eva")},
        },
    )


def _padded(curve: list[float], points: int) -> list[float]:
    """NaN where a run that diverged has no loss."""
    return curve + [np.nan] * (points - len(curve))


def _steps_to(curve: np.ndarray, steps_at: list[int], target: float) -> float:
    """Steps until a validation curve first reaches a loss, interpolated; twice the run where it never does; NaN where
    a run diverged."""
    if np.isnan([curve[-1], target]).any():
        return np.nan
    before = (0, np.log(2))
    for step, loss in zip(steps_at, curve, strict=True):
        if loss <= target:
            share = (before[1] - target) / max(before[1] - loss, 1e-9)
            return before[0] + share * (step - before[0])
        before = (step, loss)
    return 2.0 * steps_at[-1]


def _claims(test: dict, curves: dict, reach: dict, steps: int) -> list[Claim]:
    speed = np.mean(reach["eva"]) / np.mean(reach["lora"])
    end = {n: -curves[n][:, -1] for n in ("eva", "eva-bottom")}
    return [
        Claim(
            text="reaches LoRA's final validation loss in fewer steps, on average",
            held=speed < 1,
            found=f"{np.mean(reach['eva']):.0f} against {np.mean(reach['lora']):.0f} of {steps} steps ({speed:.2f}x)",
        ),
        greater("better final test accuracy than LoRA at equal total rank", test["eva"], test["lora"]),
        greater("redistributing ranks helps on top of the start", test["eva"], test["eva-uniform"]),
        greater("the start helps on top of redistributed ranks", test["eva"], test["eva-random"]),
        greater("directions of another domain help less", test["eva"], test["eva-elsewhere"]),
        greater(
            "control: the directions of least variance end with a higher validation loss", end["eva"],
            end["eva-bottom"], control=True, unit="nats", scale=1,
        ),
    ]  # fmt: skip
