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
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from lifelines import utils
from lifelines.fitters import KnownModelParametricUnivariateFitter, ParametricRegressionFitter
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from rankwise.distributions import power_weibull as pgw
from rankwise.distributions.survival_likelihood import PARAMETERS, Likelihood, Observations, newton
from rankwise.distributions.survival_model import (
    BASELINES,
    Fit,
    Form,
    deviance_limit,
    form,
    intervals,
    maximise,
    observations,
)
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


class _Shared:
    """What does not depend on covariates: diagnostics of the fit, profiles, tests."""

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
        if (
            parameter not in likelihood.designs
            or likelihood.slices[parameter].stop - likelihood.slices[parameter].start != 1
        ):
            accepted = [n for n, s in likelihood.slices.items() if s.stop - s.start == 1]
            raise unknown("parameter with one coefficient", parameter, accepted)
        drop = deviance_limit(self.alpha if alpha is None else alpha) / likelihood.total
        return tuple(_back(parameter, _profile_end(likelihood, self.fit_, parameter, drop, s)) for s in (-1, 1))  # type: ignore[return-value]

    def likelihood_ratio_test(self, other: _Shared, *, boundary: bool = False):
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
        ax.step(curve.index, curve.values, where="post", lw=1.2, label="Cox-Snell residuals")  # type: ignore[arg-type]
        end = float(r["residual"].max())
        ax.plot([0, end], [0, end], ls="--", lw=1, color="#888888", label="a perfect fit")
        ax.set_xlabel("residual")
        ax.set_ylabel("Nelson-Aalen cumulative hazard of the residuals")
        ax.legend(frameon=False)
        return ax


