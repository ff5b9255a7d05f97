import matplotlib
import numpy as np
import pytest
from lifelines.utils import concordance_index
from scipy.spatial.distance import cdist

from rankwise.bench.distributions import (
    flexible_survival,
    kde_gaussian,
    kde_real,
    quantile_tables,
    singular_digits,
    survival_simulation,
)
from rankwise.bench.distributions.flexible_survival import _dealt, _hazards
from rankwise.bench.distributions.quantile_tables import Noise
from rankwise.bench.distributions.singular_manifolds import distance, hidden_in, points
from rankwise.bench.distributions.survival_simulation import _one, _sample
from rankwise.bench.shared.measured import plain
from rankwise.bench.shared.wasserstein_gan import generate
from rankwise.bench.speed.distributions import trial
from rankwise.data.frames import survival
from rankwise.distributions.density.estimator import HighDimKDE
from rankwise.distributions.density.regimes import critical_bandwidths
from rankwise.report.plots.distributions import clouds, hazard_curves, kde_phases, noise_levels, quantile_fan

matplotlib.use("Agg")


def test_simulated_samples_have_median_one_and_are_censored():
    t, e = _sample(1.5, 0.4, 0)
    assert 0.6 < e.mean() < 0.95
    assert abs((t[e == 1] < 1).mean() - 0.55) < 0.1
    log_gamma, *_, median, inside = _one((1.5, 0.4, 0))
    assert log_gamma == pytest.approx(np.log(1.5), abs=0.2)
    assert median == pytest.approx(1, abs=0.15)
    assert inside


def test_dealing_keeps_times_and_events_but_moves_covariates():
    df = survival("melanoma")
    train, test = np.arange(150), np.arange(150, 205)
    a, b = _dealt(df, train, test, 0)
    np.testing.assert_array_equal(a["time"], df["time"].iloc[train])
    assert not np.array_equal(a["age"], df["age"].iloc[train])
    assert len(b) == 55


def test_hazards_are_drawn_for_every_trial():
    figure = hazard_curves({"melanoma": _hazards(survival("melanoma")), "lung": _hazards(survival("lung"))})
    assert [len(axis.lines) for axis in figure.axes] == [3, 3]
    phases = kde_phases([{"ratio": r, "anderson": 1.0, "effective": 0.5} for r in (0.5, 1.0, 2.0)])
    assert len(phases.axes) == 2


def test_noise_bases_know_nothing_of_x_and_trials_are_repeatable():
    y = np.random.default_rng(0).normal(3, 2, 500)
    q = Noise(1).fit(np.zeros((500, 1)), y).predict(np.zeros((500, 1)), [0.1, 0.9])
    assert abs(np.corrcoef(q[:, 0], y)[0, 1]) < 0.15
    assert trial(50).equals(trial(50))


def test_laws_lie_on_their_curve_or_surface_and_noise_fills_the_dimensions():
    for name in ("circle", "sphere"):
        P = points(name, 200, 0)
        np.testing.assert_allclose(np.linalg.norm(P, axis=1), 1)
        X = hidden_in(P, 0, 0, rotation=3)
        np.testing.assert_allclose(cdist(X, X), cdist(P, P), atol=1e-9)
        assert np.linalg.matrix_rank(X) == P.shape[1]
    assert np.linalg.matrix_rank(hidden_in(P, 0.1, 0, rotation=3)) == 10


def test_wasserstein_distance_of_a_shift_is_the_shift():
    a = np.random.default_rng(0).normal(size=(50, 3))
    assert distance(a, np.add(a[::-1], [0.3, 0.0, 0.4])) == pytest.approx(0.5)


def test_the_adversarial_baseline_finds_a_line():
    X = np.random.default_rng(0).normal(size=(300, 1)) * [[1.0, 2.0]] + [3.0, 5.0]
    made = generate(X, 300, latent_dim=1, steps=150)
    assert distance(made, X) < 0.5 * distance(np.zeros((300, 2)), X)


def test_levels_and_clouds_are_drawn():
    scores = {"0.0": [1.0, 2.0], "0.1": [0.5, 0.6], "kde": [1.0], "wgan": [2.0], "floor": [0.1]}
    axes = noise_levels({"circle": scores, "moons": scores}).axes
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [1.5, 0.55])
    assert len(clouds({"a": np.zeros((3, 2)), "b": np.ones((3, 2))}).axes) == 2
    assert len(clouds({str(k): np.ones((3, 2)) for k in range(7)}).axes) == 7
    fan = quantile_fan(np.arange(3.0), np.cumsum(np.ones((3, 5)), 1), [0.1, 0.25, 0.5, 0.75, 0.9], unit="y")
    assert len(fan.axes[0].collections) == 2


