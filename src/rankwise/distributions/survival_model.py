"""What both survival fitters share: the named baselines, checked observations, and the fit from several starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from lifelines.exceptions import ConvergenceWarning, StatisticalWarning
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rankwise.distributions.power_weibull import LARGEST
from rankwise.distributions.survival_likelihood import PARAMETERS, Likelihood, Observations, Optimum, newton
from rankwise.nearest import unknown

Array = NDArray[np.float64]
Family = Literal["aft", "ph", "both"]
# The named special cases, by what is fixed
BASELINES: dict[str, dict[str, float]] = {
    "exponential": {"gamma_": 1.0, "kappa_": 1.0},
    "weibull": {"kappa_": 1.0},
    "log-logistic": {"kappa_": 0.0},
    "burr": {"kappa_": 0.0},
    "linear-hazard": {"gamma_": 1.0, "kappa_": 2.0},
    "gompertz": {"gamma_": 1.0, "kappa_": np.inf},
    "pgw": {},
}
_BOTH_SCALES = ("burr", "linear-hazard", "gompertz")  # one scale alone does not give the usual family
_SAMPLE = 4096  # rows on which the starts are compared
_STARTS = (0.2, 1.0, 3.0)  # of κ


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which parameters are estimated, and at what the others stay."""

    free: tuple[str, ...]
    fixed: dict[str, float]
    family: Family

    @property
    def scale(self) -> str:
        """The parameter that the family's covariates move."""
        return "lambda_" if self.family == "ph" else "phi_"

    @property
    def linear(self) -> dict[str, float]:
        """The fixed parameters' linear predictors."""
        out = {}
        for name, value in self.fixed.items():
            out[name] = float(np.log(min(value + 1, LARGEST)) if name == "kappa_" else np.log(value))
        return out


def form(baseline: str, family: str, fixed: Mapping[str, float] | None = None) -> Form:
    """The form of a named baseline.

    Raises
    ------
    ValueError
        An unknown baseline, family or parameter, a fixed value out of range, or nothing left to estimate.
    """
    if baseline not in BASELINES:
        raise unknown("baseline", baseline, BASELINES)
    if family not in ("aft", "ph", "both"):
        raise unknown("family", family, ("aft", "ph", "both"))
    out = dict(BASELINES[baseline])
    if baseline not in _BOTH_SCALES and family != "both":
        out["phi_" if family == "ph" else "lambda_"] = 1.0
    for name, value in (fixed or {}).items():
        if name not in PARAMETERS:
            raise unknown("parameter", name, PARAMETERS)
        if not value > (-1 if name == "kappa_" else 0) or (np.isinf(value) and name != "kappa_"):
            raise ValueError(f"{name} fixed at {value}; {'above -1' if name == 'kappa_' else 'above 0'} is accepted")
        out[name] = float(value)
    free = tuple(name for name in PARAMETERS if name not in out)
    if not free:
        raise ValueError("every parameter is fixed: nothing is left to estimate")
    if out.get("kappa_") == 1.0 and {"phi_", "lambda_"} <= set(free):  # one parameter: φ^γ λ
        free, out["lambda_"] = tuple(n for n in free if n != "lambda_"), 1.0
    return Form(free=free, fixed=out, family=family)


