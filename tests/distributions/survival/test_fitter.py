import copy
import pickle
import warnings
from dataclasses import replace

import lifelines
import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_diabetes, load_waltons
from lifelines.exceptions import StatisticalWarning
from scipy import optimize, stats

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.fitter import PGWFitter, select_baseline
from rankwise.distributions.survival.model import compare_baselines, form, maximise, observations
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


def test_the_higher_of_two_tops_is_found():
    """Weibull lives whose likelihood has a top below κ = 1 and a higher one at about 6, by the formula itself."""
    rng = np.random.default_rng(420)
    n, shape = int(rng.choice([40, 80, 150])), rng.uniform(0.5, 4)
    t = rng.weibull(shape, n) * 10

    def best(kappa):
        def loss(theta):
            z, m = np.exp(theta[1]) * np.log(t), kappa + 1
            L = np.log1p(np.exp(z) / m)
            log_hazard = theta[0] + theta[1] - np.log(t) + z + (kappa - 1) * L
            return float((np.exp(theta[0]) * m / kappa * np.expm1(kappa * L)).sum() - log_hazard.sum())

        options = {"xatol": 1e-8, "fatol": 1e-9, "maxiter": 5000}
        return -optimize.minimize(loss, [-8.0, 1.0], method="Nelder-Mead", options=options).fun

    lower, between, higher = best(0.3), best(1.0), best(6.0)
    assert between < lower < higher - 0.4
    assert PGWFitter(family="ph").fit(t).log_likelihood_ == pytest.approx(higher, abs=0.01)


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


def test_settings_are_these_where_none_are_given():
    f = PGWFitter()
    assert (f.baseline, f.family, f.fixed, f.alpha) == ("pgw", "aft", None, 0.05)
    assert f.form_ == form("pgw", "aft", None)
    f.fit(T, E)
    assert f.interval("survival", 30.0).equals(f.interval("survival", 30.0, alpha=0.05))
    assert select_baseline(T, E).equals(select_baseline(T, E, family="aft"))
    assert set(select_baseline(T, E, candidates=["weibull", "burr"]).index) == {"weibull", "burr"}
    assert f.profile_interval("gamma_") == f.profile_interval("gamma_", alpha=0.05)
    assert PGWFitter("weibull").fit(T).log_likelihood_ == PGWFitter("weibull").fit(T, np.ones(len(T))).log_likelihood_


@pytest.mark.parametrize(
    ("baseline", "family", "free", "fixed"),
    [
        ("exponential", "aft", ("phi_",), {"lambda_": 1, "gamma_": 1, "kappa_": 1}),
        ("exponential", "ph", ("lambda_",), {"phi_": 1, "gamma_": 1, "kappa_": 1}),
        ("weibull", "aft", ("phi_", "gamma_"), {"lambda_": 1, "kappa_": 1}),
        ("weibull", "both", ("phi_", "gamma_"), {"lambda_": 1, "kappa_": 1}),
        ("log-logistic", "aft", ("phi_", "gamma_"), {"lambda_": 1, "kappa_": 0}),
        ("burr", "ph", ("phi_", "lambda_", "gamma_"), {"kappa_": 0}),
        ("linear-hazard", "aft", ("phi_", "lambda_"), {"gamma_": 1, "kappa_": 2}),
        ("gompertz", "aft", ("phi_", "lambda_"), {"gamma_": 1, "kappa_": np.inf}),
        ("pgw", "aft", ("phi_", "gamma_", "kappa_"), {"lambda_": 1}),
        ("pgw", "ph", ("lambda_", "gamma_", "kappa_"), {"phi_": 1}),
        ("pgw", "both", ("phi_", "lambda_", "gamma_", "kappa_"), {}),
    ],
)
def test_a_baseline_is_what_it_holds_fixed(baseline, family, free, fixed):
    shape = form(baseline, family)
    assert (shape.free, shape.fixed, shape.family) == (free, fixed, family)
    assert shape.scale == ("lambda_" if family == "ph" else "phi_")
    linear = {n: np.log(min(v + 1, 2.0**53)) if n == "kappa_" else np.log(v) for n, v in fixed.items()}
    assert shape.linear == pytest.approx(linear)
    assert shape.linear.get("kappa_", 0) <= 53 * np.log(2)


