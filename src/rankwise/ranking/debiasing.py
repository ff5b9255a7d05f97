"""Propensities by position from a log, with intervals, and weights for rankers of other libraries."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.ranking.bootstrap import resampled
from rankwise.ranking.lists import ClickLists, lists_of

__all__ = ["Debiased", "PropensityCurve", "debias", "propensity_curve", "randomised_propensity"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Debiased:
    """A click log with its bias weighed out.

    Attributes
    ----------
    weight : ndarray
        ``(rows,)``: of a click, 1 / propensity; of a document passed over, 1; beyond the list's size, 0.
    relevance : ndarray
        ``(m,)``, of each row of the features: weighted clicks by showing, NaN where it was never shown.
    propensity : ndarray
        ``(n,)``, relative to the first place.

    Examples
    --------
    >>> from rankwise.ranking import debias
    >>> debias([[0.0], [1.0]], [0, 1], query=[0, 0], propensity=[1.0, 0.5]).weight
    array([1., 2.])
    """

    weight: Array
    relevance: Array
    propensity: Array


def debias(
    X: ArrayLike,
    clicks: ArrayLike,
    *,
    query: ArrayLike,
    position: ArrayLike | None = None,
    document: ArrayLike | None = None,
    propensity: ArrayLike | None = None,
    max_weight: float = 100.0,
    **options: Any,
) -> Debiased:
    """Weights of a log's rows for LightGBM or XGBoost.

    LightGBM takes them a row: ``LGBMRanker().fit(X, clicks, group=sizes, sample_weight=weight)``. XGBoost's rankers
    take one weight a query: give them ``relevance`` as labels, with ``ndcg_exp_gain=False``.

    Parameters
    ----------
    X, clicks, query, position, document
        As of `rankwise.ranking.DualLearningRanker.fit`.
    propensity : array, optional
        Of each position, where it is known; estimated by dual learning by default.
    max_weight : float
        Weights are cut to it.
    **options
        Of `DualLearningRanker`, where it estimates.

    Raises
    ------
    ValueError
        As of `DualLearningRanker`; options beside a given propensity; a propensity that is not above 0 or too short.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import debias
    >>> X = np.random.default_rng(0).normal(size=(6, 2))
    >>> done = debias(X, [1, 0, 0, 1, 1, 0], query=[0, 0, 1, 1, 2, 2], ranker="linear", steps=20)
    >>> done.weight.shape, done.relevance.shape
    ((6,), (6,))
    """
    from rankwise.ranking.dla import DualLearningRanker

    if not max_weight > 0:
        raise ValueError(f"max_weight={max_weight}: it has to be above 0")
    log = {"query": query, "position": position, "document": document}
    if propensity is None:
        model = DualLearningRanker(**{"max_weight": max_weight, **options}).fit(X, clicks, **log)
        found, size = model.propensity_, model.list_size
    elif options:
        raise ValueError(f"{', '.join(options)}: options of an estimate, and propensity is given: leave one out")
    else:
        found, size = np.asarray(propensity, dtype=np.float64), None
    lists, features = lists_of(clicks, list_size=size, **log), np.shape(X)[0]
    if found.ndim != 1 or len(found) < lists.mask.shape[1] or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"propensity is {found.tolist()}: {lists.mask.shape[1]} values above 0 are needed, and finite ones"
        )
    if lists.rows.max() >= features or (document is None and len(np.asarray(clicks)) != features):
        raise ValueError(
            f"X has {features:,} rows for {len(np.asarray(clicks)):,} clicks: give document, or a row for each"
        )
    inverse = np.minimum(found[0] / found, max_weight)[: lists.mask.shape[1]]
    clicked, rows = lists.clicks * inverse, features
    weight = np.zeros(len(np.asarray(clicks)))
    weight[lists.entries[lists.mask]] = np.where(lists.clicks > 0, inverse, 1.0)[lists.mask]
    with np.errstate(invalid="ignore"):
        relevance = np.bincount(lists.rows[lists.mask], clicked[lists.mask], rows) / np.bincount(
            lists.rows[lists.mask], minlength=rows
        )
    return Debiased(weight=weight, relevance=relevance, propensity=found / found[0])


def randomised_propensity(lists: ClickLists) -> Array:
    """Propensity ``(n,)`` from shuffled lists: clicks at k over clicks at 1, in lists of at least k places.

    Raises
    ------
    ValueError
        No click at the first place of lists that long.

    Examples
    --------
    >>> from rankwise.ranking import lists_of, randomised_propensity
    >>> randomised_propensity(lists_of([1, 0, 1, 1], query=[0, 0, 1, 1]))
    array([1. , 0.5])
    """
    first = (lists.clicks[:, :1] * lists.mask).sum(0)
    if (first == 0).any():
        k = int(np.flatnonzero(first == 0)[0]) + 1
        raise ValueError(f"no click at the first place of lists of at least {k} places: more shuffled lists are needed")
    return lists.clicks.sum(0) / first


@dataclass(frozen=True, kw_only=True)
class PropensityCurve:
    """Propensity by position, relative to the first, with percentile intervals.

    Attributes
    ----------
    propensity, low, high : ndarray
        ``(n,)``; NaN where no list was clicked at its first place, and the ends where only one query was clicked.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import lists_of, propensity_curve
    >>> lists = lists_of([1, 0, 1, 1], query=[0, 0, 1, 1])
    >>> propensity_curve(lists, np.zeros((2, 2)), resamples=10).propensity
    array([1. , 0.5])
    """

    propensity: Array
    low: Array
    high: Array


def propensity_curve(
    lists: ClickLists,
    scores: ArrayLike,
    *,
    group: ArrayLike | None = None,
    max_weight: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> PropensityCurve:
    """The exam loss' own optimum for fixed scores, and its spread when queries are drawn again.

    With weights w = P_1/P_i it is the choice model Q of Σ c w log(Q_i / Σ_{j ≤ length} Q_j), found for all resamples
    at once by Hunter's minorisation. The ranker is held: its own uncertainty is not in the interval.

    Parameters
    ----------
    lists : ClickLists
        With clicks.
    scores : array
        ``(L, n)`` of a fitted ranker.
    group : array, optional
        ``(L,)``, the query of each list: what is drawn again; each list by default.
    max_weight : float, optional
        Weights are cut to it.
    resamples, seed, level
        Of the bootstrap.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import lists_of, propensity_curve
    >>> curve = propensity_curve(lists_of([1, 0, 0, 1], query=[0, 0, 1, 1]), np.zeros((2, 2)), resamples=20)
    >>> bool((curve.low <= curve.high).all())
    True
    """
    f = np.asarray(scores, dtype=np.float64)
    if f.shape != lists.mask.shape or resamples < 1:
        raise ValueError(f"scores {f.shape} and resamples={resamples}: {lists.mask.shape}, and at least 1, are needed")
    weight = np.exp(np.where(lists.mask, f[:, :1] - f, 0.0))
    weight = lists.clicks * (weight if max_weight is None else np.minimum(weight, max_weight))
    names, of = np.unique(lists.query if group is None else np.asarray(group), return_inverse=True)
    shape = len(names), lists.mask.shape[1]
    sums, totals = np.zeros(shape), np.zeros(shape)  # by place; by length
    np.add.at(sums, of, weight)
    np.add.at(totals, (of, lists.mask.sum(1) - 1), weight.sum(1))
    both = np.c_[sums, totals]
    drawn = resampled(both, resamples=resamples, seed=seed)
    chosen, offered = np.hsplit(np.r_[both.mean(0, keepdims=True), drawn], 2)
    q = _choices(chosen, offered)
    q = np.divide(q, q[:, :1], out=np.full_like(q, np.nan), where=q[:, :1] > 0)
    if (sums.sum(1) > 0).sum() < 2:
        q[1:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN
        low, high = np.nanquantile(q[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return PropensityCurve(propensity=q[0], low=low, high=high)


def _choices(sums: Array, totals: Array, *, iterations: int = 500) -> Array:
    """Q ``(R, n)`` of Luce's choice model from chosen weight by place, and total weight by length of list."""
    q = np.ones_like(sums)
    for _ in range(iterations):
        within = np.maximum(np.cumsum(q, 1), 1e-300)
        offered = np.cumsum((totals / within)[:, ::-1], 1)[:, ::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            new = np.where(sums > 0, sums / offered, 0.0)
        new /= np.maximum(new.sum(1, keepdims=True), 1e-300)
        if np.abs(new - q).max() < 1e-10:
            return new
        q = new
    return q
