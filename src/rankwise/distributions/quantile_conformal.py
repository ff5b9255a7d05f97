"""Conformal calibration of symmetric pairs of quantiles, τ and 1 - τ, which meet α = 2τ.

Scores of rows that a fit did not see, ``E_i = max(q̂_lo(x_i) - y_i, y_i - q̂_hi(x_i))``, and Q the ⌈(1-α)(n+1)⌉-th
smallest of n values (the largest where there are too few):

    split    [q̂_lo - Q(E_i), q̂_hi + Q(E_i)]                                    covers 1 - α
    CV+      [-Q(E_i - q̂_lo^{-k(i)}(x)), Q(E_i + q̂_hi^{-k(i)}(x))]    k(i): the fold of i; covers 1 - 2α, near 1 - α

Source: Romano, Patterson & Candès, "Conformalized Quantile Regression", NeurIPS 2019; Barber, Candès, Ramdas &
Tibshirani, "Predictive inference with the jackknife+", Annals of Statistics 2021; Fakoor et al. (see
`quantile_aggregation`), section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankwise.distributions.quantile_metrics import symmetric_pairs

Array = NDArray[np.float64]
_ENTRIES = 1 << 21  # of a block of rows against all scores


def conformity_scores(y: Array, q: Array, tau: Array) -> Array:
    """``E``, ``(n, pairs)``, of responses ``(n,)`` and their quantiles ``(n, m)``; pairs from the outermost inwards."""
    pairs = np.array(symmetric_pairs(tau), dtype=int).reshape(-1, 2)
    return np.maximum(q[:, pairs[:, 0]] - y[:, None], y[:, None] - q[:, pairs[:, 1]])


def widening(scores: Array, tau: Array) -> Array:
    """What split calibration adds to each level, ``(m,)``; 0 at levels without a partner."""
    out = np.zeros(len(tau))
    for (i, j), E in zip(symmetric_pairs(tau), scores.T, strict=True):
        out[j] = np.sort(E)[_rank(len(E), 2 * tau[i])]
        out[i] = -out[j]
    return out


def cross_calibrated(q: Array, by_fold: Sequence[Array], scores: Sequence[Array], tau: Array) -> Array:
    """``q (rows, m)`` with the ends of CV+ at paired levels.

    Parameters
    ----------
    q : ndarray
        Quantiles, kept at levels without a partner.
    by_fold : sequence of ndarray
        Of the same rows by the fit without each fold, ``(rows, m)``.
    scores : sequence of ndarray
        Of each fold's rows by the fit without them, ``(n_k, pairs)``.
    tau : ndarray
        Levels ``(m,)``.
    """
    out, n = q.copy(), sum(map(len, scores))
    for start in range(0, len(q), max(1, _ENTRIES // n)):
        rows = slice(start, start + max(1, _ENTRIES // n))
        for p, (i, j) in enumerate(symmetric_pairs(tau)):
            k = _rank(n, 2 * tau[i])
            for level, sign in ((i, -1), (j, 1)):
                ends = np.concatenate([
                    sign * f[rows, level, None] + E[:, p] for f, E in zip(by_fold, scores, strict=True)
                ], 1)  # fmt: skip
                out[rows, level] = sign * np.partition(ends, k, 1)[:, k]
    return out


def _rank(n: int, alpha: float) -> int:
    """Position in ascending order of the ⌈(1-α)(n+1)⌉-th smallest of n."""
    return min(int(np.ceil((n + 1) * (1 - alpha) - 1e-9)), n) - 1
