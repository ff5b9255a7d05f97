import warnings

import lifelines
import matplotlib
import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_rossi

from rankwise.distributions.survival_regression import PGWRegressionFitter
from survival_samples import drawn

matplotlib.use("Agg")
ROSSI = load_rossi()


def test_weibull_regression_is_lifelines():
    ours = PGWRegressionFitter("weibull", shape_covariates=False).fit(ROSSI, "week", "arrest")
    theirs = lifelines.WeibullAFTFitter().fit(ROSSI, "week", "arrest")
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-6)
    np.testing.assert_allclose(-ours.params_["phi_"], theirs.params_["lambda_"][ours.params_["phi_"].index], atol=1e-4)
    np.testing.assert_allclose(
        ours.standard_errors_["phi_"], theirs.standard_errors_["lambda_"][ours.params_["phi_"].index], rtol=1e-3
    )
    pd.testing.assert_series_equal(
        ours.predict_median(ROSSI).rename(None), theirs.predict_median(ROSSI).rename(None), rtol=1e-3
    )
    assert ours.concordance_index_ == pytest.approx(theirs.concordance_index_, abs=1e-6)
    assert ours.score(ROSSI) == pytest.approx(theirs.score(ROSSI), abs=1e-6)
    assert ours.log_likelihood_ratio_test().test_statistic == pytest.approx(
        theirs.log_likelihood_ratio_test().test_statistic, abs=1e-3
    )


def test_weibull_with_shape_covariates_is_lifelines_with_ancillary():
    df = ROSSI[["week", "arrest", "age", "prio"]]
    ours = PGWRegressionFitter("weibull").fit(df, "week", "arrest")
    theirs = lifelines.WeibullAFTFitter().fit(df, "week", "arrest", ancillary=True)
    assert ours.log_likelihood_ >= theirs.log_likelihood_ - 1e-6
    np.testing.assert_allclose(
        ours.params_["gamma_"][["age", "prio"]], theirs.params_["rho_"][["age", "prio"]], atol=2e-3
    )


def test_proportional_hazards_and_accelerated_failure_agree_for_weibull():
    a = PGWRegressionFitter("weibull", shape_covariates=False).fit(ROSSI, "week", "arrest")
    b = PGWRegressionFitter("weibull", family="ph", shape_covariates=False).fit(ROSSI, "week", "arrest")
    assert a.log_likelihood_ == pytest.approx(b.log_likelihood_, abs=1e-6)
    gamma = np.exp(a.params_["gamma_", "Intercept"])
    np.testing.assert_allclose(gamma * a.params_["phi_"], b.params_["lambda_"], atol=1e-4)


def test_robust_errors_and_weights_are_lifelines():
    df = drawn(200).assign(w=np.random.default_rng(0).integers(1, 4, 200).astype(float))
    ours = PGWRegressionFitter("weibull", shape_covariates=False).fit(df, "t", "e", weights_col="w", robust=True)
    theirs = lifelines.WeibullAFTFitter().fit(df, "t", "e", weights_col="w")
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-5)
    # the sandwich of rows repeated by weight differs; without weights its scale is the naive one's
    plain = df.drop(columns="w")
    naive = PGWRegressionFitter("weibull", shape_covariates=False).fit(plain, "t", "e")
    robust = PGWRegressionFitter("weibull", shape_covariates=False).fit(plain, "t", "e", robust=True)
    np.testing.assert_allclose(robust.standard_errors_, naive.standard_errors_, rtol=0.35)
    repeated = df.loc[df.index.repeat(df["w"].astype(int))].drop(columns="w")
    twin = PGWRegressionFitter("weibull", shape_covariates=False).fit(repeated, "t", "e")
    np.testing.assert_allclose(ours.params_, twin.params_, atol=1e-6)


def test_regression_recovers_what_made_the_data():
    d = drawn(20_000)
    f = PGWRegressionFitter(shape_covariates=False).fit(d, "t", "e")
    assert f.params_["phi_", "x"] == pytest.approx(0.5, abs=0.03)
    assert f.params_["phi_", "z"] == pytest.approx(0, abs=0.05)
    low, high = f.confidence_intervals_.loc[("kappa_", "Intercept")]
    assert low < np.log(1.4) < high


def test_hazard_ratio_is_constant_under_ph_and_quantile_ratio_under_aft():
    d, at = drawn(), np.linspace(0.2, 4, 9)
    one, other = pd.DataFrame({"x": [1.0], "z": [0.0]}), pd.DataFrame({"x": [0.0], "z": [0.0]})
    ph = PGWRegressionFitter(family="ph", shape_covariates=False).fit(d, "t", "e")
    ratio = ph.hazard_ratio(one, other, at)
    np.testing.assert_allclose(ratio["ratio"], np.exp(ph.params_["lambda_", "x"]), rtol=1e-9)
    half = 1.959964 * ph.standard_errors_["lambda_", "x"]
    np.testing.assert_allclose(np.log(ratio["upper"] / ratio["ratio"]), half, rtol=1e-5)
    aft = PGWRegressionFitter(shape_covariates=False).fit(d, "t", "e")
    np.testing.assert_allclose(
        aft.quantile_ratio(one, other, [0.2, 0.5, 0.9])["ratio"], np.exp(-aft.params_["phi_", "x"]), rtol=1e-9
    )
    mixed = PGWRegressionFitter().fit(d, "t", "e")
    assert np.ptp(mixed.hazard_ratio(one, other, at)["ratio"]) > 1e-3


