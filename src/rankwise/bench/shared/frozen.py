"""What the recipes with a frozen SmolLM2 share: the recorded model, label tasks, paired intervals over queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.bench.shared.evidence import SEEN
from rankwise.data import sentiment
from rankwise.events import OnEvent
from rankwise.models import load, load_tokenizer
from rankwise.prompting.examples import Example, few_shot
from rankwise.prompting.language_model import LanguageModel, Recorded
from rankwise.prompting.transformers_model import TransformersModel

SETTING = "SmolLM2-135M-Instruct in bfloat16, frozen"


def smollm2(out: Path) -> Recorded:
    """The model; what it says is kept under ``out``, so that an interrupted recipe goes on."""
    return Recorded(_loaded(), out / "record.jsonl")


@cache
def _loaded() -> TransformersModel:
    """Read once a process, however many runs it does."""
    model = load("smollm2", task="causal-lm", dtype=torch.bfloat16)
    return TransformersModel(model, load_tokenizer("smollm2"), batch_size=16)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of means with its 95% bootstrap interval and its standard error."""

    mean: float
    low: float
    high: float
    error: float
    scale: float = 1.0

    def __str__(self) -> str:
        a, b, c, seen = (self.scale * x for x in (self.mean, self.low, self.high, SEEN * self.error))
        return f"{a:+.3g} [{b:+.3g}, {c:+.3g}], sees {seen:.2g}"


def difference(a: NDArray, b: NDArray, *, scale: float = 1.0, draws: int = 9_999, seed: int = 0) -> Difference:
    """``mean(a - b)``, what is paired (queries, pools) drawn with replacement."""
    d = np.subtract(a, b)
    rng = np.random.default_rng(seed)
    means = np.concatenate([d[rng.integers(len(d), size=(200, len(d)))].mean(1) for _ in range(-(-draws // 200))])
    low, high = np.quantile(means, [0.025, 0.975])
    error = float(d.std(ddof=1) / np.sqrt(len(d)))
    return Difference(mean=float(d.mean()), low=float(low), high=float(high), error=error, scale=scale)


def polarity(domain: str, split: str, limit: int) -> list[Example]:
    """Sentences of a domain as questions, their polarity as the answer."""
    corpus = getattr(sentiment(domain).split(), split).head(limit)
    names = ("negative", "positive")
    return [Example(question=t, answer=names[int(y)]) for t, y in zip(corpus.texts, corpus.labels, strict=True)]


def sources(split: str, limit: int) -> list[Example]:
    """Sentences of four domains as questions, where they come from as the answer; as many of each."""
    names = {"movies": "film", "nyt": "newspaper", "tweets": "tweet", "amazon": "shop"}
    out = []
    for domain, name in names.items():
        corpus = getattr(sentiment(domain, task="rating").split(), split).head(limit // len(names))
        out += [Example(question=t, answer=name) for t in corpus.texts]
    return out


def label_logp(
    model: LanguageModel,
    queries: Sequence[Example],
    shots: Sequence[Sequence[Example]],
    labels: Sequence[str],
    *,
    instruction: str = "",
) -> NDArray[np.float64]:
    """Log-probability of every label after a prompt of examples, normalised over the labels, ``(queries, labels)``."""
    prompts = [
        few_shot(q.question, s, style="text", instruction=instruction).prompt
        for q, s in zip(queries, shots, strict=True)
    ]
    scores = model.score(prompts, [[f" {label}" for label in labels]] * len(prompts))
    return torch.tensor([[s.total for s in row] for row in scores], dtype=torch.float64).log_softmax(1).numpy()


def silent(on_event: OnEvent | None) -> OnEvent:
    """The listener, or one that does nothing."""
    return on_event or (lambda *_: None)
