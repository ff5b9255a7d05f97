import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sksurv.datasets import load_veterans_lung_cancer
from sksurv.metrics import (
    as_concordance_index_ipcw_scorer,
    as_cumulative_dynamic_auc_scorer,
    as_integrated_brier_score_scorer,
    concordance_index_censored,
    integrated_brier_score,
)
from sksurv.util import Surv

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.estimator import PGWSurvivalAnalysis
from rankwise.distributions.survival.regression import PGWRegressionFitter

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


def cured(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a cured share that move together: most rows have no median."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    t = pgw.quantile(rng.exponential(size=n), phi=np.exp(x[:, 0]), lambda_=0.4 * np.exp(x[:, 0]), kappa=-0.5)
    return x, Surv.from_arrays(t < 20, np.minimum(t, 20))


def test_a_row_s_risk_does_not_depend_on_the_rows_beside_it():
    x, y = cured()
    model = PGWSurvivalAnalysis(family="ph", shape_covariates=False).fit(x, y)
    together = model.predict(x)
    alone = np.array([model.predict(row[None])[0] for row in x[:20]])
    np.testing.assert_allclose(alone, together[:20], rtol=1e-12)


def test_cured_rows_are_ranked_by_their_hazard_and_not_tied():
    x, y = cured()
    model = PGWSurvivalAnalysis(family="ph", shape_covariates=False).fit(x, y)
    median = model.fitter_.predict_median(pd.DataFrame(x, columns=["x0"])).to_numpy()
    assert np.isinf(median).mean() > 0.3
    by_median = concordance_index_censored(y["event"], y["time"], -np.minimum(median, 1e9))[0]
    by_covariate = concordance_index_censored(y["event"], y["time"], x[:, 0])[0]  # one covariate: the order it gives
    assert model.score(x, y) == pytest.approx(by_covariate, abs=1e-9)
    assert model.fitter_.concordance_index_ == pytest.approx(by_covariate, abs=1e-3)
    assert model.score(x, y) > by_median + 0.02


def test_scikit_survival_s_scorers_take_it():
    times = np.quantile(Y["Survival_in_days"], [0.2, 0.4, 0.6])
    brier = as_integrated_brier_score_scorer(PGWSurvivalAnalysis("weibull"), times).fit(X, Y)
    S = brier.estimator_.predict_survival_function(X, times)
    assert brier.score(X, Y) == pytest.approx(-integrated_brier_score(Y, Y, S, times))
    for scorer in (as_cumulative_dynamic_auc_scorer, lambda e, _: as_concordance_index_ipcw_scorer(e)):
        assert 0.5 < scorer(PGWSurvivalAnalysis("weibull"), times).fit(X, Y).score(X, Y) < 1


def test_curves_are_functions_exact_at_any_time_and_arrays_on_request():
    model = PGWSurvivalAnalysis().fit(X, Y)
    curves = model.predict_survival_function(X.head(4))
    array = model.predict_survival_function(X.head(4), return_array=True)
    assert array.shape == (4, len(model.unique_times_))
    for curve, row in zip(curves, array, strict=True):
        np.testing.assert_allclose(curve.y, row, rtol=1e-12)
        np.testing.assert_array_equal(curve.x, model.unique_times_)
    between = model.unique_times_[:2].mean()
    assert curves[0](between) == pytest.approx(model.predict_survival_function(X.head(1), [between])[0, 0])
    hazards = model.predict_cumulative_hazard_function(X.head(4))
    assert hazards[2](between) == pytest.approx(-np.log(curves[2](between)))
    with pytest.raises(ValueError, match="leave times out"):
        model.predict_survival_function(X, [1.0], return_array=False)


def test_settings_are_these_where_none_are_given():
    assert PGWSurvivalAnalysis().get_params() == {
        "baseline": "pgw", "family": "aft", "shape_covariates": True, "fixed": None, "penalizer": 0.0,
    }  # fmt: skip
    model = PGWSurvivalAnalysis("weibull", family="ph", shape_covariates=False, fixed={"gamma_": 1.5}, penalizer=0.1)
    f = model.fit(X, Y).fitter_
    assert (f.baseline, f.family, f.shape_covariates, f.fixed, f.penalizer) == (
        "weibull", "ph", False, {"gamma_": 1.5}, 0.1,
    )  # fmt: skip


def test_curves_have_their_times_values_and_domain():
    model = PGWSurvivalAnalysis("weibull").fit(X.to_numpy(), Y)
    assert list(model.fitter_.params_["phi_"].index) == ["x0", "x1", "x2", "Intercept"]
    np.testing.assert_array_equal(model.unique_times_, np.unique(Y["Survival_in_days"]))
    rows, given = X.to_numpy()[:3], model.fitter_.predict_parameters(pd.DataFrame(X.to_numpy()[:3]).add_prefix("x"))
    for k, (S, H) in enumerate(
        zip(model.predict_survival_function(rows), model.predict_cumulative_hazard_function(rows), strict=True)
    ):
        own = {n: float(v[k]) for n, v in given.items()}
        assert S.parameters == pytest.approx(own)
        assert (S.survival, H.survival) == (True, False)
        assert S.domain == H.domain == (0.0, np.inf)
        np.testing.assert_allclose(H.y, pgw.cumulative_hazard(S.x, **own), rtol=1e-12)
        np.testing.assert_allclose(S.y, np.exp(-H.y), rtol=1e-12)
    at = model.predict_cumulative_hazard_function(rows, 30.0)
    assert at.shape == (3, 1)
    np.testing.assert_allclose(model.predict_cumulative_hazard_function(rows, [30.0], return_array=True), at)
    whole = model.predict_cumulative_hazard_function(rows, return_array=True)
    assert whole.shape == (3, len(model.unique_times_))
    np.testing.assert_allclose(model.predict_survival_function(rows, return_array=True), np.exp(-whole), rtol=1e-12)
    assert model.predict_survival_function(rows, return_array=False).dtype == object
    np.testing.assert_allclose(model.predict(rows), model.fitter_.predict_log_risk(pd.DataFrame(rows).add_prefix("x")))


@pytest.mark.parametrize(
    "y",
    [
        np.zeros(3), np.zeros(3, dtype=[("e", bool)]), np.zeros(3, dtype=[("e", float), ("t", float)]),
        np.zeros(3, dtype=[("e", bool), ("t", float), ("u", float)]),
    ],
)  # fmt: skip
def test_a_target_has_an_event_and_a_time(y):
    with pytest.raises(ValueError, match="a structured array of an event"):
        PGWSurvivalAnalysis().fit(X.head(3), y)
