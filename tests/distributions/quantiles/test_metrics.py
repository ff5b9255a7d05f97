import numpy as np
import pytest
from scipy import stats

from rankwise.distributions.quantiles import metrics

TAU = np.arange(1, 100) / 100
Y = np.random.default_rng(0).normal(size=4000)


def test_the_median_alone_scores_the_mean_absolute_error():
    assert metrics.weighted_interval_score(Y, np.zeros((4000, 1)), [0.5]) == pytest.approx(np.abs(Y).mean())


def test_even_levels_approximate_the_crps_of_the_normal():
    q = np.tile(stats.norm.ppf(TAU), (4000, 1))
    crps = (Y * (2 * stats.norm.cdf(Y) - 1) + 2 * stats.norm.pdf(Y) - 1 / np.sqrt(np.pi)).mean()
    assert metrics.weighted_interval_score(Y, q, TAU) == pytest.approx(crps, rel=0.02)


@pytest.mark.parametrize("levels", [TAU, np.array([0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95, 0.99])])
def test_crps_is_the_normals_over_even_and_uneven_levels(levels):
    q = np.tile(stats.norm.ppf(levels), (4000, 1))
    exact = (Y * (2 * stats.norm.cdf(Y) - 1) + 2 * stats.norm.pdf(Y) - 1 / np.sqrt(np.pi)).mean()
    assert metrics.crps(Y, q, levels) == pytest.approx(exact, rel=0.02)


def test_interval_score_is_the_pinball_losses_of_its_ends():
    lo, hi, alpha = np.full(4000, -1.0), np.full(4000, 1.2), 0.2
    both = metrics.pinball(Y, np.column_stack([lo, hi]), [alpha / 2, 1 - alpha / 2])
    assert metrics.interval_score(Y, lo, hi, alpha) == pytest.approx(2 / alpha * both.sum(1).mean())


def test_report_covers_at_its_level_when_the_quantiles_are_right():
    table = metrics.report(Y, np.tile(stats.norm.ppf(TAU), (4000, 1)), TAU)
    np.testing.assert_allclose(table["coverage"], table["nominal"], atol=0.03)
    assert metrics.calibration_error(Y, np.tile(stats.norm.ppf(TAU), (4000, 1)), TAU) < 0.02


def test_crossing_rate_counts_rows():
    assert metrics.crossing_rate([[0, 1, 2], [0, 2, 1]]) == 0.5


def test_symmetric_pairs_are_outermost_first():
    assert metrics.symmetric_pairs([0.1, 0.25, 0.5, 0.8, 0.9]) == [(0, 4)]


def test_every_metric_by_hand():
    y, q, tau = np.array([0.0, 3.0]), np.array([[-1.0, 1.0, 2.0], [1.0, 4.0, 3.5]]), np.array([0.1, 0.5, 0.9])
    losses = [[0.1, 0.5, 0.2], [0.2, 0.5, 0.05]]
    np.testing.assert_allclose(metrics.pinball(y, q, tau), losses)
    assert metrics.weighted_interval_score(y, q, tau) == pytest.approx(2 * np.mean(losses))
    cells = [0.3, 0.4, 0.3]
    assert metrics.crps(y, q, tau) == pytest.approx(2 * np.mean(np.array(losses) @ cells))
    assert metrics.interval_score(y, [1, 1], [2, 2], 0.5) == pytest.approx((1 + 1) / 2 + 4 * (1 + 1) / 2)
    assert metrics.crossing_rate(q) == 0.5
    assert metrics.crossing_rate([[1, 1, 1]]) == 0  # equal ones do not cross
    assert metrics.calibration_error(y, q, tau) == pytest.approx((abs(0 - 0.1) + abs(1 - 0.5) + abs(1 - 0.9)) / 3)
    assert metrics.calibration_error([1.0], [[1.0]], [1.0]) == 0  # at the quantile is below it


def test_the_report_is_of_every_pair_widest_first():
    tau = np.array([0.05, 0.1, 0.5, 0.9, 0.95])
    y, q = np.array([0.0, 5.0]), np.array([[-2.0, 0, 1, 2, 3], [0.0, 1, 2, 4, 5]])
    table = metrics.report(y, q, tau)
    assert list(table.columns) == ["lower", "upper", "nominal", "coverage", "width", "interval_score"]
    np.testing.assert_allclose(table["lower"], [0.05, 0.1])
    np.testing.assert_allclose(table["upper"], [0.95, 0.9])
    np.testing.assert_allclose(table["nominal"], [0.9, 0.8])
    np.testing.assert_allclose(table["coverage"], [1.0, 0.5])  # an end counts as inside
    np.testing.assert_allclose(table["width"], [5.0, 2.5])
    np.testing.assert_allclose(table["interval_score"], [5.0, (2 + 3 + 2 / 0.2 * 1) / 2])
    assert metrics.report(y, q[:, 2:3], [0.5]).empty
    assert metrics.symmetric_pairs([0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9]) == [(0, 6), (1, 5), (2, 4)]
    assert metrics.symmetric_pairs([0.5]) == []
    assert metrics.symmetric_pairs([0.1, 0.1 + 0.8]) == [(0, 1)]  # but for rounding
