import warnings

import lifelines
import matplotlib
import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_diabetes, load_rossi, load_waltons
from lifelines.exceptions import StatisticalWarning

from rankwise.distributions import power_weibull as pgw
from rankwise.distributions.survival import PGWFitter, PGWRegressionFitter, select_baseline

matplotlib.use("Agg")
WALTONS, ROSSI = load_waltons(), load_rossi()
T, E = WALTONS["T"].to_numpy(float), WALTONS["E"].to_numpy(float)


def drawn(n=400, *, seed=0, kappa=0.4, gamma=1.5, effect=0.5, lambda_=1.0):
    """Two covariates, the first moving φ; censored at random."""
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"x": rng.normal(size=n), "z": rng.integers(0, 2, n).astype(float)})
    phi = np.exp(-1 + effect * df["x"].to_numpy())
    t = pgw.quantile(rng.exponential(size=n), phi=phi, gamma=gamma, kappa=kappa, lambda_=lambda_)
    c = rng.exponential(scale=8, size=n)
    return df.assign(t=np.minimum(t, c), e=(t <= c).astype(float))


# ---- univariate


def test_kappa_one_is_lifelines_weibull():
    ours, theirs = PGWFitter("weibull").fit(T, E), lifelines.WeibullFitter().fit(T, E)
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-6)
    assert 1 / ours.phi_ == pytest.approx(theirs.lambda_, rel=1e-4)
    assert ours.gamma_ == pytest.approx(theirs.rho_, rel=1e-4)
    assert np.sqrt(ours.variance_matrix_.loc["gamma_", "gamma_"]) == pytest.approx(
        np.sqrt(theirs.variance_matrix_.loc["rho_", "rho_"]), rel=1e-3
    )
    a, b = ours.confidence_interval_survival_function_, theirs.confidence_interval_survival_function_
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), atol=1e-4)


def test_kappa_zero_is_lifelines_log_logistic():
    ours, theirs = PGWFitter("log-logistic").fit(T, E), lifelines.LogLogisticFitter().fit(T, E)
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, abs=1e-6)
    assert (1 / ours.phi_, ours.gamma_) == pytest.approx((theirs.alpha_, theirs.beta_), rel=1e-4)


@pytest.mark.parametrize("kind", ["left", "interval"])
def test_other_censoring_is_lifelines(kind):
    d = load_diabetes()
    if kind == "interval":
        ours = PGWFitter("weibull").fit_interval_censoring(d["left"], d["right"])
        theirs = lifelines.WeibullFitter().fit_interval_censoring(d["left"], d["right"])
    else:
        ours = PGWFitter("weibull").fit_left_censoring(T, E)
        theirs = lifelines.WeibullFitter().fit_left_censoring(T, E)
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, rel=1e-7)
    assert ours.gamma_ == pytest.approx(theirs.rho_, rel=1e-3)


def test_free_kappa_is_no_worse_than_any_special_case():
    table = select_baseline(T, E, family="both")
    assert table.loc["pgw", "log_likelihood"] >= table["log_likelihood"].max() - 1e-6
    assert (table["AIC"].diff().dropna() >= 0).all()
    assert table["converged"].all()


def test_rescaling_time_moves_phi_alone():
    d = drawn()
    a, b = (PGWFitter().fit(d["t"] * c, d["e"]) for c in (1.0, 365.25))
    assert b.phi_ == pytest.approx(a.phi_ / 365.25, rel=1e-5)
    assert (b.gamma_, b.kappa_) == pytest.approx((a.gamma_, a.kappa_), rel=1e-4)


def test_weight_two_is_the_row_twice_entry_zero_is_none_and_censored_at_zero_says_nothing():
    d = drawn(150)
    base = PGWFitter().fit(d["t"], d["e"])
    twice = PGWFitter().fit(np.tile(d["t"], 2), np.tile(d["e"], 2))
    heavy = PGWFitter().fit(d["t"], d["e"], weights=np.full(150, 2.0))
    assert heavy.log_likelihood_ == pytest.approx(twice.log_likelihood_, rel=1e-9)
    np.testing.assert_allclose(heavy.variance_matrix_, twice.variance_matrix_, rtol=1e-4)
    assert PGWFitter().fit(d["t"], d["e"], entry=np.zeros(150)).log_likelihood_ == pytest.approx(base.log_likelihood_)
    more = PGWFitter().fit(np.append(d["t"], 0.0), np.append(d["e"], 0.0))
    np.testing.assert_allclose(more.params_, base.params_, rtol=1e-6)


def test_entry_times_are_lifelines():
    d = drawn(300)
    entry = 0.3 * d["t"]
    ours = PGWFitter("weibull").fit(d["t"], d["e"], entry=entry)
    theirs = lifelines.WeibullFitter().fit(d["t"], d["e"], entry=entry)
    assert ours.log_likelihood_ == pytest.approx(theirs.log_likelihood_, rel=1e-7)


def test_cure_fraction_with_its_interval_covers_the_truth():
    rng, n = np.random.default_rng(3), 3000
    t = pgw.quantile(rng.exponential(size=n), phi=0.5, gamma=1.5, kappa=-0.5)
    f = PGWFitter().fit(np.minimum(t, 40), (t < 40).astype(float))
    truth = pgw.cure_fraction(kappa=-0.5)
    cure = f.cure_fraction_
    assert cure["lower"] < truth < cure["upper"]
    assert cure["upper"] - cure["lower"] < 0.1
    assert np.isinf(f.percentile(truth / 2))
    assert np.isinf(f.sample(4000, seed=0)).mean() == pytest.approx(cure["estimate"], abs=0.03)
    assert PGWFitter("weibull").fit(T, E).cure_fraction_["estimate"] == 0


