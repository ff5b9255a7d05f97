"""The power generalised Weibull regression as a scikit-learn estimator, with scikit-survival's structured targets.

A target is a structured array whose two fields are the event (bool) and the time, as ``sksurv.util.Surv`` makes it.
Curves are callables with ``x``, ``y`` and ``domain``, as scikit-survival's step functions, which its scorers call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from rankwise.distributions.accepted import rows_of
from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.model import numbers
from rankwise.distributions.survival.regression import PGWRegressionFitter, concordance

__all__ = ["PGWSurvivalAnalysis"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """S or H of one row, exact at any time.

    Attributes
    ----------
    x, y : ndarray
        Training times, and the curve there.
    domain : tuple
        ``(0, ∞)``.
    parameters : dict
        `power_weibull`'s, of this row.
    survival : bool
        S; False for H.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.estimator import Curve
    >>> unit = {"phi": 1.0, "lambda_": 1.0, "gamma": 1.0, "kappa": 1.0}  # the unit exponential law
    >>> S = Curve(x=np.array([1.0, 2.0]), parameters=unit, survival=True)
    >>> S.y.round(3).tolist(), round(float(S(0.5)), 3)
    ([0.368, 0.135], 0.607)
    """

    x: Array
    parameters: dict[str, float]
    survival: bool
    domain: tuple[float, float] = (0.0, np.inf)

    @property
    def y(self) -> Array:
        return np.asarray(self(self.x))

    def __call__(self, times: ArrayLike) -> Array | float:
        H = pgw.cumulative_hazard(times, **self.parameters)
        return np.exp(-H) if self.survival else H


class PGWSurvivalAnalysis(BaseEstimator):
    """Multi-parameter survival regression for pipelines and grid searches.

    Parameters
    ----------
    baseline, family, shape_covariates, fixed, penalizer :
        As `PGWRegressionFitter`'s.

    Attributes
    ----------
    fitter_ : PGWRegressionFitter
        The fit, with its summary, intervals and plots.
    unique_times_ : ndarray
        Training times, ascending.
    n_features_in_ : int
        Columns of the training rows.

    Examples
    --------
    >>> from lifelines.datasets import load_rossi
    >>> from rankwise.distributions import PGWSurvivalAnalysis
    >>> df = load_rossi()
    >>> y = df[["arrest", "week"]].astype({"arrest": bool}).to_records(index=False)
    >>> X = df[["fin", "age", "prio"]]
    >>> model = PGWSurvivalAnalysis("weibull", shape_covariates=False).fit(X, y)
    >>> round(model.score(X, y), 2)
    0.63
    >>> model.predict_survival_function(X[:2], times=[26, 52]).shape
    (2, 2)
    """

    def __init__(
        self,
        baseline: str = "pgw",
        *,
        family: str = "aft",
        shape_covariates: bool = True,
        fixed: Mapping[str, float] | None = None,
        penalizer: float = 0.0,
    ) -> None:
        self.baseline = baseline
        self.family = family
        self.shape_covariates = shape_covariates
        self.fixed = fixed
        self.penalizer = penalizer

    def fit(self, X: ArrayLike, y: ArrayLike) -> PGWSurvivalAnalysis:
        """Fit to ``(n, p)`` covariates and a structured target ``(n,)``.

        Raises
        ------
        ValueError
            A target without the two fields, or what `PGWRegressionFitter` refuses.
        """
        X = rows_of(self, X)
        event, time = _target(y)
        df = self._frame(X).assign(**{"(time)": time, "(event)": event.astype(float)})
        self.fitter_ = PGWRegressionFitter(
            self.baseline, family=self.family, shape_covariates=self.shape_covariates, fixed=self.fixed,
            penalizer=self.penalizer,
        ).fit(df, "(time)", "(event)")  # fmt: skip
        self.unique_times_ = np.unique(time)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Risk, ``(n,)``: log H at the median of the training events' times."""
        df = self._checked(X)
        return self.fitter_.predict_log_risk(df).to_numpy(float)

    def predict_survival_function(
        self, X: ArrayLike, times: ArrayLike | None = None, *, return_array: bool | None = None
    ) -> Array | NDArray[np.object_]:
        """S of every row: `Curve` objects ``(n,)`` or, where ``times`` are given, ``(n, len(times))``.

        ``return_array`` chooses, with the training times where there are no others.
        """
        return self._curves(X, times, return_array, survival=True)

    def predict_cumulative_hazard_function(
        self, X: ArrayLike, times: ArrayLike | None = None, *, return_array: bool | None = None
    ) -> Array | NDArray[np.object_]:
        """H of every row, as `predict_survival_function` gives S."""
        return self._curves(X, times, return_array, survival=False)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Concordance index of the predicted risks."""
        event, time = _target(y)
        return concordance(time, event, self.predict(X))

    def _curves(
        self, X: ArrayLike, times: ArrayLike | None, return_array: bool | None, *, survival: bool
    ) -> Array | NDArray[np.object_]:
        df = self._checked(X)
        if return_array is False and times is not None:
            raise ValueError("curves are functions of any time: leave times out, or return_array=False")
        if return_array or times is not None:
            at = self.unique_times_ if times is None else np.atleast_1d(np.asarray(times, dtype=float))
            H = self.fitter_.predict_cumulative_hazard(df, times=at).to_numpy().T
            return np.exp(-H) if survival else H
        given = self.fitter_.predict_parameters(df)
        out = np.empty(len(df), dtype=object)
        for i in range(len(df)):
            row = {n: float(v[i]) for n, v in given.items()}
            out[i] = Curve(x=self.unique_times_, parameters=row, survival=survival)
        return out

    def _checked(self, X: ArrayLike) -> pd.DataFrame:
        check_is_fitted(self)
        return self._frame(rows_of(self, X, reset=False))

    def _frame(self, X: Array) -> pd.DataFrame:
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(X.shape[1])])
        return pd.DataFrame(X, columns=pd.Index(names))


def _target(y: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    y = np.asarray(y)
    names = y.dtype.names
    if names is None or len(names) != 2 or y.dtype[0] != np.bool_:
        raise ValueError(
            f"y has dtype {y.dtype}; a structured array of an event (bool) and a time is needed (sksurv.util.Surv)"
        )
    return y[names[0]], numbers(y[names[1]], "times")
