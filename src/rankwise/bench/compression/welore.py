"""WeLore's first claim: ranks by each matrix's spectrum beat one rank for all.

SmolLM2-135M on newspaper editorials: perplexity at 10 to 50% effective rank reduction, every matrix truncated, for
uniform ranks, outlier-weighed (OWL) ranks, WeLore as in the paper, and one threshold on σ/σ₁ or on energy instead of
WeLore's normalisation; nothing is trained. With calibration, uniform ranks are the control that tells what the ranks
contribute from what the calibrated factors do. `rankwise.bench.compression.welore_tuned` goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.language import BLOCKS, TEXT, first_blocks
from rankwise.bench.shared.measured import Runs
from rankwise.compression import compress
from rankwise.data import documents
from rankwise.events import OnEvent, environment
from rankwise.files import write_json
from rankwise.jobs.compress import inputs
from rankwise.jobs.items import metrics
from rankwise.jobs.tasks import TextTask
from rankwise.models import load, load_tokenizer
from rankwise.reading import read_json

RECIPE = Recipe(
    name="welore",
    part="perplexity",
    about="WeLore on SmolLM2: perplexity of ways to measure and to share ranks, calibrated or not",
    smoke={"RATIOS": (0.5,), "BLOCKS": 2, "TESTED": 2, "CALIBRATED": 2},
)

TESTED, CALIBRATED = 40, 64  # texts
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
WAYS = {
    "uniform": "uniform",
    "owl": "OWL",
    "welore": "WeLore",
    "top": "threshold on σ/σ₁",
    "energy": "threshold on energy",
    "uniform-calibrated": "uniform, calibrated",
    "welore-calibrated": "WeLore, calibrated",
    "energy-calibrated": "energy, calibrated",
}


def measure(out: Path, *, on_event: OnEvent | None = None) -> Runs:
    """Compress and measure (what is there is read back): of every text its loss; nothing is random."""
    return compared(out / "losses.json", first_blocks(out / "model", BLOCKS), on_event)


def judge(found: Runs) -> Evidence:
    """Perplexities of all ways compared."""
    perplexity = {way: {r: of(found, losses) for r, losses in found[way].items()} for way in WAYS}
    return Evidence(
        recipe="welore",
        title="WeLore: compression by each matrix's own rank",
        command="rankwise bench welore --part perplexity",
        setting=f"SmolLM2-135M-Instruct, {TEXT}; perplexity of {len(found['tokens'])} test texts of up to 128 tokens "
        f"at a given share of directions removed, every matrix truncated (dense: {of(found, found['dense']):.2f}); "
        "nothing is trained",
        header=["ranks", *[f"{r:.0%}" for r in RATIOS]],
        rows=[[title, *[f"{perplexity[way][str(r)]:.4g}" for r in RATIOS]] for way, title in WAYS.items()],
        claims=_claims(perplexity),
        environment=environment("fp32", 1),
        extra={"perplexity": perplexity},
    )


def of(found: Runs, losses: Sequence[float]) -> float:
    """Perplexity a token of texts with these losses; one that is no number is infinite."""
    return metrics({"nll": np.nan_to_num(losses, nan=np.inf).tolist(), "tokens": found["tokens"]})["perplexity"]


def compared(path: Path, name: str, on_event: OnEvent | None = None) -> Runs:
    """The test texts' tokens, and their losses by the named model dense, by way and ratio."""
    found = read_json(path) if path.exists() else {}
    splits, tokenizer = documents("nyt").split(), load_tokenizer("smollm2")
    task = TextTask(kind="causal-lm", tokenizer=tokenizer, max_length=128)
    test, train = task.encode(splits.test.head(TESTED)), task.encode(splits.train.head(CALIBRATED))
    if "dense" not in found:
        items = task.items(load(name, task="causal-lm"), test)
        found |= {"tokens": items["tokens"], "dense": items["nll"]}
    for way in WAYS:
        for ratio in RATIOS:
            if str(ratio) in found.setdefault(way, {}):
                continue
            if on_event is not None:
                on_event(f"{way} {ratio:.0%}", "compress", 0, 1, float("nan"))
            model, (method, _, calibrated) = load(name, task="causal-lm"), way.partition("-")
            compress(
                model,
                ratio=ratio,
                method=method,
                min_ratio=0.0,
                only_if_smaller=False,
                calibrate=inputs(task, train) if calibrated else None,
            )
            found[way][str(ratio)] = task.items(model, test)["nll"]
            write_json(path, found)
    return found


def _claims(perplexity: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    shown = ", ".join(f"{r:.0%}" for r in RATIOS)

    def lower(better: str, worse: str, text: str, *, control: bool = False) -> Claim:
        """Whether one way has the lower perplexity at every reduction."""
        times = [perplexity[worse][str(r)] / perplexity[better][str(r)] for r in RATIOS]
        found = f"{WAYS[worse]}: {', '.join(f'{x:.2f}' for x in times)} times that of {WAYS[better]} at {shown}"
        return Claim(text=f"{text} at every reduction", held=all(x > 1 for x in times), found=found, control=control)

    return [
        lower("welore", "uniform", "WeLore: lower perplexity than uniform ranks"),
        lower("welore", "owl", "WeLore: lower perplexity than OWL ranks"),
        lower("welore-calibrated", "welore", "calibration lowers WeLore's perplexity"),
        lower("energy", "welore", "a threshold on energy: lower perplexity than WeLore's"),
        lower("energy-calibrated", "welore-calibrated", "the same with calibration"),
        lower(
            "welore-calibrated",
            "uniform-calibrated",
            "control: calibrated, uniform ranks are worse than WeLore's",
            control=True,
        ),
    ]
