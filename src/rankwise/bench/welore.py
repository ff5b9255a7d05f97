"""WeLore's first claim: ranks by each matrix's spectrum beat one rank for all.

SmolLM2-135M on newspaper editorials: perplexity at 10 to 50% effective rank reduction, every matrix truncated, for
uniform ranks, outlier-weighed (OWL) ranks, WeLore, and WeLore with calibration; nothing is trained.
`rankwise.bench.welore_tuned` goes on from there.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from rankwise.bench.evidence import Claim, Evidence
from rankwise.bench.language import TEXT
from rankwise.compression import compress
from rankwise.data import documents
from rankwise.files import write_json
from rankwise.jobs.adapt import OnEvent, environment
from rankwise.jobs.tasks import TextTask, batches
from rankwise.models import load, load_tokenizer
from rankwise.reading import read_json

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
WAYS = {"uniform": "uniform", "owl": "OWL", "welore": "WeLore", "calibrated": "WeLore, calibrated"}


def run(out: Path, *, seeds: int = 1, on_event: OnEvent | None = None) -> Evidence:
    """Compress and measure (what is there is read back), judge the claims; ``seeds`` is unused: nothing is random."""
    start = time.perf_counter()
    perplexity = compared(out / "perplexity.json", on_event)
    return Evidence(
        recipe="welore",
        title="WeLore: compression by each matrix's own rank",
        command="rankwise bench welore --part perplexity",
        setting=f"SmolLM2-135M, {TEXT}; perplexity of {perplexity['texts']} test texts of up to 128 tokens at a given "
        f"share of directions removed, every matrix truncated (dense: {perplexity['dense']:.2f}); nothing is trained",
        header=["ranks", *[f"{r:.0%}" for r in RATIOS]],
        rows=[[title, *[f"{perplexity[way][str(r)]:.4g}" for r in RATIOS]] for way, title in WAYS.items()],
        claims=_claims(perplexity),
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
        extra={"perplexity": perplexity},
    )


def compared(path: Path, on_event: OnEvent | None = None) -> dict:
    """Perplexity by way and ratio; what is in ``path`` already is read back."""
    found = read_json(path) if path.exists() else {}
    splits, tokenizer = documents("nyt").split(), load_tokenizer("smollm2")
    task = TextTask(kind="causal-lm", tokenizer=tokenizer, max_length=128)
    test, train = task.encode(splits.test.head(40)), task.encode(splits.train.head(64))
    found["texts"] = len(test)
    if "dense" not in found:
        found["dense"] = task.evaluate(load("smollm2"), test)["perplexity"]
    for way in WAYS:
        for ratio in RATIOS:
            if str(ratio) in found.setdefault(way, {}):
                continue
            if on_event is not None:
                on_event(f"{way} {ratio:.0%}", "compress", 0, 1, float("nan"))
            model = load("smollm2")
            compress(
                model,
                ratio=ratio,
                method=way if way != "calibrated" else "welore",
                min_ratio=0.0,
                only_if_smaller=False,
                calibrate=inputs(task, train) if way == "calibrated" else None,
            )
            found[way][str(ratio)] = task.evaluate(model, test)["perplexity"]
            write_json(path, found)
    return found


def inputs(task: TextTask, examples: list) -> list[dict[str, torch.Tensor]]:
    """Batches of eight for calibration."""
    return [{k: v for k, v in b.items() if k != "labels"} for b in batches(task, examples, 8)]


def _claims(perplexity: dict) -> list[Claim]:
    def against(way: str) -> list[float]:
        return [perplexity[way][str(r)] / perplexity["welore"][str(r)] for r in RATIOS]

    shown = {way: ", ".join(f"{x:.2f}" for x in against(way)) for way in ("uniform", "owl")}
    calibrated = [1 / x for x in against("calibrated")]
    return [
        *[
            Claim(
                text=f"lower perplexity than {WAYS[way]} ranks at every reduction",
                held=min(against(way)) > 1,
                found=f"{shown[way]} times WeLore's at {', '.join(f'{r:.0%}' for r in RATIOS)}",
            )
            for way in ("uniform", "owl")
        ],
        Claim(
            text="calibration lowers WeLore's perplexity at every reduction",
            held=min(calibrated) > 1,
            found=f"WeLore's is {', '.join(f'{x:.2f}' for x in calibrated)} times the calibrated one's",
        ),
    ]
