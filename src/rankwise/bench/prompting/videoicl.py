"""VideoICL's loop on text: a few examples at a time against all at once, on labels the model cannot know beforehand.

Polarity of tweets and editorials with the labels renamed to words without a meaning, so that only examples tell what
they mean. All rounds of every query are recorded once; every policy is then played on the record: the loop with the
model's confidence, with the same confidences dealt to other queries (control), stopping at the first right answer (the
ceiling), and never stopping early.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.frozen import SETTING, Difference, difference, polarity, silent, smollm2
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.iterative import Item, IterativeICL, SimilarityIndex
from rankwise.prompting.language_model import LanguageModel, Sampling
from rankwise.report.plots.prompting import reliability
from rankwise.report.plots.shared import save

RECIPE = Recipe(
    name="videoicl",
    part="text",
    about="VideoICL's loop against all examples at once: renamed labels",
    figures=(("share of right answers against the model's confidence", "videoicl_reliability.png"),),
    smoke={"seeds": 2, "POOL": 20, "VALIDATION": 4, "QUERIES": 4},
)

POOL, VALIDATION, QUERIES = 300, 60, 100
SHOTS, ROUNDS = 2, 4
NAMES = {"negative": "zorp", "positive": "blick"}
INSTRUCTION = f"Answer with {NAMES['negative']} or {NAMES['positive']}."
SAMPLING = Sampling(max_new_tokens=6)


@dataclass(frozen=True, kw_only=True)
class Played:
    """Every query's rounds, ``(n, rounds)``: right or not, confidence, tokens; and the other prompts' outcomes."""

    right: NDArray[np.float64]
    sure: NDArray[np.float64]
    tokens: NDArray[np.float64]
    none: NDArray[np.float64]
    together: NDArray[np.float64]
    together_tokens: NDArray[np.float64]

    def policy(self, threshold: float, sure: NDArray | None = None) -> tuple[NDArray, NDArray, NDArray]:
        """Right or not, calls and tokens of every query when the loop stops above the threshold."""
        kept, calls = stopped(self.sure if sure is None else sure, threshold)
        seen = np.arange(ROUNDS) < calls[:, None]
        return self.right[np.arange(len(kept)), kept], calls, (self.tokens * seen).sum(1)


def stopped(sure: NDArray, threshold: float) -> tuple[NDArray, NDArray]:
    """By the loop's rule: the round whose answer is kept, and how many were played, of confidences ``(n, rounds)``."""
    above = sure > threshold
    calls = np.where(above.any(1), above.argmax(1) + 1, sure.shape[1])
    return np.where(np.arange(sure.shape[1]) < calls[:, None], sure, -1.0).argmax(1), calls.astype(float)


def run(out: Path, *, seeds: int = 20, on_event: OnEvent | None = None) -> Evidence:
    """Ask, play the policies, judge the claims; ``seeds`` dealings of the control (answers are read back)."""
    start, note = time.perf_counter(), silent(on_event)
    model, encoder = smollm2(out), TextEncoder()
    rows, gains, equal, dealt, aucs, curves = [], [], [], [], [], {}
    for domain in ("tweets", "nyt"):
        note(f"{domain}, validation", "train", 0, 2, float("nan"))
        validation = _played(model, encoder, domain, "validation", VALIDATION)
        note(f"{domain}, test", "train", 1, 2, float("nan"))
        test = _played(model, encoder, domain, "test", QUERIES)
        note(domain, "done", 1, 1, float("nan"))
        thresholds = np.unique(np.quantile(validation.sure, np.linspace(0, 1, 21)))
        threshold = max(thresholds, key=lambda c: (validation.policy(c)[0].mean(), -validation.policy(c)[2].mean()))
        right, calls, tokens = test.policy(threshold)
        rng = np.random.default_rng(0)
        mixed = [rng.permutation(test.sure.ravel()).reshape(test.sure.shape) for _ in range(seeds)]
        controls = [test.policy(threshold, sure) for sure in mixed]
        control = tuple(np.mean([c[i] for c in controls], 0) for i in range(3))
        whole = np.ones(len(right)), test.together_tokens
        first = test.right[:, 0]
        rows += [
            _row(domain, "no examples", test.none, np.ones(len(right)), None),
            _row(domain, f"{SHOTS} examples", first, np.ones(len(right)), test.tokens[:, 0]),
            _row(domain, f"{SHOTS * ROUNDS} examples in one prompt", test.together, *whole),
            _row(domain, f"iterative, threshold {threshold:.2f}", right, calls, tokens),
            _row(domain, "iterative, all rounds", *test.policy(1.0)),
            _row(domain, "iterative, confidences dealt anew (control)", *control),
            _row(domain, "iterative, stopping at a right answer (ceiling)", test.right.max(1), None, None),
        ]
        gains.append((domain, difference(right, first, scale=100)))
        cost = tokens.mean() / test.together_tokens.mean()
        equal.append((domain, difference(right, test.together, scale=100), cost))
        dealt.append((domain, difference(right, control[0], scale=100)))
        aucs.append((domain, _auc(test.sure.ravel(), test.right.ravel())))
        curves[domain] = (test.sure.ravel(), test.right.ravel())
    save(reliability(curves), out / "reliability.png")
    return Evidence(
        recipe="videoicl",
        title="VideoICL: examples a few at a time",
        command="rankwise bench videoicl",
        setting=f"{SETTING}; polarity with labels renamed to {' and '.join(NAMES.values())}; pool of {POOL}, {QUERIES} "
        f"queries a domain, {ROUNDS} rounds of {SHOTS}; threshold by accuracy on {VALIDATION} validation queries; "
        "accuracy in per cent ± standard error; differences with 95% bootstrap intervals over queries",
        header=["domain", "prompt", "accuracy", "calls", "tokens"],
        rows=rows,
        claims=_claims(gains, equal, aucs, dealt),
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )


