"""Survival models that let the data choose the hazard: power generalised Weibull fitters with lifelines' interface.

    log φ = x'τ     log λ = x'β     log γ = x'α     log(κ + 1) = x'ν               H(t) = λ H_A(φ t; γ, κ)

`PGWFitter` fits one curve, `PGWRegressionFitter` lets covariates move any of the parameters: by default one scale (φ:
accelerated failure; λ: proportional hazards) and the power γ, with κ common. Both are lifelines fitters: ``fit``,
``fit_left_censoring``, ``fit_interval_censoring``, ``print_summary``, ``plot…``, ``predict_…``, AIC and the rest; the
likelihood, its gradient and its Hessian are exact and our own.

Source: Burke, Jones & Noufaily, "A Flexible Parametric Modelling Framework for Survival Analysis", JRSS C 2020, arXiv
1901.03212.

What people get wrong: a positive coefficient in φ *shortens* lives (time runs φ times as fast); lifelines' AFT models
have the opposite sign. And κ's likelihood is flat in small samples: use `profile_interval`, not the Wald interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from lifelines.fitters import KnownModelParametricUnivariateFitter
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.curves import cox_snell, delta_variance, intervals, links, named, quantity
from rankwise.distributions.survival.likelihood import Likelihood, newton
from rankwise.distributions.survival.model import (
    Fit,
    Form,
    bounds_of,
    compare_baselines,
    deviance_limit,
    distinct_baselines,
    form,
    hint_robust,
    marks,
    maximise,
    numbers,
    observations,
    right_censored,
    starting,
    tolerance,
)
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PGWFitter", "select_baseline"]

Array = NDArray[np.float64]


class FittedSurvival:
    """What does not depend on covariates: diagnostics of the fit, profiles, tests.

    Examples
    --------
    >>> from lifelines.datasets import load_waltons
    >>> from rankwise.distributions import PGWFitter
    >>> df = load_waltons()
    >>> exponential, weibull = (PGWFitter(b).fit(df["T"], df["E"]) for b in ("exponential", "weibull"))
    >>> test = exponential.likelihood_ratio_test(weibull)
    >>> weibull.converged_, test.degrees_freedom, test.p_value < 0.001
    (True, 1, True)
    """

    fit_: Fit
    form_: Form
    alpha: float
    log_likelihood_: float

    @property
    def converged_(self) -> bool:
        """Whether the gradient of the mean log-likelihood fell below 1e-8."""
        return self.fit_.optimum.converged

    @property
    def gradient_norm_(self) -> float:
        """Largest entry of the mean log-likelihood's gradient, in scaled columns."""
        return self.fit_.optimum.gradient_norm

    @property
    def BIC_(self) -> float:
        """Bayesian information criterion: the number of coefficients times the log of the rows (weights summed)."""
        likelihood = self.fit_.likelihood
        return likelihood.size * float(np.log(likelihood.total)) - 2 * self.log_likelihood_

    @property
    def condition_number_(self) -> float:
        """Of the observed information in scaled columns."""
        return self.fit_.condition_number

    def profile_interval(self, parameter: str = "kappa_", *, alpha: float | None = None) -> tuple[float, float]:
        """Interval of a parameter without covariates by its profile likelihood; an end may be a limit of its range.

        Raises
        ------
        ValueError
            The parameter is fixed, or has covariates.
        """
        likelihood = self.fit_.likelihood
        accepted = [n for n, s in likelihood.slices.items() if s.stop - s.start == 1]
        if parameter not in accepted:
            raise unknown("parameter with one coefficient", parameter, accepted)
        drop = deviance_limit(self.alpha if alpha is None else alpha) / likelihood.total
        low, high = (_back(parameter, _profile_end(likelihood, self.fit_, parameter, drop, s)) for s in (-1, 1))
        return low, high

    def likelihood_ratio_test(self, other: FittedSurvival, *, boundary: bool = False):
        """This model within a larger one: lifelines' ``StatisticalResult``.

        Parameters
        ----------
        other : PGWFitter or PGWRegressionFitter
            The larger model, fitted to the same data.
        boundary : bool
            The smaller one lies on the edge of the larger (κ = ∞ for Gompertz): half the χ² probability.

        Raises
        ------
        ValueError
            The other has no more parameters.
        """
        from lifelines.statistics import StatisticalResult

        more = other.fit_.likelihood.size - self.fit_.likelihood.size
        if more < 1:
            raise ValueError(f"the other model must have more parameters than these {self.fit_.likelihood.size}")
        statistic = max(2 * (other.log_likelihood_ - self.log_likelihood_), 0.0)
        p = float(stats.chi2.sf(statistic, more)) * (0.5 if boundary else 1.0)
        return StatisticalResult(p, statistic, test_name="likelihood-ratio test", degrees_freedom=more)

    def _qq(self, residuals: pd.DataFrame, ax: Axes | None) -> Axes:
        from lifelines import NelsonAalenFitter
        from matplotlib import pyplot as plt

        ax = plt.gca() if ax is None else ax
        r = residuals[residuals["residual"] > 0]
        estimate = NelsonAalenFitter(nelson_aalen_smoothing=False).fit(r["residual"], r["event"], entry=r["entry"])
        curve = estimate.cumulative_hazard_.iloc[:, 0]
        ax.step(curve.index, curve.values, where="post", lw=1.2, label="Cox-Snell residuals")
        end = float(r["residual"].max())
        ax.plot([0, end], [0, end], ls="--", lw=1, color="#888888", label="a perfect fit")
        ax.set_xlabel("residual")
        ax.set_ylabel("Nelson-Aalen cumulative hazard of the residuals")
        ax.legend(frameon=False)
        return ax


