import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rankwise.spectral import (
    effective_rank,
    explained_variance,
    gini,
    hill_index,
    outlier_ratio,
    power_law_fit,
    stable_rank,
)
from rankwise.spectral.spectrum import _synthetic

spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30).map(
    lambda v: torch.tensor(sorted(v, reverse=True), dtype=torch.float64)
)


@given(spectra, st.floats(0.01, 100))
def test_ranks_lie_between_one_and_the_length_and_ignore_scale(S, scale):
    for rank in (effective_rank, stable_rank):
        assert 1 - 1e-9 <= rank(S) <= len(S) + 1e-9
        torch.testing.assert_close(rank(S), rank(scale * S), rtol=1e-8, atol=1e-8)


def test_equal_values_have_full_rank_and_a_single_one_has_rank_one():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert stable_rank(torch.ones(7)) == pytest.approx(7)
    one = torch.tensor([5.0, 0, 0])
    assert effective_rank(one) == pytest.approx(1)
    assert stable_rank(one) == pytest.approx(1)


def test_ranks_of_a_spectrum_worked_out_by_hand():
    S = torch.tensor([2.0, 1.0, 1.0])  # p = 1/2, 1/4, 1/4: an entropy of 1.5 bits
    assert effective_rank(S) == pytest.approx(2**1.5)
    assert stable_rank(S) == pytest.approx(6 / 4)
    torch.testing.assert_close(explained_variance(S), torch.tensor([4, 5, 6], dtype=torch.float64) / 6)


def test_a_spectrum_of_zeros_has_no_rank_and_no_inequality():
    zero = torch.zeros(3)
    assert effective_rank(zero) == stable_rank(zero) == gini(zero) == 0
    torch.testing.assert_close(explained_variance(zero), zero.double())


@pytest.mark.parametrize("measure", [effective_rank, stable_rank, explained_variance, gini, hill_index])
def test_a_batch_of_spectra_is_each_spectrum_in_turn(measure):
    S = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0)).sort(-1, descending=True).values
    whole = measure(S)
    assert whole.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(whole[i, j], measure(S[i, j]))


@given(spectra)
def test_explained_variance_rises_to_one(S):
    curve = explained_variance(S)
    assert (curve.diff() >= -1e-12).all()
    assert curve[-1] == pytest.approx(1)


def test_gini_closed_forms():
    assert gini(torch.ones(5)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 0, 0, 1])) == pytest.approx(3 / 4)
    assert gini(torch.tensor([1.0, 2, 3, 4])) == pytest.approx(0.25)


def test_hills_estimator_is_the_mean_log_excess_of_the_upper_half():
    x = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0]).exp()
    assert hill_index(x, k=1) == pytest.approx(1 + 1 / 1)
    assert hill_index(x, k=3) == pytest.approx(1 + 3 / (3 + 2 + 1))
    assert hill_index(x) == pytest.approx(1 + 2 / (2 + 1))  # k = 5 // 2
    assert hill_index(x[:3]) == pytest.approx(1 + 1 / 2)
    zeros = torch.cat([x, torch.zeros(2)])
    assert math.isfinite(hill_index(zeros, k=5))
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k={k} is outside 1..4 for 5 values"):
            hill_index(x, k=k)


