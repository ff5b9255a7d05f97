"""LAMA's claims: as accurate as structured self-attention and a Transformer layer with fewer attention parameters.

Sentiment of movie snippets (polarity), with tweets, Amazon reviews and editorials as further tests; all models start
from MiniLM's word embeddings and train everything. Baselines: structured self-attention (Lin et al., 2017), a
Transformer encoder layer (``nn.MultiheadAttention``), mean and max pooling over the same GRU. Control: frozen random P
and Q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.adapted import by_seed, rate, runs_of, tested
from rankwise.bench.shared.evidence import Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.compression.lama import LamaClassifier, head_distance
from rankwise.events import OnEvent, environment
from rankwise.jobs.adapt import AdaptConfig, Job, load_adapted
from rankwise.jobs.lama import build_lama
from rankwise.jobs.tasks import batches
from rankwise.reading import read_json
from rankwise.report.tables import count

RECIPE = Recipe(
    name="lama",
    part="text",
    about="LAMA against other poolings and a Transformer layer on sentiment",
    spreads=True,
    smoke={"seeds": 1, "steps": 2, "TESTED": 20},
)

VARIANTS = {
    "lama": "LAMA",
    "lama-mean-context": "LAMA, query = mean",
    "lama-transformer": "LAMA on a Transformer layer",
    "lama-frozen": "LAMA, P and Q frozen",
    "gru-structured": "structured self-attention",
    "gru-mean": "GRU, mean",
    "gru-max": "GRU, max",
    "transformer-mean": "Transformer layer, mean",
}
TESTED = 500  # snippets a domain, at most
LOOKED_AT = 200  # snippets, for the distance between heads
MOVIES = "sentiment:movies"
TESTS = ["sentiment:tweets", "sentiment:amazon", "sentiment:nyt"]


def measure(out: Path, *, seeds: int = 5, steps: int = 150, on_event: OnEvent | None = None) -> Runs:
    """Train all variants (finished ones are read back): what each says of every snippet, and what LAMA looks at."""
    found: Runs = {}
    for name in VARIANTS:
        job = Job(_settings(name, seeds, steps), out / name, on_event=on_event)
        run = runs_of(job, leave=["nll"])["full"]
        seconds = read_json(job.out / "results.json")["methods"][0].get("seconds", {}).get("mean")
        found[name] = {**run, "seconds": seconds, "attention": attention_parameters(build_lama(name, num_labels=2))}
        if name == "lama":
            found["apart"] = _heads_apart(job) if run["learning_rate"] else [math.nan]
    return {"steps": steps, **found}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The variants compared, paired by seed."""
    scores, rows = {}, []
    for name, title in VARIANTS.items():
        run = found[name]
        scores[name] = by_seed(run, MOVIES)
        outside = np.mean([by_seed(run, d) for d in TESTS], axis=0)
        cells = [plus_minus(scores[name]), plus_minus(outside), f"{run['seconds']:.0f}s" if run["seconds"] else "-"]
        rows.append([title, rate(run), count(run["attention"]) if run["attention"] else "-", *cells])
    return Evidence(
        recipe="lama",
        title="LAMA: low-rank factorised attention",
        command=f"rankwise bench lama --seeds {seeds}",
        setting=f"movie polarity, MiniLM's word embeddings, 16 heads, {found['steps']} steps of 32 snippets, {seeds} "
        f"seeds, tests: {tested(found[n] for n in VARIANTS)}; accuracy in per cent, mean ± standard deviation",
        header=["model", "rate", "attention", "movies", "out of domain", "time"],
        rows=rows,
        claims=_claims(scores, float(np.mean(found["apart"]))),
        environment=environment("fp32", 1),
    )


def _settings(name: str, seeds: int, steps: int) -> AdaptConfig:
    return AdaptConfig(
        model=name,
        methods=["full"],
        eval=TESTS,
        seeds=seeds,
        steps=steps,
        batch_size=32,
        max_length=48,
        eval_limit=TESTED,
        precision="fp32",
        baseline=False,
        learning_rates={"full": [1e-3, 3e-3]},
    )


def attention_parameters(model: LamaClassifier) -> int:
    """Parameters of what decides where to look."""
    if model.pool is not None:
        return sum(p.numel() for p in model.pool.parameters())
    if isinstance(model.encoder, torch.nn.TransformerEncoderLayer):
        return sum(p.numel() for p in model.encoder.self_attn.parameters())
    return 0


@torch.no_grad()
def _heads_apart(job: Job) -> list[float]:
    """Of test snippets, the mean Jensen-Shannon distance between the heads of a trained LAMA."""
    model = load_adapted(job.ready.fresh_model(), job.out / "adapters" / "full").eval()
    distances = []
    for batch in batches(job.ready.task, job.ready.examples[MOVIES][:LOOKED_AT], 32):
        batch.pop("labels")
        distances.append(head_distance(model(**batch).attentions[0]))
    return torch.cat(distances).tolist()


def _claims(scores: Mapping[str, Any], distance: float) -> list[Claim]:
    structured = paired(scores["lama"], scores["gru-structured"])
    layer = paired(scores["lama"], scores["transformer-mean"])
    return [
        Claim(
            text="at least structured self-attention's accuracy (within the standard error)",
            held=structured.mean >= -structured.error,
            found=str(structured),
        ),
        Claim(
            text="at least a Transformer layer's accuracy (within the standard error)",
            held=layer.mean >= -layer.error,
            found=str(layer),
        ),
        greater("better than mean pooling", scores["lama"], scores["gru-mean"]),
        Claim(
            text="heads look at different words (mean pairwise Jensen-Shannon distance above 0.1, first seed)",
            held=distance > 0.1,
            found=f"{distance:.2f}",
        ),
        greater("control: frozen random P and Q are worse", scores["lama"], scores["lama-frozen"], control=True),
    ]