def test_area_under_the_curve_is_the_share_of_pairs_in_order_with_ties_half():
    inside, outside = np.array([1.0, 2, 3]), np.array([0.0, 2])
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert kde_real._auc(inside, outside) == pytest.approx(np.mean(pairs))
    assert kde_real._auc(outside, inside) == pytest.approx(1 - np.mean(pairs))


def judged(held, auc=0.61, same=0.5, other=0.61):
    values = {r: np.full(3, h) for r, h in zip(kde_real.RULES, held, strict=True)}
    aucs = dict.fromkeys(kde_real.RULES, other) | {"theory": auc}
    return [c.held for c in kde_real._claims({"digits": values}, aucs, np.array([same, np.nan]))]


def test_claims_on_real_points_hold_each_for_its_own_comparison():
    assert judged([3, 0, 3, 1, 2]) == [True] * 5
    assert judged([3, 0, 3, 1, 4]) == [False, True, True, True, True]  # the better classical rule counts
    assert judged([3, 0, 2.9, 1, 2]) == [True, False, True, True, True]
    assert judged([3, 0, 3, 1, 2], auc=0.58) == [True, True, False, True, True]
    assert judged([3, 0, 3, 1, 2], same=0.54) == [True, True, True, False, True]
    assert judged([3, 0, 3, 1, 2], auc=0.59, other=0.59) == [True, True, True, True, False]


def test_a_bandwidth_of_all_pairs_is_chosen_once_for_many_points():
    X = np.random.default_rng(0).normal(size=(300, 20))
    assert kde_gaussian._chosen("scott", X, [9.0]) == HighDimKDE("scott").fit(X).bandwidth_
    assert kde_gaussian._chosen("cv", X, [9.0]) == pytest.approx(HighDimKDE("cv").fit(X).bandwidth_)
    assert kde_gaussian._chosen("cv", np.zeros((10_001, 1)), [9.0]) == 9.0


def test_the_best_bandwidth_and_the_gap_to_the_theory_are_read_off_the_held_out_density(monkeypatch):
    rng, c = np.random.default_rng(0), critical_bandwidths(np.ones(30), 2000)
    Q = rng.standard_normal((200, 30))
    kde = HighDimKDE(float(c.h_opt)).fit(rng.standard_normal((2000, 30)))
    kept = kde_gaussian._judged(kde, Q, {"theory": float(c.h_opt), "wide": 2 * float(c.h_opt)}, c)
    assert {len(v) for v in kept["by"].values()} == {200}
    monkeypatch.setattr(kde_gaussian, "AROUND", np.full(21, 9.0))  # what was tried is kept
    found = kde_gaussian.summed(kept, c)
    assert found["theory"] == pytest.approx(kde.score_samples(Q).mean())
    assert found["theory"] > found["wide"]
    assert found["best"] == pytest.approx(1, abs=0.1)
    assert found["gap"] == pytest.approx(float(c.log_density(c.h_opt)) - found["theory"] / 30)


def test_fluctuations_are_as_far_from_normal_as_kept_as_they_were(monkeypatch):
    for name, size in {"DRAWS": 40, "DRAWN": 50}.items():
        monkeypatch.setattr(kde_gaussian, name, size)
    kept = kde_gaussian._fluctuations()
    monkeypatch.setattr(kde_gaussian, "_short", lambda values: list(values))
    raw = kde_gaussian._fluctuations()
    assert [r["anderson"] for r in kde_gaussian.normality(**kept)] == pytest.approx(
        [r["anderson"] for r in kde_gaussian.normality(**raw)], rel=1e-3
    )
    assert np.abs(np.mean(kept["logs"], axis=1)).max() < 1e-4  # or five digits would be those of the mean


def test_an_estimate_without_a_number_is_judged_and_holds_nothing(monkeypatch):
    monkeypatch.setattr(survival_simulation, "LEAST", 3)
    one = {k: [0.0, np.inf, 1.0] for k in ("log γ", "γ covered", "κ covered", "median", "median covered")}
    found = dict.fromkeys(survival_simulation.CASES, one) | {survival_simulation.PICKED: [[0, 0, 0]] * 3}
    evidence = survival_simulation.judge(plain(found), seeds=3)
    assert [c.held for c in evidence.claims] == [False, False, True]


