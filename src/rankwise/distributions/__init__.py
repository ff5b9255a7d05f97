"""Distributions as estimators: survival, aggregated quantiles, densities in large dimension, singular laws."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankwise.distributions.kde import HighDimKDE
    from rankwise.distributions.kde_regimes import critical_bandwidths
    from rankwise.distributions.quantile_aggregation import QuantileAggregator
    from rankwise.distributions.quantile_linear import LinearQuantile
    from rankwise.distributions.singular import SingularGenerativeEstimator
    from rankwise.distributions.survival import PGWFitter, select_baseline
    from rankwise.distributions.survival_regression import PGWRegressionFitter
    from rankwise.distributions.survival_sklearn import PGWSurvivalAnalysis

__all__ = [
    "HighDimKDE",
    "LinearQuantile",
    "PGWFitter",
    "PGWRegressionFitter",
    "PGWSurvivalAnalysis",
    "QuantileAggregator",
    "SingularGenerativeEstimator",
    "critical_bandwidths",
    "select_baseline",
]
_LATE = {
    "HighDimKDE": "kde",
    "LinearQuantile": "quantile_linear",
    "PGWFitter": "survival",
    "PGWRegressionFitter": "survival_regression",
    "PGWSurvivalAnalysis": "survival_sklearn",
    "QuantileAggregator": "quantile_aggregation",
    "SingularGenerativeEstimator": "singular",
    "critical_bandwidths": "kde_regimes",
    "select_baseline": "survival",
}


def __getattr__(name: str):
    """Each system needs its own libraries: they come when it is asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs: pip install 'rankwise[distributions]' ({error})") from error
