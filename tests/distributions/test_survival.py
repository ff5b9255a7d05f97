import warnings

import lifelines
import matplotlib
import numpy as np
import pytest
from lifelines.datasets import load_diabetes, load_waltons
from lifelines.exceptions import StatisticalWarning

from rankwise.distributions import power_weibull as pgw
from rankwise.distributions.survival import PGWFitter, select_baseline
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
