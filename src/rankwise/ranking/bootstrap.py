"""How sure a mean over documents is: rows drawn again, with replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def interval(values: Array, *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean of ``(n,)`` values."""
    low, high = quantiles(resampled(values[:, None], resamples=resamples, seed=seed), level=level, n=len(values))
    return float(low[0]), float(high[0])


def quantiles(means: Array, *, n: int, level: float = 0.95) -> tuple[Array, Array]:
    """Both ends ``(m,)`` of the interval of ``(resamples, m)`` means of n rows; one row has none: NaN."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low, high) if n > 1 else (low * np.nan, high * np.nan)


def resampled(values: Array, *, resamples: int, seed: int) -> Array:
    """Means ``(resamples, m)`` of ``(n, m)`` values, the same rows drawn for every column."""
    rng, n = np.random.default_rng(seed), len(values)
    return np.stack([rng.multinomial(n, np.full(n, 1 / n)) @ values / n for _ in range(resamples)])
