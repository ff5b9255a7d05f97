"""What both survival fitters share: the named baselines, checked observations, and the fit from several starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from lifelines.exceptions import ConvergenceWarning, StatisticalWarning
from numpy.typing import ArrayLike, NDArray
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype, is_timedelta64_dtype
from scipy import stats

from rankwise.distributions.survival.likelihood import PARAMETERS, Likelihood, Observations, Optimum, newton
from rankwise.distributions.survival.power_weibull import LARGEST
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
_AROUND = (0.3, 3.0)  # κ at which its profile is looked at, beside 1: it may have two tops, one of them at κ = ∞


class NotANumberError(TypeError, ValueError):
    """NaN or infinity where a number is needed; lifelines raises ``TypeError`` for these.

    Examples
    --------
    >>> from rankwise.distributions import PGWFitter
    >>> PGWFitter().fit([1.0, float("nan"), 3.0])
    Traceback (most recent call last):
    rankwise.distributions.survival.model.NotANumberError: NaNs were detected in the dataset, durations in 1 row: 1
    """


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which parameters are estimated, and at what the others stay.

    Examples
    --------
    >>> from rankwise.distributions.survival.model import form
    >>> weibull = form("weibull", "ph")
    >>> weibull.free, weibull.fixed, weibull.scale
    (('lambda_', 'gamma_'), {'kappa_': 1.0, 'phi_': 1.0}, 'lambda_')
    """

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


def numbers(values: Any, what: str) -> Array:
    """One column of numbers, ``(n,)``, from a sequence, an array, a Series or a frame of one column.

    Raises
    ------
    ValueError
        Dates or differences of dates, text that is no number, more than one column.
    """
    if np.ndim(values) > 1:
        table = pd.DataFrame(values)
        if table.shape[1] != 1:
            raise ValueError(f"{what}: one column is needed, found {table.shape[1]}")
        values = table.iloc[:, 0]
    column: Any = pd.Series(values).infer_objects()
    if is_datetime64_any_dtype(column.dtype) or is_timedelta64_dtype(column.dtype):
        raise ValueError(
            f"{what}: {column.dtype} has no unit of its own; give numbers, such as a difference of dates divided by "
            "pd.Timedelta(days=1)"
        )
    found: Any = pd.to_numeric(column, errors="coerce")
    wrong = column[found.isna() & column.notna()]
    if len(wrong):
        raise ValueError(f"{what}: {wrong.iloc[0]!r} is no number")
    return found.to_numpy(dtype=float, na_value=np.nan)


def marks(values: Any, what: str = "events") -> Array:
    """Events as 0 and 1; says so where they are objects and not numbers."""
    given = pd.Series(values) if np.ndim(values) == 1 else pd.DataFrame(values).iloc[:, 0]
    if not is_numeric_dtype(given.dtype):
        warnings.warn(f"{what}: {given.dtype} values are converted to numbers", UserWarning, stacklevel=4)
    return numbers(values, what)


def observations(
    *,
    lower: ArrayLike,
    upper: ArrayLike,
    event: ArrayLike,
    entry: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    index: ArrayLike | None = None,
) -> Observations:
    """Checked observations; an entry below 0 is one from the start.

    Raises
    ------
    NotANumberError
        NaN (a ``TypeError``, as lifelines', and a ``ValueError``).
    ValueError
        Dates, an event at time 0 or before, a negative or infinite time, ``upper < lower``, an entry at or after the
        time, an event that is neither 0 nor 1, or a weight that is not positive: with the rows.
    """
    lo, hi = numbers(lower, "durations"), numbers(upper, "durations")
    begin = np.zeros(len(lo)) if entry is None else np.maximum(numbers(entry, "entries"), 0.0)
    w = np.ones(len(lo)) if weight is None else numbers(weight, "weights")
    seen_or_not = marks(event)

    def refuse(bad: NDArray[np.bool_], what: str, kind: type[Exception] = ValueError) -> None:
        if bad.any():
            at = np.flatnonzero(bad) if index is None else np.asarray(index)[bad]
            rows = ", ".join(map(str, at[:5].tolist())) + (", …" if bad.sum() > 5 else "")
            raise kind(f"{what} in {int(bad.sum())} row{'s' if bad.sum() > 1 else ''}: {rows}")

    columns = {"durations": lo, "upper bounds": hi, "events": seen_or_not, "entries": begin, "weights": w}
    for what, column in columns.items():
        refuse(np.isnan(column), f"NaNs were detected in the dataset, {what}", NotANumberError)
        if len(column) != len(lo):
            raise ValueError(f"{len(column)} {what} for {len(lo)} durations")
    refuse((seen_or_not != 0) & (seen_or_not != 1), "an event that is neither 0 nor 1")
    seen = seen_or_not == 1
    refuse(seen & (lo <= 0), "an event at a duration of 0 or below (times are positive; add half a unit, or drop it)")
    refuse((lo < 0) | (hi < lo), "a negative duration, or an upper bound below the lower")
    refuse(np.isinf(lo), "an infinite duration")
    late = (begin >= np.minimum(lo, hi)) & (begin > 0)
    refuse(late, "entry >= duration (not seen for any time: add half a unit to the duration, or drop it)")
    refuse(~(w > 0) | np.isinf(w), "a weight that is not positive and finite")
    return Observations(lower=lo, upper=hi, event=seen, entry=begin, weight=w)


