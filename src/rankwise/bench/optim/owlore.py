"""OwLore's claims: as good as full fine-tuning in a fraction of its memory, and outliers say which layers to train.

SmolLM2-135M learns to continue newspaper editorials (`owlore`), and to name the sentiment of movie snippets
(`owlore_label`), by full AdamW, GaLore, LISA (uniform draws, whole gradients), OwLore and LoRA, on equal tokens in
equal order. Validation on the first seed picks each learning rate, and OwLore's factor of a projected step with it; at
both, outlier-weighed draws of blocks are set against uniform and reversed ones, all else equal. Control: reversed ones
must be worse. Layers' outlier scores are set beside the heavy-tail index of their spectra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from rankwise.bench import Recipe
from rankwise.bench.shared.adapted import UNTRAINED, cost
from rankwise.bench.shared.evidence import SEEN, Claim, Evidence, Paired, greater, paired
from rankwise.bench.shared.language import BLOCKS, LABEL, TEXT, by_seed, first_blocks, row, settings, trained
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.jobs.items import metrics
from rankwise.models import blocks, linear_layers, load
from rankwise.models.outliers import outlier_scores
from rankwise.optim import sampling_probabilities
from rankwise.spectral import hill_index, singular_values

RECIPE = Recipe(
    name="owlore",
    part="text",
    about="OwLore against full AdamW, GaLore, LISA and LoRA on SmolLM2: editorials",
    spreads=True,
    smoke={
        "seeds": 1, "BLOCKS": 3, "TESTED": 2, "STEPS": 1, "SCALES": (4.0,),
        "RATES": {"full": [1e-4], "galore": [4e-4], "lisa": [4e-4], "owlore": [4e-4], "lora": [1e-3]},
    },
)  # fmt: skip

TESTED = 60  # texts
STEPS = 75
DRAWS = 3  # of blocks, in a run
SCALES = (1.0, 4.0, 8.0)  # of a projected step: at rank d/16, 4 makes it about as long as a whole one
RATES = {
    "full": [3e-5, 1e-4, 3e-4], "galore": [1e-4, 4e-4, 1e-3], "lisa": [1e-4, 4e-4, 1e-3], "owlore": [1e-4, 4e-4, 1e-3],
    "lora": [4e-4, 1e-3, 3e-3],
}  # fmt: skip
OURS, UNIFORM, REVERSED = "owlore", "owlore-uniform", "owlore-reverse"
OTHERS = ["full", "galore", "lisa", "lora"]
UNIT = {"loss": {"unit": "nats a token", "scale": 1}, "accuracy": {}}  # of a difference


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Train all variants on editorials: what every test text got, and the statistics of the model's blocks."""
    model = first_blocks(out / "model", BLOCKS)
    asked = {"model": model, "steps": STEPS, "scales": SCALES, "rates": RATES, "tested": TESTED}
    return compared(out, TEXT, seeds=seeds, on_event=on_event, **asked) | {"layers": layer_statistics(model)}


