"""From a detector's score to how far a request's adapter is switched on: calibration, then a monotone soft switch.

    F(g) = ½ Φ((g - m₁)/s) + ½ Φ((g - m₂)/s),   x₀ = (m₁ + m₂)/2      scores of the fitted and of the held-out part
    p(g) = 1 - |F(g) - F(2x₀ - g)|                                    1 at the centre, 0 far away
    w(g) = sigmoid(10 p - 2)                                          0.9997 at the centre, 0.119 far away

and ``w`` is snapped: below a threshold the model stays as it is. The released rules have holes, kept here as options:
one turns ``0.4 < w ≤ 0.9`` off although it keeps ``0.3 < w ≤ 0.4``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr
from scipy.stats import rankdata

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What scores of a request's own texts look like: two bells of one width.

    Attributes
    ----------
    fitted, held_out : float
        Mean score of the part that fitted the detector, and of the part that did not.
    std : float
        Of both bells.

    Examples
    --------
    >>> from rankwise.continual.unlearning.router import Calibration
    >>> bells = Calibration(fitted=1.0, held_out=0.8, std=0.1)
    >>> bells.likeness([0.9, 0.7, 0.5]).round(3).tolist()
    [1.0, 0.16, 0.001]
    """

    fitted: float
    held_out: float
    std: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.fitted, self.held_out, self.std]).all() and self.std > 0):
            raise ValueError(f"a calibration of {self.fitted}, {self.held_out}, {self.std}: finite, the last above 0")

    @property
    def centre(self) -> float:
        """``x₀``."""
        return (self.fitted + self.held_out) / 2

    def cdf(self, g: ArrayLike) -> Array:
        """``F``."""
        g = np.asarray(g, np.float64)
        return 0.5 * ndtr((g - self.fitted) / self.std) + 0.5 * ndtr((g - self.held_out) / self.std)

    def likeness(self, g: ArrayLike, *, two_sided: bool = False) -> Array:
        """``p``, in [0, 1]; one-sided, what scores above the centre is like the request too."""
        g = np.asarray(g, np.float64)
        p = 1 - np.abs(self.cdf(g) - self.cdf(2 * self.centre - g))
        return p if two_sided else np.where(g >= self.centre, 1.0, p)


def switch(p: ArrayLike) -> Array:
    """``w = sigmoid(10 p - 2)``."""
    return expit(10 * np.asarray(p, np.float64) - 2)


def soft(w: Array, *, low: float, high: float, top: float) -> Array:
    """0 up to ``low``, ``top`` from ``high`` on, a straight line between: monotone and without a jump."""
    return top * np.clip((w - low) / (high - low), 0, 1)


def hard(w: Array, *, low: float, high: float, top: float) -> Array:
    """0 or ``top``, the step in the middle between ``low`` and ``high``."""
    return np.where(w >= (low + high) / 2, top, 0.0)


def released(w: Array, **_: float) -> Array:
    """1.2 above 0.9, ``w`` in (0.3, 0.4], else 0: as released, with its hole."""
    return np.where(w > 0.9, 1.2, np.where((w > 0.3) & (w <= 0.4), w, 0.0))


def released_tofu(w: Array, **_: float) -> Array:
    """1 from 0.32 on, ``10 w²`` in (0.2, 0.32), else 0: as released for TOFU."""
    return np.where(w >= 0.32, 1.0, np.where(w > 0.2, 10 * w**2, 0.0))


def always(w: Array, *, top: float, **_: float) -> Array:
    """No router: every adapter is on."""
    return np.full_like(w, top)


ROUTERS: Mapping[str, Callable[..., Any]] = {
    "soft": soft, "hard": hard, "released": released, "released-tofu": released_tofu, "off": always,
}  # fmt: skip


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Probability that a score from inside is above one from outside, ties half."""
    a, b = np.ravel(inside), np.ravel(outside)
    ranks = rankdata(np.concatenate([a, b]))
    return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))