def pareto(n, alpha, seed=0):
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1 - u).pow(-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_tail_estimators_recover_the_exponent_of_a_pareto_sample(alpha):
    x = pareto(20_000, alpha)
    assert hill_index(x, k=5_000) == pytest.approx(alpha, rel=0.05)
    assert power_law_fit(x, xmin=1.0).alpha == pytest.approx(alpha, rel=0.03)


def by_scipy(x, start):
    """Maximum likelihood on the tail, and its Kolmogorov-Smirnov distance by another library."""
    tail = x[x >= start]
    alpha = 1 + len(tail) / np.log(tail / start).sum()
    return alpha, stats.kstest(tail, stats.pareto(alpha - 1, scale=start).cdf).statistic


@pytest.mark.parametrize("min_tail", [10, 25])
def test_the_tail_begins_where_the_distance_is_smallest(min_tail):
    body = 0.05 + 0.6 * torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.cat([body, torch.zeros(5), 0.5 * pareto(60, 2.5, seed=4)])
    found = power_law_fit(x, min_tail=min_tail)
    positive = np.sort(x[x > 0].numpy())
    every = {start: by_scipy(positive, start) for start in positive[: len(positive) - min_tail + 1]}
    xmin = min(every, key=lambda start: every[start][1])
    assert found.xmin == xmin
    assert (found.alpha, found.distance) == pytest.approx(every[xmin])
    assert found.n_tail == (positive >= xmin).sum()
    assert math.isnan(found.p_value)


def test_a_given_start_is_where_the_tail_begins():
    x = torch.cat([torch.tensor([0.1, 0.2, 0.9]), pareto(50, 3.0), torch.tensor([1.5])]).double()
    found = power_law_fit(x, xmin=1.5)
    alpha, distance = by_scipy(x.numpy(), 1.5)
    assert (found.xmin, found.n_tail) == (1.5, int((x >= 1.5).sum()))
    assert (found.alpha, found.distance) == pytest.approx((alpha, distance))


def test_the_fewest_values_a_fit_takes_are_the_fewest_of_a_tail():
    x = pareto(10, 2.0)
    assert power_law_fit(x).n_tail == 10
    assert power_law_fit(x[:2], min_tail=2).n_tail == 2
    assert power_law_fit(x, xmin=float(x.sort().values[-2])).n_tail == 2
    assert power_law_fit(pareto(11, 2.0), xmin=1.0).xmin == pareto(11, 2.0).min()
    for values, options, message in (
        (x[:9], {}, "at least 10 positive values, got 9"),
        (torch.cat([x[:9], torch.zeros(3)]), {}, "at least 10 positive values, got 9"),
        (x, {"min_tail": 1}, "min_tail=1; a tail needs at least 2"),
        (x, {"xmin": 1e9}, "leaves 0 of 10 values"),
        (x, {"xmin": float(x.max())}, "leaves 1 of 10 values"),
    ):
        with pytest.raises(ValueError, match=message):
            power_law_fit(values, **options)


def test_fit_test_accepts_a_power_law_and_rejects_a_uniform_sample():
    assert 0.1 < power_law_fit(pareto(300, 2.5), n_tests=40).p_value <= 1
    uniform = 1 + torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert power_law_fit(uniform, xmin=1.0, n_tests=40).p_value == 0


def test_fit_test_is_a_share_of_samples_that_a_seed_decides():
    x = torch.cat([0.2 + 0.8 * torch.rand(60, generator=torch.Generator().manual_seed(3)), pareto(80, 2.5)])
    ps = [power_law_fit(x, xmin=1.0, n_tests=8, seed=seed).p_value for seed in range(4)]
    assert all((8 * p).is_integer() for p in ps)
    assert len(set(ps)) > 1
    assert ps[0] == power_law_fit(x, xmin=1.0, n_tests=8, seed=0).p_value
    assert 0.1 < power_law_fit(x, xmin=1.0, n_tests=40).p_value < 1


def test_synthetic_samples_have_the_datas_body_and_the_fitted_tail():
    body, g = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.Generator().manual_seed(0)
    sample = _synthetic(body, 0.7, 3.0, 2.0, 20_000, g)
    assert sample.dtype == torch.float64
    assert (sample.diff() >= 0).all()
    tail = sample[sample >= 2.0]
    assert len(tail) / len(sample) == pytest.approx(0.7, abs=0.015)  # four standard errors of a share
    assert set(sample[sample < 2.0].tolist()) == set(body.tolist())
    assert stats.kstest(tail.numpy(), stats.pareto(2.0, scale=2.0).cdf).pvalue > 0.01
    alone = _synthetic(body[:0], 0.7, 3.0, 2.0, 1000, g)
    assert alone.min() >= 2.0


def test_outlier_ratio_counts_entries_above_the_threshold():
    W = torch.ones(2, 10, 10)
    W[0, 0, :3] = torch.tensor([-1000.0, 1000.0, 0.0])
    torch.testing.assert_close(outlier_ratio(W), torch.tensor([0.02, 0.0], dtype=torch.float64))
    W = torch.zeros(1, 8)
    W[0, :2] = torch.tensor([1.0, 7.0])  # sizes of mean 1
    assert [float(outlier_ratio(W, threshold=t)) for t in (0.5, 1.0, 6.9, 7.0)] == [2 / 8, 1 / 8, 1 / 8, 0]
    five = torch.zeros(6, 6)
    five[0, :6] = 6.0
    assert outlier_ratio(five) == pytest.approx(1 / 6)
    assert outlier_ratio(five.bfloat16(), threshold=6.0) == 0


def test_empty_or_negative_spectra_are_refused():
    with pytest.raises(ValueError, match="empty"):
        effective_rank(torch.tensor([]))
    for bad in (-1.0, math.nan, math.inf):
        for measure in (effective_rank, stable_rank, explained_variance, gini, hill_index):
            with pytest.raises(ValueError, match="finite and non-negative"):
                measure(torch.tensor([1.0, bad]))
