"""WeLore's second claim: after compression, tuning the factors is enough.

SmolLM2-135M compressed by WeLore with calibration (without it, this small model is ruined) and tuned on newspaper
editorials: the factors only, everything, LoRA. Control: the dense matrices only, which must be worse.
"""

from __future__ import annotations

import time
from pathlib import Path

from rankwise.bench import Recipe
from rankwise.bench.optim.owlore import difference
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
from rankwise.compression import compress
from rankwise.data import documents
from rankwise.events import OnEvent, environment
from rankwise.jobs.compress import inputs
from rankwise.jobs.tasks import TextTask
from rankwise.models import load, load_tokenizer

RECIPE = Recipe(
    name="welore",
    part="tuned",
    about="WeLore on SmolLM2: the compressed model's factors tuned",
    remark="Recorded before energy was the default measure of compression; to be measured again.",
    spreads=True,
    smoke={"seeds": 1, "steps": 1, "BLOCKS": 2, "TESTED": 2, "CALIBRATED": 2},
)

TESTED, CALIBRATED = 60, 64  # texts
REDUCTION, METHODS = 0.5, ["lrc", "n-lrc", "full", "lora"]


def run(out: Path, *, seeds: int = 3, steps: int = 20, on_event: OnEvent | None = None) -> Evidence:
    """Compress once, tune (finished runs are read back), judge the claims."""
    start = time.perf_counter()
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
    results, found = trained(out / "tuned", config, on_event)
    scores = {n: -by_seed(e, TEXT, "loss") for n, e in found.items()}
    against = {n: paired(scores["lrc"], scores[n]) for n in METHODS if n != "lrc"}
    return Evidence(
        recipe="welore_tuned",
        title="WeLore: tuning the compressed model",
        command=f"rankwise bench welore --part tuned --seeds {seeds}",
        setting=f"SmolLM2-135M after calibrated WeLore at {REDUCTION:.0%} (of what loses more than half of its "
        f"directions and gets smaller), {TEXT}, {steps} steps of {config.batch_size} texts of up to "
        f"{config.max_length} tokens, {seeds} seeds, untuned loss {results['zero_shot'][TEXT]['loss']:.3f}; "
        "mean ± standard deviation",
        header=["what trains", "rate", "trained", "memory", "test loss"],
        rows=[row(e, {TEXT: "loss"}) for e in found.values()],
        claims=[
            Claim(
                text="tuning the factors only is as good as tuning everything (within the standard error)",
                held=against["full"].mean >= -against["full"].error,
                found=difference(against["full"], "loss"),
            ),
            Claim(
                text="tuning the factors is at least as good as LoRA on the compressed model",
                held=against["lora"].mean >= -against["lora"].error,
                found=difference(against["lora"], "loss"),
            ),
            Claim(
                text="control: tuning the dense matrices only is worse than tuning the factors only",
                control=True,
                held=against["n-lrc"].mean > 0 and against["n-lrc"].p_value <= 0.125,
                found=difference(against["n-lrc"], "loss"),
            ),
        ],
        seconds=time.perf_counter() - start,
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
