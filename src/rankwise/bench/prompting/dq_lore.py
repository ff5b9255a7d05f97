"""DQ-LoRe against other choices of examples, on requests whose answers are words without a meaning.

Sixteen kinds of requests in four phrasings each; the answer is a nonsense word for the kind and what it is about, as
in ``vash(Bob, at seven)``. The model cannot know the words, so that the examples decide: measured is its
log-probability a token of the right answer, and how many of the examples shown are of the request's kind. A seed draws
the requests, deals the words, and trains a retriever of its own on what the model says of BM25's candidates.

Controls: random examples help; nearer ones help more; LoRe with random directions in place of the leading ones does
worse. Both queries with the right answer in place of the model's draft are the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.frozen import SETTING, smollm2
from rankwise.bench.shared.intents import requests
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.dq_lore import DQLoReSelector, scored_pairs, train_retriever
from rankwise.prompting.examples import Example, few_shot
from rankwise.prompting.language_model import LanguageModel
from rankwise.prompting.selectors import BM25Selector, KNNSelector, RandomSelector, Selector

RECIPE = Recipe(
    name="dq-lore",
    part="text",
    about="DQ-LoRe against random, BM25 and nearest examples: sixteen kinds of requests, words without a meaning",
    spreads=True,
    smoke={
        "seeds": 1,
        "POOL": 32,
        "QUERIES": 3,
        "TRAINED": 8,
        "CANDIDATES": 4,
        "BEST": 2,
        "EPOCHS": 1,
        "SAID": 6,
        "BATCH": 4,
    },
)

K, POOL, QUERIES = 4, 400, 100
TRAINED, CANDIDATES, BEST = 64, 12, 3  # of the retriever: queries, examples scored and kept for each
EPOCHS, BATCH = 5, 16
SAID = 16  # tokens of a first answer
NONE, RANDOM, NEAR, BM25, ONE = "no examples", "random", "kNN by question", "BM25", "trained, one query"
PLAIN, CHANCE, OURS = "both queries, without LoRe", "both queries, random directions", "DQ-LoRe"
TOLD = ", right answer as draft"
ARMS = (NONE, RANDOM, NEAR, BM25, ONE, PLAIN, CHANCE, OURS, PLAIN + TOLD, OURS + TOLD)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One seed, with everything that a process of its own needs."""

    seed: int
    out: Path
    pool: int
    queries: int
    trained: int
    candidates: int
    best: int
    epochs: int
    batch: int
    said: int


class RandomDirections(DQLoReSelector):
    """LoRe's control: the same number of directions, drawn at random."""

    def _scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        X = torch.cat([candidates, query[:, None]], 1).double()
        X = X - X.mean(1, keepdim=True)
        generator = torch.Generator().manual_seed(0)
        V = torch.linalg.qr(torch.randn(X.shape[-1], self.rank or self.rank_, generator=generator, dtype=X.dtype)).Q
        Z = X @ V
        return (Z[:, :-1] @ Z[:, -1, :, None])[..., 0]


