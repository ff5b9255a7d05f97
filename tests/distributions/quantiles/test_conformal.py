import numpy as np
import pytest
from mapie.regression import ConformalizedQuantileRegressor, CrossConformalizedQuantileRegressor
from sklearn.linear_model import QuantileRegressor
from sklearn.model_selection import KFold

from rankwise.distributions.quantiles.conformal import conformity_scores, cross_calibrated, intervals, widening

TAU = np.array([0.1, 0.5, 0.9])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
Y = X[:, 0] + (0.5 + np.abs(X[:, 1])) * RNG.normal(size=200)
NEW = RNG.normal(size=(30, 2))


def fitted(rows):
    return [QuantileRegressor(quantile=t, alpha=0.0).fit(X[rows], Y[rows]) for t in TAU]


def quantiles(models, Z):
    return np.stack([m.predict(Z) for m in models], 1)


def test_split_calibration_equals_mapies():
    models = fitted(slice(0, 120))
    order = [models[0], models[2], models[1]]
    theirs = ConformalizedQuantileRegressor(order, confidence_level=0.8, prefit=True).conformalize(X[120:], Y[120:])
    ends = theirs.predict_interval(NEW, symmetric_correction=True)[1][:, :, 0]
    ours = quantiles(models, NEW) + widening(conformity_scores(Y[120:], quantiles(models, X[120:]), TAU), TAU)
    np.testing.assert_allclose(ours[:, [0, 2]], ends, rtol=1e-9)


def test_cross_calibration_equals_mapies():
    folds = KFold(5, shuffle=True, random_state=3)
    theirs = CrossConformalizedQuantileRegressor(QuantileRegressor(alpha=0.0), confidence_level=0.8, cv=folds)
    ends = theirs.fit_conformalize(X, Y).predict_interval(NEW)[1][:, :, 0]
    by_fold, scores = [], []
    for rest, fold in folds.split(X):
        models = fitted(rest)
        by_fold.append(quantiles(models, NEW))
        scores.append(conformity_scores(Y[fold], quantiles(models, X[fold]), TAU))
    middle = np.full((30, 3), 7.0)
    ours = cross_calibrated(middle, by_fold, scores, TAU)
    np.testing.assert_allclose(ours[:, [0, 2]], ends, rtol=1e-9)
    assert (ours[:, 1] == 7.0).all()


def test_one_fold_of_cross_calibration_is_split_calibration():
    q, E = RNG.normal(size=(7, 3)), RNG.normal(size=(50, 1))
    np.testing.assert_allclose(cross_calibrated(q, [q], [E], TAU), q + widening(E, TAU))


def test_rows_in_blocks_are_as_at_once(monkeypatch):
    q, folds = RNG.normal(size=(9, 3)), [RNG.normal(size=(9, 3)) for _ in range(2)]
    scores = [RNG.normal(size=(k, 1)) for k in (20, 31)]
    whole = cross_calibrated(q, folds, scores, TAU)
    monkeypatch.setattr("rankwise.distributions.quantiles.conformal._ENTRIES", 2 * 51)
    np.testing.assert_array_equal(cross_calibrated(q, folds, scores, TAU), whole)


@pytest.mark.parametrize(("n", "rank"), [(9, 8), (19, 16), (4, 4), (3, 3)])
def test_the_score_taken_is_the_one_of_the_level(n, rank):
    E = np.arange(1.0, n + 1)[:, None]
    assert widening(E, TAU)[2] == rank


def test_calibrated_intervals_cover_at_least_their_level():
    """Over 500 exchangeable samples the mean coverage is at least 1 - α, and above it by no more than 1 / (n + 1)."""
    rng, covered = np.random.default_rng(1), []
    tau = np.array([0.1, 0.9])
    for _ in range(500):
        y, q = rng.normal(size=100), np.tile([-0.5, 0.9], (100, 1))  # wrong quantiles
        q = q + 0.1 * rng.normal(size=(100, 1))
        widened = q[50:] + widening(conformity_scores(y[:50], q[:50], tau), tau)
        covered.append(((widened[:, 0] <= y[50:]) & (y[50:] <= widened[:, 1])).mean())
    error = np.std(covered) / np.sqrt(500)
    assert 0.8 - 3 * error <= np.mean(covered) <= 0.8 + 1 / 51 + 3 * error


