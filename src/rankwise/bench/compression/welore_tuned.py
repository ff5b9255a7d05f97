"""WeLore's second claim: after compression, tuning the factors is enough.

SmolLM2-135M compressed by WeLore with calibration (without it, this small model is ruined) and tuned on newspaper
editorials: the factors only, everything, LoRA. Control: the dense matrices only, which must be worse.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim.owlore import difference
from rankwise.bench.shared.adapted import UNTRAINED
from rankwise.bench.shared.evidence import Claim, Evidence, paired
from rankwise.bench.shared.language import (
    BLOCKS,
    LOW_MEMORY_RATES,
    TEXT,
    by_seed,
    first_blocks,
    keep,
    row,
    settings,
    trained,
)
from rankwise.bench.shared.measured import Runs
from rankwise.compression import compress
from rankwise.data import documents
from rankwise.events import OnEvent, environment
from rankwise.jobs.compress import inputs
from rankwise.jobs.items import metrics
from rankwise.jobs.tasks import TextTask
from rankwise.models import load, load_tokenizer

RECIPE = Recipe(
    name="welore",
    part="tuned",
    about="WeLore on SmolLM2: the compressed model's factors tuned",
    spreads=True,
    smoke={"seeds": 1, "steps": 1, "BLOCKS": 2, "TESTED": 2, "CALIBRATED": 2},
)

TESTED, CALIBRATED = 60, 64  # texts
REDUCTION, METHODS = 0.5, ["lrc", "n-lrc", "full", "lora"]


def measure(out: Path, *, seeds: int = 5, steps: int = 20, on_event: OnEvent | None = None) -> Runs:
    """Compress once, tune (finished runs are read back): what every test text got."""
    config = settings(
        TEXT,
        METHODS,
        seeds=seeds,
        steps=steps,
        tested=TESTED,
        model=str(_compressed(out / "model", first_blocks(out / "dense", BLOCKS))),
    )
    rates = {m: [*LOW_MEMORY_RATES] for m in METHODS if m != "lora"}  # one grid for whatever trains dense or factored
    config = config.model_copy(update={"learning_rates": config.learning_rates | rates})
    told = {"steps": steps, "batch": config.batch_size, "tokens": config.max_length}
    return {"told": told, **trained(out / "tuned", config, on_event)}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """What trains compared, by seed."""
    told = found["told"]
    scores = {n: -by_seed(found[n], TEXT, "loss") for n in METHODS}
    against = {n: paired(scores["lrc"], scores[n]) for n in METHODS if n != "lrc"}
    return Evidence(
        recipe="welore_tuned",
        title="WeLore: tuning the compressed model",
        command=f"rankwise bench welore --part tuned --seeds {seeds} --jobs 2",
        setting=f"SmolLM2-135M-Instruct after calibrated WeLore at {REDUCTION:.0%} (of what loses more than half of "
        f"its directions and gets smaller), {TEXT}, {told['steps']} steps of {told['batch']} texts of up to "
        f"{told['tokens']} tokens, {seeds} seeds, untuned loss {metrics(found[UNTRAINED][TEXT])['loss']:.3f}; "
        "mean ± standard deviation",
        header=["what trains", "rate", "trained", "memory", "test loss"],
        rows=[row(found[n], {TEXT: "loss"}) for n in METHODS],
        claims=[
            Claim(
                text="tuning the factors only is as good as tuning everything (within the standard error)",
                held=against["full"].mean >= -against["full"].error,
                found=difference(against["full"], "loss"),
                paper="can beat full tuning, at 3x its throughput and 0.6x its memory (LLaMA-2-7B, half the size)",
            ),
            Claim(
                text="tuning the factors is at least as good as LoRA on the compressed model (within the standard "
                "error)",
                held=against["lora"].mean >= -against["lora"].error,
                found=difference(against["lora"], "loss"),
            ),
            Claim(
                text="control: tuning the dense matrices only is worse than tuning the factors only (p ≤ 0.05)",
                control=True,
                held=against["n-lrc"].clear(),
                found=difference(against["n-lrc"], "loss"),
            ),
        ],
        environment=environment("bf16", 1),
    )


def _compressed(folder: Path, name: str) -> Path:
    """The named model after WeLore, as a folder, written once."""
    if not folder.is_dir():
        model, tokenizer = load(name, task="causal-lm"), load_tokenizer("smollm2")
        task = TextTask(kind="causal-lm", tokenizer=tokenizer, max_length=128)
        train = task.encode(documents("nyt").split().train.head(CALIBRATED))
        compress(model, ratio=REDUCTION, method="welore", calibrate=inputs(task, train))
        keep(model, folder)
    return folder
