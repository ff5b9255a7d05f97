"""Speed of the ranking family, side by side: PerSEval against loops over pairs of readers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.data.personal import aclsum
from rankwise.events import OnEvent
from rankwise.ranking import content_words, perseval

RECIPE = Recipe(
    name="speed",
    part="ranking",
    about="ranking: speed ratios",
    smoke={"READERS": 8, "DOCUMENTS": 1},
    control=False,
)

READERS, DOCUMENTS = 50, 4  # readers of a document; a sentence of a paper stands for a text
Texts = Mapping[str, Mapping[str, str]]


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    return side_by_side(
        {"PerSEval": personalisation},
        on_event,
        recipe="ranking_speed",
        title="Ranking: speed ratios",
        command="rankwise bench speed --part ranking",
        setting=f"{torch.get_num_threads()} threads, one process; medians of three alternating runs",
    )


def personalisation() -> Measured:
    """Readers of a document against loops over their pairs, with words taken once a text and once a pair."""
    spoken = [s for paper in aclsum() for s in paper.sentences if len(content_words(s)) > 3]
    papers = {f"text {k}": spoken[2 * READERS * k : 2 * READERS * (k + 1)] for k in range(DOCUMENTS)}
    documents = {name: " ".join(sentences) for name, sentences in papers.items()}
    wrote, gave = (
        {name: {f"reader {i}": s[2 * i + side] for i in range(READERS)} for name, s in papers.items()}
        for side in (0, 1)
    )
    rows, claims = [], []
    for what, kept in (("words once a text", True), ("words once a pair, as released", False)):
        ours, theirs = alternate(
            lambda: perseval(documents, wrote, gave, resamples=1).score,
            lambda kept=kept: looped(documents, wrote, gave, _words(kept)),
        )
        gap = abs(perseval(documents, wrote, gave, resamples=1).score - looped(documents, wrote, gave, _words(True)))
        setting = f"PerSEval, {READERS} readers, {len(papers)} documents"
        rows.append([setting, f"{ours:.3f}s", f"a loop over pairs, {what}", f"{theirs:.2f}s", f"{theirs / ours:.1f}x"])
        claims.append(
            Claim(
                text=f"PerSEval of {READERS} readers at least 20x faster than a loop over pairs, {what}, equal to 1e-9",
                held=theirs / ours >= 20 and gap <= 1e-9,
                found=f"{theirs / ours:.1f}x, difference {gap:.1g}",
            )
        )
    return rows, claims


def looped(documents: Mapping[str, str], wrote: Texts, gave: Texts, words: Callable[[str], Counter[str]]) -> float:
    """PerSEval by a loop over documents, readers and pairs."""
    return float(np.mean([_document(documents[d], wrote[d], gave[d], words) for d in documents]))


def divergence(p: Counter[str], q: Counter[str]) -> float:
    """Jensen-Shannon divergence of counts, to base 2 and four digits."""
    n, m, total = p.total(), q.total(), 0.0
    for word in p.keys() | q.keys():
        a, b = p[word] / n, q[word] / m
        total += sum(x * math.log2(2 * x / (a + b)) for x in (a, b) if x)
    return round(total / 2, 4)


def _words(kept: bool) -> Callable[[str], Counter[str]]:
    known: dict[str, Counter[str]] = {}

    def of(text: str) -> Counter[str]:
        if not kept:
            return Counter(content_words(text))
        if text not in known:
            known[text] = Counter(content_words(text))
        return known[text]

    return of


def _document(
    text: str, wrote: Mapping[str, str], gave: Mapping[str, str], words: Callable[[str], Counter[str]]
) -> float:
    X, Y = (_differences(text, list(texts.values()), words) for texts in (wrote, gave))
    accuracy = [divergence(words(wrote[u]), words(gave[u])) for u in wrote]
    n, best = len(accuracy), min(accuracy)
    mean = sum(accuracy) / n - best
    total = 0.0
    for j, a in enumerate(accuracy):
        alike = [(min(X[j][k], Y[j][k]) + 1e-5) / (max(X[j][k], Y[j][k]) + 1e-5) for k in range(n) if k != j]
        penalty = sum(1 / (1 + 1e4 * math.exp(-10 * x)) for x in (best / (1 - best + 1e-7), (a - best) / (mean + 1e-7)))
        total += sum(alike) / (n - 1) * (1 - 1 / (1 + 1e3 * math.exp(-10 * penalty)) + 1e-7)
    return total / n


def _differences(text: str, texts: list[str], words: Callable[[str], Counter[str]]) -> list[list[float]]:
    out = []
    for j, first in enumerate(texts):
        far = divergence(words(first), words(text))
        own = [divergence(words(first), words(other)) if k != j else 0.0 for k, other in enumerate(texts)]
        weights = [math.exp(d / far) if k != j else 0.0 for k, d in enumerate(own)]
        out.append([d * w / sum(weights) for d, w in zip(own, weights, strict=True)])
    return out
