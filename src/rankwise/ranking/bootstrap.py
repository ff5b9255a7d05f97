"""How sure a mean over documents is: rows drawn again, with replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def interval(values: Array, *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean of ``(n,)`` values."""
    means = resampled(values[:, None], resamples=resamples, seed=seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(values: Array, *, resamples: int, seed: int) -> Array:
    """Means ``(resamples, m)`` of ``(n, m)`` values, the same rows drawn for every column."""
    rng, n = np.random.default_rng(seed), len(values)
    return np.stack([rng.multinomial(n, np.full(n, 1 / n)) @ values / n for _ in range(resamples)])
