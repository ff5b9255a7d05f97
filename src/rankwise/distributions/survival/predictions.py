"""What a fitted survival regression says of rows: curves, quantiles, means, cure, ratios, each with its interval."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from formulaic import ModelSpec
from formulaic.errors import DataMismatchWarning
from lifelines import utils
from numpy.typing import ArrayLike, NDArray

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.curves import intervals, links, mean_time, natural, plot_ratio, quantity
from rankwise.distributions.survival.model import Fit, Form, numbers
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


class RegressionPredictions:
    """Predictions from linear predictors; all of them build the covariates' columns in one place.

    Examples
    --------
    >>> from lifelines.datasets import load_rossi
    >>> from rankwise.distributions import PGWRegressionFitter
    >>> df = load_rossi()[["week", "arrest", "fin", "age"]]
    >>> model = PGWRegressionFitter("weibull", shape_covariates=False).fit(df, "week", "arrest")
    >>> model.predict_with_interval(df[:1], "survival", at=[26, 52]).round(2)
                  estimate  lower  upper
    subject at
    0       26.0      0.90   0.86   0.93
            52.0      0.75   0.68   0.81
    >>> young, old = (df[:1].assign(age=age) for age in (20, 40))
    >>> bool(model.hazard_ratio(young, old, times=26)["lower"].iloc[0] > 1)
    True
    """

    fit_: Fit
    form_: Form
    alpha: float
    fit_intercept: bool
    timeline: Array
    params_: pd.Series
    variance_matrix_: pd.DataFrame
    regressors: utils.CovariateParameterMappings
    _keys: dict[str, str | tuple]
    _constant: list[str]
    _horizon: float

    def _design(self, name: str, df: pd.DataFrame) -> tuple[Array, list]:
        """Columns of a parameter's covariates, and their names."""
        mapping = self.regressors.mappings[name]
        used = (
            mapping[: -1 if self.fit_intercept else None] if isinstance(mapping, list) else mapping.required_variables
        )
        if "Intercept" in used and (self.fit_intercept or not isinstance(mapping, list)):
            raise ValueError(
                "a covariate is called 'Intercept', as the fitter's own: rename it, or set fit_intercept=False"
            )
        return _listed(mapping, df, self.fit_intercept) if isinstance(mapping, list) else _by_formula(mapping, df)

    def _eta(self, df: pd.DataFrame, coefficients: Array | None = None) -> dict[str, Array]:
        """Linear predictors of rows, ``(n,)`` each."""
        params = self.params_ if coefficients is None else pd.Series(coefficients, index=self.params_.index)
        eta, made = {}, {}
        for name in self.form_.free:
            own = np.asarray(params[name])
            if name in self._constant:
                eta[name] = np.full(len(df), own[0])
                continue
            if self._keys[name] not in made:
                made[self._keys[name]] = self._design(name, df)[0]
            eta[name] = made[self._keys[name]] @ own
        return eta

    def predict_parameters(self, df: pd.DataFrame) -> dict[str, Array]:
        """φ, λ, γ and κ of each row, ``(n,)``, by `power_weibull`'s names."""
        return {n: v + np.zeros(len(df)) for n, v in natural(self.form_, self._eta(df)).items()}

    def predict_cumulative_hazard(self, df, *, times=None, conditional_after=None) -> pd.DataFrame:
        """H at times, counted from ``conditional_after``: a row a time, a column a row of ``df``."""
        df, given, t, after = self._asked(df, times, conditional_after)
        H = pgw.cumulative_hazard(t[:, None] + after, **given) - pgw.cumulative_hazard(after, **given)
        return pd.DataFrame(np.maximum(H, 0.0), index=t, columns=pd.Index(utils._get_index(df)))

    def predict_hazard(self, df, *, conditional_after=None, times=None) -> pd.DataFrame:
        """h at times, counted from ``conditional_after``: a row a time, a column a row of ``df``."""
        df, given, t, after = self._asked(df, times, conditional_after)
        h = np.exp(pgw.log_hazard(t[:, None] + after, **given))
        return pd.DataFrame(h, index=t, columns=pd.Index(utils._get_index(df)))

    def _asked(self, df, times, conditional_after) -> tuple[pd.DataFrame, dict[str, Array], Array, Array]:
        df = _rows(df)
        t = np.atleast_1d(np.asarray(self.timeline if times is None else times, dtype=float))
        after = np.zeros(len(df)) if conditional_after is None else np.ravel(np.asarray(conditional_after, dtype=float))
        return df, self.predict_parameters(df), t, after

    def predict_log_risk(self, df: pd.DataFrame) -> pd.Series:
        """log H at the median of the training events' times: it ranks all rows, those without a median (cured) too."""
        df = _rows(df)
        return pd.Series(pgw.log_cumulative_hazard(self._horizon, **self.predict_parameters(df)), index=df.index)

    def _quantiles(self, df: pd.DataFrame, p: ArrayLike, after: ArrayLike | None = None) -> Array:
        given = self.predict_parameters(df)
        if after is None:
            return pgw.quantile(-np.log(p), **given)
        return pgw.quantile(-np.log(p) + pgw.cumulative_hazard(after, **given), **given) - np.asarray(after)

    def predict_percentile(self, df, *, p=0.5, conditional_after=None) -> pd.Series:
        """The time at which each row's survival function is ``p``, in closed form; ∞ for more cured than ``p``."""
        df = _rows(df)
        return pd.Series(self._quantiles(df, p, conditional_after), index=df.index, name=p)

    def predict_expectation(self, X, conditional_after=None) -> pd.Series:
        """Mean time to the event (from ``conditional_after`` on); ∞ where it does not exist or some are cured."""
        df = _rows(X)
        after = np.zeros(len(df)) if conditional_after is None else np.ravel(np.asarray(conditional_after, dtype=float))
        return pd.Series(mean_time(self.predict_parameters(df), after), index=df.index)

    def predict_cure_fraction(self, df: pd.DataFrame) -> pd.Series:
        """Share of each row's like that never has the event; 0 where κ ≥ 0."""
        df = _rows(df)
        given = self.predict_parameters(df)
        return pd.Series(pgw.cure_fraction(lambda_=given["lambda_"], kappa=given["kappa"]), index=df.index)

    def predict_with_interval(
        self, df: pd.DataFrame, what: str = "survival", at: ArrayLike = np.nan, *, alpha: float | None = None
    ) -> pd.DataFrame:
        """Estimates with intervals (delta method), a row a subject and an entry of ``at``.

        Parameters
        ----------
        df : DataFrame
            Covariates.
        what : {"survival", "hazard", "cumulative_hazard", "quantile", "rmst", "cure"}
            What is estimated; rmst is the mean time up to a horizon, cure the share that never has the event.
        at : array_like
            Times; for quantiles survival probabilities.
        alpha : float, optional
            1 - level of the intervals; the fitter's by default.
        """
        df, points = _rows(df), np.atleast_1d(np.asarray(at, dtype=float))
        n, (link, back) = len(df), links(what)

        def of(c: Array) -> Array:
            eta = {k: np.repeat(v, len(points)) for k, v in self._eta(df, c).items()}
            return quantity(what, np.tile(points, n), self.form_, eta)

        found = intervals(
            of, self.fit_.coefficients, np.asarray(self.variance_matrix_), self.alpha if alpha is None else alpha,
            link=link, back=back,
        )  # fmt: skip
        rows = df.index.repeat(len(points))
        index = pd.MultiIndex.from_arrays(
            [*(rows.get_level_values(k) for k in range(rows.nlevels)), np.tile(points, n)],
            names=[*(["subject"] if rows.nlevels == 1 else rows.names), "at"],
        )
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
        at, reference, where = _rows(at), _rows(reference), np.atleast_1d(np.asarray(points, dtype=float))
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


