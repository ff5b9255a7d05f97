import copy
import pickle
import warnings

import lifelines
import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_rossi
from lifelines.exceptions import StatisticalWarning

from rankwise.distributions.survival import model as survival_model
from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.regression import PGWRegressionFitter
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


def test_bic_counts_every_coefficient():
    f = PGWRegressionFitter().fit(ROSSI, "week", "arrest")  # 7 covariates and an intercept twice, and κ
    assert pytest.approx(17 * np.log(432) - 2 * f.log_likelihood_) == f.BIC_


PREDICTIONS = ("predict_survival_function", "predict_cumulative_hazard", "predict_hazard", "predict_percentile",
               "predict_expectation", "predict_cure_fraction", "predict_with_interval", "predict_log_risk")  # fmt: skip


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("formula", ["x + g", "x * C(g)"])
def test_a_category_that_the_fit_did_not_see_is_refused_in_every_prediction(predict, formula):
    d = drawn(150).assign(g=lambda f: np.where(f["z"] == 1, "1", "2"))
    f = PGWRegressionFitter("weibull", shape_covariates=False).fit(d[["x", "g", "t", "e"]], "t", "e", formula=formula)
    at = ["survival", [1.0]] if predict == "predict_with_interval" else []
    for unseen in ("north", 1):  # a number is not the text that the fit saw
        with pytest.raises(ValueError, match=f"did not see: {{.*{unseen}.*}}; their effect is unknown"):
            getattr(f, predict)(d.head(2).assign(g=[unseen, "1"]), *at)
    assert len(getattr(f, predict)(d.head(2), *at))


def test_text_among_listed_covariates_is_refused_by_column():
    with pytest.raises(ValueError, match="column 'g': 'north' is no number"):
        PGWRegressionFitter("weibull").fit(drawn(50).assign(g="north"), "t", "e")


@pytest.mark.parametrize("column", ["t", "e", "late", "w"])
def test_dates_are_refused_wherever_a_number_is_needed(column):
    d = drawn(50).assign(late=0.0, w=1.0)
    d[column] = pd.to_timedelta(d[column], unit="D")
    with pytest.raises(ValueError, match=f"column '{column}': timedelta"):
        PGWRegressionFitter("weibull").fit(d, "t", "e", entry_col="late", weights_col="w")


def test_a_column_called_intercept_is_refused_beside_the_fitter_s_own_and_used_without_it():
    d = drawn(300).assign(Intercept=lambda f: 1 + f["z"]).drop(columns="z")
    with pytest.raises(ValueError, match="called 'Intercept', as the fitter's own: rename it"):
        PGWRegressionFitter("weibull").fit(d, "t", "e")
    with pytest.raises(ValueError, match="called 'Intercept'"):
        PGWRegressionFitter("weibull").fit(d, "t", "e", formula="x + Intercept")
    f = PGWRegressionFitter("weibull", fit_intercept=False, shape_covariates=False).fit(d, "t", "e")
    other = PGWRegressionFitter("weibull", fit_intercept=False, shape_covariates=False).fit(
        d.rename(columns={"Intercept": "b"}), "t", "e"
    )
    np.testing.assert_allclose(f.params_, other.params_)
    np.testing.assert_allclose(f.predict_median(d), other.predict_median(d.rename(columns={"Intercept": "b"})))
    alone = PGWRegressionFitter("weibull", fit_intercept=False, shape_covariates=False).fit(
        d[["Intercept", "t", "e"]], "t", "e"
    )
    assert alone.predict_median(d).nunique() == 2  # its two values, and not a constant


def test_predictions_keep_a_multiindex():
    d = drawn(60)
    d.index = pd.MultiIndex.from_product([["a", "b"], range(30)], names=["site", "patient"])
    f = PGWRegressionFitter("weibull").fit(d, "t", "e")
    table = f.predict_with_interval(d.head(3), "survival", [1.0, 2.0])
    assert table.index.names == ["site", "patient", "at"]
    S = f.predict_survival_function(d.head(3), times=[1.0, 2.0])
    np.testing.assert_allclose(table.loc[("a", 2)]["estimate"], S[("a", 2)])
    assert f.predict_hazard(d.head(3), times=[1.0]).columns.equals(S.columns)
    assert f.predict_with_interval(drawn(3), "cure").index.names == ["subject", "at"]


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_of_a_fit_with_covariates_profiles_predicts_and_scores(copied):
    d = drawn(300)
    f = PGWRegressionFitter().fit(d, "t", "e", formula="x + C(z)")
    again = copied(f)
    assert again.profile_interval("kappa_") == pytest.approx(f.profile_interval("kappa_"), rel=1e-6)
    np.testing.assert_array_equal(again.predict_median(d), f.predict_median(d))
    assert again.score(d) == f.score(d)