def right_censored(durations: Any, event_observed: Any = None, entry: Any = None, weight: Any = None) -> Observations:
    """Checked observations of right-censored durations, all of them events by default."""
    t = numbers(durations, "durations")
    event = np.ones(len(t)) if event_observed is None else marks(event_observed)
    upper = np.where(event == 1, t, np.inf) if len(event) == len(t) else t  # of other lengths: refused there
    return observations(lower=t, upper=upper, event=event, entry=entry, weight=weight)


def tolerance(fit_options: Mapping[str, float] | None) -> float:
    """``tol`` of lifelines' ``fit_options``, 1e-8 by default.

    Raises
    ------
    ValueError
        Another option, or a tolerance that is not positive.
    """
    for name in fit_options or {}:
        if name != "tol":
            raise unknown("fit option", name, ["tol"])
    tol = (fit_options or {}).get("tol", 1e-8)
    if not tol > 0:
        raise ValueError(f"tol is {tol}; above 0 is accepted")
    return tol


def starting(point: ArrayLike, size: int) -> Array:
    """lifelines' ``initial_point``, of the right length."""
    given = np.asarray(point, dtype=float)
    if given.shape != (size,):
        raise ValueError(f"initial_point has shape {given.shape}; {size} coefficients are fitted")
    return given


def hint_robust(weight: Array, how: str) -> None:
    """Warn that weights that are no counts make naive standard errors wrong.

    Warns
    -----
    StatisticalWarning
        Some weight is not an integer.
    """
    if (weight != np.round(weight)).any():
        warnings.warn(
            f"some weights are no integers: standard errors take weights as counts of rows; {how}",
            StatisticalWarning,
            stacklevel=4,
        )


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
        Of these observations and designs.
    optimum : Optimum
        Where Newton's method ended, in coordinates of scaled columns.
    condition_number : float
        Of the information in scaled columns.

    Examples
    --------
    >>> from rankwise.distributions import PGWFitter
    >>> fit = PGWFitter("exponential").fit([1.0, 2.0, 6.0]).fit_
    >>> fit.coefficients.round(4), fit.covariance.round(4)  # log φ = -log 3, of variance 1 / n
    (array([-1.0986]), array([[0.3333]]))
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
    begin: ArrayLike | None = None,
    tol: float = 1e-8,
    show: bool = False,
) -> Fit:
    """Fit from the best of several κ held fixed (on a sample of the rows, if there are many), or from ``begin`` where
    that ends higher: coefficients ``(P,)`` of the columns as given.

    Raises
    ------
    ValueError
        No event, columns that the others make up (named) without a penalty, ``begin`` of another length.

    Warnings
    --------
    ConvergenceWarning
        The gradient is not below ``tol`` (its norm is named).
    StatisticalWarning
        The information is singular (which parameters), or fewer events than parameters.
    """
    if not (o.event | np.isfinite(o.upper)).any():
        raise ValueError("no event was observed: every row is right censored, and nothing can be estimated")
    likelihood = Likelihood(o, designs, shape.linear, penalizer=penalizer)
    if names and not penalizer:
        _refuse_dependent(likelihood, names)
    optimum = newton(likelihood, _best_start(o, designs, shape, penalizer, likelihood), tol=tol)
    if begin is not None:
        other = newton(likelihood, likelihood.scaled(starting(begin, likelihood.size)), tol=tol)
        optimum = max(optimum, other, key=lambda top: top.at.value if np.isfinite(top.at.value) else -np.inf)
    if show:
        print(f"{optimum.iterations} steps to a gradient of {optimum.gradient_norm:.1e}")
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
        constants = {n: scale.constant for n, scale in likelihood.scales.items()}
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
    return whole.scaled(small.original() @ best)


def _tops(o: Observations, designs: Mapping[str, Array | None], shape: Form, penalizer: float) -> Iterator[Optimum]:
    """Optima from the tops of κ's profile where that is free, from a Weibull start where it is not.

    With both scales free the likelihood has several tops at one κ too: others are then fitted with φ held as well, at
    several multiples of the events' rate.
    """
    full = Likelihood(o, designs, shape.linear, penalizer=penalizer)
    middle = np.where(np.isfinite(o.upper), (o.lower + o.upper) / 2, o.lower)
    rate = float(np.log((o.weight * (o.event | np.isfinite(o.upper))).sum() / (o.weight * middle).sum()))
    weibull = full.start({"phi_" if "phi_" in designs else "lambda_": rate, "kappa_": float(np.log(2))})
    both = {"phi_", "lambda_"} <= set(designs)
    for held in ({}, *({"phi_": rate + step} for step in (-2.3, 0.0, 2.3))) if both else ({},):
        for theta in _profile_tops(full, designs, shape.linear, weibull, held):
            yield newton(full, theta, tol=1e-4)


