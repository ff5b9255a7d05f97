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

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.curves import cox_snell
from rankwise.distributions.survival.fitter import FittedSurvival
from rankwise.distributions.survival.likelihood import PARAMETERS, Likelihood
from rankwise.distributions.survival.model import (
    Form,
    bounds_of,
    compare_baselines,
    distinct_baselines,
    form,
    hint_robust,
    marks,
    maximise,
    numbers,
    observations,
    tolerance,
)
from rankwise.distributions.survival.predictions import RegressionPredictions
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PGWRegressionFitter"]

Array = NDArray[np.float64]


class PGWRegressionFitter(RegressionPredictions, FittedSurvival, ParametricRegressionFitter):
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

    Examples
    --------
    >>> from lifelines.datasets import load_rossi
    >>> from rankwise.distributions import PGWRegressionFitter
    >>> df = load_rossi()[["week", "arrest", "fin", "age", "prio"]]
    >>> model = PGWRegressionFitter("weibull", shape_covariates=False).fit(df, "week", "arrest")
    >>> model.params_["phi_"].round(2).to_dict()  # above 0: sooner
    {'fin': -0.25, 'age': -0.05, 'prio': 0.07, 'Intercept': -3.77}
    >>> model.predict_percentile(df[:2], p=0.9).round().tolist()  # weeks until a tenth is arrested
    [26.0, 12.0]
    """

    _KNOWN_MODEL = True
    _FAST_MEDIAN_PREDICT = True  # lifelines prints a concordance for these
    _ancillary_parameter_name = "gamma_"

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

    @property
    def _primary_parameter_name(self) -> str:
        """lifelines' name for the parameter that the covariates move; φ's coefficients have the opposite sign of its
        own accelerated failure models'."""
        return self.form_.scale

    def fit(
        self, df: pd.DataFrame, duration_col: str, event_col: str | None = None, *, formula: str | None = None,
        ancillary: bool | str | pd.DataFrame | None = None, **kwargs,
    ):  # fmt: skip
        """Fit to right-censored data.

        Parameters
        ----------
        df : DataFrame
            Durations, events, covariates, and perhaps entries and weights.
        duration_col, event_col : str
            Names of the columns of durations and of events, 1 (seen) or 0 (censored); all are seen by default.
        formula : str, optional
            Covariates (formulaic), for every parameter that takes covariates; all columns by default.
        ancillary : bool, str or DataFrame, optional
            Covariates of the power γ, as in lifelines' accelerated failure models: the scale's (True), none (False), a
            formula, or a frame of the same rows; by default as ``shape_covariates`` says.
        **kwargs
            As in lifelines: ``entry_col``, ``weights_col``, ``timeline``, ``robust`` (sandwich errors), ``regressors``,
            the covariates of single parameters by name: a formula or a list of columns, such as ``{"gamma_": "age"}``;
            ``initial_point``, one more place to start from, and ``fit_options``, of which ``tol`` is known.

        Raises
        ------
        ValueError
            Bad durations, events, entries or weights (with the rows), NaN among the covariates, columns that others
            make up (named), a column called Intercept beside the fitter's own.
        """
        df = self._prepared(df, [duration_col], event_col, kwargs, formula, ancillary)
        return super().fit(df, duration_col, event_col, **kwargs)

    def fit_left_censoring(
        self, df, duration_col=None, event_col=None, *, formula: str | None = None, ancillary=None, **kwargs
    ):
        """Fit where ``event_col`` 0 means that the event came before ``duration_col``; otherwise as `fit`."""
        df = self._prepared(df, [duration_col], event_col, kwargs, formula, ancillary)
        return super().fit_left_censoring(df, duration_col, event_col, **kwargs)

    def fit_interval_censoring(
        self, df, lower_bound_col, upper_bound_col, event_col=None, *, formula: str | None = None, ancillary=None,
        **kwargs,
    ):  # fmt: skip
        """Fit where the event lies between two columns (equal for an exact time, ∞ above for a right-censored one)."""
        df = self._prepared(df, [lower_bound_col, upper_bound_col], event_col, kwargs, formula, ancillary)
        return super().fit_interval_censoring(df, lower_bound_col, upper_bound_col, event_col, **kwargs)

    def _prepared(
        self, df: pd.DataFrame, time_cols: list, event_col, kwargs: dict, formula: str | None, ancillary
    ) -> pd.DataFrame:
        """The frame with times, events, entries and weights as numbers, and who takes which covariates noted."""
        special = [*time_cols, event_col, kwargs.get("entry_col"), kwargs.get("weights_col")]
        self._special = [c for c in special if c is not None]
        df = df.copy(deep=False)
        for column in self._special:
            if column not in df:
                raise unknown("column", str(column), map(str, df.columns))
            df[column] = (marks if column == event_col else numbers)(df[column], f"column '{column}'")
        self._formula, self._ancillary, self._every = formula, ancillary, [c for c in df if c not in self._special]
        if isinstance(ancillary, pd.DataFrame):
            if not (ancillary.index.is_unique and set(ancillary.index) == set(df.index)):
                raise ValueError(
                    f"ancillary has {len(ancillary)} rows that are not the data's {len(df)} by their index"
                )
            more, self._ancillary = ancillary.reindex(df.index), [c for c in ancillary if c not in self._special]
            for column in self._ancillary:
                if column in df and not df[column].equals(more[column]):
                    raise ValueError(f"column '{column}' of ancillary differs from the data's: rename one")
                df[column] = more[column]
        return df

    def _fit(
        self, log_likelihood_function, df, Ts, regressors=None, event_col=None, show_progress=False, timeline=None,
        weights_col=None, robust=False, initial_point=None, entry_col=None, fit_options=None,
    ):  # fmt: skip
        self._time_fit_was_called = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S") + " UTC"
        self.weights_col, self.entry_col, self.event_col, self.robust = weights_col, entry_col, event_col, robust
        self._n_examples, ones = len(df), pd.Series(np.ones(len(df)), index=df.index)
        taken = {c: df.pop(c) for c in (event_col, weights_col, entry_col) if c is not None}
        E = taken.get(event_col, ones)
        self.weights, self.entry = taken.get(weights_col, ones), taken.get(entry_col, 0 * ones)
        self.event_observed = E.astype(float) == 1
        lower, upper, event = bounds_of(Ts, E)
        self._observations = observations(
            lower=lower, upper=upper, event=event, entry=self.entry, weight=self.weights, index=df.index
        )
        if not robust:
            hint_robust(self._observations.weight, "set robust=True")
        self.timeline = np.unique(lower) if timeline is None else np.sort(np.asarray(timeline, dtype=float))
        self._central_values = self._compute_central_values_of_raw_training_data(df)
        if self.baseline == "auto":
            self.baselines_ = compare_baselines(
                {b: form(b, self.family, self.fixed) for b in distinct_baselines(self.family)},
                lambda shape: self._maximise(df, shape, regressors)[0],
                float(self._observations.weight.sum()),
            )
            self._set(form(str(self.baselines_.index[0]), self.family, self.fixed))
        begin = initial_point
        if isinstance(begin, Mapping):
            begin = np.concatenate([np.atleast_1d(begin[n]) for n in self.form_.free])
        self.fit_, names = self._maximise(
            df, self.form_, regressors, begin=begin, tol=tolerance(fit_options), show=show_progress
        )
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
        known = np.isfinite(upper)
        self._horizon = float(np.median((lower[known] + upper[known]) / 2))
        self._training_risk = self.predict_log_risk(df)
        return self

    def _roles(self, df: pd.DataFrame, shape: Form, regressors: Mapping | None) -> dict:
        """Which covariates move which parameter."""
        moved = {shape.scale} if shape.scale in shape.free else set(shape.free[:1])
        if self.family == "both":
            moved |= {"phi_", "lambda_"}
        if self.shape_covariates:
            moved |= {"gamma_"}
        every = self._formula if self._formula is not None else (self._every or "1")
        roles = {n: every if n in moved else "1" for n in shape.free}
        wanted = self._ancillary is not None and self._ancillary is not False
        if wanted and "gamma_" not in shape.free and self.baseline != "auto":
            raise ValueError(f"ancillary covariates are for gamma_, which is fixed at {shape.fixed['gamma_']}")
        if self._ancillary is not None and "gamma_" in roles:
            given = self._ancillary
            roles["gamma_"] = given if isinstance(given, str | list) else every if given else "1"
        for name, given in (regressors or {}).items():
            if name not in PARAMETERS:
                raise unknown("parameter", str(name), PARAMETERS)
            if name not in shape.free and self.baseline != "auto":
                raise ValueError(f"regressors for {name}, which is fixed at {shape.fixed[name]}")
            if name in shape.free:
                roles[name] = given if given is not None else every
        return roles

    def _maximise(self, df: pd.DataFrame, shape: Form, regressors: Mapping | None, **options):
        roles = self._roles(df, shape, regressors)
        self.regressors = utils.CovariateParameterMappings(roles, df, force_intercept=self.fit_intercept)
        self._keys = {name: role if isinstance(role, str) else tuple(role) for name, role in roles.items()}
        self._constant = [name for name, key in self._keys.items() if key == "1"]
        designs: dict[str, Array | None] = {}
        made: dict[object, tuple[Array, list]] = {}
        names: dict[str, list] = {}
        for name, key in self._keys.items():
            if name in self._constant:
                designs[name], names[name] = None, ["Intercept"]
                continue
            if key not in made:
                made[key] = self._design(name, df)
            designs[name], names[name] = made[key]
            if len(set(names[name])) < len(names[name]):
                raise ValueError(f"two columns of {name} have the same name: {', '.join(map(str, names[name]))}")
        penalizer = float(self.penalizer)
        return maximise(self._observations, designs, shape, penalizer=penalizer, names=names, **options), names

    def _sandwich(self) -> Array:
        L, V = self.fit_.likelihood, self.fit_.covariance
        known = np.isfinite(np.diag(V))
        half = (
            np.where(np.outer(known, known), V, 0.0) @ np.linalg.inv(L.original()).T
        )  # scores of the columns as given
        out = half @ L.scores(self.fit_.optimum.theta) @ half.T
        out[~known, ~known] = np.inf
        return out

    @property
    def _ll_null(self) -> float:
        return maximise(self._observations, dict.fromkeys(self.form_.free), self.form_).log_likelihood

    @property
    def concordance_index_(self) -> float:
        """Of the training rows' times with `predict_log_risk`, whose order is the medians' unless hazards cross.

        Raises
        ------
        ValueError
            Left- or interval-censored data.
        """
        self._right_censored("a concordance")
        return concordance(self.durations, self.event_observed, self._training_risk)

    def score(self, df: pd.DataFrame, scoring_method: str = "log_likelihood") -> float:
        """Mean log-likelihood of rows like the training ones, or their ``"concordance_index"``."""
        if scoring_method not in ("log_likelihood", "concordance_index"):
            raise unknown("scoring method", scoring_method, ("log_likelihood", "concordance_index"))
        if scoring_method == "concordance_index":
            self._right_censored("a concordance")
        if utils.CensoringType.is_interval_censoring(self):
            t = numbers(df[self.lower_bound_col], "lower bounds")
            Ts = t, numbers(df[self.upper_bound_col], "upper bounds")
            E = (t == Ts[1]).astype(float)
        else:
            t = numbers(df[self.duration_col], "durations")
            Ts = (None, t) if utils.CensoringType.is_left_censoring(self) else (t, None)
            E = np.ones(len(df)) if self.event_col is None else marks(df[self.event_col])
        if scoring_method == "concordance_index":
            return concordance(t, E, self.predict_log_risk(df))
        lower, upper, event = bounds_of(Ts, E)
        o = observations(
            lower=lower, upper=upper, event=event, entry=None if self.entry_col is None else df[self.entry_col],
            weight=df.get(self.weights_col), index=df.index,
        )  # fmt: skip
        designs = {n: None if n in self._constant else self._design(n, df)[0] for n in self.form_.free}
        L = Likelihood(o, designs, self.form_.linear)
        return L(L.scaled(self.params_.to_numpy())).value

    def _right_censored(self, what: str) -> None:
        if not utils.CensoringType.is_right_censoring(self):
            raise ValueError(f"{what} is defined here for right-censored data")

    def compute_residuals(self, training_dataframe: pd.DataFrame, kind: str = "cox-snell") -> pd.DataFrame:
        """Residuals of the training rows.

        Parameters
        ----------
        training_dataframe : DataFrame
            As given to `fit`.
        kind : {"cox-snell", "martingale", "deviance"}
            H at each time, the event less H since the entry, or the latter made symmetric. Default "cox-snell".
        """
        if kind not in ("cox-snell", "martingale", "deviance"):
            raise unknown("kind of residual", kind, ("cox-snell", "martingale", "deviance"))
        self._right_censored("a residual")
        df, zero = training_dataframe, np.zeros(len(training_dataframe))
        given = self.predict_parameters(df)
        found = cox_snell(
            numbers(df[self.duration_col], "durations"),
            zero + 1 if self.event_col is None else marks(df[self.event_col]),
            zero if self.entry_col is None else np.maximum(numbers(df[self.entry_col], "entries"), 0.0),
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


def concordance(times: ArrayLike, events: ArrayLike, log_risk: ArrayLike) -> float:
    """0.5 where no two rows can be compared."""
    try:
        return float(utils.concordance_index(np.asarray(times), -np.asarray(log_risk), np.asarray(events)))
    except ZeroDivisionError:
        return 0.5