class PGWFitter(_Shared, KnownModelParametricUnivariateFitter):
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

    Attributes
    ----------
    phi_, lambda_, gamma_, kappa_ : float
        Estimates, or the fixed values.
    params_, variance_matrix_, log_likelihood_, AIC_, survival_function_, … :
        As in lifelines.
    fit_ : Fit
        Estimates on the linear predictors' scale.
    """

    _scipy_fit_method = "Newton"

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
        super().__init__(alpha=alpha, label=label)  # type: ignore[arg-type]

    def _set(self, shape: Form) -> None:
        self.form_ = shape
        self._fitted_parameter_names = list(shape.free)
        self._bounds = [(-1.0 if n == "kappa_" else 0.0, None) for n in shape.free]
        self._compare_to_values = np.ones(len(shape.free))
        for name, value in shape.fixed.items():
            setattr(self, name, value)

    def _fit(self, Ts, event_observed=None, **kwargs) -> PGWFitter:
        lower, upper, event = _bounds_of(Ts, event_observed)
        self._observations = observations(
            lower=lower, upper=upper, event=event, entry=kwargs.get("entry"), weight=kwargs.get("weights")
        )
        if self.baseline == "auto":
            self.baselines_ = _compared(
                {b: form(b, self.family, self.fixed) for b in _distinct(self.family)},
                lambda shape: maximise(self._observations, dict.fromkeys(shape.free), shape),
                float(self._observations.weight.sum()),
            )
            self._set(form(str(self.baselines_.index[0]), self.family, self.fixed))
        with warnings.catch_warnings():  # lifelines inverts the Hessian, which a limit of the family makes singular
            warnings.filterwarnings("ignore", message=".*(not invertible|negative values)", category=Warning)
            super()._fit(Ts, event_observed=event, **kwargs)
        slopes = np.exp(self.fit_.coefficients)
        names = list(self.form_.free)
        self.variance_matrix_ = pd.DataFrame(
            self.fit_.covariance * np.outer(slopes, slopes), index=names, columns=names
        )
        return self

    def fit(self, durations, event_observed=None, **kwargs) -> PGWFitter:
        """Fit to right-censored durations, lifelines' ``fit``; a row censored at time 0 adds nothing.

        Raises
        ------
        ValueError
            NaN, an event at time 0 or before, no event, an entry at or after its duration: with the rows.
        """
        durations = np.asarray(durations, dtype=float)
        event = np.ones(len(durations)) if event_observed is None else np.asarray(event_observed, dtype=float)
        observations(
            lower=durations, upper=np.where(event == 1, durations, np.inf), event=event, entry=kwargs.get("entry"),
            weight=kwargs.get("weights"),
        )  # fmt: skip
        kept = durations > 0
        for name in ("entry", "weights"):
            if kwargs.get(name) is not None:
                kwargs[name] = np.asarray(kwargs[name], dtype=float)[kept]
        return super().fit(durations[kept], event[kept], **kwargs)

    def _create_initial_point(self, *args) -> Array:
        return np.ones(len(self.form_.free))

    def _fit_model(self, Ts, E, entry, weights, fit_options, show_progress=True):
        fit = maximise(self._observations, dict.fromkeys(self.form_.free), self.form_)
        self.fit_ = fit
        natural = np.exp(fit.coefficients) - np.array([n == "kappa_" for n in self.form_.free])
        # the gradient is zero here, so the Hessian transforms by the first derivatives alone
        slopes = np.exp(-fit.coefficients)
        hessian = -fit.likelihood.total * fit.optimum.at.hessian * np.outer(slopes, slopes)
        return natural, fit.log_likelihood, hessian

    def _parameters(self, params) -> dict[str, float]:
        return {**self.form_.fixed, **dict(zip(self.form_.free, np.asarray(params, dtype=float), strict=True))}

    def _cumulative_hazard(self, params, times):
        return pgw.cumulative_hazard(np.asarray(times, dtype=float), **_named(self._parameters(params)))

    def _log_hazard(self, params, times):
        return pgw.log_hazard(np.asarray(times, dtype=float), **_named(self._parameters(params)))

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
        V = np.asarray(self.variance_matrix_)
        known = np.flatnonzero(np.isfinite(np.diag(V)))
        at, steps = np.asarray(self._fitted_parameters_), 1e-3 * np.sqrt(np.diag(V))
        J = [
            (transform(at + h, times) - transform(at - h, times)) / (2 * h.sum())
            for h in steps[known, None] * np.eye(len(at))[known]
        ]
        return pd.Series(np.einsum("kn,kl,ln->n", J, V[np.ix_(known, known)], J) if J else 0.0 * times, index=times)

    def percentile(self, p):
        """The time at which the survival function is ``p``; ∞ where the cured share is above it."""
        out = pgw.quantile(-np.log(p), **_named(self._parameters(self._fitted_parameters_)))
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
        at : array_like
            Times; for quantiles survival probabilities.
        alpha : float, optional

        Returns
        -------
        DataFrame
            ``estimate``, ``lower``, ``upper``, a row an entry of ``at``.
        """
        points = np.atleast_1d(np.asarray(at, dtype=float))
        link, back = _links(what)
        found = intervals(
            lambda c: _of(what, points, self.form_, dict(zip(self.form_.free, c, strict=True))),
            self.fit_.coefficients,
            self.fit_.covariance,
            self.alpha if alpha is None else alpha,
            link=link,
            back=back,
        )
        return pd.DataFrame(np.column_stack(found), index=points, columns=["estimate", "lower", "upper"])

    def sample(self, n: int, *, seed: int | None = None) -> Array:
        """``n`` times from the fitted distribution, by inversion; ∞ for the cured."""
        y = np.random.default_rng(seed).exponential(size=n)
        return pgw.quantile(y, **_named(self._parameters(self._fitted_parameters_)))

    @property
    def cox_snell_residuals_(self) -> pd.DataFrame:
        """``residual`` H(t), ``event`` and ``entry`` (H there): a unit exponential sample if the model is right."""
        o, given = self._observations, _named(self._parameters(self._fitted_parameters_))
        return _cox_snell(o, lambda t: pgw.cumulative_hazard(t, **given))

    def plot_qq(self, ax: Axes | None = None) -> Axes:
        """Cumulative hazard of the Cox-Snell residuals against the line it should follow."""
        return self._qq(self.cox_snell_residuals_, ax)