def _claims(
    gains: list[tuple[str, Difference]],
    equal: list[tuple[str, Difference, float]],
    aucs: list[tuple[str, float]],
    dealt: list[tuple[str, Difference]],
) -> list[Claim]:
    return [
        Claim(
            text=f"the loop beats its first round of {SHOTS} examples",
            held=all(d.low > 0 for _, d in gains),
            found="; ".join(f"{n} {d} points" for n, d in gains),
        ),
        Claim(
            text="at most 60% of the tokens of the prompt with all examples, at no lower accuracy",
            held=all(d.mean >= 0 and c <= 0.6 for _, d, c in equal),
            found="; ".join(f"{n} {d} points at {100 * c:.0f}%" for n, d, c in equal),
        ),
        Claim(
            text="confidence tells right answers from wrong ones (AUC above ½)",
            held=all(a > 0.5 for _, a in aucs),
            found="; ".join(f"{n} {a:.2f}" for n, a in aucs),
        ),
        Claim(
            text="control: with confidences dealt to other queries the loop is worse",
            control=True,
            held=all(d.low > 0 for _, d in dealt),
            found="; ".join(f"{n} {d} points" for n, d in dealt),
        ),
    ]


def _played(model: LanguageModel, encoder: TextEncoder, domain: str, split: str, limit: int) -> Played:
    def items(split: str, limit: int) -> list[Item]:
        return [Item(question=e.question, answer=NAMES[e.answer]) for e in polarity(domain, split, limit)]

    asked, index = items(split, limit), SimilarityIndex(encoder).fit(items("train", POOL))
    gold, queries = [i.answer for i in asked], [replace(i, answer="") for i in asked]
    options = {"threshold": 1.0, "max_new_tokens": SAMPLING.max_new_tokens, "instruction": INSTRUCTION}
    loop = IterativeICL(model, index, shots=SHOTS, rounds=ROUNDS, **options)
    traces = [a.trace for a in loop.answer_batch(queries)]
    once = IterativeICL(model, index, shots=SHOTS * ROUNDS, rounds=1, **options).answer_batch(queries)
    none = model.generate([loop.prompt(q, ()) for q in queries], SAMPLING)

    def right(texts: list[str], answer: str) -> list[float]:
        return [float(t.strip().lower().startswith(answer)) for t in texts]

    return Played(
        right=np.array([right([r.text for r in t], g) for t, g in zip(traces, gold, strict=True)]),
        sure=np.array([[r.confidence for r in t] for t in traces]),
        tokens=np.array([[r.tokens for r in t] for t in traces], float),
        none=np.array([right([n.text], g)[0] for n, g in zip(none, gold, strict=True)]),
        together=np.array([right([a.text], g)[0] for a, g in zip(once, gold, strict=True)]),
        together_tokens=np.array([a.tokens for a in once], float),
    )


def _row(domain: str, name: str, right: NDArray, calls: NDArray | None, tokens: NDArray | None) -> list[str]:
    error = 100 * right.std() / np.sqrt(len(right))
    shown = [f"{x.mean():.{d}f}" if x is not None else "-" for x, d in ((calls, 2), (tokens, 0))]
    return [domain, name, f"{100 * right.mean():.1f}±{error:.1f}", *shown]


def _auc(score: NDArray, right: NDArray) -> float:
    from scipy.stats import rankdata

    positive = right > 0.5
    if positive.all() or not positive.any():
        return 0.5
    n, m = positive.sum(), (~positive).sum()
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m))