def test_percentile_restricted_mean_and_intervals_are_those_of_the_curve():
    f = PGWFitter("burr").fit(drawn()["t"], drawn()["e"])
    assert f.survival_function_at_times(f.percentile(0.3)).iloc[0] == pytest.approx(0.3, rel=1e-9)
    grid = np.linspace(1e-9, 3, 200_001)
    S = f.survival_function_at_times(grid).to_numpy()
    assert f.interval("rmst", 3.0)["estimate"].iloc[0] == pytest.approx(np.trapezoid(S, grid), rel=1e-7)
    for what, at in (("survival", [1.0, 2]), ("hazard", [1.0]), ("quantile", [0.5, 0.2]), ("cumulative_hazard", [1.0])):
        table = f.interval(what, at)
        assert (table["lower"] < table["estimate"]).all()
        assert (table["estimate"] < table["upper"]).all()


def test_profile_interval_is_where_the_deviance_says():
    d = drawn(800)
    f = PGWFitter().fit(d["t"], d["e"])
    low, high = f.profile_interval("kappa_")
    assert low < f.kappa_ < high
    for end in (low, high):
        held = PGWFitter(fixed={"kappa_": end}).fit(d["t"], d["e"])
        assert 2 * (f.log_likelihood_ - held.log_likelihood_) == pytest.approx(3.8415, abs=1e-2)


def test_kappa_at_infinity_is_reported_not_hidden():
    with pytest.warns(StatisticalWarning, match="kappa_: Intercept not identified"):
        f = PGWFitter().fit(T, E)
    assert np.isinf(f.summary.loc["kappa_", "se(coef)"])
    assert f.profile_interval("kappa_")[1] == np.inf


def test_auto_takes_the_least_aic():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = PGWFitter("auto").fit(T, E)
    assert f.baselines_.index[0] == "gompertz"
    assert f.kappa_ == np.inf
    assert pytest.approx(f.baselines_["AIC"].iloc[0]) == f.AIC_


def test_likelihood_ratio_test_is_twice_the_difference():
    d = drawn(kappa=3.0)
    small, large = PGWFitter("weibull").fit(d["t"], d["e"]), PGWFitter().fit(d["t"], d["e"])
    test = small.likelihood_ratio_test(large)
    assert test.test_statistic == pytest.approx(2 * (large.log_likelihood_ - small.log_likelihood_))
    assert test.degrees_freedom == 1
    with pytest.raises(ValueError, match="more parameters than these 3"):
        large.likelihood_ratio_test(small)


def test_lifelines_prints_and_plots_it(capsys):
    f = PGWFitter("weibull").fit(T, E, label="mice")
    f.print_summary(style="ascii")
    assert "log-likelihood" in capsys.readouterr().out
    for plot in (f.plot_survival_function, f.plot_hazard, f.plot_cumulative_hazard, f.plot_density, f.plot_qq):
        assert plot().lines
        matplotlib.pyplot.close("all")
    gompertz = PGWFitter("gompertz")
    _, least = lifelines.utils.find_best_parametric_model(T, E, additional_models=[gompertz])
    assert least <= gompertz.AIC_  # it was fitted among lifelines' own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"durations": [1, 0, 2], "event_observed": [1, 1, 1]}, "an event at a duration of 0 or below .* 1 row: 1"),
        ({"durations": [1, np.nan, 2]}, "NaN .* 1 row: 1"),
        ({"durations": [1, 3, 2], "event_observed": [0, 0, 0]}, "no event was observed"),
        ({"durations": [1, 3, 2], "event_observed": [0, 2, 1]}, "neither 0 nor 1 in 1 row: 1"),
        ({"durations": [1, 3, 2], "entry": [0, 3, 1]}, "not before the time in 1 row: 1"),
        ({"durations": [1, 3, 2], "weights": [1, 0, 1]}, "weight that is not positive .* 1 row: 1"),
        ({"durations": [1, -3, 2], "event_observed": [1, 0, 1]}, "a negative duration"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        PGWFitter().fit(**{k: np.array(v, dtype=float) for k, v in change.items()})


def test_one_event_warns():
    with pytest.warns(StatisticalWarning, match="1 events for 2 parameters"):
        PGWFitter("weibull").fit([1.0, 2.0, 3.0], [0, 1, 0])


def test_all_times_equal_is_reported():
    with pytest.warns(Warning, match=r"not identified|gradient"):
        PGWFitter("weibull").fit(np.full(20, 2.0))


def test_unknown_options_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean weibull"):
        PGWFitter("weibul")
    with pytest.raises(ValueError, match="unknown family 'po'"):
        PGWFitter(family="po")
    with pytest.raises(ValueError, match="kappa_ fixed at -1"):
        PGWFitter(fixed={"kappa_": -1})


# ---- regression


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
    with pytest.warns(Warning, match=r"phi_: g .*not identified|gradient"):
        f = PGWRegressionFitter("weibull", shape_covariates=False).fit(d[["t", "e", "g"]], "t", "e")
    assert not np.isfinite(f.standard_errors_["phi_", "g"]) or not f.converged_


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
