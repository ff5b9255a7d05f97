"""How good an order is (nDCG, ERR, MRR), and how well clicks are predicted, each one query at a time.

A query without a relevant document has no nDCG and no MRR: its value is NaN. Means differ by whether such a query is
left out (as ULTRA does) or counts 0 (as others do): `mean_over_queries` asks which, and `ranking_report` gives both.
Documents of equal score share the mean gain of their places in nDCG, as in scikit-learn; in ERR and MRR the less
relevant ones stand first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.nearest import unknown
from rankwise.ranking.bootstrap import interval
from rankwise.ranking.lists import MOST_GRADE

__all__ = [
    "RankingReport",
    "click_log_likelihood",
    "err",
    "mean_over_queries",
    "mrr",
    "ndcg",
    "place_log_likelihood",
    "ranking_report",
]

Array = NDArray[np.float64]


def ndcg(
    relevance: ArrayLike, scores: ArrayLike, *, query: ArrayLike, k: int | None = 10, gain: str = "exponential"
) -> Array:
    """Normalised discounted cumulative gain of each query, in the order of their ids; NaN where nothing is relevant.

    Parameters
    ----------
    relevance, scores, query : array
        ``(rows,)``: grades from 0 on, predicted scores, whose candidate each row is.
    k : int, optional
        Places that count; all by default of None.
    gain : {"exponential", "linear"}
        2^y - 1, or y as scikit-learn takes it.

    Examples
    --------
    >>> from rankwise.ranking import ndcg
    >>> ndcg([0, 1], [0.2, 0.1], query=[0, 0]).round(4)  # 1 / log2(3)
    array([0.6309])
    """
    y, s, number, queries = _rows(relevance, scores, query)
    if gain not in ("exponential", "linear"):
        raise unknown("gain", gain, ("exponential", "linear"))
    gains = 2**y - 1 if gain == "exponential" else y
    best = _dcg(gains, gains, number, queries, k)
    with np.errstate(invalid="ignore"):
        return np.where(best > 0, _dcg(gains, s, number, queries, k) / best, np.nan)


def err(
    relevance: ArrayLike, scores: ArrayLike, *, query: ArrayLike, k: int | None = 10, max_grade: float = 4
) -> Array:
    """Expected reciprocal rank of each query: Σ_i 1/i R_i Π_{j<i}(1 - R_j), R = (2^y - 1)/2^{y_max}.

    Examples
    --------
    >>> from rankwise.ranking import err
    >>> err([0, 1], [2.0, 1.0], query=[0, 0], max_grade=1)  # half of a half
    array([0.25])
    """
    y, s, number, queries = _rows(relevance, scores, query)
    if not y.max() <= max_grade <= MOST_GRADE:
        raise ValueError(f"a grade is {y.max():g}, and max_grade is {max_grade:g}: from that grade to {MOST_GRADE}")
    order, place = _ordered(y, s, number)
    r = (2 ** y[order] - 1) / 2.0**max_grade
    passed = np.log1p(-r)
    before = np.cumsum(passed) - passed
    before -= before[place == 1][number[order]]  # of the query's own
    terms = r * np.exp(before) / place * (place <= (k or np.inf))
    return np.bincount(number[order], terms, queries).astype(np.float64)


def mrr(relevance: ArrayLike, scores: ArrayLike, *, query: ArrayLike, k: int | None = None) -> Array:
    """1 / rank of the first document above grade 0 of each query; 0 beyond ``k``, NaN where there is none.

    Examples
    --------
    >>> from rankwise.ranking import mrr
    >>> mrr([0, 1, 0], [3.0, 2.0, 1.0], query=[0, 0, 1])
    array([0.5, nan])
    """
    y, s, number, queries = _rows(relevance, scores, query)
    order, place = _ordered(y, s, number)
    first, relevant = np.full(queries, np.inf), y[order] > 0
    np.minimum.at(first, number[order][relevant], place[relevant])
    return np.where(np.isinf(first), np.nan, np.where(first <= (k or np.inf), 1 / first, 0.0))


def mean_over_queries(values: ArrayLike, *, empty: str) -> float:
    """Mean over queries; those without a relevant document (NaN) are left out (``"skip"``) or count 0 (``"zero"``).

    Examples
    --------
    >>> from rankwise.ranking import mean_over_queries
    >>> mean_over_queries([1.0, float("nan")], empty="skip"), mean_over_queries([1.0, float("nan")], empty="zero")
    (1.0, 0.5)
    """
    if empty not in ("skip", "zero"):
        raise unknown("treatment of empty queries", empty, ("skip", "zero"))
    v = np.asarray(values, dtype=np.float64)
    kept = np.nan_to_num(v, nan=0.0) if empty == "zero" else v[~np.isnan(v)]
    return float(kept.mean()) if len(kept) else float("nan")


def click_log_likelihood(probabilities: ArrayLike, clicks: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean log-probability of a click, or of none, over all places that show something.

    Examples
    --------
    >>> from rankwise.ranking import click_log_likelihood
    >>> round(click_log_likelihood([[0.5, 0.5]], [[1, 0]]), 4)
    -0.6931
    """
    p, c = np.asarray(probabilities, dtype=np.float64), np.asarray(clicks)
    shown = np.ones(p.shape, bool) if mask is None else np.asarray(mask, dtype=bool)
    if p.shape != c.shape or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities {p.shape} for clicks {c.shape}: one from 0 to 1 for each is accepted")
    with np.errstate(divide="ignore"):
        return float(np.where(c > 0, np.log(p), np.log1p(-p))[shown].mean())


