"""WeLore's claims: ranks by each matrix's spectrum beat one rank for all, and after compression the factors suffice.

SmolLM2-135M on newspaper editorials. First perplexity at 10 to 50% effective rank reduction, every matrix truncated,
for uniform ranks, outlier-weighed (OWL) ranks, WeLore, and WeLore with calibration. Then WeLore at a given reduction is
fine-tuned: the factors only, the dense matrices only (the control, which must be worse), everything, and LoRA.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from rankwise.bench.evidence import Claim, Evidence, paired
from rankwise.bench.language import TEXT, by_seed, row, settings, trained
from rankwise.bench.owlore import difference
from rankwise.compression import compress
from rankwise.data import documents
from rankwise.files import read_json, whole_folder, write_json
from rankwise.jobs.adapt import OnEvent, environment
from rankwise.jobs.tasks import TextTask, batches
from rankwise.models import load, load_tokenizer

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
WAYS = {"uniform": "uniform", "owl": "OWL", "welore": "WeLore", "calibrated": "WeLore, calibrated"}
TUNED_AT, METHODS = 0.5, ["lrc", "n-lrc", "full", "lora"]


def run(out: Path, *, seeds: int = 3, steps: int = 10, on_event: OnEvent | None = None) -> Evidence:
    """Compress, tune (finished parts are read back), judge the claims."""
    start = time.perf_counter()
    perplexity = compared(out / "perplexity.json", on_event)
    config = settings(TEXT, METHODS, seeds=seeds, steps=steps, model=str(_compressed(out / "model")))
    results, found = trained(out / "tuned", config, on_event)
    before = perplexity["dense"]
    rows = [[title, *[f"{perplexity[way][str(r)]:.4g}" for r in RATIOS], "-", "-"] for way, title in WAYS.items()]
    tuned = [[e["title"], *["-"] * len(RATIOS), *row(e, {TEXT: "loss"})[-2:]] for e in found.values()]
    scores = {n: -by_seed(e, TEXT, "loss") for n, e in found.items()}
    return Evidence(
        recipe="welore",
        title="WeLore: compression by each matrix's own rank",
        command=f"rankwise bench welore --seeds {seeds}",
        setting=f"SmolLM2-135M, {TEXT}; perplexity of {perplexity['texts']} test texts of up to 128 tokens at a given "
        f"share of directions removed, every matrix truncated (dense: {before:.2f}), before training; then WeLore at "
        f"{TUNED_AT:.0%} (matrices that lose more than half of their directions and get smaller) tuned for {steps} "
        f"steps of {config.batch_size} texts, {seeds} seeds, untuned loss {results['zero_shot'][TEXT]['loss']:.3f}",
        header=["what", *[f"{r:.0%}" for r in RATIOS], "memory", "tuned loss"],
        rows=[*rows, *tuned],
        claims=_claims(perplexity, scores),
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
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
                calibrate=_inputs(task, train) if way == "calibrated" else None,
            )
            found[way][str(ratio)] = task.evaluate(model, test)["perplexity"]
            write_json(path, found)
    return found


def _inputs(task: TextTask, examples: list) -> list[dict[str, torch.Tensor]]:
    return [{k: v for k, v in b.items() if k != "labels"} for b in batches(task, examples, 8)]


def _compressed(folder: Path) -> Path:
    """SmolLM2 after WeLore, as a folder, written once."""
    if not folder.is_dir():
        model = load("smollm2")
        compress(model, ratio=TUNED_AT)
        with whole_folder(folder) as draft:
            model.save_pretrained(draft)
            load_tokenizer("smollm2").save_pretrained(draft)
    return folder


def _claims(perplexity: dict, scores: dict[str, np.ndarray]) -> list[Claim]:
    def against(way: str) -> list[float]:
        return [perplexity[way][str(r)] / perplexity["welore"][str(r)] for r in RATIOS]

    shown = {way: ", ".join(f"{x:.2f}" for x in against(way)) for way in ("uniform", "owl")}
    calibrated = [1 / x for x in against("calibrated")]
    frozen, everything = paired(scores["lrc"], scores["n-lrc"]), paired(scores["lrc"], scores["full"])
    lora = paired(scores["lrc"], scores["lora"])
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
        Claim(
            text="tuning the factors only is as good as tuning everything (within the standard error)",
            held=everything.mean >= -everything.error,
            found=difference(everything, "loss"),
        ),
        Claim(
            text="tuning the factors is at least as good as LoRA on the compressed model",
            held=lora.mean >= -lora.error,
            found=difference(lora, "loss"),
        ),
        Claim(
            text="control: tuning the dense matrices only is worse than tuning the factors only",
            control=True,
            held=frozen.mean > 0 and frozen.p_value <= 0.125,
            found=difference(frozen, "loss"),
        ),
    ]
