import matplotlib
import numpy as np
import pytest

from rankwise.bench.distributions_speed import trial
from rankwise.bench.flexible_survival import _dealt, _hazards
from rankwise.bench.quantile_tables import Noise
from rankwise.bench.survival_simulation import _one, _sample
from rankwise.data.frames import survival
from rankwise.report import plots

matplotlib.use("Agg")


def test_simulated_samples_have_median_one_and_are_censored():
    t, e = _sample(1.5, 0.4, 0)
    assert 0.6 < e.mean() < 0.95
    assert abs((t[e == 1] < 1).mean() - 0.55) < 0.1
    log_gamma, *_, median, inside = _one(1.5, 0.4, 0)
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
    figure = plots.hazard_curves({"melanoma": _hazards(survival("melanoma")), "lung": _hazards(survival("lung"))})
    assert [len(axis.lines) for axis in figure.axes] == [3, 3]
    phases = plots.kde_phases([{"ratio": r, "anderson": 1.0, "effective": 0.5} for r in (0.5, 1.0, 2.0)])
    assert len(phases.axes) == 2


def test_noise_bases_know_nothing_of_x_and_trials_are_repeatable():
    y = np.random.default_rng(0).normal(3, 2, 500)
    q = Noise(1).fit(np.zeros((500, 1)), y).predict(np.zeros((500, 1)), [0.1, 0.9])
    assert abs(np.corrcoef(q[:, 0], y)[0, 1]) < 0.15
    assert trial(50).equals(trial(50))