def test_what_is_fixed_lies_in_its_range():
    assert form("pgw", "aft", {"kappa_": -0.99}).fixed["kappa_"] == -0.99
    assert form("pgw", "aft", {"kappa_": np.inf}).fixed["kappa_"] == np.inf
    assert form("pgw", "aft", {"gamma_": 1e-9}).fixed["gamma_"] == 1e-9
    for name, value in (("kappa_", -1.0), ("gamma_", 0.0), ("gamma_", np.inf), ("phi_", -1.0), ("kappa_", np.nan)):
        with pytest.raises(ValueError, match=f"{name} fixed at {value}"):
            form("pgw", "aft", {name: value})
    with pytest.raises(ValueError, match="nothing is left to estimate"):
        form("exponential", "aft", {"phi_": 1.0})
    with pytest.raises(ValueError, match="unknown parameter 'kapa_'"):
        form("pgw", "aft", {"kapa_": 1.0})


def test_curves_are_those_of_the_parameters():
    f, t = PGWFitter("pgw").fit(drawn()["t"], drawn()["e"], timeline=[0.5, 1.0, 2.0]), np.array([0.5, 1.0, 2.0])
    given = {"phi": f.phi_, "lambda_": 1.0, "gamma": f.gamma_, "kappa": f.kappa_}
    H, h = pgw.cumulative_hazard(t, **given), np.exp(pgw.log_hazard(t, **given))
    for table, expected in (
        (f.cumulative_hazard_, H), (f.hazard_, h), (f.survival_function_, np.exp(-H)), (f.density_, h * np.exp(-H)),
        (f.cumulative_density_, 1 - np.exp(-H)),
    ):  # fmt: skip
        np.testing.assert_allclose(table.iloc[:, 0], expected, rtol=1e-12)
    assert f.median_survival_time_ == pytest.approx(float(pgw.quantile(np.log(2), **given)))
    np.testing.assert_allclose(f.percentile(np.array([0.2, 0.9])), pgw.quantile(-np.log([0.2, 0.9]), **given))
    assert isinstance(f.percentile(0.2), float)
    assert f.hazard_shape_ == pgw.hazard_shape(f.gamma_, f.kappa_)
    drawn_times = f.sample(20_000, seed=1)
    assert np.mean(drawn_times > 1.0) == pytest.approx(float(np.exp(-H[1])), abs=0.015)
    np.testing.assert_array_equal(f.sample(5, seed=1), f.sample(5, seed=1))
    assert not np.array_equal(f.sample(5), f.sample(5))


@pytest.mark.parametrize("what", ["survival", "hazard", "cumulative_hazard", "quantile", "rmst"])
def test_intervals_are_the_delta_methods(what):
    f, at = PGWFitter("burr").fit(drawn()["t"], drawn()["e"]), np.array([0.3, 0.7])

    def value(c):
        given = dict(zip(("phi", "lambda_", "gamma"), np.exp(c), strict=True)) | {"kappa": 0.0}
        H = pgw.cumulative_hazard(at, **given)
        grid = np.linspace(1e-9, 1, 20_001)[:, None] * at
        return {
            "survival": np.exp(-H), "cumulative_hazard": H, "hazard": np.exp(pgw.log_hazard(at, **given)),
            "quantile": pgw.quantile(-np.log(at), **given),
            "rmst": at * np.trapezoid(np.exp(-pgw.cumulative_hazard(grid, **given)), dx=1 / 20_000, axis=0),
        }[what]  # fmt: skip

    def link(v):
        return np.log(-np.log(v)) if what == "survival" else np.log(v)

    c, V = f.fit_.coefficients, f.fit_.covariance
    slopes = np.array([(link(value(c + e)) - link(value(c - e))) / 2e-4 for e in 1e-4 * np.eye(3)])
    sd = np.sqrt(np.einsum("ka,kl,la->a", slopes, V, slopes))
    for alpha, z in ((None, 1.959964), (0.2, 1.281552)):
        table = f.interval(what, at, alpha=alpha)
        assert list(table.columns) == ["estimate", "lower", "upper"]
        np.testing.assert_array_equal(table.index, at)
        np.testing.assert_allclose(table["estimate"], value(c), rtol=1e-6)
        ends = np.sort([link(value(c)) - z * sd, link(value(c)) + z * sd], axis=0)
        found = np.sort([link(table["lower"]), link(table["upper"])], axis=0)
        np.testing.assert_allclose(found, ends, rtol=1e-3, atol=1e-4)
        assert (table["lower"] < table["upper"]).all()
    with pytest.raises(ValueError, match="did you mean survival"):
        f.interval("survial", at)