def test_formulas_and_regressors_choose_the_covariates():
    f = PGWRegressionFitter().fit(ROSSI, "week", "arrest", formula="age * C(fin)", regressors={"gamma_": "prio"})
    assert list(f.params_["gamma_"].index) == ["Intercept", "prio"]
    assert len(f.params_["phi_"]) == 4
    assert f.predict_survival_function(ROSSI.head(3), times=[10, 30]).shape == (2, 3)
    with pytest.raises(ValueError, match="unknown parameter 'gama_'; did you mean gamma_"):
        PGWRegressionFitter().fit(ROSSI, "week", "arrest", regressors={"gama_": "prio"})


def test_predictions_are_of_one_curve():
    d = drawn()
    f = PGWRegressionFitter().fit(d, "t", "e")
    rows = d[["x", "z"]].head(4)
    medians = f.predict_median(rows)
    S = f.predict_survival_function(rows, times=medians.to_numpy()).to_numpy()
    np.testing.assert_allclose(np.diag(S), 0.5, rtol=1e-9)
    after = f.predict_percentile(rows, p=0.5, conditional_after=[1.0] * 4)
    later = f.predict_survival_function(rows, times=[1.0]).to_numpy()[0] * 0.5
    reached = f.predict_survival_function(rows, times=1.0 + after.to_numpy()).to_numpy()
    np.testing.assert_allclose(np.diag(reached), later, rtol=1e-9)
    grid = np.linspace(1e-9, 400, 400_001)
    area = np.trapezoid(f.predict_survival_function(rows, times=grid).to_numpy(), grid, axis=0)
    np.testing.assert_allclose(f.predict_expectation(rows), area, rtol=1e-3)
    table = f.predict_with_interval(rows, "survival", [1.0, 2.0])
    assert table.shape == (8, 3)
    assert ((table["lower"] < table["estimate"]) & (table["estimate"] < table["upper"])).all()


def test_expectation_is_infinite_where_some_are_cured():
    d = drawn(2000, kappa=-0.5)
    d = d.assign(e=np.where(d["t"] < 50, d["e"], 0.0), t=np.minimum(d["t"], 50))
    f = PGWRegressionFitter(shape_covariates=False).fit(d, "t", "e")
    assert np.isinf(f.predict_expectation(d.head(2))).all()
    assert (f.predict_cure_fraction(d.head(2)) > 0).all()


def test_residuals_follow_lifelines_definitions():
    df = ROSSI[["week", "arrest", "age"]]
    f = PGWRegressionFitter("weibull", shape_covariates=False).fit(df, "week", "arrest")
    r = f.compute_residuals(df)
    H = np.array([f.predict_cumulative_hazard(df.iloc[[i]], times=[df["week"].iloc[i]]).iloc[0, 0] for i in range(5)])
    np.testing.assert_allclose(r["residual"].head(5), H, rtol=1e-9)
    assert f.compute_residuals(df, "martingale").sum().iloc[0] == pytest.approx(0, abs=1e-4)
    assert np.isfinite(f.compute_residuals(df, "deviance").to_numpy()).all()
    assert f.plot_qq(df).lines
    matplotlib.pyplot.close("all")


def test_lifelines_prints_and_plots_the_regression(capsys):
    f = PGWRegressionFitter("weibull").fit(ROSSI, "week", "arrest")
    f.print_summary(style="ascii")
    out = capsys.readouterr().out
    assert "log-likelihood ratio test" in out
    assert "Concordance" in out
    assert f.plot().lines
    assert f.plot_partial_effects_on_outcome("age", [20, 40]).lines
    matplotlib.pyplot.close("all")


def test_interval_and_left_censored_regressions_are_lifelines():
    d = drawn(250)
    d = d.assign(low=np.where(d["e"] == 1, d["t"] * 0.8, d["t"]), high=np.where(d["e"] == 1, d["t"] * 1.2, np.inf))
    cols = ["x", "z", "low", "high"]
    ours = PGWRegressionFitter("weibull", shape_covariates=False).fit_interval_censoring(d[cols], "low", "high")
    theirs = lifelines.WeibullAFTFitter().fit_interval_censoring(d[cols], "low", "high")
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-3)
    cols = ["x", "z", "t", "e"]
    ours = PGWRegressionFitter("weibull", shape_covariates=False).fit_left_censoring(d[cols], "t", "e")
    theirs = lifelines.WeibullAFTFitter().fit_left_censoring(d[cols], "t", "e")
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-3)