def observations(
    *,
    lower: ArrayLike,
    upper: ArrayLike,
    event: ArrayLike,
    entry: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    index: ArrayLike | None = None,
) -> Observations:
    """Checked observations.

    Raises
    ------
    ValueError
        NaN, an event at time 0 or before, a negative time, ``upper < lower``, an entry at or after the time, an event
        that is neither 0 nor 1, a weight that is not positive, or no event at all: with the rows.
    """
    lo, hi = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    labels = np.arange(len(lo)) if index is None else np.asarray(index)
    begin = np.zeros(len(lo)) if entry is None else np.asarray(entry, dtype=float)
    w = np.ones(len(lo)) if weight is None else np.asarray(weight, dtype=float)
    marks = np.asarray(event, dtype=float)

    def refuse(bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            rows = ", ".join(str(r) for r in labels[bad][:5].tolist()) + (", …" if bad.sum() > 5 else "")
            raise ValueError(f"{what} in {int(bad.sum())} row{'s' if bad.sum() > 1 else ''}: {rows}")

    refuse(np.isnan(lo) | np.isnan(hi) | np.isnan(begin) | np.isnan(w), "NaN among times, entries or weights")
    refuse(np.isnan(marks) | ((marks != 0) & (marks != 1)), "an event that is neither 0 nor 1")
    seen = marks == 1
    refuse(seen & (lo <= 0), "an event at a duration of 0 or below (times are positive; add half a unit, or drop it)")
    refuse((lo < 0) | (hi < lo), "a negative duration, or an upper bound below the lower")
    refuse(np.isinf(lo), "an infinite duration")
    refuse((begin < 0) | ((begin >= np.minimum(lo, hi)) & (begin > 0)), "an entry below 0 or not before the time")
    refuse(~(w > 0) | np.isinf(w), "a weight that is not positive and finite")
    if not (seen | np.isfinite(hi)).any():
        raise ValueError("no event was observed: every row is right censored, and nothing can be estimated")
    return Observations(lower=lo, upper=hi, event=seen, entry=begin, weight=w)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The maximum, in the coordinates of the columns as given.

    Attributes
    ----------
    coefficients : ndarray
        ``(P,)``.
    covariance : ndarray
        ``(P, P)``, inverse of the observed information; infinite variances where that is singular.
    log_likelihood : float
        Of all observations, without the penalty.
    likelihood : Likelihood
    optimum : Optimum
    condition_number : float
        Of the information in scaled columns.
    """

    coefficients: Array
    covariance: Array
    log_likelihood: float
    likelihood: Likelihood
    optimum: Optimum
    condition_number: float


def maximise(
    o: Observations,
    designs: Mapping[str, Array | None],
    shape: Form,
    *,
    penalizer: float = 0.0,
    names: Mapping[str, list[Hashable]] | None = None,
    tol: float = 1e-8,
) -> Fit:
    """Fit from a Weibull start with several values of κ (compared on a sample of the rows, if there are many).

    Raises
    ------
    ValueError
        Columns that the others make up (named), without a penalty.

    Warnings
    --------
    ConvergenceWarning
        The gradient is not below ``tol`` (its norm is named).
    StatisticalWarning
        The information is singular (which parameters), or fewer events than parameters.
    """
    likelihood = Likelihood(o, designs, shape.linear, penalizer=penalizer)
    if names and not penalizer:
        _refuse_dependent(likelihood, names)
    optimum = newton(likelihood, _best_start(o, designs, shape, penalizer, likelihood), tol=tol)
    titles = [(n, c) for n in likelihood.designs for c in (names or {}).get(n, ["Intercept"])]
    if not optimum.converged:
        warnings.warn(
            f"Newton's method stopped after {optimum.iterations} iterations with a gradient of "
            f"{optimum.gradient_norm:.1e} (wanted {tol:.0e}): do not trust the estimates",
            ConvergenceWarning,
            stacklevel=4,
        )
    events = int((o.event | np.isfinite(o.upper)).sum())
    if events < likelihood.size:
        warnings.warn(f"{events} events for {likelihood.size} parameters", StatisticalWarning, stacklevel=4)
    A, theta = likelihood.original(), optimum.theta
    covariance, condition = _covariance(likelihood, optimum, A, titles)
    return Fit(
        coefficients=A @ theta,
        covariance=covariance,
        log_likelihood=likelihood.total * (optimum.at.value + float(penalizer * likelihood.shrunk @ theta**2) / 2),
        likelihood=likelihood,
        optimum=optimum,
        condition_number=condition,
    )


def _refuse_dependent(likelihood: Likelihood, names: Mapping[str, list[Hashable]]) -> None:
    found = likelihood.dependent()
    if found:
        constants = {n: likelihood.scales[id(X)].constant for n, X in likelihood.designs.items() if X is not None}
        # of two constants the covariate is at fault, not the intercept
        own = [names[p][j] if names[p][j] != "Intercept" else names[p][constants[p] or 0] for p, j in found]
        which = ", ".join(dict.fromkeys(map(str, own)))
        raise ValueError(
            f"columns that the others make up (constant beside an intercept, collinear, or more columns than rows): "
            f"{which}; drop them, or set penalizer above 0"
        )


def _best_start(
    o: Observations, designs: Mapping[str, Array | None], shape: Form, penalizer: float, whole: Likelihood
) -> Array:
    n = len(o)
    rows = np.random.default_rng(0).choice(n, _SAMPLE, replace=False) if n > 5 * _SAMPLE else None
    if rows is None or o.event[rows].sum() < 20 * len(designs):
        return max(_tops(o, designs, shape, penalizer), key=lambda top: top.at.value).theta
    taken: dict[int, Array] = {id(X): X[rows] for X in designs.values() if X is not None}
    some = {name: None if X is None else taken[id(X)] for name, X in designs.items()}
    small = Likelihood(o.take(rows), some, shape.linear, penalizer=penalizer)
    best = max(_tops(o.take(rows), some, shape, penalizer), key=lambda top: top.at.value).theta
    return np.asarray(np.linalg.solve(whole.original(), small.original() @ best), dtype=np.float64)


def _tops(o: Observations, designs: Mapping[str, Array | None], shape: Form, penalizer: float) -> Iterator[Optimum]:
    """The optimum reached from every start: the Weibull fit, then κ (and a second scale) set free."""
    full = Likelihood(o, designs, shape.linear, penalizer=penalizer)
    left_out = {"kappa_"} | ({"lambda_"} if shape.scale == "phi_" and "phi_" in designs else set())
    first = {n: X for n, X in designs.items() if n not in left_out}
    middle = np.where(np.isfinite(o.upper), (o.lower + o.upper) / 2, o.lower)
    rate = float(np.log((o.weight * (o.event | np.isfinite(o.upper))).sum() / (o.weight * middle).sum()))
    theta = full.start({"phi_": rate} if "phi_" in designs else {"lambda_": rate})
    if first and "kappa_" in designs:
        part = Likelihood(o, first, {k: v for k, v in shape.linear.items() if k not in first}, penalizer=penalizer)
        top = newton(part, part.start({"phi_": rate} if "phi_" in first else {"lambda_": rate}), tol=1e-4)
        for name in first:
            theta[full.slices[name]] = top.theta[part.slices[name]]
    if "kappa_" not in designs:
        yield newton(full, theta, tol=1e-4)
        return
    for kappa in _STARTS:
        begin = theta.copy()
        begin[full.slices["kappa_"]] = full.start({"kappa_": float(np.log1p(kappa))})[full.slices["kappa_"]]
        yield newton(full, begin, tol=1e-4)


def _covariance(
    likelihood: Likelihood, optimum: Optimum, A: Array, titles: list[tuple[str, Hashable]]
) -> tuple[Array, float]:
    information = -likelihood.total * optimum.at.hessian
    size = np.sqrt(np.maximum(np.abs(np.diag(information)), 1e-300))
    values, V = np.linalg.eigh(information / np.outer(size, size))
    condition = float(values[-1] / max(values[0], 1e-300))
    # no more curvature than is left where Newton's method stops on the way to infinity
    flat = values <= 1e-8 * values[-1]
    lost = np.diag(information) <= 1e-6 * max(float(np.diag(information).max()), 1e-300)
    unsure = (np.abs(V[:, flat]) > 0.1).any(1) | lost
    if unsure.any():
        which = ", ".join(f"{p}: {c}" for (p, c), bad in zip(titles, unsure, strict=True) if bad)
        warnings.warn(
            f"the information is singular: {which} not identified by these data (at a limit of the family, a covariate "
            "that separates, or two that say the same); their standard errors are infinite",
            StatisticalWarning,
            stacklevel=5,
        )
    kept = ~flat
    B = A @ (V[:, kept] / size[:, None])
    covariance = (B / values[kept]) @ B.T
    lost_too = (A[:, unsure] != 0).any(1)
    covariance[lost_too, lost_too] = np.inf
    return covariance, condition


def deviance_limit(alpha: float) -> float:
    """How far the log-likelihood may fall within a profile interval: half the χ²₁ quantile."""
    return float(stats.chi2.ppf(1 - alpha, 1) / 2)


def distinct_baselines(family: str) -> list[str]:
    """The baselines without repetition: with both scales free, Burr contains the log-logistic."""
    return [b for b in BASELINES if not (family == "both" and b == "log-logistic")]


def compare_baselines(shapes: Mapping[str, Form], fit: Callable[[Form], Fit], n: float) -> pd.DataFrame:
    """Fits of several forms by AIC, and their likelihood-ratio tests within the general model with both scales."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = {b: fit(s) for b, s in shapes.items()}
        largest = form("pgw", "both")
        general = None if "pgw" not in shapes else fits["pgw"] if shapes["pgw"] == largest else fit(largest)
    rows = {}
    for name, f in fits.items():
        k = f.likelihood.size
        more = 0 if general is None else general.likelihood.size - k
        statistic = max(2 * (general.log_likelihood - f.log_likelihood), 0.0) if general is not None else np.nan
        p = float(stats.chi2.sf(statistic, more)) if more > 0 else np.nan
        rows[name] = {
            "log_likelihood": f.log_likelihood,
            "parameters": k,
            "AIC": 2 * k - 2 * f.log_likelihood,
            "BIC": k * np.log(n) - 2 * f.log_likelihood,
            "lr_p": p / 2 if name == "gompertz" else p,
            "converged": f.optimum.converged,
        }
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("AIC", kind="stable")


def bounds_of(Ts, event) -> tuple[Array, Array, Array]:
    """lifelines' pair of times (right: first, left: second, interval: both) as bounds."""
    first, second = (None if t is None else np.asarray(t, dtype=float) for t in Ts)
    n = len(first if first is not None else second)  # type: ignore[arg-type]
    marks = np.ones(n) if event is None else np.asarray(event, dtype=float)
    if first is not None and second is not None:  # lifelines clips to [1e-20, 1e25]
        lower, upper = np.where(first <= 1e-20, 0.0, first), np.where(second >= 1e25, np.inf, second)
        return lower, upper, marks
    if first is not None:
        return first, np.where(marks == 1, first, np.inf), marks
    return np.where(marks == 1, second, 0.0), second, marks  # type: ignore[return-value]
