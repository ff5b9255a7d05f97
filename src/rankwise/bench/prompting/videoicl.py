"""VideoICL's loop on text: a few examples at a time against all at once, on labels the model cannot know beforehand.

Requests of sixteen kinds, each kind with a label without a meaning, so that only examples tell what the labels are.
They are ranked by a weak likeness (MiniLM in eight random directions), so that the first round often lacks an example
of the right kind and a later one has it: the share of queries whose label was among those shown stands beside accuracy,
round by round. All rounds of every query are kept; every policy is then played on the record: the loop with the model's
confidence, with the same confidences dealt to other queries and rounds (control), stopping at the first right answer
(the ceiling), and never stopping early. The threshold is chosen on validation queries of all seeds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.frozen import SETTING, smollm2
from rankwise.bench.shared.intents import WORDS, requests
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import embed
from rankwise.prompting.iterative import Item, IterativeICL, SimilarityIndex
from rankwise.prompting.language_model import LanguageModel, Sampling

RECIPE = Recipe(
    name="videoicl",
    part="text",
    about="VideoICL's loop against all examples at once: sixteen labels without a meaning",
    spreads=True,
    smoke={"seeds": 2, "POOL": 20, "VALIDATION": 4, "QUERIES": 4},
)

POOL, VALIDATION, QUERIES = 300, 40, 80  # a seed
SHOTS, ROUNDS = 2, 4
DIRECTIONS = 8  # of likeness
NEW = 5  # tokens of an answer
DEALT = 20  # dealings of the control
LEAST = 0.02  # accuracy that the cheaper way may lose
SAME = "accuracy at most 2 points lower"
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One seed, with everything that a process of its own needs."""

    seed: int
    out: Path
    pool: int
    validation: int
    queries: int


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Play all rounds of all queries, seed by seed (what is there is read back)."""
    size = {"out": out, "pool": POOL, "validation": VALIDATION, "queries": QUERIES}
    return kept_runs(out / "runs.json", asked_all, {f"seed {s}": Asked(seed=s, **size) for s in range(seeds)}, on_event)


def asked_all(asked: Asked) -> dict[str, Any]:
    """What was said in every round, with all examples in one prompt, and without any."""
    drawn = [
        Item(question=r.text, answer=r.word)
        for r in requests(asked.pool + asked.validation + asked.queries, asked.seed)
    ]
    pool, validation, test = np.split(np.array(drawn, object), [asked.pool, asked.pool + asked.validation])
    model, index = smollm2(asked.out / f"seed{asked.seed}"), SimilarityIndex(weak).fit(list(pool))
    found = {"validation": _said(model, index, list(validation)), "test": _said(model, index, list(test))}
    model.close()
    return found


def weak(texts: list[str]) -> Array:
    """MiniLM's embeddings in a few random directions, the same for all seeds."""
    X = embed(texts)
    return X @ np.random.default_rng(0).normal(size=(X.shape[1], DIRECTIONS))


def _said(model: LanguageModel, index: SimilarityIndex, asked: Sequence[Item]) -> dict[str, Any]:
    blank = [replace(i, answer="") for i in asked]
    options: dict[str, Any] = {"threshold": 1.0, "max_new_tokens": NEW}
    loop = IterativeICL(model, index, shots=SHOTS, rounds=ROUNDS, **options)
    traces = [a.trace for a in loop.answer_batch(blank)]
    once = IterativeICL(model, index, shots=SHOTS * ROUNDS, rounds=1, **options).answer_batch(blank)
    none = model.generate([loop.prompt(q, ()) for q in blank], Sampling(max_new_tokens=NEW))
    return {
        "gold": [i.answer for i in asked],
        "rounds": [[r.text for r in t] for t in traces],
        "sure": [[r.confidence for r in t] for t in traces],
        "tokens": [[r.tokens for r in t] for t in traces],
        "shown": [[[index.items[i].answer for i in r.shown] for r in t] for t in traces],
        "once": [a.text for a in once],
        "once_tokens": [a.tokens for a in once],
        "none": [n.text for n in none],
    }


@dataclass(frozen=True, kw_only=True)
class Played:
    """Every query's rounds, ``(n, rounds)``: right or not, confidence, tokens, and whether its label was shown so far;
    the other prompts' outcomes, ``(n,)``."""

    right: Array
    sure: Array
    tokens: Array
    shown: Array
    none: Array
    once: Array
    once_tokens: Array

    def policy(self, threshold: float, sure: Array | None = None) -> tuple[Array, Array, Array]:
        """Right or not, calls and tokens of every query when the loop stops above the threshold."""
        kept, calls = stopped(self.sure if sure is None else sure, threshold)
        seen = np.arange(self.sure.shape[1]) < calls[:, None]
        return self.right[np.arange(len(kept)), kept], calls, (self.tokens * seen).sum(1)


def stopped(sure: Array, threshold: float) -> tuple[NDArray[np.intp], Array]:
    """By the loop's rule: the round whose answer is kept, and how many were played, of confidences ``(n, rounds)``."""
    above = sure > threshold
    calls = np.where(above.any(1), above.argmax(1) + 1, sure.shape[1])
    return np.where(np.arange(sure.shape[1]) < calls[:, None], sure, -1.0).argmax(1), calls.astype(float)