def test_columns_that_others_make_up_are_named():
    d = drawn(100).assign(twice=lambda f: 2 * f["x"], one=1.0)
    with pytest.raises(ValueError, match="twice, one; drop them, or set penalizer"):
        PGWRegressionFitter().fit(d[["t", "e", "x", "twice", "one"]], "t", "e")
    shrunk = PGWRegressionFitter("weibull", shape_covariates=False, penalizer=0.1).fit(
        d[["t", "e", "x", "twice"]], "t", "e"
    )
    assert shrunk.converged_
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(8, 12))).add_prefix("c").assign(t=np.arange(1.0, 9))
    with pytest.raises(ValueError, match="more columns than rows"):
        PGWRegressionFitter().fit(wide, "t")
    with pytest.raises(ValueError, match="covariates: x"):
        PGWRegressionFitter().fit(d.assign(x=np.nan)[["t", "e", "x"]], "t", "e")


def test_separation_is_reported():
    d = drawn(120).assign(g=lambda f: np.repeat([0.0, 1.0], 60))
    d.loc[d["g"] == 1, "e"] = 0.0
    with pytest.warns(Warning, match=r"phi_: g.*not identified|gradient"):
        f = PGWRegressionFitter("weibull", shape_covariates=False).fit(d[["t", "e", "g"]], "t", "e")
    assert not np.isfinite(f.standard_errors_["phi_", "g"]) or not f.converged_


def test_robust_errors_of_what_is_not_identified_stay_infinite():
    d = drawn(120).assign(g=lambda f: np.repeat([0.0, 1.0], 60))
    d.loc[d["g"] == 1, "e"] = 0.0
    with pytest.warns(Warning, match=r"phi_: g.*not identified"):
        f = PGWRegressionFitter("weibull", shape_covariates=False).fit(d[["t", "e", "g"]], "t", "e", robust=True)
    assert np.isinf(f.standard_errors_["phi_", "g"])
    assert np.isfinite(f.standard_errors_["gamma_", "Intercept"])


def test_auto_takes_the_least_aic_with_the_same_covariates():
    d = drawn(600, kappa=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = PGWRegressionFitter("auto", shape_covariates=False).fit(d, "t", "e")
    assert pytest.approx(f.baselines_["AIC"].min()) == f.AIC_
    named = PGWRegressionFitter(f.baselines_.index[0], shape_covariates=False).fit(d, "t", "e")
    np.testing.assert_allclose(f.params_, named.params_, atol=1e-5)
    assert f.predict_median(d.head(3)).notna().all()


def test_predicted_hazard_is_the_slope_of_the_predicted_cumulative_hazard():
    d = drawn()
    f = PGWRegressionFitter().fit(d, "t", "e")
    rows, t, h = d[["x", "z"]].head(3), np.array([0.5, 1.0, 3.0]), 1e-5
    up, down = (f.predict_cumulative_hazard(rows, times=t + s).to_numpy() for s in (h, -h))
    np.testing.assert_allclose(f.predict_hazard(rows, times=t), (up - down) / (2 * h), rtol=1e-6)


def test_ratios_are_drawn_with_their_interval():
    d = drawn()
    f = PGWRegressionFitter().fit(d, "t", "e")
    one, other = pd.DataFrame({"x": [1.0], "z": [0.0]}), pd.DataFrame({"x": [0.0], "z": [0.0]})
    for draw, at in ((f.plot_hazard_ratio, [0.5, 1, 2]), (f.plot_quantile_ratio, [0.2, 0.5, 0.8])):
        ax = draw(one, other, at)
        assert len(ax.lines) == 2
        assert len(ax.collections) == 1
        matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="one row each is compared, found 2 and 1"):
        f.hazard_ratio(d.head(2), other, [1.0])


def test_rows_censored_at_zero_keep_their_place():
    d = pd.concat([drawn(100), pd.DataFrame({"x": [0.3], "z": [1.0], "t": [0.0], "e": [0.0]})], ignore_index=True)
    a = PGWRegressionFitter("weibull").fit(d, "t", "e")
    b = PGWRegressionFitter("weibull").fit(d.iloc[:-1], "t", "e")
    np.testing.assert_allclose(a.params_, b.params_, rtol=1e-6)
    assert np.isfinite(a.concordance_index_)


def test_extreme_units_give_the_same_fit():
    d = drawn(300)
    a = PGWRegressionFitter().fit(d, "t", "e")
    b = PGWRegressionFitter().fit(d.assign(t=d["t"] * 1e9, x=d["x"] * 1e-6 + 5), "t", "e")
    assert b.params_["phi_", "x"] * 1e-6 == pytest.approx(a.params_["phi_", "x"], rel=1e-3)
    assert b.log_likelihood_ + d["e"].sum() * np.log(1e9) == pytest.approx(a.log_likelihood_, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 2.0])
def test_intervals_cover_at_their_level(kappa):
    inside = []
    for seed in range(200):
        d = drawn(400, seed=seed, kappa=kappa)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = PGWRegressionFitter(shape_covariates=False).fit(d, "t", "e")
        low, high = fit.confidence_intervals_.loc[("phi_", "x")]
        inside.append(low < 0.5 < high)
    assert 0.90 <= np.mean(inside) <= 0.99