def test_hazard_at_time_zero_is_a_number():
    d = drawn(200)
    f = PGWRegressionFitter("gompertz", shape_covariates=False).fit(d, "t", "e")
    given = f.predict_parameters(d.head(2))
    np.testing.assert_allclose(f.predict_hazard(d.head(2), times=[0.0]).iloc[0], given["lambda_"] * given["phi"])


def test_ancillary_chooses_the_covariates_of_the_power():
    d = drawn(200).assign(w=2.0, late=0.0)
    cols = {"weights_col": "w", "entry_col": "late"}
    every = PGWRegressionFitter("weibull", shape_covariates=False)
    assert list(every.fit(d, "t", "e", ancillary=True, **cols).params_["gamma_"].index) == ["x", "z", "Intercept"]
    assert list(every.fit(d, "t", "e", ancillary=d, **cols).params_["gamma_"].index) == ["x", "z", "Intercept"]
    assert list(every.fit(d, "t", "e", ancillary="x", **cols).params_["gamma_"].index) == ["Intercept", "x"]
    none = PGWRegressionFitter("weibull").fit(d, "t", "e", ancillary=False, **cols)
    assert list(none.params_["gamma_"].index) == ["Intercept"]
    other = pd.DataFrame({"u": np.random.default_rng(0).normal(size=200)}, index=d.index[::-1])
    f = every.fit(d, "t", "e", ancillary=other, **cols)
    assert list(f.params_["gamma_"].index) == ["u", "Intercept"]
    assert list(f.params_["phi_"].index) == ["x", "z", "Intercept"]
    theirs = lifelines.WeibullAFTFitter().fit(
        d.assign(u=other["u"])[["x", "z", "u", "t", "e"]], "t", "e", formula="x + z", ancillary="u"
    )  # by index: the frame is in another order
    assert f.log_likelihood_ == pytest.approx(2 * theirs.log_likelihood_, abs=1e-3)
    with pytest.raises(ValueError, match="ancillary has 3 rows that are not the data's 200"):
        every.fit(d, "t", "e", ancillary=other.head(3))
    with pytest.raises(ValueError, match="column 'x' of ancillary differs"):
        every.fit(d, "t", "e", ancillary=d[["x"]] + 1)
    with pytest.raises(ValueError, match="gamma_, which is fixed at 1"):
        PGWRegressionFitter("exponential").fit(d, "t", "e", ancillary=True)


def test_the_parameter_that_covariates_move_is_named_as_lifelines_names_it():
    d = drawn(200)
    for family, name in (("aft", "phi_"), ("ph", "lambda_")):
        f = PGWRegressionFitter("weibull", family=family, shape_covariates=False).fit(d, "t", "e")
        assert f._primary_parameter_name == name
        assert f._ancillary_parameter_name == "gamma_"
        assert set(f.summary.loc[f._primary_parameter_name].index) == {"x", "z", "Intercept"}


def test_weights_and_entries_are_no_covariates_and_are_named_in_the_summary(capsys):
    d = drawn(200).assign(w=2.0, late=0.0)
    f = PGWRegressionFitter("weibull").fit(d, "t", "e", weights_col="w", entry_col="late")
    assert not {"w", "late"} & set(f.params_.index.get_level_values("covariate"))
    f.print_summary(style="ascii")
    assert "'w'" in (out := capsys.readouterr().out)
    assert "'late'" in out


@pytest.mark.parametrize("column", ["t", "e", "w", "late"])
def test_gaps_are_type_errors_as_lifelines_raises(column):
    d = drawn(50).assign(w=1.0, late=0.0)
    d.loc[7, column] = np.nan
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match=r"NaNs were detected in the dataset.* 1 row: 7"):
            PGWRegressionFitter("weibull").fit(d, "t", "e", weights_col="w", entry_col="late")