def played(run: dict[str, Any]) -> Played:
    """What was said, judged: an answer is right when it begins with the label."""

    def right(said: str, gold: str) -> float:
        return float(said.strip().lower().startswith(gold))

    gold = run["gold"]
    shown = [[g in row for row in rounds] for rounds, g in zip(run["shown"], gold, strict=True)]
    return Played(
        right=np.array([[right(t, g) for t in row] for row, g in zip(run["rounds"], gold, strict=True)]),
        sure=np.array(run["sure"], float),
        tokens=np.array(run["tokens"], float),
        shown=np.maximum.accumulate(np.array(shown, float), axis=1),
        none=np.array([right(t, g) for t, g in zip(run["none"], gold, strict=True)]),
        once=np.array([right(t, g) for t, g in zip(run["once"], gold, strict=True)]),
        once_tokens=np.array(run["once_tokens"], float),
    )


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Every policy played on the record, compared by seed."""
    validation = [played(run["validation"]) for run in found.values()]
    tests = [played(run["test"]) for run in found.values()]
    threshold = chosen(validation)
    rng = np.random.default_rng(0)
    first = np.array([t.right[:, 0].mean() for t in tests])
    once = np.array([t.once.mean() for t in tests])
    loop = [t.policy(threshold) for t in tests]
    every = [t.policy(1.0) for t in tests]
    dealt = [
        [t.policy(threshold, rng.permutation(t.sure.ravel()).reshape(t.sure.shape)) for _ in range(DEALT)]
        for t in tests
    ]
    control = [tuple(np.mean([d[i].mean() for d in each]) for i in range(3)) for each in dealt]
    ours = np.array([p[0].mean() for p in loop])
    cost = float(np.mean([p[2].mean() for p in loop]) / np.mean([t.once_tokens.mean() for t in tests]))
    auc = np.array([area(t.sure.ravel(), t.right.ravel()) for t in tests])
    rows = [
        _row("no examples", [(t.none, None, None) for t in tests]),
        *[
            _row(f"round {i + 1} alone", [(t.right[:, i], np.ones(1), t.tokens[:, i]) for t in tests], [t.shown[:, i]
                 for t in tests])
            for i in range(ROUNDS)
        ],
        _row(f"{SHOTS * ROUNDS} examples in one prompt", [(t.once, np.ones(1), t.once_tokens) for t in tests],
             [t.shown[:, -1] for t in tests]),
        _row(f"iterative, threshold {threshold:.2f}", loop),
        _row("iterative, all rounds", every),
        _row("iterative, confidences dealt anew (control)", control),
        _row("iterative, stopping at a right answer (ceiling)", [(t.right.max(1), None, None) for t in tests]),
    ]  # fmt: skip
    return Evidence(
        recipe="videoicl",
        title="VideoICL: examples a few at a time",
        command=f"rankwise bench videoicl --part text --seeds {seeds} --jobs 2",
        setting=f"{SETTING}; sixteen labels without a meaning; pool of {POOL}, {QUERIES} queries a seed, {ROUNDS} "
        f"rounds of {SHOTS}, by MiniLM in {DIRECTIONS} random directions; threshold by accuracy on "
        f"{VALIDATION * seeds} validation queries; {seeds} seeds, accuracy in per cent, mean ± standard deviation; "
        "label shown: in this round or before",
        header=["prompt", "accuracy", "label shown (%)", "calls", "tokens"],
        rows=rows,
        claims=_claims(ours, first, once, np.array([c[0] for c in control]), auc, cost),
        environment=environment("bf16", 1),
    )


def chosen(validation: Sequence[Played]) -> float:
    """The threshold of the highest accuracy; of equals the one that reads least."""
    grid = np.unique(np.quantile(np.concatenate([v.sure.ravel() for v in validation]), np.linspace(0, 1, 41)))

    def worth(threshold: float) -> tuple[float, float]:
        outcomes = [v.policy(threshold) for v in validation]
        return float(np.mean([o[0].mean() for o in outcomes])), -float(np.mean([o[2].mean() for o in outcomes]))

    return float(max(grid, key=worth))


def area(score: Array, right: Array) -> float:
    """Under the curve: how often a right answer is surer than a wrong one, ties half; one half where there is none."""
    yes, no = score[right == 1], score[right == 0]
    if not len(yes) or not len(no):
        return 0.5
    return float(np.mean((yes[:, None] > no) + 0.5 * (yes[:, None] == no)))


def _row(name: str, outcomes: Sequence[Any], shown: Sequence[Array] | None = None) -> list[str]:
    right, calls, tokens = ([np.mean(o[i]) for o in outcomes if o[i] is not None] for i in range(3))
    return [
        name,
        plus_minus(map(float, right)),
        "-" if shown is None else f"{100 * np.mean([s.mean() for s in shown]):.0f}",
        f"{np.mean(calls):.2f}" if calls else "-",
        f"{np.mean(tokens):.0f}" if tokens else "-",
    ]


def _claims(ours: Array, first: Array, once: Array, dealt: Array, auc: Array, cost: float) -> list[Claim]:
    lost = paired(ours, once)
    return [
        greater(
            f"the loop beats its first round of {SHOTS} examples", ours, first,
            paper="zero-shot → 8 examples, Qwen2-VL-7B: 5.8 → 59.6 % (Pit-VQA), 10.6 → 49.3 % (Drive&Act)",
        ),
        Claim(
            text=f"at most 60% of the tokens of the prompt with all examples, {SAME}",
            held=lost.mean >= -LEAST and cost <= 0.6,
            found=f"{lost} at {100 * cost:.0f}%",
        ),
        greater("confidence tells right answers from wrong ones: area under the curve above ½", auc, 0 * auc + 0.5),
        greater(
            "control: with confidences dealt to other queries and rounds the loop is worse", ours, dealt, control=True
        ),
        greater(
            f"control: examples tell the labels, above one of {len(WORDS)} by chance with all in one prompt", once,
            0 * once + 1 / len(WORDS), control=True,
        ),
    ]  # fmt: skip
