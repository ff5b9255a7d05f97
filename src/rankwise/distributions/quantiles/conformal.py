"""Conformal calibration of symmetric pairs of quantiles, τ and 1 - τ, which meet α = 2τ, and of single ones.

Scores of rows that a fit did not see, ``E_i = max(q̂_lo(x_i) - y_i, y_i - q̂_hi(x_i))``, and Q the ⌈(1-α)(n+1)⌉-th
smallest of n values (the largest where there are too few):

    split    [q̂_lo - Q(E_i), q̂_hi + Q(E_i)]                                    covers 1 - α
    CV+      [-Q(E_i - q̂_lo^{-k(i)}(x)), Q(E_i + q̂_hi^{-k(i)}(x))]    k(i): the fold of i; covers 1 - 2α, near 1 - α

A level without its partner is an end alone, α = τ below and 1 - τ above; the median is none.

Source: Romano, Patterson & Candès, "Conformalized Quantile Regression", NeurIPS 2019; Barber, Candès, Ramdas &
Tibshirani, "Predictive inference with the jackknife+", Annals of Statistics 2021; Fakoor et al. (see
`aggregation`), section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.distributions.quantiles.metrics import symmetric_pairs

Array = NDArray[np.float64]
_ENTRIES = 1 << 21  # of a block of rows against all scores


class Interval(NamedTuple):
    """Positions of its levels, None for an end at infinity, and α.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.conformal import intervals
    >>> intervals(np.array([0.1, 0.5, 0.75, 0.9]))
    [Interval(low=0, high=3, alpha=0.2), Interval(low=None, high=2, alpha=0.25)]
    """

    low: int | None
    high: int | None
    alpha: float


def intervals(tau: Array) -> list[Interval]:
    """Of levels ``(m,)``: pairs from the outermost inwards, then levels without a partner."""
    pairs = symmetric_pairs(tau)
    alone = sorted(set(range(len(tau))) - {k for pair in pairs for k in pair})
    out = [Interval(i, j, 2 * float(tau[i])) for i, j in pairs]
    out += [Interval(k, None, float(tau[k])) for k in alone if tau[k] < 0.5 - 1e-9]
    return out + [Interval(None, k, 1 - float(tau[k])) for k in alone if tau[k] > 0.5 + 1e-9]


def conformity_scores(y: Array, q: Array, tau: Array) -> Array:
    """``E``, ``(n, intervals)``, of responses ``(n,)`` and their quantiles ``(n, m)``."""
    columns = []
    for low, high, _ in intervals(tau):
        below = -np.inf if low is None else q[:, low] - y
        columns.append(np.maximum(below, -np.inf if high is None else y - q[:, high]))
    return np.stack(columns, 1) if columns else np.empty((len(y), 0))


def widening(scores: Array, tau: Array) -> Array:
    """What split calibration adds to each level, ``(m,)``; 0 at the median."""
    out = np.zeros(len(tau))
    for (low, high, alpha), E in zip(intervals(tau), scores.T, strict=True):
        Q = np.sort(E)[_rank(len(E), alpha)]
        if low is not None:
            out[low] = -Q
        if high is not None:
            out[high] = Q
    return out


def cross_calibrated(q: Array, by_fold: Sequence[Array], scores: Sequence[Array], tau: Array) -> Array:
    """``q (rows, m)`` with the ends of CV+; the median is kept.

    Parameters
    ----------
    q : ndarray
        Quantiles.
    by_fold : sequence of ndarray
        Of the same rows by the fit without each fold, ``(rows, m)``.
    scores : sequence of ndarray
        Of each fold's rows by the fit without them, ``(n_k, intervals)``.
    tau : ndarray
        Levels ``(m,)``.
    """
    out, n = q.copy(), sum(map(len, scores))
    for start in range(0, len(q), max(1, _ENTRIES // n)):
        rows = slice(start, start + max(1, _ENTRIES // n))
        for p, (low, high, alpha) in enumerate(intervals(tau)):
            k = _rank(n, alpha)
            for level, sign in ((low, -1), (high, 1)):
                if level is None:
                    continue
                ends = np.concatenate([
                    sign * f[rows, level, None] + E[:, p] for f, E in zip(by_fold, scores, strict=True)
                ], 1)  # fmt: skip
                out[rows, level] = sign * np.partition(ends, k, 1)[:, k]
    return out


def _rank(n: int, alpha: float) -> int:
    """Position in ascending order of the ⌈(1-α)(n+1)⌉-th smallest of n."""
    return min(int(np.ceil((n + 1) * (1 - alpha) - 1e-9)), n) - 1