class PGWFitter(FittedSurvival, KnownModelParametricUnivariateFitter):
    """Power generalised Weibull fit of one sample, as a lifelines univariate fitter.

    Parameters
    ----------
    baseline : str
        ``"pgw"`` (κ free), a special case (``"exponential"``, ``"weibull"``, ``"log-logistic"``, ``"burr"``,
        ``"linear-hazard"``, ``"gompertz"``), or ``"auto"``: the one of least AIC, with the table in ``baselines_``.
    family : {"aft", "ph", "both"}
        Which scale is free: φ, λ, or (nearly unidentified close to κ = 1) both. With ``"ph"`` φ stays at 1 unless
        ``fixed`` says otherwise, and the fit depends on the unit of time.
    fixed : dict, optional
        Parameters held at a value, such as ``{"kappa_": 0.5}``.
    alpha : float
        1 - level of intervals.
    label : str, optional
        What lifelines calls the curve in tables and plots; the fitter's name by default.

    Attributes
    ----------
    phi_, lambda_, gamma_, kappa_ : float
        Estimates, or the fixed values.
    params_, variance_matrix_, log_likelihood_, AIC_, survival_function_, … :
        As in lifelines.
    fit_ : Fit
        Estimates on the linear predictors' scale.

    Examples
    --------
    >>> from lifelines.datasets import load_waltons
    >>> from rankwise.distributions import PGWFitter
    >>> df = load_waltons()
    >>> fitter = PGWFitter("weibull").fit(df["T"], df["E"])
    >>> fitter.hazard_shape_, round(fitter.percentile(0.5))
    ('increasing', 50)
    >>> fitter.interval("survival", at=[40, 60]).round(2)
          estimate  lower  upper
    40.0      0.73   0.66   0.78
    60.0      0.28   0.22   0.33
    """

    _scipy_fit_method = "Newton"
    phi_: float
    lambda_: float
    gamma_: float
    kappa_: float

    def __init__(
        self,
        baseline: str = "pgw",
        *,
        family: str = "aft",
        fixed: Mapping[str, float] | None = None,
        alpha: float = 0.05,
        label: str | None = None,
    ) -> None:
        self.baseline, self.family, self.fixed = baseline, family, fixed
        self._set(form("pgw" if baseline == "auto" else baseline, family, fixed))
        super().__init__(alpha=alpha, label=label)

    def _set(self, shape: Form) -> None:
        self.form_ = shape
        self._fitted_parameter_names = list(shape.free)
        self._bounds = [(-1.0 if n == "kappa_" else 0.0, None) for n in shape.free]
        self._compare_to_values = np.ones(len(shape.free))
        for name, value in shape.fixed.items():
            setattr(self, name, value)

    def _fit(self, Ts, event_observed=None, **kwargs) -> PGWFitter:
        lower, upper, event = bounds_of(Ts, event_observed)
        self._observations = observations(
            lower=lower, upper=upper, event=event, entry=kwargs.get("entry"), weight=kwargs.get("weights")
        )
        hint_robust(self._observations.weight, "PGWRegressionFitter takes robust=True, without covariates too")
        if self.baseline == "auto":
            self.baselines_ = compare_baselines(
                {b: form(b, self.family, self.fixed) for b in distinct_baselines(self.family)},
                lambda shape: maximise(self._observations, dict.fromkeys(shape.free), shape),
                float(self._observations.weight.sum()),
            )
            self._set(form(str(self.baselines_.index[0]), self.family, self.fixed))
        self._begin = kwargs.get("initial_point")
        with warnings.catch_warnings():  # lifelines inverts the Hessian, which a limit of the family makes singular
            warnings.filterwarnings("ignore", message="(?s).*(not invertible|negative values)", category=Warning)
            super()._fit(Ts, event_observed=event, **kwargs)
        slopes = np.exp(self.fit_.coefficients)
        names = pd.Index(self.form_.free)
        self.variance_matrix_ = pd.DataFrame(
            self.fit_.covariance * np.outer(slopes, slopes), index=names, columns=names
        )
        return self

    def fit(self, durations, event_observed=None, **kwargs) -> PGWFitter:
        """Fit to right-censored durations, lifelines' ``fit``; a row censored at time 0 adds nothing.

        Of lifelines' options, ``initial_point`` is one more place to start from, and ``fit_options`` takes ``tol``.

        Raises
        ------
        ValueError
            NaN, dates, an event at time 0 or before, no event, an entry at or after its duration: with the rows.
        """
        o = right_censored(durations, event_observed, kwargs.pop("entry", None), kwargs.pop("weights", None))
        o = o.take(o.lower > 0)
        return super().fit(o.lower, o.event, entry=o.entry, weights=o.weight, **kwargs)

    def fit_left_censoring(self, durations, event_observed=None, **kwargs):
        """Fit where an event of 0 came before its duration; otherwise as `fit`."""
        event = None if event_observed is None else marks(event_observed)
        return super().fit_left_censoring(numbers(durations, "durations"), event, **kwargs)

    def fit_interval_censoring(self, lower_bound, upper_bound, event_observed=None, **kwargs):
        """Fit where the event lies between two times (equal for an exact one, ∞ above for a right-censored one)."""
        event = None if event_observed is None else marks(event_observed)
        return super().fit_interval_censoring(
            numbers(lower_bound, "lower bounds"), numbers(upper_bound, "upper bounds"), event, **kwargs
        )

    def _create_initial_point(self, *args) -> Array:
        return np.ones(len(self.form_.free))

    def _fit_model(self, Ts, E, entry, weights, fit_options, show_progress=True):
        shift = np.array([n == "kappa_" for n in self.form_.free])
        begin = None if self._begin is None else np.log(starting(self._begin, len(shift)) + shift)
        designs = dict.fromkeys(self.form_.free)
        fit = self.fit_ = maximise(
            self._observations, designs, self.form_, begin=begin, tol=tolerance(fit_options), show=show_progress
        )
        natural = np.exp(fit.coefficients) - shift
        # the gradient is zero here, so the Hessian transforms by the first derivatives alone
        slopes = np.exp(-fit.coefficients)
        hessian = -fit.likelihood.total * fit.optimum.at.hessian * np.outer(slopes, slopes)
        return natural, fit.log_likelihood, hessian

    def _parameters(self, params) -> dict[str, float]:
        return {**self.form_.fixed, **dict(zip(self.form_.free, np.asarray(params, dtype=float), strict=True))}

    def _cumulative_hazard(self, params, times):
        return pgw.cumulative_hazard(np.asarray(times, dtype=float), **named(self._parameters(params)))

    def _log_hazard(self, params, times):
        return pgw.log_hazard(np.asarray(times, dtype=float), **named(self._parameters(params)))

    def _hazard(self, params, times):
        return np.exp(self._log_hazard(params, times))

    def _density(self, params, times):
        return np.exp(self._log_hazard(params, times) - self._cumulative_hazard(params, times))

    def _survival_function(self, params, times):
        return np.exp(-self._cumulative_hazard(params, times))

    def _cumulative_density(self, params, times):
        return -np.expm1(-self._cumulative_hazard(params, times))

    def _compute_variance_of_transform(self, transform, timeline=None):
        times = self.timeline if timeline is None else np.atleast_1d(np.asarray(timeline, dtype=float))
        at, V = np.asarray(self._fitted_parameters_), np.asarray(self.variance_matrix_)
        return pd.Series(delta_variance(lambda p: transform(p, times), at, V), index=times)

    def percentile(self, p):
        """The time at which the survival function is ``p``; ∞ where the cured share is above it."""
        out = pgw.quantile(-np.log(p), **named(self._parameters(self._fitted_parameters_)))
        return float(out) if np.ndim(p) == 0 else out

    @property
    def hazard_shape_(self) -> str:
        """Constant, increasing, decreasing, up then down, or down then up."""
        return pgw.hazard_shape(self.gamma_, self.kappa_)

    @property
    def cure_fraction_(self) -> pd.Series:
        """The share that never has the event, with its interval (on the scale of log(-log)); 0 where κ ≥ 0."""
        return self.interval("cure").iloc[0]

    def interval(self, what: str, at: ArrayLike = np.nan, *, alpha: float | None = None) -> pd.DataFrame:
        """Estimate and interval of a function of the parameters (delta method).

        Parameters
        ----------
        what : {"survival", "hazard", "cumulative_hazard", "quantile", "rmst", "cure"}
            What is estimated; rmst is the mean time up to a horizon, cure the share that never has the event.
        at : array_like
            Times; for quantiles survival probabilities.
        alpha : float, optional
            1 - level of the intervals; the fitter's by default.

        Returns
        -------
        DataFrame
            ``estimate``, ``lower``, ``upper``, a row an entry of ``at``.
        """
        points = np.atleast_1d(np.asarray(at, dtype=float))
        link, back = links(what)
        found = intervals(
            lambda c: quantity(what, points, self.form_, dict(zip(self.form_.free, c, strict=True))),
            self.fit_.coefficients,
            self.fit_.covariance,
            self.alpha if alpha is None else alpha,
            link=link,
            back=back,
        )
        return pd.DataFrame(np.column_stack(found), index=points, columns=pd.Index(["estimate", "lower", "upper"]))

    def sample(self, n: int, *, seed: int | None = None) -> Array:
        """``n`` times from the fitted distribution, by inversion; ∞ for the cured."""
        y = np.random.default_rng(seed).exponential(size=n)
        return pgw.quantile(y, **named(self._parameters(self._fitted_parameters_)))

    @property
    def cox_snell_residuals_(self) -> pd.DataFrame:
        """``residual`` H(t), ``event`` and ``entry`` (H there): a unit exponential sample if the model is right.

        Raises
        ------
        ValueError
            Left- or interval-censored data.
        """
        o, given = self._observations, named(self._parameters(self._fitted_parameters_))
        if (~o.event & np.isfinite(o.upper)).any():
            raise ValueError("residuals are defined here for right-censored data")
        return cox_snell(o.lower, o.event, o.entry, lambda t: pgw.cumulative_hazard(t, **given))

    def plot_qq(self, ax: Axes | None = None) -> Axes:
        """Cumulative hazard of the Cox-Snell residuals against the line it should follow."""
        return self._qq(self.cox_snell_residuals_, ax)