def _profile_tops(
    full: Likelihood, designs: Mapping[str, Array | None], fixed: Mapping[str, float], start: Array, held: dict
) -> list[Array]:
    """θ at the tops of κ's profile: the others fitted at κ = 1, and from there beside it; at a fixed κ, one."""
    free = "kappa_" in designs

    def at(kappa: float, theta: Array) -> tuple[float, float, Array]:
        linear = held | ({"kappa_": float(np.log1p(kappa))} if free else {})
        theta = theta.copy()
        for name in linear:
            theta[full.slices[name]] = full.start(linear)[full.slices[name]]
        if free and kappa == 1 and not held and {"phi_", "lambda_"} <= set(designs):  # one parameter there
            linear = linear | {"lambda_": 0.0}
        others = {n: X for n, X in designs.items() if n not in linear}
        if linear and others:
            known = {n: v for n, v in fixed.items() if n not in designs} | linear
            part = Likelihood(full.observations, others, known, penalizer=full.penalizer)
            places = np.concatenate([np.arange(full.size)[full.slices[n]] for n in others])
            theta[places] = newton(part, theta[places], tol=1e-4).theta
        return kappa, full(theta).value, theta

    one = at(1.0, start)
    profile = sorted([one, *(at(kappa, one[2]) for kappa in (_AROUND if free else ()))], key=lambda entry: entry[0])
    values = np.array([-np.inf, *(v if np.isfinite(v) else -np.inf for _, v, _ in profile), -np.inf])
    tops = (values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:])
    return [theta for (_, _, theta), top in zip(profile, tops.tolist(), strict=True) if top]


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
    """Fits of several forms by AIC, and their likelihood-ratio tests within the general model with both scales, which
    is described in the table's ``attrs["general"]``.

    Warns
    -----
    StatisticalWarning
        The general model did not converge, or not to above its special cases: ``lr_p`` is NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = {b: fit(s) for b, s in shapes.items()}
        largest = form("pgw", "both")
        general = None if "pgw" not in shapes else fits["pgw"] if shapes["pgw"] == largest else fit(largest)
    least = max(f.log_likelihood for f in fits.values()) - 1e-4
    if general is not None and not (general.optimum.converged and general.log_likelihood >= least):
        warnings.warn(
            f"the general model with both scales, within which lr_p tests, ended at a log-likelihood of "
            f"{general.log_likelihood:.6g} with a gradient of {general.optimum.gradient_norm:.1e}: lr_p is left out",
            StatisticalWarning,
            stacklevel=3,
        )
    rows = {}
    for name, f in fits.items():
        k = f.likelihood.size
        rows[name] = {
            "log_likelihood": f.log_likelihood,
            "parameters": k,
            "AIC": 2 * k - 2 * f.log_likelihood,
            "BIC": k * np.log(n) - 2 * f.log_likelihood,
            "lr_p": _ratio_test(f, general, least) * (0.5 if name == "gompertz" else 1.0),
            "converged": f.optimum.converged,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("AIC", kind="stable")
    if general is not None:
        table.attrs["general"] = {
            "log_likelihood": general.log_likelihood, "parameters": general.likelihood.size,
            "converged": general.optimum.converged,
        }  # fmt: skip
    return table


def _ratio_test(f: Fit, general: Fit | None, least: float) -> float:
    """p-value of the likelihood-ratio test within ``general``; NaN where that is no maximum, or no larger model."""
    if general is None or not (general.optimum.converged and f.optimum.converged and general.log_likelihood >= least):
        return float("nan")
    more = general.likelihood.size - f.likelihood.size
    statistic = max(2 * (general.log_likelihood - f.log_likelihood), 0.0)
    return float(stats.chi2.sf(statistic, more)) if more > 0 else float("nan")


def bounds_of(Ts, event) -> tuple[Array, Array, Array]:
    """lifelines' pair of times (right: first, left: second, interval: both) as bounds."""
    first, second = (None if t is None else np.asarray(t, dtype=float) for t in Ts)
    times = second if first is None else first
    assert times is not None, "lifelines gives one of them at least"
    marks = np.ones(len(times)) if event is None else np.asarray(event, dtype=float)
    if first is None:
        return np.where(marks == 1, times, 0.0), times, marks
    if second is None:
        return first, np.where(marks == 1, first, np.inf), marks
    # lifelines clips to [1e-20, 1e25]
    return np.where(first <= 1e-20, 0.0, first), np.where(second >= 1e25, np.inf, second), marks