def test_objects_as_events_and_late_entries_are_reported():
    d = drawn(50)
    with pytest.warns(UserWarning, match="column 'e': object values are converted"):
        f = PGWRegressionFitter("weibull").fit(d.assign(e=d["e"].astype(bool).astype(object)), "t", "e")
    assert f.log_likelihood_ == PGWRegressionFitter("weibull").fit(d, "t", "e").log_likelihood_
    with pytest.raises(ValueError, match=r"entry >= duration.*add half a unit.* 1 row: 4"):
        PGWRegressionFitter("weibull").fit(d.assign(s=np.where(d.index == 4, d["t"], 0.0)), "t", "e", entry_col="s")
    with pytest.raises(ValueError, match="unknown column 'tt'"):
        PGWRegressionFitter("weibull").fit(d, "tt", "e")


def test_weights_that_are_no_counts_draw_a_hint_to_robust_errors():
    d = drawn(150).assign(w=0.7)
    with pytest.warns(StatisticalWarning, match="no integers.*robust=True"):
        PGWRegressionFitter("weibull").fit(d, "t", "e", weights_col="w")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGWRegressionFitter("weibull").fit(d, "t", "e", weights_col="w", robust=True)
        PGWRegressionFitter("weibull").fit(d.assign(w=3), "t", "e", weights_col="w")


def test_risk_is_the_hazard_cumulated_until_the_median_of_the_events():
    d = drawn(300)
    f = PGWRegressionFitter().fit(d, "t", "e")
    at = d.loc[d["e"] == 1, "t"].median()
    np.testing.assert_allclose(np.exp(f.predict_log_risk(d)), f.predict_cumulative_hazard(d, times=[at]).iloc[0])
    later = f.predict_cumulative_hazard(d.head(3), times=[1.0, 2.0], conditional_after=[0.5, 1.0, 2.0])
    given = f.predict_parameters(d.head(3))
    after = np.array([0.5, 1.0, 2.0])
    H = pgw.cumulative_hazard(after + 2.0, **given) - pgw.cumulative_hazard(after, **given)
    np.testing.assert_allclose(later.loc[2.0], H)
    h = f.predict_hazard(d.head(3), times=[2.0], conditional_after=after)
    np.testing.assert_allclose(h.loc[2.0], np.exp(pgw.log_hazard(after + 2.0, **given)))


def test_scores_of_new_rows_are_the_likelihood_and_the_order_of_risk():
    d, new = drawn(300), drawn(80, seed=5)
    f = PGWRegressionFitter().fit(d, "t", "e")
    given = f.predict_parameters(new)
    t, e = new["t"].to_numpy(), new["e"].to_numpy()
    each = e * pgw.log_hazard(t, **given) - pgw.cumulative_hazard(t, **given)
    assert f.score(new) == pytest.approx(each.mean(), rel=1e-9)
    assert f.score(new[new["e"] == 0]) == pytest.approx(each[e == 0].mean(), rel=1e-9)  # no event is needed to score
    ranked = lifelines.utils.concordance_index(t, -f.predict_log_risk(new), e)
    assert f.score(new, "concordance_index") == pytest.approx(ranked)
    assert f.score(d, "concordance_index") == pytest.approx(f.concordance_index_)
    with pytest.raises(ValueError, match="unknown scoring method 'auc'"):
        f.score(new, "auc")


def test_a_start_is_tried_and_a_wrong_one_refused():
    d = drawn(300)
    base = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e")
    for point in (np.zeros(4), {"phi_": np.zeros(3), "gamma_": np.zeros(1)}):
        again = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e", initial_point=point)
        np.testing.assert_allclose(again.params_, base.params_, atol=1e-6)
    with pytest.raises(ValueError, match=r"initial_point has shape \(5,\); 4 coefficients"):
        base.fit(d, "t", "e", initial_point=np.zeros(5))


def test_settings_are_these_where_none_are_given():
    f = PGWRegressionFitter()
    assert (f.baseline, f.family, f.fixed, f.shape_covariates) == ("pgw", "aft", None, True)
    assert (f.alpha, f.penalizer, f.fit_intercept) == (0.05, 0.0, True)
    d = drawn(200)
    f.fit(d, "t", "e")
    rows = d.head(2)
    assert f.score(d) == f.score(d, "log_likelihood")
    pd.testing.assert_frame_equal(f.compute_residuals(d), f.compute_residuals(d, "cox-snell"))
    pd.testing.assert_series_equal(f.predict_percentile(rows), f.predict_percentile(rows, p=0.5))
    pd.testing.assert_frame_equal(
        f.predict_with_interval(rows, at=1.0), f.predict_with_interval(rows, "survival", [1.0], alpha=0.05)
    )
    for value in (-1e-9, np.nan):
        with pytest.raises(ValueError, match="penalizer is"):
            PGWRegressionFitter(penalizer=value)
    np.testing.assert_array_equal(f.timeline, np.unique(d["t"]))
    np.testing.assert_array_equal(f.predict_hazard(rows).index, f.timeline)