def select_baseline(
    durations: ArrayLike,
    event_observed: ArrayLike | None = None,
    *,
    entry: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    family: str = "aft",
    candidates: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compare the named special cases and the full model on one sample.

    Returns
    -------
    DataFrame
        By AIC, the least first: ``log_likelihood``, ``parameters``, ``AIC``, ``BIC``, and ``lr_p``, the p-value of the
        likelihood-ratio test within the general model with both scales (halved for Gompertz, on its boundary), which
        ``attrs["general"]`` describes; NaN where that model's fit did not converge.

    Examples
    --------
    >>> from lifelines.datasets import load_waltons
    >>> from rankwise.distributions import select_baseline
    >>> df = load_waltons()
    >>> table = select_baseline(df["T"], df["E"], candidates=["exponential", "weibull", "log-logistic"])
    >>> table[["parameters", "AIC"]].round(1)
                  parameters     AIC
    weibull                2  1348.1
    log-logistic           2  1407.6
    exponential            1  1545.8
    """
    o = right_censored(durations, event_observed, entry, weights)
    shapes = {b: form(b, family) for b in candidates or distinct_baselines(family)}
    return compare_baselines(shapes, lambda s: maximise(o, dict.fromkeys(s.free), s), float(o.weight.sum()))


def _back(parameter: str, eta: float) -> float:
    return float(np.expm1(eta) if parameter == "kappa_" else np.exp(eta))


def _profile_end(likelihood: Likelihood, fit: Fit, parameter: str, drop: float, side: int) -> float:
    """Where the profile has fallen by ``drop``, from the maximum outwards; ±∞ of the predictor if it never does."""
    at = likelihood.slices[parameter].start
    others = [i for i in range(likelihood.size) if i != at]
    warm = {"theta": fit.optimum.theta.copy()}

    def fall(value: float) -> float:
        def f(part: Array):
            theta = warm["theta"].copy()
            theta[others], theta[at] = part, value
            s = likelihood(theta)
            return s._replace(gradient=s.gradient[others], hessian=s.hessian[np.ix_(others, others)])

        top = newton(f, warm["theta"][others], tol=1e-7)
        warm["theta"][others] = top.theta
        return fit.optimum.at.value - top.at.value - drop

    # the designs are intercepts or single columns: the predictor is A θ
    A = likelihood.original()[at, at]
    centre = float(fit.optimum.theta[at])
    near, far = centre, centre + side * 0.25
    while fall(far) < 0:
        near, far = far, centre + 2 * (far - centre)
        if abs(far - centre) > 34:  # a factor of 2^49: the limit itself
            return side * np.inf
    return float(A) * cast(float, brentq(fall, near, far, xtol=1e-6))
