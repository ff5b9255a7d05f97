"""The power generalised Weibull regression as a scikit-learn estimator, with scikit-survival's structured targets.

A target is a structured array whose two fields are the event (bool) and the time, as ``sksurv.util.Surv`` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from lifelines.utils import concordance_index
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from rankwise.distributions.survival_regression import PGWRegressionFitter

Array = NDArray[np.float64]


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
        X = np.asarray(validate_data(self, X, dtype=np.float64))  # type: ignore[arg-type]
        event, time = _target(y)
        df = self._frame(X).assign(**{"(time)": time, "(event)": event.astype(float)})
        self.fitter_ = PGWRegressionFitter(
            self.baseline, family=self.family, shape_covariates=self.shape_covariates, fixed=self.fixed,
            penalizer=self.penalizer,
        ).fit(df, "(time)", "(event)")  # fmt: skip
        self.unique_times_ = np.unique(time)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Risk, ``(n,)``: -log of the median time, or where some have none (cured), log H at the last training time."""
        df = self._checked(X)
        median = self.fitter_.predict_percentile(df, p=0.5).to_numpy(float)
        if np.isfinite(median).all():
            return -np.log(median)
        return np.log(self.fitter_.predict_cumulative_hazard(df, times=[self.unique_times_[-1]]).to_numpy(float)[0])

    def predict_survival_function(self, X: ArrayLike, times: ArrayLike | None = None) -> Array:
        """S at ``times`` (the training times by default), ``(n, len(times))``."""
        return self.fitter_.predict_survival_function(self._checked(X), times=self._times(times)).to_numpy().T

    def predict_cumulative_hazard_function(self, X: ArrayLike, times: ArrayLike | None = None) -> Array:
        """H at ``times`` (the training times by default), ``(n, len(times))``."""
        return self.fitter_.predict_cumulative_hazard(self._checked(X), times=self._times(times)).to_numpy().T

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Concordance index of the predicted risks."""
        event, time = _target(y)
        return float(concordance_index(time, -self.predict(X), event))

    def _checked(self, X: ArrayLike) -> pd.DataFrame:
        check_is_fitted(self)
        return self._frame(np.asarray(validate_data(self, X, dtype=np.float64, reset=False)))  # type: ignore[arg-type]

    def _frame(self, X: Array) -> pd.DataFrame:
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(X.shape[1])])
        return pd.DataFrame(X, columns=pd.Index(names))

    def _times(self, times: ArrayLike | None) -> Array:
        return self.unique_times_ if times is None else np.atleast_1d(np.asarray(times, dtype=float))


def _target(y: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    y = np.asarray(y)
    names = y.dtype.names
    if names is None or len(names) != 2 or y.dtype[0] != np.bool_:
        raise ValueError(
            f"y has dtype {y.dtype}; a structured array of an event (bool) and a time is needed (sksurv.util.Surv)"
        )
    return y[names[0]], y[names[1]].astype(float)
