"""Multi-parameter survival regression: covariates may move any parameter of the power generalised Weibull.

    log φ = x'τ     log λ = x'β     log γ = x'α     log(κ + 1) = x'ν               H(t) = λ H_A(φ t; γ, κ)

By default they move one scale (φ: accelerated failure; λ: proportional hazards) and the power γ, with κ common.

Source: Burke, Jones & Noufaily (2020), arXiv 1901.03212, section 3.

What people get wrong: a positive coefficient in φ *shortens* lives (time runs φ times as fast); lifelines' AFT models
have the opposite sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from lifelines import utils
from lifelines.fitters import ParametricRegressionFitter
from numpy.typing import ArrayLike, NDArray

from rankwise.distributions import power_weibull as pgw
from rankwise.distributions.survival import FittedSurvival
from rankwise.distributions.survival_curves import cox_snell, intervals, links, mean_time, natural, plot_ratio, quantity
from rankwise.distributions.survival_likelihood import PARAMETERS, Likelihood
from rankwise.distributions.survival_model import (
    Form,
    bounds_of,
    compare_baselines,
    distinct_baselines,
    form,
    maximise,
    observations,
)
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


class PGWRegressionFitter(FittedSurvival, ParametricRegressionFitter):
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
        **kwargs
            As in lifelines: ``entry_col``, ``weights_col``, ``timeline``, ``robust`` (sandwich errors), and
            ``regressors``, the covariates of single parameters by name: a formula or a list of columns, such as
            ``{"gamma_": "age"}``.

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
        lower, upper, event = bounds_of(Ts, E)
        self._observations = observations(
            lower=lower, upper=upper, event=event, entry=self.entry, weight=self.weights, index=df.index
        )
        self.timeline = np.unique(lower) if timeline is None else np.sort(np.asarray(timeline, dtype=float))
        self._central_values = self._compute_central_values_of_raw_training_data(df)
        if self.baseline == "auto":
            self.baselines_ = compare_baselines(
                {b: form(b, self.family, self.fixed) for b in distinct_baselines(self.family)},
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
        self._compare_to_values = np.zeros(len(index))
        covariance = self._sandwich() if robust else self.fit_.covariance
        self.variance_matrix_ = pd.DataFrame(covariance, index=index, columns=index)
        self.standard_errors_ = pd.Series(np.sqrt(np.diag(covariance)), index=index, name="se")
        self.confidence_intervals_ = self._compute_confidence_intervals()
        self._neg_likelihood = self._mean_negative
        self._predicted_median = self._quantiles(self._eta(df), 0.5)
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
        self.regressors = utils.CovariateParameterMappings(roles, df, force_intercept=self.fit_intercept)
        designs: dict[str, Array | None] = {}
        made: dict[object, tuple[Array, list]] = {}
        names: dict[str, list] = {}
        for name, role in roles.items():
            key = role if isinstance(role, str) else tuple(role)
            if key == "1":
                designs[name], names[name] = None, ["Intercept"]
                continue
            if key not in made:
                made[key] = _design(self.regressors.mappings[name], df)
            designs[name], names[name] = made[key]
        return maximise(self._observations, designs, shape, penalizer=float(self.penalizer), names=names), names

    def _sandwich(self) -> Array:
        L, V = self.fit_.likelihood, self.fit_.covariance
        known = np.isfinite(np.diag(V))
        half = (
            np.where(np.outer(known, known), V, 0.0) @ np.linalg.inv(L.original()).T
        )  # scores of the columns as given
        out = half @ L.scores(self.fit_.optimum.theta) @ half.T
        out[~known, ~known] = np.inf
        return out

    def _mean_negative(self, params, Ts, E, W, entries, Xs) -> float:
        """Mean negative log-likelihood of new rows, which lifelines' ``score`` asks for."""
        lower, upper, event = bounds_of(Ts, E)
        o = observations(lower=lower, upper=upper, event=event, entry=entries, weight=W)
        designs = {n: np.asarray(Xs[n]) for n in self.form_.free}
        L = Likelihood(o, designs, self.form_.linear)
        theta = np.asarray(np.linalg.solve(L.original(), np.asarray(params)), dtype=np.float64)
        return -L(theta).value

    @property
    def _ll_null(self) -> float:
        return maximise(self._observations, dict.fromkeys(self.form_.free), self.form_).log_likelihood

    def _eta(self, df: pd.DataFrame, coefficients: Array | None = None) -> dict[str, Array]:
        """Linear predictors of rows, ``(n,)`` each."""
        params = self.params_ if coefficients is None else pd.Series(coefficients, index=self.params_.index)
        eta = {}
        for name in self.form_.free:
            own = pd.Series(params[name])
            if list(own.index) == ["Intercept"]:
                eta[name] = np.full(len(df), own.iloc[0])
            else:
                eta[name] = _design(self.regressors.mappings[name], df)[0] @ own.to_numpy()
        return eta

    def _quantiles(self, eta: Mapping[str, Array], p: ArrayLike, after: ArrayLike | None = None) -> Array:
        given = natural(self.form_, eta)
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
        return natural(self.form_, {n: np.asarray(Xs[n]) @ np.asarray(params[n]) for n in self.form_.free})

    def predict_percentile(self, df, *, p=0.5, conditional_after=None) -> pd.Series:
        """The time at which each row's survival function is ``p``, in closed form; ∞ for more cured than ``p``."""
        df = df.to_frame().T.infer_objects() if isinstance(df, pd.Series) else df
        return pd.Series(self._quantiles(self._eta(df), p, conditional_after), index=df.index, name=p)

    def predict_expectation(self, X, conditional_after=None) -> pd.Series:
        """Mean time to the event (from ``conditional_after`` on); ∞ where it does not exist or some are cured."""
        df = X.to_frame().T.infer_objects() if isinstance(X, pd.Series) else X
        given = natural(self.form_, self._eta(df))
        after = np.zeros(len(df)) if conditional_after is None else np.asarray(conditional_after, dtype=float)
        return pd.Series(mean_time(given, after), index=df.index)

    def predict_cure_fraction(self, df: pd.DataFrame) -> pd.Series:
        """Share of each row's like that never has the event; 0 where κ ≥ 0."""
        given = natural(self.form_, self._eta(df))
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
        link, back = links(what)

        def of(c: Array) -> Array:
            eta = {k: np.repeat(v, len(points)) for k, v in self._eta(df, c).items()}
            return quantity(what, np.tile(points, n), self.form_, eta)

        found = intervals(
            of, self.fit_.coefficients, np.asarray(self.variance_matrix_), self.alpha if alpha is None else alpha,
            link=link, back=back,
        )  # fmt: skip
        index = pd.MultiIndex.from_product([df.index, points], names=["subject", "at"])
        return pd.DataFrame(np.column_stack(found), index=index, columns=pd.Index(["estimate", "lower", "upper"]))

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
            both = [quantity(what, where, self.form_, self._eta(df, c)) for df in (at, reference)]
            return both[0] / both[1]

        found = intervals(
            of, self.fit_.coefficients, np.asarray(self.variance_matrix_), self.alpha if alpha is None else alpha
        )
        return pd.DataFrame(np.column_stack(found), index=where, columns=pd.Index(["ratio", "lower", "upper"]))

    def plot_hazard_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, times: ArrayLike, ax: Axes | None = None
    ) -> Axes:
        """The hazard ratio over time with its interval."""
        return plot_ratio(self.hazard_ratio(at, reference, times), "time", "hazard ratio", ax)

    def plot_quantile_ratio(
        self, at: pd.DataFrame, reference: pd.DataFrame, p: ArrayLike, ax: Axes | None = None
    ) -> Axes:
        """The quantile (acceleration) ratio with its interval."""
        return plot_ratio(self.quantile_ratio(at, reference, p), "survival probability", "quantile ratio", ax)

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
        given = natural(self.form_, self._eta(df))
        zero = pd.Series(0.0, index=df.index)
        found = cox_snell(
            df[self.duration_col],
            zero + 1 if self.event_col is None else df[self.event_col],
            zero if self.entry_col is None else df[self.entry_col],
            lambda t: pgw.cumulative_hazard(t, **given),
        ).set_index(df.index)
        if kind == "cox-snell":
            return found
        event = found["event"].to_numpy()
        martingale = event - (found["residual"] - found["entry"]).to_numpy()
        if kind == "martingale":
            return pd.DataFrame({"martingale": martingale}, index=df.index)
        inside = martingale + np.where(event == 1, np.log(np.maximum(event - martingale, 1e-300)), 0.0)
        return pd.DataFrame({"deviance": np.sign(martingale) * np.sqrt(np.maximum(-2 * inside, 0))}, index=df.index)

    def plot_qq(self, training_dataframe: pd.DataFrame, ax: Axes | None = None) -> Axes:
        """Cumulative hazard of the Cox-Snell residuals against the line it should follow."""
        return self._qq(self.compute_residuals(training_dataframe), ax)


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
    bad = [str(n) for n, ok in zip(names, np.isfinite(X.sum(0)).tolist(), strict=True) if not ok]
    if bad or len(X) != len(df):
        raise ValueError(f"NaN or Inf among the covariates: {', '.join(bad) or 'a formula drops their rows'}")
    return X, list(names)
