"""DQ-LoRe against other choices of examples, on sentiment with a rationale of the words that people rated.

The pool is of movie snippets; queries are movie snippets, and reviews of a shop (a shift). Every example's rationale
lists its words that are in VADER's lexicon. The retriever is trained on what the model says of BM25's candidates, once
a seed. Control: LoRe with random directions instead of the leading ones.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
)
from rankwise.data.texts import lexicon
from rankwise.events import OnEvent, environment
from rankwise.files import whole_folder
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.dq_lore import DQLoReSelector, scored_pairs, train_retriever
from rankwise.prompting.examples import Example
from rankwise.prompting.language_model import LanguageModel
from rankwise.prompting.selectors import BM25Selector, KNNSelector, RandomSelector, Selector

RECIPE = Recipe(
    name="dq-lore",
    part="text",
    about="DQ-LoRe against random, BM25 and nearest examples: sentiment with rationales",
    smoke={"seeds": 1, "POOL": 24, "QUERIES": 3, "TRAINED": 20, "CANDIDATES": 4, "BEST": 2, "EPOCHS": 1, "SAID": 6},
)

K, POOL, QUERIES = 4, 400, 150
TRAINED, CANDIDATES, BEST, EPOCHS = 128, 20, 5, 5  # of the retriever: queries, examples scored and kept for each
SAID = 24  # tokens of a first answer
DOMAINS = {"movies": "movies", "amazon": "amazon (shift)"}
LABELS = ("negative", "positive")


class RandomDirections(DQLoReSelector):
    """LoRe's control: the same number of directions, drawn at random."""

    def _scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        X = torch.cat([candidates, query[:, None]], 1).double()
        X = X - X.mean(1, keepdim=True)
        generator = torch.Generator().manual_seed(0)
        V = torch.linalg.qr(torch.randn(X.shape[-1], self.rank or self.rank_, generator=generator, dtype=X.dtype)).Q
        Z = X @ V
        return (Z[:, :-1] @ Z[:, -1, :, None])[..., 0]


def run(out: Path, *, seeds: int = 2, on_event: OnEvent | None = None) -> Evidence:
    """Train retrievers, select, score, judge the claims (recorded answers are read back)."""
    start, note = time.perf_counter(), silent(on_event)
    model, rated = smollm2(out), lexicon()
    told = [explained(e, rated) for e in polarity("movies", "train", 3 * POOL)]
    pool = [e for e in told if e.rationale][:POOL]
    queries = {d: polarity(d, "test", QUERIES) for d in DOMAINS}
    found: dict[str, dict[str, list[Labelled]]] = {d: {} for d in DOMAINS}
    note("scoring candidates", "train", 0, 1, float("nan"))
    pairs = scored_pairs(pool, model, candidates=CANDIDATES, top=BEST, queries=range(TRAINED))
    note("scoring candidates", "done", 1, 1, float("nan"))
    for seed in range(seeds):
        encoder = _encoder(pool, pairs, seed, out, note)
        for name, selector in _selectors(model, encoder, seed).items():
            selector.fit(pool)
            for d, asked in queries.items():
                note(f"{name}, {d} seed={seed}", "train", 0, 1, float("nan"))
                shots = selector.select_batch([q.question for q in asked])
                scored = classified(model, asked, shots, LABELS, before=" The answer is ")
                found[d].setdefault(name, []).append(scored)
            note(f"{name} seed={seed}", "done", 1, 1, float("nan"))
    for d, asked in queries.items():
        found[d]["no examples"] = [classified(model, asked, [[]] * len(asked), LABELS, before=" The answer is ")]
    means = {
        d: {
            n: Labelled(right=np.mean([r.right for r in rs], 0), logp=np.mean([r.logp for r in rs], 0))
            for n, rs in by_name.items()
        }
        for d, by_name in found.items()
    }
    best = "DQ-LoRe"
    rows = [
        [DOMAINS[d], n, *r.row(), "-" if n == best else str(difference(by_name[best].logp, r.logp))]
        for d, by_name in means.items()
        for n, r in by_name.items()
    ]
    against = {
        rival: {d: difference(by_name[best].logp, by_name[rival].logp) for d, by_name in means.items()}
        for rival in ("random", "kNN by question", "trained, one query", "DQ without LoRe", "random directions")
    }
    return Evidence(
        recipe="dq_lore",
        title="DQ-LoRe: choosing examples",
        command=f"rankwise bench dq-lore --seeds {seeds}",
        setting=f"{SETTING}; {K} examples of {POOL} movie snippets, {QUERIES} queries a domain, M = 64, k = 16; "
        f"retriever: MiniLM trained on {TRAINED} queries, {seeds} seeds averaged; accuracy in per cent ± standard "
        "error, mean log-probability of the right label; differences of it with 95% bootstrap intervals over queries",
        header=["queries", "examples", "accuracy", "log p", "DQ-LoRe against it"],
        rows=rows,
        claims=_claims(against, means),
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )


