"""Where a kernel density estimate in large dimension is a mean, a lottery, or its nearest neighbour: the theory.

n points in R^d, query x from the same law; with β = 1/h² one term is ``e^{-β |x - y|²/2}``. With eigenvalues s_k of the
covariance (Gaussian data) and everything summed over k,

    Φ(β)  = Σ_k [-½ log(1 + β s_k) - β s_k / (2 (1 + β s_k))]           log-mean of one term
    β_G   : β Φ'(β) - Φ(β) = Σ_k [½ log(1 + β s_k) - β s_k / (2 (1 + β s_k)²)] = log n        condensation
    h_G   = β_G^{-1/2},   h_CLT = √2 h_G                                 (β_CLT = β_G / 2)
    μ     = β_G / β = (h / h_G)²                                         index: above 2 Gaussian, 1 to 2 stable, below 1
                                                                         a few points carry the sum
    E     = -Φ'(β_G)                                                     half the nearest squared distance
    h_opt = sqrt(2 E / d), below h_G                                     maximises the mean log-density

Source: Biroli & Mézard, "Kernel Density Estimators in Large Dimensions", 2024, arXiv 2408.05807; derived here from the
random energy model.

What people get wrong: h_opt lies where the estimate is *not* a mean of many terms; more accurate on average is not the
same as concentrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

__all__ = ["critical_bandwidths"]

Array = NDArray[np.float64]
REGIMES = ("extreme-value", "stable", "CLT")


@dataclass(frozen=True, kw_only=True)
class CriticalBandwidths:
    """Bandwidths at which the estimate changes its nature.

    Attributes
    ----------
    n : float
        Points; of weighted ones their effective number.
    d : int
        Directions with variance.
    alpha : float
        ``log n / d``.
    h_g, h_clt, h_opt : float
        Below h_G a few points carry the sum, from h_CLT on it is Gaussian, at h_opt the mean log-density is largest.
    beta_g : float
        ``h_g⁻²``.
    e_min : float
        ``E / d``: half the typical nearest squared distance, a dimension.
    spectrum : ndarray
        The eigenvalues used.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions import critical_bandwidths
    >>> c = critical_bandwidths(np.ones(20), n=1000)  # of a standard normal law in 20 dimensions
    >>> [c.regime(h) for h in (c.h_opt, 1.2 * c.h_g, 2 * c.h_g)]
    ['extreme-value', 'stable', 'CLT']
    >>> float(c.index(c.h_clt).round(6))
    2.0
    """

    n: float
    d: int
    alpha: float
    beta_g: float
    h_g: float
    h_clt: float
    h_opt: float
    e_min: float
    spectrum: Array

    def index(self, h: ArrayLike) -> Array:
        """μ = (h / h_G)²."""
        return np.square(np.asarray(h, dtype=float) / self.h_g)

    def regime(self, h: float) -> str:
        """``"CLT"``, ``"stable"`` or ``"extreme-value"``."""
        return REGIMES[int(np.searchsorted([1.0, 2.0], float(self.index(h)), side="right"))]

    def log_density(self, h: ArrayLike) -> Array:
        """Typical ``log ρ̂_h / d``: ``φ + ½ log(β/2π)``, below h_G ``-α - β e_min + ½ log(β/2π)``."""
        beta = np.asarray(h, dtype=float) ** -2.0
        above = log_mean_term(beta, self.spectrum) / self.d
        below = -self.alpha - beta * self.e_min
        return np.where(beta <= self.beta_g, above, below) + np.log(beta / (2 * np.pi)) / 2


def log_mean_term(beta: ArrayLike, spectrum: ArrayLike) -> Array:
    """Φ(β) for Gaussian data, of β's shape."""
    bs = np.asarray(beta, dtype=float)[..., None] * np.asarray(spectrum, dtype=float)
    return (-np.log1p(bs) / 2 - bs / (2 * (1 + bs))).sum(-1)


def critical_bandwidths(spectrum: ArrayLike, n: float) -> CriticalBandwidths:
    """The critical bandwidths of n points with this covariance.

    Parameters
    ----------
    spectrum : array_like
        Eigenvalues ``(d,)``, or the covariance ``(d, d)``. Directions without variance (below 1e-10 of the largest) are
        left out.
    n : float
        At least 2.

    Raises
    ------
    ValueError
        Fewer than two points, a covariance that is not symmetric, negative or no eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions import critical_bandwidths
    >>> c = critical_bandwidths(np.diag([4.0, 1.0, 0.0]), n=500)
    >>> c.d, c.h_opt < c.h_g < c.h_clt
    (2, True)
    """
    s = np.asarray(spectrum, dtype=float)
    if s.ndim == 2:
        if s.shape[0] != s.shape[1] or not np.allclose(s, s.T, rtol=1e-8, atol=1e-8 * np.abs(s).max(initial=0)):
            raise ValueError(f"a symmetric covariance is needed, found shape {s.shape}; give eigenvalues as (d,)")
        s = np.linalg.eigvalsh(s)
    if n < 2:
        raise ValueError(f"n is {n}; at least 2 points are needed")
    if s.size == 0 or not np.isfinite(s).all() or s.min() < -1e-8 * abs(s).max():
        raise ValueError("the spectrum must hold finite, non-negative eigenvalues")
    s = np.sort(s[s > 1e-10 * s.max(initial=0)])[::-1]
    if not len(s):
        raise ValueError("no direction has any variance")

    def surplus(log_beta: float) -> float:
        bs = np.exp(log_beta) * s
        return float((np.log1p(bs) / 2 - bs / (2 * (1 + bs) ** 2)).sum() - np.log(n))

    low, high = -np.log(s[0]) - 30.0, -np.log(s[0])
    while surplus(high) < 0:
        high += 5.0
    beta = float(np.exp(cast(float, brentq(surplus, low, high, xtol=1e-14, rtol=np.float64(1e-15)))))
    bs = 1 + beta * s
    e_min = float((s / (2 * bs) + s / (2 * bs**2)).mean())
    h_g = beta**-0.5
    return CriticalBandwidths(
        n=n, d=len(s), alpha=float(np.log(n) / len(s)), beta_g=beta, h_g=h_g, h_clt=float(np.sqrt(2) * h_g),
        h_opt=float(np.sqrt(2 * e_min)), e_min=e_min, spectrum=s,
    )  # fmt: skip