class Told(DQLoReSelector):
    """The right answer stands in place of the model's draft."""

    answers: dict[str, str]

    def chains_of_thought(self, queries: Sequence[str]) -> list[str]:
        """The first query."""
        return [self.answers[q] for q in queries]


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Train retrievers, select and score, seed by seed (what is there is read back)."""
    size = {"pool": POOL, "queries": QUERIES, "trained": TRAINED, "candidates": CANDIDATES, "best": BEST}
    told = {**size, "epochs": EPOCHS, "batch": BATCH, "said": SAID, "out": out}
    return kept_runs(out / "runs.json", chosen, {f"seed {s}": Asked(seed=s, **told) for s in range(seeds)}, on_event)


def chosen(asked: Asked) -> dict[str, object]:
    """Of every way and query: log-probability a token of the right answer, and the answers shown."""
    drawn = [Example(question=r.text, answer=r.call) for r in requests(asked.pool + asked.queries, asked.seed)]
    pool, queries = drawn[: asked.pool], drawn[asked.pool :]
    model = smollm2(asked.out / f"seed{asked.seed}")
    pairs = scored_pairs(pool, model, candidates=asked.candidates, top=asked.best, queries=range(asked.trained))
    encoder = train_retriever(pool, pairs, epochs=asked.epochs, batch_size=asked.batch, seed=asked.seed)
    texts = [q.question for q in queries]
    shots: dict[str, list[list[Example]]] = {NONE: [[] for _ in queries]}
    for name, selector in _selectors(model, encoder, asked, {q.question: q.answer for q in queries}).items():
        shots[name] = selector.fit(pool).select_batch(texts)
    prompts = [
        few_shot(q.question, s, style="text").prompt
        for way in shots.values()
        for q, s in zip(queries, way, strict=True)
    ]
    answers = [[f" {q.answer}"] for _ in shots for q in queries]
    scored = np.reshape([row[0].mean for row in model.score(prompts, answers)], (len(shots), len(queries)))
    model.close()
    return {
        "right": [q.answer for q in queries],
        "logp": dict(zip(shots, scored.tolist(), strict=True)),
        "shown": {name: [[e.answer for e in s] for s in way] for name, way in shots.items() if name != NONE},
    }


def _selectors(
    model: LanguageModel, encoder: TextEncoder, asked: Asked, answers: dict[str, str]
) -> dict[str, Selector]:
    both = {"first": BM25Selector(K), "initial": K, "max_new_tokens": asked.said}
    told = {method: Told(None, encoder, K, method=method) for method in ("none", "pca")}
    for selector in told.values():
        selector.answers = answers
    return {
        RANDOM: RandomSelector(K, seed=asked.seed),
        NEAR: KNNSelector(K, encoder=TextEncoder()),
        BM25: BM25Selector(K),
        ONE: DQLoReSelector(None, encoder, K, method="none"),
        PLAIN: DQLoReSelector(model, encoder, K, method="none", **both),
        CHANCE: RandomDirections(model, encoder, K, **both),
        OURS: DQLoReSelector(model, encoder, K, **both),
        PLAIN + TOLD: told["none"],
        OURS + TOLD: told["pca"],
    }


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The ways compared, paired by seed."""
    logp = {arm: np.array([np.mean(r["logp"][arm]) for r in found.values()]) for arm in ARMS}
    same = {arm: np.array([alike(r["right"], r["shown"][arm]) for r in found.values()]) for arm in ARMS[1:]}
    rows = [
        [
            arm,
            plus_minus(logp[arm], 1, 3),
            plus_minus(same[arm]) if arm in same else "-",
            "-" if arm == OURS else str(paired(logp[OURS], logp[arm], unit="nats a token", scale=1)),
        ]
        for arm in ARMS
    ]
    return Evidence(
        recipe="dq_lore",
        title="DQ-LoRe: choosing examples",
        command=f"rankwise bench dq-lore --seeds {seeds} --jobs 2",
        setting=f"{SETTING}; sixteen kinds of requests, answers in words without a meaning; {K} examples of {POOL}, "
        f"{QUERIES} queries, M = 64, k = 16; first query by BM25; retriever: MiniLM trained on {TRAINED} queries a "
        f"seed; {seeds} seeds, mean ± standard deviation; log-probability a token of the right answer; share of the "
        "examples shown that are of the query's kind",
        header=["examples", "log p", "of the kind (%)", "DQ-LoRe against it"],
        rows=rows,
        claims=_claims(logp, same),
        environment=environment("bf16", 1),
    )


def alike(right: Sequence[str], shown: Sequence[Sequence[str]]) -> float:
    """Share of the examples shown whose answer has the right answer's word."""
    return float(np.mean([[word(s) == word(r) for s in row] for r, row in zip(right, shown, strict=True)]))


def word(answer: str) -> str:
    """``vash`` of ``vash(Bob, at seven)``."""
    return answer.partition("(")[0]


def _claims(logp: dict[str, np.ndarray], same: dict[str, np.ndarray]) -> list[Claim]:
    def more(text: str, better: str, worse: str, *, control: bool = False, paper: str = "") -> Claim:
        return greater(
            text, logp[better], logp[worse], control=control, paper=paper, unit="nats a token", scale=1
        )  # fmt: skip

    return [
        more("DQ-LoRe beats kNN by question", OURS, NEAR, paper="92.5 → 94.2 % (GPT-4 on GSM8K)"),
        more("DQ-LoRe beats BM25", OURS, BM25),
        more("DQ-LoRe beats the trained retriever with one query", OURS, ONE, paper="above EPR's on GSM8K"),
        more("LoRe beats both queries without it", OURS, PLAIN),
        greater("LoRe shows more examples of the query's kind than without it", same[OURS], same[PLAIN]),
        more("with the right answer as draft, LoRe beats both queries without it", OURS + TOLD, PLAIN + TOLD),
        more("control: examples help, random ones against none", RANDOM, NONE, control=True),
        more("control: the choice matters, kNN against random", NEAR, RANDOM, control=True),
        more("control: random directions in place of LoRe's do worse", OURS, CHANCE, control=True),
    ]
