import copy
import pickle
import warnings
from dataclasses import replace

import lifelines
import matplotlib
import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_diabetes, load_waltons
from lifelines.exceptions import StatisticalWarning
from scipy import stats

from rankwise.distributions import power_weibull as pgw
from rankwise.distributions.survival import PGWFitter, select_baseline
from rankwise.distributions.survival_model import compare_baselines, form, maximise, observations
from survival_samples import drawn

matplotlib.use("Agg")
WALTONS = load_waltons()
T, E = WALTONS["T"].to_numpy(float), WALTONS["E"].to_numpy(float)


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
        ({"durations": [1, np.nan, 2]}, "NaNs were detected in the dataset, durations in 1 row: 1"),
        ({"durations": [1, 3, 2], "event_observed": [0, 0, 0]}, "no event was observed"),
        ({"durations": [1, 3, 2], "event_observed": [0, 2, 1]}, "neither 0 nor 1 in 1 row: 1"),
        ({"durations": [1, 3, 2], "entry": [0, 3, 1]}, "entry >= duration .* in 1 row: 1"),
        ({"durations": [1, 3, 2], "weights": [1, 0, 1]}, "weight that is not positive .* 1 row: 1"),
        ({"durations": [1, -3, 2], "event_observed": [1, 0, 1]}, "a negative duration"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        PGWFitter().fit(**{k: np.array(v, dtype=float) for k, v in change.items()})


def test_residuals_of_interval_censored_data_are_refused():
    d = load_diabetes()
    with pytest.raises(ValueError, match="right-censored"):
        _ = PGWFitter("weibull").fit_interval_censoring(d["left"], d["right"]).cox_snell_residuals_


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


def test_a_curve_rising_without_end_is_found_in_the_proportional_hazards_family():
    f = PGWFitter(family="ph").fit(T, E)
    gompertz = PGWFitter(family="ph", fixed={"kappa_": np.inf}).fit(T, E)  # the profile has a second, lower top
    assert f.log_likelihood_ == pytest.approx(-657.2975, abs=1e-3)
    assert f.log_likelihood_ == pytest.approx(gompertz.log_likelihood_, abs=1e-3)
    assert f.converged_


@pytest.mark.parametrize("family", ["aft", "ph", "both"])
@pytest.mark.parametrize("kappa", [-0.6, 0.0, 1.0, 30.0])
def test_free_kappa_is_never_below_a_kappa_held_fixed(family, kappa):
    d = drawn(250, seed=3, kappa=kappa, effect=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = PGWFitter(family=family).fit(d["t"], d["e"])
        for held in (-0.8, -0.4, 0.0, 0.5, 2.0, 20.0, 1e4):
            fixed = PGWFitter(family=family, fixed={"kappa_": held}).fit(d["t"], d["e"])
            assert free.log_likelihood_ >= fixed.log_likelihood_ - 1e-5, held


@pytest.mark.parametrize(("kappa", "seed"), [(0.5, 3), (1.0, 2)])
def test_the_model_with_both_scales_is_above_all_its_special_cases(kappa, seed):
    d = drawn(120, seed=seed, kappa=kappa, effect=0.0)  # at one κ there are several tops
    table = select_baseline(d["t"], d["e"])
    assert table.attrs["general"]["log_likelihood"] >= table["log_likelihood"].max() - 1e-6
    assert table["lr_p"].between(0, 1).all()


def test_bic_counts_coefficients_and_weighted_rows():
    f = PGWFitter("burr").fit(T, E)
    assert pytest.approx(3 * np.log(len(T)) - 2 * f.log_likelihood_) == f.BIC_
    twice = PGWFitter("burr").fit(T, E, weights=np.full(len(T), 2.0))
    assert pytest.approx(3 * np.log(2 * len(T)) - 2 * twice.log_likelihood_) == twice.BIC_
    assert select_baseline(T, E).loc["burr", "BIC"] == pytest.approx(f.BIC_)


def test_the_general_model_of_the_ratio_tests_is_shown():
    table = select_baseline(T, E)
    general = PGWFitter(family="both").fit(T, E)
    assert table.attrs["general"]["log_likelihood"] == pytest.approx(general.log_likelihood_)
    assert table.attrs["general"]["converged"]
    statistic = 2 * (general.log_likelihood_ - table.loc["weibull", "log_likelihood"])
    assert table.loc["weibull", "lr_p"] == pytest.approx(stats.chi2.sf(statistic, 2))


@pytest.mark.parametrize("flaw", ["unconverged", "below a special case"])
def test_no_ratio_test_within_a_general_model_that_is_no_maximum(flaw):
    o = observations(lower=T, upper=np.where(E == 1, T, np.inf), event=E)

    def fit(shape):
        found = maximise(o, dict.fromkeys(shape.free), shape)
        if shape != form("pgw", "both"):
            return found
        if flaw == "unconverged":
            return replace(found, optimum=replace(found.optimum, converged=False))
        return replace(found, log_likelihood=-700.0)

    with pytest.warns(StatisticalWarning, match="general model .* lr_p is left out"):
        table = compare_baselines({b: form(b, "aft") for b in ("weibull", "pgw", "gompertz")}, fit, len(T))
    assert table["lr_p"].isna().all()


@pytest.mark.parametrize("column", ["timedelta64[ns]", "datetime64[ns]", "object"])
@pytest.mark.parametrize("fit", ["fit", "fit_left_censoring", "fit_interval_censoring"])
def test_dates_as_durations_are_refused_with_their_remedy(fit, column):
    days = pd.Series(pd.to_timedelta(T[:30], unit="D"))
    days = (
        days.astype(object) if column == "object" else days if column[0] == "t" else days + pd.Timestamp("2020-01-01")
    )
    given = [days, days] if fit == "fit_interval_censoring" else [days]
    with pytest.raises(ValueError, match=r"no unit of its own.*pd.Timedelta\(days=1\)"):
        getattr(PGWFitter("weibull"), fit)(*given)


def test_an_entry_that_is_a_date_is_refused_and_one_before_zero_is_none():
    d = drawn(150)
    base = PGWFitter().fit(d["t"], d["e"])
    early = PGWFitter().fit(d["t"], d["e"], entry=np.full(150, -3.0))
    assert early.log_likelihood_ == pytest.approx(base.log_likelihood_)
    pd.testing.assert_frame_equal(early.cox_snell_residuals_, base.cox_snell_residuals_, rtol=1e-5)
    with pytest.raises(ValueError, match="entries: timedelta"):
        PGWFitter().fit(d["t"], d["e"], entry=pd.to_timedelta(d["t"] / 2, unit="D"))


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_of_a_fit_still_profiles(copied):
    d = drawn(300)
    f = PGWFitter().fit(d["t"], d["e"])
    assert copied(f).profile_interval("kappa_") == pytest.approx(f.profile_interval("kappa_"), rel=1e-6)


def test_hazard_at_time_zero_is_a_number():
    assert PGWFitter("weibull").fit(T, E).hazard_at_times(0).iloc[0] == 0  # γ above 1
    f = PGWFitter("gompertz").fit(T, E)
    assert f.hazard_at_times([0.0]).iloc[0] == pytest.approx(f.lambda_ * f.phi_)
    assert f.fit(T, E, timeline=np.linspace(0, 50, 6)).hazard_.notna().all(axis=None)
    assert np.isfinite(f.confidence_interval_hazard_.to_numpy()).all()


def test_columns_of_one_column_frames_and_arrays_are_durations():
    base = PGWFitter("weibull").fit(T, E)
    for one in (T[:, None], pd.DataFrame(T)):
        assert PGWFitter("weibull").fit(one, E[:, None]).log_likelihood_ == base.log_likelihood_
    with pytest.raises(ValueError, match="one column is needed, found 2"):
        PGWFitter().fit(np.c_[T, T])


def test_events_as_objects_are_converted_with_a_warning():
    marks = pd.Series(E.astype(bool)).astype(object)
    with pytest.warns(UserWarning, match="object values are converted"):
        f = PGWFitter("weibull").fit(T, marks)
    assert f.log_likelihood_ == PGWFitter("weibull").fit(T, E).log_likelihood_


@pytest.mark.parametrize("what", ["durations", "event_observed", "entry", "weights"])
def test_gaps_are_type_errors_as_lifelines_raises_and_value_errors(what):
    given = {"durations": T[:9].copy(), "event_observed": E[:9].copy(), "entry": np.zeros(9), "weights": np.ones(9)}
    given[what][3] = np.nan
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match=r"NaNs were detected in the dataset.* in 1 row: 3"):
            PGWFitter("weibull").fit(**given)


def test_nullable_columns_with_a_gap_are_refused_by_row():
    with pytest.raises(TypeError, match="1 row: 2"):
        PGWFitter("weibull").fit(pd.Series([1, 2, None, 4], dtype="Int64"))
    with pytest.raises(TypeError, match="events in 1 row: 1"):
        PGWFitter("weibull").fit([1.0, 2, 3], pd.Series([True, None, False], dtype="boolean"))


def test_weights_that_are_no_counts_draw_a_hint_to_robust_errors():
    with pytest.warns(StatisticalWarning, match="no integers.*robust=True"):
        PGWFitter("weibull").fit(T, E, weights=np.full(len(T), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGWFitter("weibull").fit(T, E, weights=np.full(len(T), 3.0))


def test_fit_options_are_known_or_refused_and_a_start_is_tried(capsys):
    d = drawn(300)
    base = PGWFitter().fit(d["t"], d["e"])
    near = PGWFitter().fit(d["t"], d["e"], initial_point=[base.phi_, base.gamma_, base.kappa_], show_progress=True)
    assert near.log_likelihood_ == pytest.approx(base.log_likelihood_, abs=1e-8)
    assert "steps to a gradient of" in capsys.readouterr().out
    loose = PGWFitter().fit(d["t"], d["e"], fit_options={"tol": 1.0})
    assert loose.fit_.optimum.iterations == 0
    with pytest.raises(ValueError, match="unknown fit option 'maxiter'; accepted: tol"):
        PGWFitter().fit(d["t"], d["e"], fit_options={"maxiter": 3})
    with pytest.raises(ValueError, match=r"initial_point has shape \(2,\); 3 coefficients"):
        PGWFitter().fit(d["t"], d["e"], initial_point=[1.0, 1.0])