class PGWRegressionFitter(_Shared, ParametricRegressionFitter):
    """Multi-parameter regression with a power generalised Weibull baseline, as a lifelines regression fitter.

    Parameters
    ----------
    baseline : str
        As in `PGWFitter`; ``"auto"`` compares the special cases with the same covariates by AIC.
    family : {"aft", "ph", "both"}
        The scale that takes the covariates: φ (accelerated failure), λ (proportional hazards), or both. With ``"ph"``
        φ stays at 1 unless ``fixed`` says otherwise, and the fit depends on the unit of time.
    shape_covariates : bool
        Let the covariates move the power γ too.
    fixed : dict, optional
        Parameters held at a value.
    alpha : float
        1 - level of intervals.
    penalizer : float
        Ridge penalty on coefficients of scaled columns.
    fit_intercept : bool
        Add an ``Intercept`` to lists of columns (formulas have their own).

    Attributes
    ----------
    params_, standard_errors_, confidence_intervals_ : Series, Series, DataFrame
        Indexed by (parameter, covariate), on the scale of the linear predictors.
    log_likelihood_, AIC_, BIC_, concordance_index_, summary, … :
        As in lifelines.
    """

    _KNOWN_MODEL = True
    _FAST_MEDIAN_PREDICT = True

    def __init__(
        self,
        baseline: str = "pgw",
        *,
        family: str = "aft",
        shape_covariates: bool = True,
        fixed: Mapping[str, float] | None = None,
        alpha: float = 0.05,
        penalizer: float = 0.0,
        fit_intercept: bool = True,
    ) -> None:
        if not penalizer >= 0:
            raise ValueError(f"penalizer is {penalizer}; at least 0 is accepted")
        super().__init__(alpha=alpha, penalizer=penalizer)
        self.baseline, self.family, self.fixed = baseline, family, fixed
        self.shape_covariates, self.fit_intercept = shape_covariates, fit_intercept
        self._set(form("pgw" if baseline == "auto" else baseline, family, fixed))

    def _set(self, shape: Form) -> None:
        self.form_ = shape
        self._fitted_parameter_names = list(shape.free)

    def fit(
        self, df: pd.DataFrame, duration_col: str, event_col: str | None = None, *, formula: str | None = None, **kwargs
    ):
        """Fit to right-censored data.

        Parameters
        ----------
        df : DataFrame
            Durations, events, covariates, and perhaps entries and weights.
        duration_col, event_col : str
        formula : str, optional
            Covariates (formulaic), for every parameter that takes covariates; all columns by default.
        regressors : dict, optional
            Covariates of single parameters, by name: a formula or a list of columns, ``{"gamma_": "age"}``.
        entry_col, weights_col, timeline, robust :
            As in lifelines; ``robust`` gives sandwich errors.

        Raises
        ------
        ValueError
            Bad durations, events, entries or weights (with the rows), NaN among the covariates, or columns that others
            make up (named).
        """
        self._formula = formula
        return super().fit(df, duration_col, event_col, **kwargs)

    def fit_left_censoring(self, df, duration_col=None, event_col=None, *, formula: str | None = None, **kwargs):  # type: ignore[override]
        """Fit where ``event_col`` 0 means that the event came before ``duration_col``; otherwise as `fit`."""
        self._formula = formula
        return super().fit_left_censoring(df, duration_col, event_col, **kwargs)

    def fit_interval_censoring(
        self, df, lower_bound_col, upper_bound_col, event_col=None, *, formula: str | None = None, **kwargs
    ):  # type: ignore[override]
        """Fit where the event lies between two columns (equal for an exact time, ∞ above for a right-censored one)."""
        self._formula = formula
        return super().fit_interval_censoring(df, lower_bound_col, upper_bound_col, event_col, **kwargs)

    def _fit(
        self, log_likelihood_function, df, Ts, regressors=None, event_col=None, show_progress=False, timeline=None,
        weights_col=None, robust=False, initial_point=None, entry_col=None, fit_options=None,
    ):  # fmt: skip
        self._time_fit_was_called = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S") + " UTC"
        self.weights_col, self.entry_col, self.event_col, self.robust = weights_col, entry_col, event_col, robust
        self._n_examples, ones = len(df), pd.Series(np.ones(len(df)), index=df.index)
        self.__dict__.pop("_concordance_index_", None)
        taken = {c: df.pop(c) for c in (event_col, weights_col, entry_col) if c is not None}
        E = taken.get(event_col, ones)
        self.weights, self.entry = taken.get(weights_col, ones), taken.get(entry_col, 0 * ones)
        self.event_observed = E.astype(float) == 1
        lower, upper, event = _bounds_of(Ts, E)
        # rows that observations() leaves out must leave the covariates too
        kept = (lower > 0) | np.isfinite(upper) | (event == 1) | np.isnan(lower)
        self._observations = observations(
            lower=lower[kept], upper=upper[kept], event=event[kept], entry=self.entry[kept], weight=self.weights[kept],
            index=df.index[kept],
        )  # fmt: skip
        if not kept.all():
            df = df[kept]
        self.timeline = np.unique(lower) if timeline is None else np.sort(np.asarray(timeline, dtype=float))
        self._central_values = self._compute_central_values_of_raw_training_data(df)
        if self.baseline == "auto":
            self.baselines_ = _compared(
                {b: form(b, self.family, self.fixed) for b in _distinct(self.family)},
                lambda shape: self._maximise(df, shape, regressors)[0],
                float(self._observations.weight.sum()),
            )
            self._set(form(str(self.baselines_.index[0]), self.family, self.fixed))
        self.fit_, names = self._maximise(df, self.form_, regressors)
        index = pd.MultiIndex.from_tuples(
            [(p, c) for p in self.form_.free for c in names[p]], names=["param", "covariate"]
        )
        self.params_ = pd.Series(self.fit_.coefficients, index=index, name="coef")
        self.log_likelihood_ = self.fit_.log_likelihood
        self._hessian_ = -self.fit_.likelihood.total * self.fit_.optimum.at.hessian
        self._compare_to_values = np.zeros(len(index))
        covariance = self._sandwich() if robust else self.fit_.covariance
        self.variance_matrix_ = pd.DataFrame(covariance, index=index, columns=index)
        self.standard_errors_ = pd.Series(np.sqrt(np.diag(covariance)), index=index, name="se")
        self.confidence_intervals_ = self._compute_confidence_intervals()
        self._neg_likelihood = self._mean_negative
        self._predicted_median = self._quantiles(self._eta(df), 0.5) if len(df) == self._n_examples else None
        if self._predicted_median is None:
            self._predicted_median = np.zeros(self._n_examples)
            self._predicted_median[kept] = self._quantiles(self._eta(df), 0.5)
        return self

    def _roles(self, df: pd.DataFrame, shape: Form, regressors: Mapping | None) -> dict:
        """Which covariates move which parameter."""
        moved = {shape.scale} if shape.scale in shape.free else set(shape.free[:1])
        if self.family == "both":
            moved |= {"phi_", "lambda_"}
        if self.shape_covariates:
            moved |= {"gamma_"}
        every = self._formula if self._formula is not None else (list(df.columns) or "1")
        roles = {n: every if n in moved else "1" for n in shape.free}
        for name, given in (regressors or {}).items():
            if name not in PARAMETERS:
                raise unknown("parameter", str(name), PARAMETERS)
            if name not in shape.free and self.baseline != "auto":
                raise ValueError(f"regressors for {name}, which is fixed at {shape.fixed[name]}")
            if name in shape.free:
                roles[name] = given if given is not None else every
        return roles

    def _maximise(self, df: pd.DataFrame, shape: Form, regressors: Mapping | None):
        roles = self._roles(df, shape, regressors)
        mappings = utils.CovariateParameterMappings(roles, df, force_intercept=self.fit_intercept)
        if shape is self.form_ or self.baseline == "auto":
            self.regressors = mappings
        designs: dict[str, Array | None] = {}
        made: dict[object, tuple[Array, list]] = {}
        names: dict[str, list] = {}
        for name, role in roles.items():
            key = role if isinstance(role, str) else tuple(role)
            if key == "1":
                designs[name], names[name] = None, ["Intercept"]
                continue
            if key not in made:
                made[key] = _design(mappings.mappings[name], df)
            designs[name], names[name] = made[key]
        if not self.penalizer:
            _refuse_dependent(Likelihood(self._observations, designs, shape.linear), names)
        return maximise(self._observations, designs, shape, penalizer=self.penalizer, names=names), names

    def _sandwich(self) -> Array:
        L = self.fit_.likelihood
        A, V = L.original(), self.fit_.covariance
        back = np.linalg.inv(A).T  # scores of the columns as given
        return V @ back @ L.scores(self.fit_.optimum.theta) @ back.T @ V

    def _mean_negative(self, params, Ts, E, W, entries, Xs) -> float:
        """Mean negative log-likelihood of new rows, which lifelines' ``score`` asks for."""
        lower, upper, event = _bounds_of(Ts, E)
        o = observations(lower=lower, upper=upper, event=event, entry=entries, weight=W)
        designs = {n: np.asarray(Xs[n]) for n in self.form_.free}
        L = Likelihood(o, designs, self.form_.linear)
        return -L(np.linalg.solve(L.original(), np.asarray(params))).value if len(o) == len(lower) else np.nan

    @property
    def _ll_null(self) -> float:
        return maximise(self._observations, dict.fromkeys(self.form_.free), self.form_).log_likelihood

    def _eta(self, df: pd.DataFrame, coefficients: Array | None = None) -> dict[str, Array]:
        """Linear predictors of rows, ``(n,)`` each."""
        params = self.params_ if coefficients is None else pd.Series(coefficients, index=self.params_.index)
        eta = {}
        for name in self.form_.free:
            if list(params[name].index) == ["Intercept"]:
                eta[name] = np.full(len(df), params[name].iloc[0])
            else:
                eta[name] = _design(self.regressors.mappings[name], df)[0] @ params[name].to_numpy()
        return eta

    def _quantiles(self, eta: Mapping[str, Array], p: ArrayLike, after: ArrayLike | None = None) -> Array:
        given = _natural(self.form_, eta)
        if after is None:
            return pgw.quantile(-np.log(p), **given)
        return pgw.quantile(-np.log(p) + pgw.cumulative_hazard(after, **given), **given) - np.asarray(after)

    def _cumulative_hazard(self, params, T, Xs):
        return pgw.cumulative_hazard(T, **self._given(params, Xs))

    def _log_hazard(self, params, T, Xs):
        return pgw.log_hazard(T, **self._given(params, Xs))

    def _hazard(self, params, T, Xs):
        return np.exp(self._log_hazard(params, T, Xs))

    def _given(self, params, Xs) -> dict:
        return _natural(self.form_, {n: np.asarray(Xs[n]) @ np.asarray(params[n]) for n in self.form_.free})

    def predict_percentile(self, df, *, p=0.5, conditional_after=None) -> pd.Series:
        """The time at which each row's survival function is ``p``, in closed form; ∞ for more cured than ``p``."""
        df = df.to_frame().T.infer_objects() if isinstance(df, pd.Series) else df
        return pd.Series(self._quantiles(self._eta(df), p, conditional_after), index=df.index, name=p)

    def predict_expectation(self, X, conditional_after=None) -> pd.Series:
        """Mean time to the event (from ``conditional_after`` on); ∞ where it does not exist or some are cured."""
        df = X.to_frame().T.infer_objects() if isinstance(X, pd.Series) else X
        given = _natural(self.form_, self._eta(df))
        after = np.zeros(len(df)) if conditional_after is None else np.asarray(conditional_after, dtype=float)
        return pd.Series(_mean(given, after), index=df.index)

    def predict_cure_fraction(self, df: pd.DataFrame) -> pd.Series:
        """Share of each row's like that never has the event; 0 where κ ≥ 0."""
        given = _natural(self.form_, self._eta(df))
        return pd.Series(
            pgw.cure_fraction(lambda_=given["lambda_"], kappa=given["kappa"]) + np.zeros(len(df)), index=df.index
        )

    def predict_with_interval(
        self, df: pd.DataFrame, what: str = "survival", at: ArrayLike = np.nan, *, alpha: float | None = None
    ) -> pd.DataFrame:
        """Estimates with intervals (delta method), a row a subject and an entry of ``at``.

        Parameters
        ----------
        df : DataFrame
            Covariates.
        what : {"survival", "hazard", "cumulative_hazard", "quantile", "rmst", "cure"}
        at : array_like
            Times; for quantiles survival probabilities.
        """
        points, n = np.atleast_1d(np.asarray(at, dtype=float)), len(df)
        link, back = _links(what)

        def of(c: Array) -> Array:
            eta = {k: np.repeat(v, len(points)) for k, v in self._eta(df, c).items()}
            return _of(what, np.tile(points, n), self.form_, eta)

        found = intervals(
            of, self.fit_.coefficients, np.asarray(self.variance_matrix_), self.alpha if alpha is None else alpha,
            link=link, back=back,
        )  # fmt: skip
        index = pd.MultiIndex.from_product([df.index, points], names=["subject", "at"])
        return pd.DataFrame(np.column_stack(found), index=index, columns=["estimate", "lower", "upper"])

    def hazard_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, times: ArrayLike, *, alpha: float | None = None
    ) -> pd.DataFrame:
        """``h(t | at) / h(t | reference)`` over time with intervals.

        Constant in the PH family without shape covariates. ``at`` and ``reference`` are one row of covariates each.
        """
        return self._ratio("hazard", at, reference, times, alpha)

    def quantile_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, p: ArrayLike, *, alpha: float | None = None
    ) -> pd.DataFrame:
        """``Q(p | at) / Q(p | reference)``, Q the time at which survival is p; constant in the AFT family without shape
        covariates."""
        return self._ratio("quantile", at, reference, p, alpha)

    def _ratio(
        self, what: str, at: pd.DataFrame, reference: pd.DataFrame, points: ArrayLike, alpha: float | None
    ) -> pd.DataFrame:
        where = np.atleast_1d(np.asarray(points, dtype=float))
        if len(at) != 1 or len(reference) != 1:
            raise ValueError(f"one row each is compared, found {len(at)} and {len(reference)}")

        def of(c: Array) -> Array:
            both = [_of(what, where, self.form_, self._eta(df, c)) for df in (at, reference)]
            return both[0] / both[1]

        found = intervals(
            of, self.fit_.coefficients, np.asarray(self.variance_matrix_), self.alpha if alpha is None else alpha
        )
        return pd.DataFrame(np.column_stack(found), index=where, columns=["ratio", "lower", "upper"])

    def plot_hazard_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, times: ArrayLike, ax: Axes | None = None
    ) -> Axes:
        """The hazard ratio over time with its interval."""
        return _drawn(self.hazard_ratio(at, reference, times), "time", "hazard ratio", ax)

    def plot_quantile_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, p: ArrayLike, ax: Axes | None = None
    ) -> Axes:
        """The quantile (acceleration) ratio with its interval."""
        return _drawn(self.quantile_ratio(at, reference, p), "survival probability", "quantile ratio", ax)

    def compute_residuals(self, training_dataframe: pd.DataFrame, kind: str = "cox-snell") -> pd.DataFrame:
        """Residuals of the training rows.

        Parameters
        ----------
        training_dataframe : DataFrame
            As given to `fit`.
        kind : {"cox-snell", "martingale", "deviance"}
        """
        if kind not in ("cox-snell", "martingale", "deviance"):
            raise unknown("kind of residual", kind, ("cox-snell", "martingale", "deviance"))
        if not utils.CensoringType.is_right_censoring(self):
            raise ValueError("residuals are defined here for right-censored data")
        df = training_dataframe
        given = _natural(self.form_, self._eta(df))
        event = np.ones(len(df)) if self.event_col is None else df[self.event_col].to_numpy(float)
        H = pgw.cumulative_hazard(df[self.duration_col].to_numpy(float), **given)
        before = (
            0.0 * H if self.entry_col is None else pgw.cumulative_hazard(df[self.entry_col].to_numpy(float), **given)
        )
        if kind == "cox-snell":
            return pd.DataFrame({"residual": H, "event": event, "entry": before}, index=df.index)
        martingale = event - (H - before)
        if kind == "martingale":
            return pd.DataFrame({"martingale": martingale}, index=df.index)
        inside = martingale + np.where(event == 1, np.log(np.maximum(event - martingale, 1e-300)), 0.0)
        return pd.DataFrame({"deviance": np.sign(martingale) * np.sqrt(np.maximum(-2 * inside, 0))}, index=df.index)

    def plot_qq(self, training_dataframe: pd.DataFrame, ax: Axes | None = None) -> Axes:
        """Cumulative hazard of the Cox-Snell residuals against the line it should follow."""
        return self._qq(self.compute_residuals(training_dataframe), ax)


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
        likelihood-ratio test within the general model with both scales (halved for Gompertz, on its boundary).
    """
    t = np.asarray(durations, dtype=float)
    event = np.ones(len(t)) if event_observed is None else np.asarray(event_observed, dtype=float)
    o = observations(lower=t, upper=np.where(event == 1, t, np.inf), event=event, entry=entry, weight=weights)
    shapes = {b: form(b, family) for b in candidates or _distinct(family)}
    return _compared(shapes, lambda s: maximise(o, dict.fromkeys(s.free), s), float(o.weight.sum()))


def _distinct(family: str) -> list[str]:
    """The baselines without repetition: with both scales free, Burr contains the log-logistic."""
    return [b for b in BASELINES if not (family == "both" and b == "log-logistic")]


def _compared(shapes: Mapping[str, Form], fit, n: float) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = {b: fit(s) for b, s in shapes.items()}
        general = fit(form("pgw", "both")) if "pgw" in shapes else None
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


def _bounds_of(Ts, event) -> tuple[Array, Array, Array]:
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


def _design(mapping, df: pd.DataFrame) -> tuple[Array, list]:
    if isinstance(mapping, list):
        columns = [c for c in mapping if c != "Intercept"]
        missing = [c for c in columns if c not in df.columns]
        if missing:
            raise unknown("column", str(missing[0]), map(str, df.columns))
        X = df[columns].to_numpy(dtype=float)
        names = mapping
        if "Intercept" in mapping:
            X = np.column_stack([X, np.ones(len(df))])
    else:
        matrix = mapping.get_model_matrix(df)
        X, names = matrix.to_numpy(dtype=float), list(matrix.columns)
    bad = [str(n) for n, ok in zip(names, np.isfinite(X).all(0), strict=True) if not ok]
    if bad or len(X) != len(df):
        raise ValueError(f"NaN or Inf among the covariates: {', '.join(bad) or 'a formula drops their rows'}")
    return X, list(names)


def _refuse_dependent(likelihood: Likelihood, names: Mapping[str, list]) -> None:
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


def _named(parameters: Mapping[str, float]) -> dict:
    """`power_weibull`'s keywords."""
    return {n if n == "lambda_" else n.rstrip("_"): v for n, v in parameters.items()}