@pytest.mark.parametrize(("at", "often", "held"), [(0, 44, True), (0, 45, False), (1, 40, False), (2, 34, False)])
def test_aic_may_prefer_more_parameters_as_often_as_chance_does_and_its_error(at, often, held):
    # of 200 at most .157 + 2.6·√(.157·.843 / 200) = 22.4 %, .135 + ... = 19.8 %, .112 + ... = 17.0 %
    picked = np.zeros((200, 3), int)
    picked[:often, at] = 1
    one = {k: [0.0, 0.95, 0.95] for k in ("log γ", "γ covered", "κ covered", "median", "median covered")}
    found = dict.fromkeys(survival_simulation.CASES, one) | {survival_simulation.PICKED: picked}
    assert survival_simulation.judge(plain(found), seeds=200).claims[-1].held == held


def test_samples_of_one_law_are_hardly_told_apart_and_far_ones_are():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 60, 3))
    assert singular_digits._told_apart(a, b + 5, 0) == "1" * 120
    _, share = singular_digits._summed(distances=[0.0], right=singular_digits._told_apart(a, b, 0))
    assert share == pytest.approx(0.5, abs=0.15)  # three standard errors of 120 rows


def test_the_sliced_distance_of_a_shift_is_its_mean_projection():
    a = np.random.default_rng(0).normal(size=(50, 3))
    # |⟨θ, v⟩| of a direction in three dimensions is ‖v‖ / 2 on average
    apart = singular_digits._sliced(a, np.add(np.roll(a, 1, 0), [0.0, 3.0, 4.0]))
    assert len(apart) == 500
    assert singular_digits._summed(distances=apart, right="1")[0] == pytest.approx(2.5, rel=0.05)
    assert max(singular_digits._sliced(a, np.roll(a, 1, 0))) == pytest.approx(0, abs=1e-12)


def test_ratios_are_averaged_by_their_logarithms_and_coverage_is_by_level():
    assert quantile_tables._ratio(np.array([0.5, 2.0])) == "1.000"
    assert quantile_tables._ratio(np.array([0.5, 0.125])) == "0.250"
    rng = np.random.default_rng(0)
    y = rng.uniform(size=4000)
    q = np.tile(quantile_tables.LEVELS, (4000, 1))
    np.testing.assert_allclose(quantile_tables._coverage(y, q), [0.5, 0.8, 0.95], atol=0.025)  # three standard errors


def test_what_is_said_of_every_subject_is_summed_up_as_the_models_score_does(monkeypatch):
    df = survival("veteran")
    train, test = df.iloc[:100], df.iloc[100:]
    model = flexible_survival._fitted(flexible_survival.MODELS["Weibull"], train)
    said = flexible_survival._said(flexible_survival.MODELS["Weibull"], train, test)
    fold = {"test": np.arange(100, len(df)), "said": dict.fromkeys(flexible_survival.MODELS, said), "dealt": said}
    lost = fold | {"said": fold["said"] | {"Cox": None, "log-normal": None}}
    kept = {
        "time": df["time"],
        "event": df["event"].astype(int),
        "block": flexible_survival.BLOCK,
        "aic": {"Weibull": None},
        "folds": [*[fold] * 4, lost],
    }
    monkeypatch.setattr(flexible_survival, "BLOCK", 3)  # the size that was kept counts
    found = flexible_survival.Trial.of(
        plain({k: np.asarray(v) if k in ("time", "event") else v for k, v in kept.items()}), 1
    )
    assert found.held["Weibull"] == pytest.approx([model.score(test)], rel=1e-4)
    median = np.asarray(model.predict_median(test), float)
    assert found.control == pytest.approx([concordance_index(test["time"], median, test["event"])] * 5, abs=1e-3)
    assert found.failed["Cox"] == " (1 of 5 folds did not converge)"
    assert np.isnan(found.held["log-normal"]).all()  # other models' numbers are of all folds
    assert np.isfinite(found.concordance["log-normal"]).all()
    assert np.isnan(found.aic["Weibull"])


def test_log_densities_that_are_kept_give_the_split_s_numbers():
    found = kde_real.Judged.of(own=[1.0, 2, 3, 2], others=[0.0, 2], where=["h"])
    assert (found.held, found.auc) == (2.0, pytest.approx(kde_real._auc(np.array([1.0, 2, 3, 2]), np.array([0.0, 2]))))
    assert found.same == kde_real._auc(np.array([1.0, 2]), np.array([3.0, 2]))
    assert np.isnan(kde_real.Judged.of(own=[1.0], others=None, where=[]).auc)