def _claims(against: dict[str, dict[str, Difference]], means: dict[str, dict[str, Labelled]]) -> list[Claim]:
    return [
        *[
            Claim(
                text=f"DQ-LoRe beats {rival} in log-probability, also under shift",
                held=all(x.low > 0 for x in by_domain.values()),
                found="; ".join(f"{DOMAINS[d]} {x}" for d, x in by_domain.items()),
                control=rival == "random directions",
            )
            for rival, by_domain in against.items()
        ],
        Claim(
            text="control: examples help (random ones against none)",
            control=True,
            held=all(m["random"].logp.mean() > m["no examples"].logp.mean() for m in means.values()),
            found="; ".join(
                f"{DOMAINS[d]} {difference(m['random'].logp, m['no examples'].logp)}" for d, m in means.items()
            ),
        ),
    ]


def explained(example: Example, rated: dict[str, float]) -> Example:
    """With the rated words of the question as rationale, if it has any: three of each kind at most."""
    words = dict.fromkeys(re.findall(r"[a-z']+", example.question.lower()))
    kinds = {"negative": lambda r: r < -0.5, "positive": lambda r: r > 0.5}
    parts = {kind: [w for w in words if w in rated and test(rated[w])][:3] for kind, test in kinds.items()}
    told = "; ".join(f"{kind} words: {', '.join(found)}" for kind, found in parts.items() if found)
    return Example(question=example.question, answer=example.answer, rationale=told and f"{told}.")


def _selectors(model: LanguageModel, encoder: TextEncoder, seed: int) -> dict[str, Selector]:
    fixed = {} if seed else {"BM25": BM25Selector(K), "kNN by question": KNNSelector(K)}
    return fixed | {
        "random": RandomSelector(K, seed=seed),
        "trained, one query": DQLoReSelector(None, encoder, K, method="none"),
        "DQ without LoRe": DQLoReSelector(model, encoder, K, method="none", initial=K, max_new_tokens=SAID),
        "random directions": RandomDirections(model, encoder, K, initial=K, max_new_tokens=SAID),
        "DQ-LoRe": DQLoReSelector(model, encoder, K, initial=K, max_new_tokens=SAID),
    }


def _encoder(pool: list[Example], pairs, seed: int, out: Path, note: OnEvent) -> TextEncoder:
    folder = out / f"retriever-seed{seed}"
    if not folder.is_dir():

        def told(step: int, steps: int, loss: float) -> None:
            note(f"retriever seed={seed}", "train", step, steps, loss)

        trained = train_retriever(pool, pairs, epochs=EPOCHS, seed=seed, on_step=told)
        with whole_folder(folder, made_by="bench") as draft:
            trained.save(draft)
        note(f"retriever seed={seed}", "done", 1, 1, float("nan"))
    return TextEncoder(str(folder), max_length=128)