def _natural(shape: Form, eta: Mapping[str, Array]) -> dict:
    """Parameters from linear predictors."""
    out = dict(shape.fixed)
    for name, value in eta.items():
        out[name] = np.expm1(value) if name == "kappa_" else np.exp(value)  # type: ignore[assignment]
    return _named(out)


def _back(parameter: str, eta: float) -> float:
    return float(np.expm1(eta) if parameter == "kappa_" else np.exp(eta))


def _of(what: str, at: Array, shape: Form, eta: Mapping[str, Array | float]) -> Array:
    given = _natural(shape, eta)  # type: ignore[arg-type]
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


def _links(what: str):
    """The scale on which an interval is symmetric, and the way back."""
    if what in ("survival", "cure"):
        return lambda s: np.log(-np.log(s)), lambda v: np.exp(-np.exp(v))
    if what in ("hazard", "cumulative_hazard", "quantile", "rmst"):
        return np.log, np.exp
    raise unknown("quantity", what, ("survival", "cumulative_hazard", "hazard", "quantile", "rmst", "cure"))


def _restricted_mean(horizon: Array, given: Mapping[str, Array]) -> Array:
    """``∫₀^τ S``: Gauss-Legendre in the cube root of time, near whose zero S may bend sharply."""
    x, w = np.polynomial.legendre.leggauss(128)
    v = (x + 1) / 2
    t = horizon[..., None] * v**3
    wide = {n: np.asarray(p)[..., None] for n, p in given.items()}
    return horizon * (np.exp(-pgw.cumulative_hazard(t, **wide)) @ (1.5 * w * v**2))


