"""Prompts of the deepest examples against random ones: TTE depth's claim for in-context learning.

Two label tasks on real sentences: polarity of movie snippets, and which of four sources a sentence is from. One prompt
serves all queries: the deepest examples of the pool, overall or in turns between the labels; twenty random draws of
either kind, so that balance is not mistaken for depth; the shallowest (a control that should be no better than random).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import (
    SETTING,
    Difference,
    Labelled,
    classified,
    difference,
    polarity,
    silent,
    smollm2,
    sources,
)
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.selectors import DepthSelector

RECIPE = Recipe(
    name="tte-depth",
    part="prompts",
    about="TTE depth: prompts of the deepest examples",
    smoke={"seeds": 2, "DRAWS": 2, "QUERIES": 4, "POOL": 40},
)

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
        by_label = [[e for e in pool if e.answer == label] for label in labels]
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            prompts[f"random {seed}"] = [pool[i] for i in rng.choice(len(pool), K, replace=False)]
            turns = [part[i] for part in by_label for i in rng.choice(len(part), K // len(labels), replace=False)]
            prompts[f"in turns {seed}"] = [turns[i] for i in rng.permutation(K)]
        found: dict[str, Labelled] = {}
        for i, (name, shots) in enumerate(prompts.items()):
            note(f"{task}, {name}", "train", i, len(prompts), float("nan"))
            found[name] = classified(model, queries, [shots] * len(queries), labels, instruction=instruction)
        note(task, "done", 1, 1, float("nan"))
        rows += [[task, n, *r.row()] for n, r in found.items() if not n[-1].isdigit()]
        mean = {}
        for kind in ("random", "in turns"):
            drawn = [r for n, r in found.items() if n.startswith(kind)]
            mean[kind] = Labelled(right=np.mean([r.right for r in drawn], 0), logp=np.mean([r.logp for r in drawn], 0))
            spread = np.std([r.right.mean() for r in drawn], ddof=1)
            name = "random" if kind == "random" else "random, in turns"
            rows.append([task, f"{name}, mean of {seeds} (spread over draws {100 * spread:.1f})", *mean[kind].row()])
        deep.append((task, difference(found["deepest, in turns"].logp, mean["in turns"].logp)))
        deep.append((f"{task}, not in turns", difference(found["deepest"].logp, mean["random"].logp)))
        shallow.append((task, difference(found["shallowest, in turns"].logp, mean["in turns"].logp)))
        shallow.append((f"{task}, not in turns", difference(found["shallowest"].logp, mean["random"].logp)))
        chance = max(np.mean([q.answer == label for q in queries]) for label in labels)
        above.append((task, mean["in turns"].right.mean(), chance))
    return Evidence(
        recipe="depth_prompts",
        title="TTE depth: prompts of the deepest examples",
        command="rankwise bench tte-depth --part prompts",
        setting=f"{SETTING}; {K} examples of a pool of {POOL}, {QUERIES} queries a task; accuracy in per cent ± "
        "standard error, mean log-probability of the right label among the labels; differences with 95% bootstrap "
        "intervals",
        header=["task", "examples", "accuracy", "log p"],
        rows=rows,
        claims=_claims(deep, shallow, above),
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )


def _claims(
    deep: list[tuple[str, Difference]], shallow: list[tuple[str, Difference]], above: list[tuple[str, float, float]]
) -> list[Claim]:
    return [
        Claim(
            text="the deepest examples beat random ones in log-probability, each task, in turns or not",
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
            text="control: with random examples in turns the model is above the commonest label",
            control=True,
            held=all(a > c for _, a, c in above),
            found="; ".join(f"{t} {100 * a:.1f} against {100 * c:.1f}" for t, a, c in above),
        ),
    ]
