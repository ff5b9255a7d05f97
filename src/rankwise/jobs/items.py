"""What every item of a corpus got from a model, and the metrics that follow from it: all of them are computed here.

Items are columns of one length, in the corpus's order, as JSON holds them:

==============================  ======================================================================================
classification, text-to-label   ``label`` and ``said`` (classes by number), ``nll`` of the right one
regression                      ``value`` and ``said``
causal-lm                       ``nll`` summed over a text's tokens, ``tokens``
asr                             the same, and ``errors``, ``words``, ``letter_errors``, ``letters`` of a recording
==============================  ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Items: TypeAlias = dict[str, list[float]]
Column: TypeAlias = NDArray[np.float64]


def metrics(items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Metrics by name; ``score`` is the one to rank by, higher is better.

    Accuracy, macro F1 and loss; Pearson correlation, RMSE and loss; loss and perplexity a token; or word and character
    error rates of the whole corpus, and loss a token. ``score`` is accuracy, correlation, minus the loss, or
    ``1 - wer``. Where classes are kept without ``nll``, there is no loss.

    Examples
    --------
    >>> from rankwise.jobs.items import metrics
    >>> metrics({"label": [0, 1, 1, 1], "said": [0, 1, 1, 0]})["accuracy"]
    0.75
    """
    columns = {name: np.asarray(column, np.float64) for name, column in items.items()}  # null is NaN
    if "words" in columns:
        return _heard(**columns)
    if "tokens" in columns:
        loss = _a_token(**columns)
        return {"score": -loss, "loss": loss, "perplexity": math.exp(min(loss, 700))}
    return _correlated(**columns) if "value" in columns else _classified(**columns)


def _heard(
    *, errors: Column, words: Column, letter_errors: Column, letters: Column, nll: Column, tokens: Column
) -> dict[str, float]:
    wer, cer = (float(e.sum() / max(n.sum(), 1)) for e, n in ((errors, words), (letter_errors, letters)))
    return {"score": 1 - wer, "wer": wer, "cer": cer, "loss": _a_token(nll=nll, tokens=tokens)}


def _a_token(*, nll: Column, tokens: Column) -> float:
    return float(nll.sum() / max(tokens.sum(), 1))


def _correlated(*, value: Column, said: Column) -> dict[str, float]:
    a, b = value - value.mean(), said - said.mean()
    spread = math.sqrt((a @ a) * (b @ b))
    correlation = float(a @ b) / spread if spread > 0 else 0.0
    loss = float(np.mean((value - said) ** 2))
    return {"score": correlation, "pearson": correlation, "rmse": loss**0.5, "loss": loss}


def _classified(*, label: Column, said: Column, nll: Column | None = None) -> dict[str, float]:
    f1 = [2 * np.sum((said == c) & (label == c)) / np.sum((said == c) + (label == c) * 1) for c in np.unique(label)]
    accuracy = float(np.mean(said == label))
    loss = {} if nll is None else {"loss": float(nll.mean())}
    return {"score": accuracy, "accuracy": accuracy, "macro_f1": float(np.mean(f1)), **loss}
