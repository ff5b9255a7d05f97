"""What a fitted survival model says: its curves, their intervals, means, and the plots of ratios and residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.model import Form
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
_STEP = 0.025  # of the trapezoids of a mean time


def quantity(what: str, at: Array, shape: Form, eta: Mapping[str, Array | float]) -> Array:
    """A curve at times (for quantiles: survival probabilities), from linear predictors."""
    given = natural(shape, eta)
    match what:
        case "survival":
            return np.exp(-pgw.cumulative_hazard(at, **given))
        case "cumulative_hazard":
            return pgw.cumulative_hazard(at, **given)
        case "hazard":
            return np.exp(pgw.log_hazard(at, **given))
        case "quantile":
            return pgw.quantile(-np.log(at), **given)
        case "rmst":
            return _restricted_mean(at, given)
        case _:
            return pgw.cure_fraction(lambda_=given["lambda_"], kappa=given["kappa"]) + np.zeros(np.shape(at))


def links(what: str):
    """The scale on which an interval is symmetric, and the way back."""
    if what in ("survival", "cure"):
        return lambda s: np.log(-np.log(s)), lambda v: np.exp(-np.exp(v))
    if what in ("hazard", "cumulative_hazard", "quantile", "rmst"):
        return np.log, np.exp
    raise unknown("quantity", what, ("survival", "cumulative_hazard", "hazard", "quantile", "rmst", "cure"))


def intervals(
    f: Callable[[Array], Array],
    coefficients: Array,
    covariance: Array,
    alpha: float,
    *,
    link: Callable[[Array], Array] = np.log,
    back: Callable[[Array], Array] = np.exp,
) -> tuple[Array, Array, Array]:
    """Estimate, lower and upper end of a function of the coefficients: delta method on the scale of ``link``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = f(coefficients)
        variance = delta_variance(lambda c: link(f(c)), coefficients, covariance)
        reach = stats.norm.ppf(1 - alpha / 2) * np.sqrt(variance)
        ends = back(link(value) - reach), back(link(value) + reach)
    return value, np.fmin(*ends), np.fmax(*ends)


def delta_variance(f: Callable[[Array], Array], coefficients: Array, covariance: Array) -> Array:
    """Variance of a function of the coefficients, by central differences of a thousandth of their standard errors.

    Coefficients that are not identified (of infinite variance) are taken as known.
    """
    known = np.flatnonzero(np.isfinite(np.diag(covariance)))
    steps = 1e-3 * np.sqrt(np.diag(covariance)[known])[:, None] * np.eye(len(coefficients))[known]
    slopes = [(f(coefficients + h) - f(coefficients - h)) / (2 * h.sum()) for h in steps]
    if not slopes:
        return np.zeros(np.shape(f(coefficients)))
    return np.einsum("k...,kl,l...->...", np.stack(slopes), covariance[np.ix_(known, known)], np.stack(slopes))


def natural(shape: Form, eta: Mapping[str, Array | float]) -> dict:
    """Parameters from linear predictors."""
    out: dict[str, Any] = dict(shape.fixed)
    for name, value in eta.items():
        out[name] = np.expm1(value) if name == "kappa_" else np.exp(value)
    return named(out)


def named(parameters: Mapping[str, float]) -> dict:
    """`power_weibull`'s keywords."""
    return {n if n == "lambda_" else n.rstrip("_"): v for n, v in parameters.items()}


def _restricted_mean(horizon: Array, given: Mapping[str, Array]) -> Array:
    """``∫₀^τ S``: Gauss-Legendre in the cube root of time, near whose zero S may bend sharply."""
    x, w = np.polynomial.legendre.leggauss(128)
    v = (x + 1) / 2
    t = horizon[..., None] * v**3
    wide = {n: np.asarray(p)[..., None] for n, p in given.items()}
    return horizon * (np.exp(-pgw.cumulative_hazard(t, **wide)) @ (1.5 * w * v**2))


def mean_time(given: Mapping[str, Array], after: Array) -> Array:
    """``∫₀^∞ Q(y + H(after)) e^{-y} dy - after`` over ``y = exp(x - e^{-x})``, whose trapezoids converge at once.

    The integrand is taken from log Q, as Q alone overflows long before ``Q e^{-y}`` is small. Near κ = 0 that may take
    very long: such rows go on to ``y = e^60``. ∞ where the integral diverges, or is above the largest float.
    """
    kappa, fat = np.asarray(given["kappa"]), np.asarray(given["lambda_"]) * np.asarray(given["gamma"]) <= 1
    wide = {n: np.asarray(p)[..., None] + np.zeros((len(after), 1)) for n, p in given.items()}
    start = pgw.cumulative_hazard(after, **given)[..., None]

    def part(rows: NDArray[np.bool_], low: float, high: float) -> tuple[Array, Array]:
        x = np.arange(low, high, _STEP)
        y = np.exp(x - np.exp(-x))
        with np.errstate(over="ignore", invalid="ignore"):
            log_Q = pgw.log_quantile(y + start[rows], **{n: p[rows] for n, p in wide.items()})
            terms = np.exp(log_Q - y + np.log((1 + np.exp(-x)) * y * _STEP))
        return terms.sum(-1), terms[:, -1]

    total, last = part(np.ones(len(after), dtype=bool), -4.5, 8.5)
    more = (last > 1e-17 * total) & ~((kappa < 0) | ((kappa == 0) & fat))
    if more.any():
        total[more] += part(more, 8.5, 60.0)[0]
    return np.where((kappa < 0) | ((kappa == 0) & fat), np.inf, total - after)


def cox_snell(times: ArrayLike, event: ArrayLike, entry: ArrayLike, H: Callable[[Array], Array]) -> pd.DataFrame:
    """``residual`` H(t), ``event``, and ``entry`` (H there): a unit exponential sample if the model is right."""
    t, begin = np.asarray(times, dtype=float), np.asarray(entry, dtype=float)
    return pd.DataFrame({"residual": H(t), "event": np.asarray(event, dtype=float), "entry": H(begin)})


def plot_ratio(curve: pd.DataFrame, x: str, y: str, ax: Axes | None) -> Axes:
    """A ratio with its interval, and the line at 1."""
    from matplotlib import pyplot as plt

    ax = plt.gca() if ax is None else ax
    ax.plot(curve.index, curve["ratio"])
    ax.fill_between(curve.index.to_numpy(float), curve["lower"], curve["upper"], alpha=0.2)
    ax.axhline(1, ls="--", lw=1, color="#888888")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return ax
