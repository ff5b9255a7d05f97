import numpy as np
import pytest
from scipy import stats

from rankwise.distributions import quantile_metrics as metrics

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