def test_variances_are_those_of_the_natural_parameters():
    f = PGWFitter("burr").fit(drawn()["t"], drawn()["e"])
    slopes = np.array([f.phi_, f.lambda_, f.gamma_])
    np.testing.assert_allclose(f.variance_matrix_, f.fit_.covariance * np.outer(slopes, slopes), rtol=1e-6)
    assert list(f.variance_matrix_.columns) == list(f.variance_matrix_.index) == ["phi_", "lambda_", "gamma_"]
    np.testing.assert_allclose(f.params_, slopes)
    shifted = PGWFitter().fit(drawn()["t"], drawn()["e"])
    np.testing.assert_allclose(np.exp(shifted.fit_.coefficients) - [0, 0, 1], shifted.params_)
    assert shifted.summary.loc["kappa_", "se(coef)"] == pytest.approx(
        np.sqrt(shifted.fit_.covariance[2, 2]) * (1 + shifted.kappa_)
    )
    assert f.converged_
    assert f.gradient_norm_ < 1e-8
    assert f.condition_number_ >= 1


def test_ratio_tests_have_their_degrees_and_half_the_probability_on_a_boundary():
    small, large = PGWFitter("weibull").fit(T, E), PGWFitter("pgw", family="both").fit(T, E)
    test = small.likelihood_ratio_test(large)
    assert test.degrees_freedom == 2
    assert test.p_value == pytest.approx(stats.chi2.sf(test.test_statistic, 2))
    assert small.likelihood_ratio_test(large, boundary=True).p_value == pytest.approx(test.p_value / 2)
    assert test.test_name == "likelihood-ratio test"
    with pytest.raises(ValueError, match="more parameters than these 2"):
        small.likelihood_ratio_test(small)
    worse = PGWFitter("burr", fixed={"gamma_": 20.0, "lambda_": 9.0}).fit(T, E)
    assert worse.likelihood_ratio_test(small).degrees_freedom == 1
    better = copy.copy(small)
    better.log_likelihood_ = large.log_likelihood_ + 5
    assert better.likelihood_ratio_test(large).test_statistic == 0


def test_profiles_of_every_parameter_end_where_the_deviance_says_and_an_unknown_one_is_refused():
    d = drawn(500)
    f = PGWFitter("weibull").fit(d["t"], d["e"])
    for name in ("phi_", "gamma_"):
        for alpha, drop in ((0.05, 3.8415), (0.3, 1.0742)):
            ends = f.profile_interval(name, alpha=alpha)
            assert ends[0] < getattr(f, name) < ends[1]
            for end in ends:
                held = PGWFitter("weibull", fixed={name: end}).fit(d["t"], d["e"])
                assert 2 * (f.log_likelihood_ - held.log_likelihood_) == pytest.approx(drop, abs=1e-3)
    with pytest.raises(ValueError, match="unknown parameter with one coefficient 'kappa_'"):
        f.profile_interval()


def test_a_start_that_leads_nowhere_is_not_taken():
    base = PGWFitter("weibull").fit(T, E)
    far = PGWFitter("weibull").fit(T, E, initial_point=[1e300, 1e300])
    assert far.log_likelihood_ == pytest.approx(base.log_likelihood_, abs=1e-8)
    with pytest.raises(ValueError, match=r"initial_point has shape \(3,\); 2 coefficients"):
        PGWFitter("weibull").fit(T, E, initial_point=[1.0, 1.0, 1.0])
    for tol in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"tol is .*; above 0"):
            PGWFitter("weibull").fit(T, E, fit_options={"tol": tol})


def test_residuals_are_the_cumulative_hazard_at_times_and_entries():
    d = drawn(200)
    f = PGWFitter("weibull").fit(d["t"], d["e"], entry=0.2 * d["t"])
    r = f.cox_snell_residuals_
    assert list(r.columns) == ["residual", "event", "entry"]
    np.testing.assert_allclose(r["residual"], (f.phi_ * d["t"]) ** f.gamma_)
    np.testing.assert_allclose(r["entry"], (f.phi_ * 0.2 * d["t"]) ** f.gamma_)
    np.testing.assert_array_equal(r["event"], d["e"])
    ax = matplotlib.pyplot.subplots()[1]
    assert f.plot_qq(ax) is ax
    curve, line = ax.lines
    end = r["residual"].max()
    assert line.get_xydata().tolist() == [[0, 0], [end, end]]
    na = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(r["residual"], r["event"], entry=r["entry"])
    np.testing.assert_allclose(curve.get_xydata(), na.cumulative_hazard_.reset_index().to_numpy())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Cox-Snell residuals", "a perfect fit"]
    assert ax.get_xlabel() == "residual"
    assert ax.get_ylabel() == "Nelson-Aalen cumulative hazard of the residuals"
    matplotlib.pyplot.close("all")


