"""OwLore's claims: as good as full fine-tuning in a fraction of its memory, and outliers say which layers to train.

SmolLM2-135M learns to continue newspaper editorials (`owlore`), and to name the sentiment of movie snippets
(`owlore_label`), by full AdamW, GaLore, LISA (uniform draws, whole gradients), OwLore, LoRA, and controls: OwLore with
uniform draws and with reversed probabilities, which must be worse. Equal tokens in equal order; validation picks each
learning rate on the first seed. Layers' outlier scores are set beside the heavy-tail index of their spectra.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, Paired, paired
from rankwise.bench.shared.language import BLOCKS, LABEL, TEXT, by_seed, first_blocks, row, settings, trained
from rankwise.events import OnEvent, environment
from rankwise.models import blocks, linear_layers, load
from rankwise.models.outliers import outlier_scores
from rankwise.optim import sampling_probabilities
from rankwise.spectral import hill_index, singular_values

RECIPE = Recipe(
    name="owlore",
    part="text",
    about="OwLore against full AdamW, GaLore, LISA and LoRA on SmolLM2: editorials",
    remark="Recorded before OwLore's projected steps were as long as full ones by default; to be measured again.",
    spreads=True,
    smoke={"seeds": 1, "steps": 1, "BLOCKS": 3, "TESTED": 2},
)

TESTED = 60  # texts
METHODS = ["full", "galore", "lisa", "owlore", "owlore-uniform", "owlore-reverse", "lora"]


def run(
    out: Path,
    *,
    seeds: int = 3,
    steps: int = 30,
    on_event: OnEvent | None = None,
    data: str = TEXT,
    name: str = "owlore",
    sizes: tuple[int, int] | None = None,
) -> Evidence:
    """Train all variants (finished ones are read back), judge the claims; ``sizes``: blocks and test texts."""
    start = time.perf_counter()
    count, tested = sizes or (BLOCKS, TESTED)
    model = first_blocks(out / "model", count)
    config = settings(data, METHODS, seeds=seeds, steps=steps, tested=tested, model=model)
    results, found = trained(out / "tuned", config, on_event)
    metric = "accuracy" if data == LABEL else "loss"
    scores = {n: by_seed(e, data, metric) * (1 if metric == "accuracy" else -1) for n, e in found.items()}
    untrained = results["zero_shot"][data][metric]
    layers = layer_statistics(model) if data == TEXT else {}
    shown = f"{100 * untrained:.1f}" if metric == "accuracy" else f"{untrained:.3f}"
    return Evidence(
        recipe=name,
        title="OwLore: " + ("sentiment as text-to-label" if data == LABEL else "language modelling"),
        command=f"rankwise bench owlore --part {'label' if data == LABEL else 'text'} --seeds {seeds}",
        setting=f"SmolLM2-135M, {data}, {steps} steps of {config.batch_size} texts of up to {config.max_length} "
        f"tokens, blocks drawn every {config.interval} steps, bases every {config.update_gap}, bfloat16 arithmetic, "
        f"{seeds} seeds, {results['examples'][data]} test texts; untrained {metric} {shown}; mean ± deviation; "
        "memory: above the loaded model",
        header=["method", "rate", "trained", "memory", "test accuracy" if metric == "accuracy" else "test loss"],
        rows=[row(e, {data: metric}) for e in found.values()],
        claims=[*_claims(scores, untrained if metric == "accuracy" else -untrained, found, metric), *_tails(layers)],
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
        extra={"layers": layers},
    )


def difference(d: Paired, metric: str) -> str:
    """A paired difference in the metric's own unit; positive is better."""
    return str(d) if metric == "accuracy" else f"loss lower by {d.mean:.4f}±{d.error:.4f}, p={d.p_value:.2g}"


def _claims(scores: dict[str, np.ndarray], untrained: float, found: dict, metric: str) -> list[Claim]:
    """``scores``: higher is better."""
    against = {n: paired(scores["owlore"], scores[n]) for n in scores if n != "owlore"}
    gained = {n: float(s.mean()) - untrained for n, s in scores.items()}
    unit = 100 if metric == "accuracy" else 1
    memory = found["owlore"]["cost"]["peak_memory_bytes"] / found["full"]["cost"]["peak_memory_bytes"]
    return [
        Claim(
            text="every method improves on the untrained model",
            held=min(gained.values()) > 0,
            found="; ".join(f"{n} {unit * g:+.3g}" for n, g in gained.items()),
        ),
        Claim(
            text="OwLore at least as good as full fine-tuning (within the standard error of the difference)",
            held=against["full"].mean >= -against["full"].error,
            found=f"{difference(against['full'], metric)}; with {memory:.2f}x its memory above the loaded model",
        ),
        Claim(
            text="OwLore better than LISA",
            held=against["lisa"].mean > 0 and against["lisa"].p_value <= 0.125,
            found=difference(against["lisa"], metric),
        ),
        Claim(
            text="outlier-weighed draws better than uniform ones, all else equal",
            held=against["owlore-uniform"].mean > 0 and against["owlore-uniform"].p_value <= 0.125,
            found=difference(against["owlore-uniform"], metric),
        ),
        Claim(
            text="control: reversed draws are worse",
            control=True,
            held=against["owlore-reverse"].mean > 0 and against["owlore-reverse"].p_value <= 0.125,
            found=difference(against["owlore-reverse"], metric),
        ),
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


def _tails(layers: dict[str, list[float]]) -> list[Claim]:
    if not layers:
        return []
    found: Any = spearmanr(layers["outliers"], layers["hill_alpha"])
    rho, p = float(found.statistic), float(found.pvalue)
    return [
        Claim(
            text="blocks with more outliers have heavier tails (Spearman correlation with the tail index below -0.3)",
            held=rho < -0.3 and p < 0.05,
            found=f"rho={rho:.2f}, p={p:.3f}, {len(layers['outliers'])} blocks",
        )
    ]