def test_cross_calibrated_intervals_cover_more_than_their_guarantee():
    """500 samples, each calibrated by folds whose fits are their own means: near 1 - α, above 1 - 2α."""
    rng, tau, covered = np.random.default_rng(2), np.array([0.1, 0.9]), []
    for _ in range(500):
        y = rng.normal(size=80)
        means, scores = [], []
        for rest, fold in KFold(4).split(y[:40]):
            means.append(np.full((40, 2), y[rest].mean()))
            scores.append(conformity_scores(y[fold], means[-1][: len(fold)], tau))
        ends = cross_calibrated(means[0], means, scores, tau)
        covered.append(((ends[:, 0] <= y[40:]) & (y[40:] <= ends[:, 1])).mean())
    error = np.std(covered) / np.sqrt(500)
    assert 0.8 - 3 * error <= np.mean(covered) <= 0.8 + 1 / 41 + 3 * error


def test_levels_make_pairs_from_outermost_inwards_and_single_ends():
    assert intervals(np.array([0.05, 0.1, 0.3, 0.5, 0.9, 0.95, 0.99])) == [
        (0, 5, 0.1), (1, 4, 0.2), (2, None, 0.3), (None, 6, pytest.approx(0.01)),
    ]  # fmt: skip
    assert intervals(np.array([0.5])) == []
    assert intervals(TAU) == [(0, 2, 0.2)]


@pytest.mark.parametrize("tau", [0.2, 0.85])
def test_single_ends_cover_at_least_their_level(tau):
    """Over 500 exchangeable samples, split and with folds of constant fits: y lies beyond the end as seldom as said."""
    rng, levels, inside = np.random.default_rng(1), np.array([tau]), {"split": [], "cross": []}
    for _ in range(500):
        y, q = rng.normal(size=100), 0.3 + 0.1 * rng.normal(size=(100, 1))
        scores = conformity_scores(y[:50], q[:50], levels)
        ends = {
            "split": q[50:] + widening(scores, levels),
            "cross": cross_calibrated(q[50:], [q[50:], q[50:]], [scores[:25], scores[25:]], levels),
        }
        for way, end in ends.items():
            beyond = y[50:] <= end[:, 0] if tau > 0.5 else y[50:] >= end[:, 0]
            inside[way].append(beyond.mean())
    wanted = max(tau, 1 - tau)
    for shares in inside.values():
        error = np.std(shares) / np.sqrt(500)
        assert wanted - 3 * error <= np.mean(shares) <= wanted + 1 / 51 + 3 * error


def test_the_rank_is_that_of_the_level_and_at_most_the_last():
    for n, alpha, rank in (
        (9, 0.1, 9),
        (10, 0.1, 10),
        (19, 0.1, 18),
        (99, 0.05, 95),
        (4, 0.5, 3),
        (1, 0.9, 1),
        (3, 0.01, 3),
    ):
        E = np.arange(1.0, n + 1)[:, None]
        tau = np.array([alpha / 2, 1 - alpha / 2])
        np.testing.assert_allclose(widening(E, tau), [-rank, rank])


def test_scores_are_how_far_a_row_lies_outside_its_interval():
    tau = np.array([0.1, 0.3, 0.5, 0.9, 0.95])
    q, y = np.array([[0.0, 1, 2, 3, 4], [0.0, 1, 2, 3, 4]]), np.array([-1.0, 6.0])
    assert [tuple(i) for i in intervals(tau)] == [(0, 3, 0.2), (1, None, 0.3), (None, 4, pytest.approx(0.05))]
    np.testing.assert_allclose(conformity_scores(y, q, tau), [[1, 2, -5], [3, -5, 2]])
    assert conformity_scores(y, q[:, :1], np.array([0.5])).shape == (2, 0)
    assert widening(np.empty((2, 0)), np.array([0.5])).tolist() == [0]
    E = np.array([[1.0, 2, 3], [4.0, 5, 6], [7.0, 8, 9]])
    np.testing.assert_allclose(widening(E, tau), [-7, -8, 0, 7, 9])
    untouched = q.copy()
    ends = cross_calibrated(q, [q + 1, q - 1], [E[:1], E[1:]], tau)
    np.testing.assert_array_equal(q, untouched)
    np.testing.assert_allclose(ends[:, 2], 2)
    np.testing.assert_allclose(ends[0], [-8, -8, 2, 9, 12])