def _rows(df: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """A frame, of one row for a series."""
    return df.to_frame().T.infer_objects() if isinstance(df, pd.Series) else df


def _listed(mapping: list, df: pd.DataFrame, intercept: bool) -> tuple[Array, list]:
    """Columns by name, with a column of ones after them where there is an intercept."""
    columns = mapping[:-1] if intercept else mapping
    missing = [c for c in columns if c not in df.columns]
    if missing:
        raise unknown("column", str(missing[0]), map(str, df.columns))
    X = np.column_stack([np.empty((len(df), 0)), *(numbers(df[c], f"column '{c}'") for c in columns)])
    X = np.column_stack([X, np.ones(len(df))]) if intercept else X
    _refuse_gaps(X, mapping)
    return X, list(mapping)


def _by_formula(mapping: ModelSpec, df: pd.DataFrame) -> tuple[Array, list]:
    """A formula's columns; a category that the fit did not see has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataMismatchWarning)
        try:
            matrix = mapping.get_model_matrix(df)
        except DataMismatchWarning as mismatch:
            seen = re.search(r"\{.*\}", str(mismatch))
            raise ValueError(
                f"categories that the fit did not see: {seen.group() if seen else mismatch}; their effect is unknown, "
                "leave such rows out or fit with them"
            ) from mismatch
    X, names = np.asarray(matrix, dtype=float), list(matrix.columns)
    if len(X) != len(df):
        raise ValueError(f"NaN or Inf among the covariates: a formula drops {len(df) - len(X)} rows")
    _refuse_gaps(X, names)
    return X, names


def _refuse_gaps(X: Array, names: list) -> None:
    bad = [str(n) for n, ok in zip(names, np.isfinite(X.sum(0)).tolist(), strict=True) if not ok]
    if bad:
        raise ValueError(f"NaN or Inf among the covariates: {', '.join(bad)}")