def test_the_table_of_baselines_says_what_was_fitted():
    table = select_baseline(T, E)
    assert list(table.columns) == ["log_likelihood", "parameters", "AIC", "BIC", "lr_p", "converged"]
    assert table["parameters"].to_dict() == {
        "exponential": 1, "weibull": 2, "log-logistic": 2, "burr": 3, "linear-hazard": 2, "gompertz": 2, "pgw": 3,
    }  # fmt: skip
    np.testing.assert_allclose(table["AIC"], 2 * table["parameters"] - 2 * table["log_likelihood"])
    np.testing.assert_allclose(table["BIC"], np.log(len(T)) * table["parameters"] - 2 * table["log_likelihood"])
    general = table.attrs["general"]
    assert set(general) == {"log_likelihood", "parameters", "converged"}
    assert general["parameters"] == 4
    for name, row in table.iterrows():
        statistic = max(2 * (general["log_likelihood"] - row["log_likelihood"]), 0)
        p = stats.chi2.sf(statistic, 4 - row["parameters"]) * (0.5 if name == "gompertz" else 1)
        assert row["lr_p"] == pytest.approx(p, rel=1e-9)
    both = select_baseline(T, E, family="both")
    assert "log-logistic" not in both.index
    assert np.isnan(both.loc["pgw", "lr_p"])  # the general model itself
    without = select_baseline(T, E, candidates=["weibull"])
    assert "general" not in without.attrs
    assert without["lr_p"].isna().all()
    weighted = select_baseline(T, E, weights=np.full(len(T), 2.0), candidates=["weibull"])
    assert weighted.loc["weibull", "BIC"] == pytest.approx(
        2 * np.log(2 * len(T)) - 2 * weighted.loc["weibull", "log_likelihood"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower": [1.0, np.inf], "upper": [1.0, np.inf]}, "an infinite duration in 1 row: 1"),
        ({"upper": [1.0, 1.5]}, "an upper bound below the lower in 1 row: 1"),
        ({"weight": [1.0, np.inf]}, "a weight that is not positive and finite in 1 row: 1"),
        ({"weight": [1.0, -1.0]}, "a weight that is not positive and finite in 1 row: 1"),
        ({"entry": [1.0, 2.0]}, "entry >= duration .* in 2 rows: 0, 1"),
        ({"event": [1.0]}, "1 events for 2 durations"),
        ({"weight": [1.0]}, "1 weights for 2 durations"),
        ({"upper": [1.0, np.nan]}, "NaNs were detected in the dataset, upper bounds in 1 row: 1"),
    ],
)
def test_observations_that_are_none_are_named_by_row(change, message):
    good = {"lower": [1.0, 2.0], "upper": [1.0, np.inf], "event": [1.0, 0.0]}
    assert observations(**good).entry.tolist() == [0, 0]
    assert observations(**good).weight.tolist() == [1, 1]
    assert observations(**good, entry=[-1.0, 1.5]).entry.tolist() == [0, 1.5]
    with pytest.raises(ValueError, match=message):
        observations(**(good | change))
    with pytest.raises(ValueError, match="in 7 rows: a0, a1, a2, a3, a4, …"):
        observations(lower=-np.ones(7), upper=np.ones(7), event=np.zeros(7), index=[f"a{i}" for i in range(7)])


def test_as_many_events_as_parameters_are_enough_to_say_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PGWFitter("weibull").fit([1.0, 2.0, 3.0], [1, 1, 0])
    assert not any("events for" in str(w.message) for w in caught)


def test_events_that_are_no_exact_times_are_refused_among_intervals():
    d = load_diabetes().head(40)
    exact = (d["left"] == d["right"]).astype(float)
    base = PGWFitter("weibull").fit_interval_censoring(d["left"], d["right"])
    same = PGWFitter("weibull").fit_interval_censoring(d["left"], d["right"], exact)
    assert same.log_likelihood_ == base.log_likelihood_
    with pytest.raises(ValueError, match="lower_bound"):
        PGWFitter("weibull").fit_interval_censoring(d["left"], d["right"], 1 - exact)