def compared(
    out: Path,
    data: str,
    *,
    model: str,
    steps: int,
    scales: tuple[float, ...],
    rates: Mapping[str, list[float]],
    tested: int,
    seeds: int,
    on_event: OnEvent | None,
) -> Runs:
    """OwLore at every scale on the first seed, its three ways to draw at the best, and the others.

    Finished trials are read back.
    """
    interval = max(1, steps // DRAWS)

    def job(name: str, grid: Mapping[str, list[float]], seeds: int, scale: float | None = None) -> Runs:
        config = settings(data, [*grid], seeds=seeds, steps=steps, tested=tested, model=model)
        changed = {"learning_rates": {**grid}, "scale": scale, "interval": interval}
        return trained(out / name, config.model_copy(update=changed), on_event)

    tried = {f"{scale:g}": job(f"scale-{scale:g}", {OURS: rates[OURS]}, 1, scale)[OURS] for scale in scales}
    scale, rate = best(tried)
    drawn = job("draws", {name: [rate] for name in (OURS, UNIFORM, REVERSED)}, seeds, float(scale))
    others = job("others", {name: rates[name] for name in OTHERS}, seeds)
    config = settings(data, [OURS], seeds=seeds, steps=steps, tested=tested, model=model)
    told = {
        "data": data, "steps": steps, "batch": config.batch_size, "tokens": config.max_length, "interval": interval,
        "gap": config.update_gap, "scale": scale, "rate": rate,
    }  # fmt: skip
    return {"told": told, "tried": tried, **others, **drawn}


def best(tried: Mapping[str, Any]) -> tuple[str, float]:
    """The scale and learning rate of the highest score on validation; the first where all diverged."""
    grid = {
        (scale, point["learning_rate"]): point["score"] if point["status"] == "done" else -math.inf
        for scale, run in tried.items()
        for point in run["grid"]
    }
    return max(grid, key=lambda at: grid[at])


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The methods and the draws compared, by seed."""
    told = found["told"]
    data, metric = told["data"], "accuracy" if told["data"] == LABEL else "loss"
    label, sign, layers = metric == "accuracy", 1 if metric == "accuracy" else -1, found.get("layers", {})
    scores = {n: sign * by_seed(found[n], data, metric) for n in (*OTHERS, OURS, UNIFORM, REVERSED)}
    items = found[UNTRAINED][data]
    untrained = metrics(items)[metric]
    shown = f"{100 * untrained:.1f}" if label else f"{untrained:.3f}"
    return Evidence(
        recipe="owlore_label" if label else "owlore",
        title="OwLore: " + ("sentiment as text-to-label" if label else "language modelling"),
        command=f"rankwise bench owlore --part {'label' if label else 'text'} --seeds {seeds} --jobs 2",
        setting=f"SmolLM2-135M-Instruct, {data}, {told['steps']} steps of {told['batch']} texts of up to "
        f"{told['tokens']} tokens, blocks drawn every {told['interval']} steps, bases every {told['gap']}, bfloat16 "
        f"arithmetic; OwLore's scale {told['scale']} of {', '.join(found['tried'])} and rate {told['rate']:g} chosen "
        "on the first seed's validation; "
        f"{seeds} seeds, {len(next(iter(items.values())))} test texts; untrained {metric} {shown}; mean ± deviation; "
        "memory: above the loaded model",
        header=["method", "rate", "trained", "memory", "test accuracy" if label else "test loss"],
        rows=[row(found[n], {data: metric}) for n in scores],
        claims=[*_claims(scores, sign * untrained, metric, memory(found)), *_tails(layers)],
        environment=environment("bf16", 1),
        extra={"layers": layers, "tried": {s: run["grid"] for s, run in found["tried"].items()}},
    )


def memory(found: Runs) -> float:
    """OwLore's peak above the loaded model, over full AdamW's."""
    return cost(found[OURS])["peak_memory_bytes"] / cost(found["full"])["peak_memory_bytes"]


def difference(d: Paired, metric: str) -> str:
    """A paired difference in the metric's own unit; positive is better."""
    if metric == "accuracy" or math.isnan(d.mean):
        return str(d)
    return f"loss lower by {d.mean:.4f}±{d.error:.4f}, p={d.p_value:.2g}, sees {SEEN * d.error:.4f}"


def _claims(scores: dict[str, np.ndarray], untrained: float, metric: str, memory: float) -> list[Claim]:
    """``scores``: higher is better."""
    full = paired(scores[OURS], scores["full"])
    gained = {n: float(s.mean()) - untrained for n, s in scores.items()}
    unit = 100 if metric == "accuracy" else 1

    def better(text: str, than: str, *, control: bool = False) -> Claim:
        return greater(text, scores[OURS], scores[than], control=control, **UNIT[metric])

    return [
        Claim(
            text="every method improves on the untrained model",
            held=all(g > 0 for g in gained.values()),
            found="; ".join(f"{n} {unit * g:+.3g}" for n, g in gained.items()),
        ),
        Claim(
            text="OwLore at least as good as full fine-tuning (within the standard error of the difference)",
            held=full.mean >= -full.error,
            found=f"{difference(full, metric)}; with {memory:.2f}x its memory above the loaded model",
            paper="up to +1.1 points on average, LLaMA-2-7B and others on commonsense reasoning",
        ),
        better("OwLore better than LISA", "lisa"),
        better("outlier-weighed draws better than uniform ones, all else equal", UNIFORM),
        better("control: reversed draws are worse, all else equal", REVERSED, control=True),
    ]


@torch.no_grad()
def layer_statistics(name: str) -> dict[str, list[float]]:
    """Of every block of a model: outlier score, heavy-tail index (mean of its matrices), sampling probability."""
    model = load(name, task="causal-lm")
    stack, layers = blocks(model)
    scores = outlier_scores(model)
    tails = [
        float(np.mean([float(hill_index(singular_values(m.weight).square())) for n, m in linear_layers(model).items()
                       if n.startswith(f"{stack}.{i}.")]))
        for i in range(len(layers))
    ]  # fmt: skip
    return {
        "outliers": scores.tolist(),
        "hill_alpha": tails,
        "probability": sampling_probabilities("owl", layers, scores).tolist(),
    }


def _tails(layers: Mapping[str, list[float]]) -> list[Claim]:
    if not layers:
        return []
    found: Any = spearmanr(layers["outliers"], layers["hill_alpha"])
    rho, p = float(found.statistic), float(found.pvalue)
    return [
        Claim(
            text="blocks with more outliers have heavier tails (Spearman correlation with the tail index below -0.3, "
            "p < 0.05)",
            held=rho < -0.3 and p < 0.05,
            found=f"rho={rho:.2f}, p={p:.3f}, {len(layers['outliers'])} blocks",
        )
    ]