def test_residuals_of_every_kind_by_their_definitions():
    d = drawn(120).assign(late=lambda f: 0.3 * f["t"])
    f = PGWRegressionFitter("weibull").fit(d, "t", "e", entry_col="late")
    given = f.predict_parameters(d)
    H, H0 = ((given["phi"] * t) ** given["gamma"] for t in (d["t"].to_numpy(), d["late"].to_numpy()))
    event = d["e"].to_numpy()
    plain = f.compute_residuals(d)
    assert list(plain.columns) == ["residual", "event", "entry"]
    np.testing.assert_allclose(plain, np.c_[H, event, H0])
    martingale = f.compute_residuals(d, "martingale")
    assert list(martingale.columns) == ["martingale"]
    M = event - (H - H0)
    np.testing.assert_allclose(martingale["martingale"], M)
    deviance = f.compute_residuals(d, "deviance")
    assert list(deviance.columns) == ["deviance"]
    expected = np.sign(M) * np.sqrt(-2 * (M + np.where(event == 1, np.log(H - H0), 0)))
    np.testing.assert_allclose(deviance["deviance"], expected, atol=1e-7)
    for table in (plain, martingale, deviance):
        assert table.index.equals(d.index)
    with pytest.raises(ValueError, match="did you mean deviance"):
        f.compute_residuals(d, "devianc")
    all_events = PGWRegressionFitter("weibull").fit(d[["x", "t"]], "t")
    assert (all_events.compute_residuals(d[["x", "t"]])[["event", "entry"]] == [1, 0]).all(axis=None)