def _mean(given: Mapping[str, Array], after: Array) -> Array:
    """``∫₀^∞ Q(y + H(after)) e^{-y} dy - after`` over ``y = exp(x - e^{-x})``, whose trapezoids converge at once."""
    x, step = np.linspace(-4.5, 8.5, 521, retstep=True)
    y = np.exp(x - np.exp(-x))
    weight = step * (1 + np.exp(-x)) * y
    wide = {n: np.asarray(p)[..., None] for n, p in given.items()}
    start = pgw.cumulative_hazard(after, **given)[..., None]
    with np.errstate(over="ignore", invalid="ignore"):
        Q = pgw.quantile(y + start, **wide)
        total = np.where(y < 700, Q * np.exp(-y), np.exp(np.log(Q) - y)) @ weight - after
    kappa, fat = np.asarray(given["kappa"]), np.asarray(given["lambda_"]) * np.asarray(given["gamma"]) <= 1
    return np.where((kappa < 0) | ((kappa == 0) & fat), np.inf, total)


def _cox_snell(o: Observations, H) -> pd.DataFrame:
    if (~o.event & np.isfinite(o.upper)).any():
        raise ValueError("Cox-Snell residuals are defined here for right-censored data")
    return pd.DataFrame({"residual": H(o.lower), "event": o.event.astype(float), "entry": H(o.entry)})


def _drawn(curve: pd.DataFrame, x: str, y: str, ax: Axes | None) -> Axes:
    from matplotlib import pyplot as plt

    ax = plt.gca() if ax is None else ax
    ax.plot(curve.index, curve["ratio"])
    ax.fill_between(curve.index.to_numpy(float), curve["lower"], curve["upper"], alpha=0.2)
    ax.axhline(1, ls="--", lw=1, color="#888888")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return ax


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
    centre = fit.optimum.theta[at]
    near, far = centre, centre + side * 0.25
    while fall(far) < 0:
        near, far = far, centre + 2 * (far - centre)
        if abs(far) > 34:  # κ + 1 beyond 2^49: the limit itself
            return side * np.inf if side > 0 or parameter != "kappa_" else -np.inf
    return float(A * brentq(fall, near, far, xtol=1e-6))
