import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sksurv.datasets import load_veterans_lung_cancer
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from rankwise.distributions.survival_regression import PGWRegressionFitter
from rankwise.distributions.survival_sklearn import PGWSurvivalAnalysis

X, Y = load_veterans_lung_cancer()
X = X[["Age_in_years", "Karnofsky_score", "Months_from_Diagnosis"]]


def test_score_is_scikit_survivals_concordance():
    model = PGWSurvivalAnalysis().fit(X, Y)
    expected = concordance_index_censored(Y["Status"], Y["Survival_in_days"], model.predict(X))[0]
    assert model.score(X, Y) == pytest.approx(expected, abs=1e-3)
    assert model.score(X, Y) > 0.65


def test_it_is_the_lifelines_fitter_underneath():
    model = PGWSurvivalAnalysis("weibull").fit(X, Y)
    df = X.assign(t=Y["Survival_in_days"], e=Y["Status"].astype(float))
    assert model.fitter_.log_likelihood_ == pytest.approx(
        PGWRegressionFitter("weibull").fit(df, "t", "e").log_likelihood_
    )
    S = model.predict_survival_function(X.head(3), [30.0, 90.0])
    assert S.shape == (3, 2)
    np.testing.assert_allclose(-np.log(S), model.predict_cumulative_hazard_function(X.head(3), [30.0, 90.0]))


def test_it_works_in_pipelines_grids_and_clones():
    name = "pgwsurvivalanalysis"
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), PGWSurvivalAnalysis()),
        {f"{name}__baseline": ["weibull", "log-logistic"], f"{name}__shape_covariates": [True, False]},
        cv=3,
    ).fit(X.to_numpy(), Y)  # fmt: skip
    assert 0.5 < grid.best_score_ < 1
    assert clone(PGWSurvivalAnalysis(family="ph")).family == "ph"


def test_cured_rows_are_still_ranked():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 1))
    t = rng.exponential(size=500) * np.exp(-x[:, 0])
    cured = rng.random(500) < 0.6
    y = Surv.from_arrays(~cured & (t < 20), np.where(cured, 20, np.minimum(t, 20)))
    model = PGWSurvivalAnalysis(shape_covariates=False).fit(x, y)
    assert np.isfinite(model.predict(x)).all()
    assert model.score(x, y) > 0.55


def test_a_plain_target_is_refused():
    with pytest.raises(ValueError, match="structured array"):
        PGWSurvivalAnalysis().fit(X, Y["Survival_in_days"])
    with pytest.raises(ValueError, match="feature"):
        PGWSurvivalAnalysis().fit(X, Y).predict(pd.DataFrame({"a": [1.0]}))