def place_log_likelihood(logits: ArrayLike, clicks: ArrayLike, mask: ArrayLike) -> Array:
    """Of each list, the mean log-probability of where its clicks fell by the softmax of ``(L, n)`` logits; or NaN.

    For models whose scale is not identified, such as relevance times relative examination.

    Examples
    --------
    >>> from rankwise.ranking import place_log_likelihood
    >>> place_log_likelihood([[0.0, 0.0]], [[1, 0]], [[True, True]]).round(4)
    array([-0.6931])
    """
    shown = np.asarray(mask, dtype=bool)
    z, c = np.where(shown, np.asarray(logits, dtype=np.float64), -np.inf), np.asarray(clicks) * shown
    top = z.max(1, keepdims=True)
    log = np.where(shown, z - top - np.log(np.exp(z - top).sum(1, keepdims=True)), 0.0)
    with np.errstate(invalid="ignore"):
        return (c * log).sum(1) / c.sum(1)


@dataclass(frozen=True, kw_only=True)
class RankingReport:
    """A ranking against grades.

    Attributes
    ----------
    queries, empty : int
        How many there are, and how many of them have no relevant document.
    values : dict
        By metric, the value of each query.

    Examples
    --------
    >>> from rankwise.ranking import ranking_report
    >>> report = ranking_report([0, 1, 0], [2.0, 1.0, 0.0], query=[0, 0, 1])
    >>> report.empty, report.mean("MRR", empty="skip"), report.mean("MRR", empty="zero")
    (1, 0.5, 0.25)
    """

    queries: int
    empty: int
    values: dict[str, Array]

    def mean(self, metric: str, *, empty: str) -> float:
        """See `mean_over_queries`."""
        if metric not in self.values:
            raise unknown("metric", metric, self.values)
        return mean_over_queries(self.values[metric], empty=empty)

    def rows(self, *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """A row a metric: mean without empty queries, its 95% interval over queries, and mean with them as 0."""
        out = []
        for name, v in self.values.items():
            kept = v[~np.isnan(v)]
            low, high = interval(kept, resamples=resamples, seed=seed) if len(kept) else (np.nan, np.nan)
            out.append({"metric": name, "mean": self.mean(name, empty="skip"), "low": low, "high": high,
                        "mean_empty_zero": self.mean(name, empty="zero")})  # fmt: skip
        return out


def ranking_report(
    relevance: ArrayLike, scores: ArrayLike, *, query: ArrayLike, ks: tuple[int, ...] = (1, 3, 5, 10),
    max_grade: float | None = None,
) -> RankingReport:  # fmt: skip
    """nDCG at several depths, ERR@10 and MRR.

    Parameters
    ----------
    relevance, scores, query : array
        ``(rows,)``.
    ks : tuple of int
        Depths of nDCG.
    max_grade : float, optional
        Of ERR; the largest grade that is there, at least 1, by default.

    Examples
    --------
    >>> from rankwise.ranking import ranking_report
    >>> list(ranking_report([0, 1], [1.0, 2.0], query=[0, 0]).values)
    ['nDCG@1', 'nDCG@3', 'nDCG@5', 'nDCG@10', 'ERR@10', 'MRR']
    """
    values = {f"nDCG@{k}": ndcg(relevance, scores, query=query, k=k) for k in ks}
    most = max(1.0, float(np.max(np.asarray(relevance, dtype=np.float64)))) if max_grade is None else max_grade
    empty = np.isnan(values[f"nDCG@{ks[0]}"])
    values["ERR@10"] = np.where(empty, np.nan, err(relevance, scores, query=query, max_grade=most))
    values["MRR"] = mrr(relevance, scores, query=query)
    return RankingReport(queries=len(empty), empty=int(empty.sum()), values=values)


def _rows(relevance: ArrayLike, scores: ArrayLike, query: ArrayLike) -> tuple[Array, Array, NDArray[np.int64], int]:
    y, s, ids = np.asarray(relevance, np.float64), np.asarray(scores, np.float64), np.asarray(query)
    if y.ndim != 1 or y.shape != s.shape or y.shape != ids.shape or not len(y):
        raise ValueError(f"relevance {y.shape}, scores {s.shape}, query {ids.shape}: (rows,) of each, at least one row")
    if (wrong := ~((y >= 0) & (y <= MOST_GRADE))).any():
        raise ValueError(f"a grade is {y[wrong][0]:g}: numbers from 0 to {MOST_GRADE} are accepted")
    if not np.isfinite(s).all():
        raise ValueError("a score is NaN or infinite")
    names, number = np.unique(ids, return_inverse=True)
    return y, s, number, len(names)


def _ordered(y: Array, s: Array, number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by query and falling score, the less relevant first among equals, and the rank of each, from 1."""
    order = np.lexsort((y, -s, number))
    sizes = np.bincount(number)
    return order, np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1


def _dcg(gains: Array, s: Array, number: NDArray[np.int64], queries: int, k: int | None) -> Array:
    """Equal scores share the mean discount of their places."""
    order, place = _ordered(gains, s, number)
    discount = np.where(place <= (k or np.inf), 1 / np.log2(place + 1), 0.0)
    score, whose = s[order], number[order]
    new = np.r_[True, (score[1:] != score[:-1]) | (whose[1:] != whose[:-1])]
    tie = np.cumsum(new) - 1
    shared = np.bincount(tie, discount) / np.bincount(tie)
    return np.bincount(whose, gains[order] * shared[tie], queries).astype(np.float64)
