"""How good predicted quantiles are: pinball loss, weighted interval score, coverage, crossing, calibration.

    ρ_τ(e) = max(τ e, (τ - 1) e),  e = y - q           WIS = 2 × mean over levels and rows of ρ_τ

Papers differ by WIS's constant: this one makes it the mean absolute error at the single level ½, and an approximation
of the CRPS over even levels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def pinball(y: ArrayLike, q: ArrayLike, quantiles: ArrayLike) -> Array:
    """Losses ``(n, m)`` of predictions ``(n, m)`` at levels ``(m,)``."""
    e = np.asarray(y, dtype=float)[:, None] - np.asarray(q, dtype=float)
    tau = np.asarray(quantiles, dtype=float)
    return np.maximum(tau * e, (tau - 1) * e)


def weighted_interval_score(y: ArrayLike, q: ArrayLike, quantiles: ArrayLike) -> float:
    """Twice the mean pinball loss; low is good, in y's units."""
    return 2 * float(pinball(y, q, quantiles).mean())


def crps(y: ArrayLike, q: ArrayLike, quantiles: ArrayLike) -> float:
    """``2 ∫ ρ_τ dτ``, the continuous ranked probability score, by cells between the middles of neighbouring levels.

    For levels at any distance; over even ones about `weighted_interval_score`. In y's units.
    """
    tau = np.asarray(quantiles, dtype=float)
    cells = np.diff([0.0, *(tau[1:] + tau[:-1]) / 2, 1.0])
    return 2 * float((pinball(y, q, tau) @ cells).mean())


def interval_score(y: ArrayLike, lower: ArrayLike, upper: ArrayLike, alpha: float) -> float:
    """Mean width plus ``2 / alpha`` times what y lies outside (Gneiting & Raftery, 2007)."""
    y, lo, hi = (np.asarray(a, dtype=float) for a in (y, lower, upper))
    return float((hi - lo + 2 / alpha * (np.maximum(lo - y, 0) + np.maximum(y - hi, 0))).mean())


def crossing_rate(q: ArrayLike) -> float:
    """Share of rows in which some quantile lies below a lower one."""
    return float((np.diff(np.asarray(q, dtype=float), axis=1) < 0).any(1).mean())


def calibration_error(y: ArrayLike, q: ArrayLike, quantiles: ArrayLike) -> float:
    """Mean over levels of ``|share of y at or below the quantile - level|``."""
    below = (np.asarray(y, dtype=float)[:, None] <= np.asarray(q, dtype=float)).mean(0)
    return float(np.abs(below - np.asarray(quantiles, dtype=float)).mean())


def report(y: ArrayLike, q: ArrayLike, quantiles: ArrayLike) -> pd.DataFrame:
    """Coverage, width and interval score of every symmetric pair of levels.

    Returns
    -------
    DataFrame
        ``lower``, ``upper`` (levels), ``nominal``, ``coverage``, ``width``, ``interval_score``, widest first.
    """
    y, q, tau = (np.asarray(a, dtype=float) for a in (y, q, quantiles))
    rows = []
    for i, j in symmetric_pairs(tau):
        lo, hi = q[:, i], q[:, j]
        rows.append({
            "lower": tau[i], "upper": tau[j], "nominal": tau[j] - tau[i],
            "coverage": float(((lo <= y) & (y <= hi)).mean()), "width": float((hi - lo).mean()),
            "interval_score": interval_score(y, lo, hi, 2 * tau[i]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def symmetric_pairs(quantiles: ArrayLike) -> list[tuple[int, int]]:
    """Positions of levels τ and 1 - τ, outermost first."""
    tau = np.asarray(quantiles, dtype=float)
    found = []
    for i in range(int(np.searchsorted(tau, 0.5 - 1e-9))):
        j = int(np.argmin(np.abs(tau - (1 - tau[i]))))
        if abs(tau[j] - (1 - tau[i])) < 1e-9:
            found.append((i, j))
    return found