@pytest.mark.parametrize("what", ["survival", "hazard", "cumulative_hazard", "quantile", "rmst", "cure"])
def test_predictions_with_intervals_are_the_curves_and_the_delta_methods(what):
    d = drawn(400, kappa=-0.3, effect=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = PGWRegressionFitter(shape_covariates=False).fit(d, "t", "e")
    rows, at = d.head(3), [0.4, 0.8]
    table = f.predict_with_interval(rows, what, at)
    assert list(table.columns) == ["estimate", "lower", "upper"]
    assert table.index.names == ["subject", "at"]
    assert table.index.tolist() == [(i, a) for i in range(3) for a in at]
    curves = {
        "survival": lambda a: f.predict_survival_function(rows, times=a),
        "hazard": lambda a: f.predict_hazard(rows, times=a),
        "cumulative_hazard": lambda a: f.predict_cumulative_hazard(rows, times=a),
        "quantile": lambda a: pd.DataFrame([f.predict_percentile(rows, p=p) for p in a]),
        "rmst": lambda a: pd.DataFrame([
            np.trapezoid(f.predict_survival_function(rows, times=np.linspace(0, t, 4001)), dx=t / 4000, axis=0)
            for t in a
        ]),
        "cure": lambda a: pd.DataFrame([f.predict_cure_fraction(rows)] * 2),
    }  # fmt: skip
    np.testing.assert_allclose(table["estimate"], np.asarray(curves[what](at)).T.ravel(), rtol=1e-5)
    finite = np.isfinite(table["estimate"])
    assert (table["lower"][finite] <= table["estimate"][finite]).all()
    assert (table["estimate"][finite] <= table["upper"][finite]).all()
    wide, narrow = (f.predict_with_interval(rows, what, at, alpha=a)[finite] for a in (0.05, 0.5))
    assert ((wide["upper"] - wide["lower"]) >= (narrow["upper"] - narrow["lower"])).all()


def test_curves_after_a_time_are_those_of_who_is_left():
    d = drawn(200)
    f = PGWRegressionFitter().fit(d, "t", "e")
    rows, after, t = d.head(3), np.array([0.5, 1.0, 2.0]), np.array([0.3, 1.2])
    given = f.predict_parameters(rows)
    H = pgw.cumulative_hazard(t[:, None] + after, **given) - pgw.cumulative_hazard(after, **given)
    np.testing.assert_allclose(f.predict_cumulative_hazard(rows, times=t, conditional_after=after), H, rtol=1e-12)
    h = np.exp(pgw.log_hazard(t[:, None] + after, **given))
    np.testing.assert_allclose(f.predict_hazard(rows, times=t, conditional_after=after), h, rtol=1e-12)
    left = f.predict_percentile(rows, p=0.3, conditional_after=after).to_numpy()
    reached = pgw.cumulative_hazard(left + after, **given) - pgw.cumulative_hazard(after, **given)
    np.testing.assert_allclose(np.exp(-reached), 0.3, rtol=1e-9)
    assert f.predict_percentile(rows, p=0.3).name == 0.3
    mean = f.predict_expectation(rows, conditional_after=after)
    u = np.linspace(-25, 12, 40_001)[:, None]
    S = np.exp(pgw.cumulative_hazard(after, **given) - pgw.cumulative_hazard(after + np.exp(u), **given))
    np.testing.assert_allclose(mean, np.trapezoid(S * np.exp(u), u[:, 0], axis=0), rtol=1e-4)
    one = f.predict_percentile(rows.iloc[1], p=0.3)
    assert one.iloc[0] == pytest.approx(f.predict_percentile(rows, p=0.3).iloc[1])


def test_covariates_move_the_parameters_that_they_are_given_to():
    d = drawn(300)

    def roles(**options):
        fit = {k: options.pop(k) for k in ("formula", "ancillary", "regressors") if k in options}
        f = PGWRegressionFitter(**options).fit(d, "t", "e", **fit)
        return {p: list(f.params_[p].index) for p in f.form_.free}

    alone, both, z = ["Intercept"], ["x", "z", "Intercept"], ["Intercept", "z"]
    assert roles() == {"phi_": both, "gamma_": both, "kappa_": alone}
    assert roles(shape_covariates=False) == {"phi_": both, "gamma_": alone, "kappa_": alone}
    assert roles(family="ph", baseline="weibull") == {"lambda_": both, "gamma_": both}
    assert roles(family="both", baseline="burr", shape_covariates=False) == {
        "phi_": both, "lambda_": both, "gamma_": alone,
    }  # fmt: skip
    assert roles(baseline="weibull", formula="z") == {"phi_": z, "gamma_": z}
    assert roles(baseline="weibull", ancillary=False) == {"phi_": both, "gamma_": alone}
    assert roles(baseline="weibull", shape_covariates=False, ancillary=True) == {"phi_": both, "gamma_": both}
    assert roles(baseline="weibull", ancillary="z") == {"phi_": both, "gamma_": z}
    assert roles(baseline="weibull", regressors={"gamma_": "1", "phi_": "z"}) == {"phi_": z, "gamma_": alone}
    assert roles(baseline="weibull", regressors={"gamma_": None}, shape_covariates=False)["gamma_"] == both
    assert roles(fixed={"phi_": 0.4}, shape_covariates=False)["gamma_"] == both  # the first that is free
    with pytest.raises(ValueError, match=r"regressors for kappa_, which is fixed at 1\.0"):
        roles(baseline="weibull", regressors={"kappa_": "z"})
    with pytest.raises(ValueError, match=r"ancillary covariates are for gamma_, which is fixed at 1\.0"):
        roles(baseline="exponential", ancillary=True)


def test_ratios_of_one_row_to_another_are_those_of_their_curves():
    d = drawn(300)
    f = PGWRegressionFitter().fit(d, "t", "e")
    one, other = d.iloc[[0]], d.iloc[[1]]
    hazard = f.hazard_ratio(one, other, [0.5, 2.0])
    assert list(hazard.columns) == ["ratio", "lower", "upper"]
    assert hazard.index.tolist() == [0.5, 2.0]
    expected = f.predict_hazard(one, times=[0.5, 2.0]).to_numpy() / f.predict_hazard(other, times=[0.5, 2.0]).to_numpy()
    np.testing.assert_allclose(hazard["ratio"], expected[:, 0])
    quantile = f.quantile_ratio(one, other, [0.2, 0.6])
    for p, ratio in quantile["ratio"].items():
        assert ratio == pytest.approx(f.predict_percentile(one, p=p).iloc[0] / f.predict_percentile(other, p=p).iloc[0])
    swapped = f.hazard_ratio(other, one, [0.5, 2.0])
    np.testing.assert_allclose(swapped[["lower", "upper"]], 1 / hazard[["upper", "lower"]], rtol=1e-6)
    narrow = f.hazard_ratio(one, other, [0.5], alpha=0.5)
    assert narrow["upper"].iloc[0] < hazard["upper"].iloc[0]
    ax = matplotlib.pyplot.subplots()[1]
    assert f.plot_hazard_ratio(one, other, [0.5, 2.0], ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.c_[[0.5, 2.0], hazard["ratio"]])
    assert set(ax.lines[1].get_ydata()) == {1}
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((hazard["lower"].min(), hazard["upper"].max()))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time", "hazard ratio")
    ax = f.plot_quantile_ratio(one, other, [0.2, 0.6], matplotlib.pyplot.subplots()[1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("survival probability", "quantile ratio")
    matplotlib.pyplot.close("all")


def test_columns_are_taken_by_name_and_absent_ones_named():
    d = drawn(100)
    f = PGWRegressionFitter("weibull").fit(d, "t", "e")
    turned = d[["z", "x"]].head(3)
    np.testing.assert_allclose(f.predict_median(turned), f.predict_median(d.head(3)))
    with pytest.raises(ValueError, match="unknown column 'z'"):
        f.predict_median(d[["x"]].head(3))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"NaN or Inf among the covariates: x$"):
            f.predict_median(d.head(3).assign(x=bad))
        with pytest.raises(ValueError, match="NaN or Inf among the covariates"):
            PGWRegressionFitter("weibull").fit(d, "t", "e", formula="x + z").predict_median(d.head(3).assign(x=bad))
    with pytest.raises(ValueError, match="unknown column 'tt'"):
        PGWRegressionFitter("weibull").fit(d, "tt", "e")


def test_robust_errors_are_the_sandwich_of_the_rows_scores():
    d = drawn(80)
    f = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e", robust=True)
    naive = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e")
    c, X = naive.fit_.coefficients, np.c_[d["x"], d["z"], np.ones(80)]

    def rows(c):
        gamma, log_phi = np.exp(c[3]), X @ c[:3]
        H = np.exp(gamma * (log_phi + np.log(d["t"].to_numpy())))
        return d["e"].to_numpy() * (np.log(gamma) + np.log(H) - np.log(d["t"].to_numpy())) - H

    S = np.stack([(rows(c + e) - rows(c - e)) / 2e-5 for e in 1e-5 * np.eye(4)], 1)
    V = naive.fit_.covariance
    np.testing.assert_allclose(f.variance_matrix_, V @ S.T @ S @ V, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(f.standard_errors_, np.sqrt(np.diag(f.variance_matrix_)))
    low, high = f.confidence_intervals_.to_numpy().T
    np.testing.assert_allclose(high - low, 2 * 1.959964 * f.standard_errors_, rtol=1e-5)


def test_rows_keep_their_names_where_nothing_is_said_of_events():
    d = drawn(60)[["x", "t"]]
    named = d.set_axis([f"row {i}" for i in range(60)])
    f, g = (PGWRegressionFitter("weibull").fit(table, "t") for table in (named, d))
    for series in (f.event_observed, f.weights, f.entry):
        assert series.index.equals(named.index)
    assert f.event_observed.all()
    assert (f.weights == 1).all()
    assert (f.entry == 0).all()
    np.testing.assert_allclose(f.params_, g.params_)


def test_what_needs_right_censoring_says_what_it_is():
    d = drawn(80)
    d = d.assign(low=0.8 * d["t"], high=1.2 * d["t"])[["x", "low", "high"]]
    f = PGWRegressionFitter("weibull").fit_interval_censoring(d, "low", "high")
    with pytest.raises(ValueError, match="a residual is defined here for right-censored data"):
        f.compute_residuals(d)
    for scored in (lambda: f.concordance_index_, lambda: f.score(d, "concordance_index")):
        with pytest.raises(ValueError, match="a concordance is defined here for right-censored data"):
            scored()


def test_a_start_from_some_of_many_rows_ends_where_the_whole_does(monkeypatch):
    d = drawn(700)
    whole = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e")
    monkeypatch.setattr("rankwise.distributions.survival.model._SAMPLE", 130)
    looked = []
    monkeypatch.setattr(survival_model, "_tops", lambda o, *given, tops=survival_model._tops: (
        looked.append(len(o)), tops(o, *given)
    )[1])  # fmt: skip
    some = PGWRegressionFitter("weibull", shape_covariates=False).fit(d, "t", "e")
    assert looked == [130]
    np.testing.assert_allclose(some.params_, whole.params_, atol=1e-6)
    few = d.assign(e=(np.arange(700) % 40 == 0).astype(float))  # too few events among some
    PGWRegressionFitter("weibull", shape_covariates=False).fit(few, "t", "e")
    assert looked == [130, 700]
