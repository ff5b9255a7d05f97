"""Prompts of the deepest examples against random ones: TTE depth's claim for in-context learning.

Two label tasks on real sentences: polarity of movie snippets, and which of four sources a sentence is from. One prompt
serves all queries: the deepest examples of the pool, overall or in turns between the labels; twenty random draws; the
shallowest (a control that should be no better than random ones).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from rankwise.bench.evidence import Claim, Evidence
from rankwise.bench.frozen import SETTING, Labelled, classified, difference, polarity, silent, smollm2, sources
from rankwise.jobs.adapt import OnEvent, environment
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.selectors import DepthSelector

K, QUERIES, POOL, DRAWS = 8, 120, 400, 20
TASKS = {
    "polarity": (["negative", "positive"], "Is the sentence negative or positive?"),
    "source": (["film", "newspaper", "tweet", "shop"], "Is the sentence from a film, newspaper, tweet or shop review?"),
}


def run(out: Path, *, seeds: int = DRAWS, on_event: OnEvent | None = None) -> Evidence:
    """Score, judge the claims; ``seeds`` random prompts, 20 at least (recorded answers are read back)."""
    start, note, seeds = time.perf_counter(), silent(on_event), max(seeds, DRAWS)
    model, encoder = smollm2(out), TextEncoder()
    rows, deep, shallow, above = [], [], [], []
    for task, (labels, instruction) in TASKS.items():
        pool = polarity("movies", "train", POOL) if task == "polarity" else sources("train", POOL)
        queries = polarity("movies", "test", QUERIES) if task == "polarity" else sources("test", QUERIES)
        prompts = {"no examples": []}
        prompts |= {
            "deepest": DepthSelector(K, encoder=encoder).fit(pool).select(""),
            "deepest, in turns": DepthSelector(K, encoder=encoder, balanced=True).fit(pool).select(""),
            "shallowest": DepthSelector(K, encoder=encoder, shallowest=True).fit(pool).select(""),
            "shallowest, in turns": DepthSelector(K, encoder=encoder, balanced=True, shallowest=True)
            .fit(pool)
            .select(""),
        }
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            prompts[f"random {seed}"] = [pool[i] for i in rng.choice(len(pool), K, replace=False)]
        found: dict[str, Labelled] = {}
        for i, (name, shots) in enumerate(prompts.items()):
            note(f"{task}, {name}", "train", i, len(prompts), float("nan"))
            found[name] = classified(model, queries, [shots] * len(queries), labels, instruction=instruction)
        note(task, "done", 1, 1, float("nan"))
        drawn = [r for n, r in found.items() if n.startswith("random")]
        mean = Labelled(right=np.mean([r.right for r in drawn], 0), logp=np.mean([r.logp for r in drawn], 0))
        rows += [[task, n, *r.row()] for n, r in found.items() if not n.startswith("random")]
        spread = np.std([r.right.mean() for r in drawn], ddof=1)
        rows.append([task, f"random, mean of {seeds} (spread over draws {100 * spread:.1f})", *mean.row()])
        deep.append((task, difference(found["deepest, in turns"].logp, mean.logp)))
        shallow.append((task, difference(found["shallowest, in turns"].logp, mean.logp)))
        chance = max(np.mean([q.answer == label for q in queries]) for label in labels)
        above.append((task, mean.right.mean(), chance))
    return Evidence(
        recipe="depth_prompts",
        title="TTE depth: prompts of the deepest examples",
        command="rankwise bench tte-depth --part prompts",
        setting=f"{SETTING}; {K} examples of a pool of {POOL}, {QUERIES} queries a task; accuracy in per cent ± "
        "standard error, mean log-probability of the right label among the labels; differences with 95% bootstrap "
        "intervals",
        header=["task", "examples", "accuracy", "log p"],
        rows=rows,
        claims=[
            Claim(
                text="the deepest examples (in turns between labels) beat random ones in log-probability, each task",
                held=all(d.low > 0 for _, d in deep),
                found="; ".join(f"{t} {d}" for t, d in deep),
            ),
            Claim(
                text="control: the shallowest do not",
                control=True,
                held=all(d.low <= 0 for _, d in shallow),
                found="; ".join(f"{t} {d}" for t, d in shallow),
            ),
            Claim(
                text="control: with random examples the model is above the commonest label",
                control=True,
                held=all(a > c for _, a, c in above),
                found="; ".join(f"{t} {100 * a:.1f} against {100 * c:.1f}" for t, a, c in above),
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )
