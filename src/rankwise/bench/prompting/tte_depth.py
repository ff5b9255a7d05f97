"""Depth of text embeddings tells corpora apart, and halves of one corpus not.

MiniLM embeddings of four domains (movie snippets, editorials, tweets, reviews), every ordered pair compared. Control:
two random halves of one domain, over and over; their p-values must be uniform.
"""

from __future__ import annotations

import time
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy import stats

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.data import sentiment
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import embed
from rankwise.prompting import depth_rank_test

RECIPE = Recipe(
    name="tte-depth",
    part="corpora",
    about="TTE depth: domains told apart, halves of one domain not",
    smoke={"TEXTS": 60, "SPLITS": 5},
)

DOMAINS = ("movies", "nyt", "tweets", "amazon")
TEXTS, SPLITS = 600, 200


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Embed, compare all pairs and halves, judge the claims."""
    start, note = time.perf_counter(), on_event or (lambda *_: None)
    vectors, words = {}, {}
    for d in DOMAINS:
        note(f"embed {d}", "train", 0, 1, float("nan"))
        texts = sentiment(d, task="rating").head(TEXTS).texts
        vectors[d] = embed(texts)
        words[d] = float(np.mean([len(t.split()) for t in texts]))
    pairs = {(a, b): depth_rank_test(vectors[a], vectors[b]) for a, b in permutations(DOMAINS, 2)}
    rng = np.random.default_rng(0)
    level = {}
    for distance in ("cosine", "chord"):
        level[distance] = {}
        for d in DOMAINS:
            note(f"halves of {d}", "train", 0, 1, float("nan"))
            found = []
            for _ in range(SPLITS):
                order = rng.permutation(TEXTS)
                halves = vectors[d][order[: TEXTS // 2]], vectors[d][order[TEXTS // 2 :]]
                found.append(depth_rank_test(*halves, distance=distance, permutations=199, bootstrap=0).pvalue)
            level[distance][d] = np.array(found)
    rows = [
        [
            f"{a}, {b}",
            f"{words[a]:.0f}, {words[b]:.0f}",
            f"{t.q:.3f} [{t.q_low:.3f}, {t.q_high:.3f}]",
            f"{t.pvalue:.1g}",
        ]
        for (a, b), t in pairs.items()
    ]
    rows += [
        [f"halves of {d}, {distance}", f"{words[d]:.0f}", "-", f"{100 * (p < 0.05).mean():.1f}% below 0.05"]
        for distance, found in level.items()
        for d, p in found.items()
    ]
    uniform = {(x, d): stats.kstest(p, "uniform").pvalue for x, found in level.items() for d, p in found.items()}
    return Evidence(
        recipe="tte_depth",
        title="TTE depth: corpora told apart",
        command="rankwise bench tte-depth --part corpora",
        setting=f"MiniLM embeddings of {TEXTS} texts a domain; depth in the first corpus, p by relabelling that the "
        f"second lies further out, Q with a 95% bootstrap interval; halves: {SPLITS} random splits",
        header=["corpora", "words a text", "Q", "p"],
        rows=rows,
        claims=[
            Claim(
                text="every pair of domains differs (p < 0.001 and Q < ½)",
                held=all(t.pvalue < 1e-3 and t.q < 0.5 for t in pairs.values()),
                found=f"largest p {max(t.pvalue for t in pairs.values()):.1g}, largest Q "
                f"{max(t.q for t in pairs.values()):.3f}",
            ),
            Claim(
                text="control: halves of one domain do not (p uniform by Kolmogorov-Smirnov, Bonferroni over 8)",
                control=True,
                held=min(uniform.values()) > 0.05 / len(uniform),
                found=f"smallest p of uniformity {min(uniform.values()):.3g}",
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
    )
