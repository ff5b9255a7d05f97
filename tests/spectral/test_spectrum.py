import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import (
    effective_rank,
    explained_variance,
    gini,
    hill_index,
    outlier_ratio,
    power_law_fit,
    stable_rank,
)

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


@given(spectra)
def test_explained_variance_rises_to_one(S):
    curve = explained_variance(S)
    assert (curve.diff() >= -1e-12).all()
    assert curve[-1] == pytest.approx(1)


def test_gini_closed_forms():
    assert gini(torch.ones(5)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 0, 0, 1])) == pytest.approx(3 / 4)
    assert gini(torch.tensor([1.0, 2, 3, 4])) == pytest.approx(0.25)


def pareto(n, alpha, seed=0):
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1 - u).pow(-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_tail_estimators_recover_the_exponent_of_a_pareto_sample(alpha):
    x = pareto(20_000, alpha)
    assert hill_index(x, k=5_000) == pytest.approx(alpha, rel=0.05)
    assert power_law_fit(x, xmin=1.0).alpha == pytest.approx(alpha, rel=0.03)


def test_fit_test_accepts_a_power_law_and_rejects_a_uniform_sample():
    assert power_law_fit(pareto(300, 2.5), n_tests=40).p_value > 0.1
    uniform = 1 + torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert power_law_fit(uniform, xmin=1.0, n_tests=40).p_value < 0.1


def test_outlier_ratio_counts_entries_above_the_threshold():
    W = torch.ones(10, 10)
    W[0, 0] = 1000.0
    assert outlier_ratio(W) == pytest.approx(0.01)


def test_empty_or_negative_spectra_are_refused():
    with pytest.raises(ValueError, match="empty"):
        effective_rank(torch.tensor([]))
    with pytest.raises(ValueError, match="non-negative"):
        stable_rank(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="non-negative"):
        gini(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="k=9"):
        hill_index(torch.ones(5), k=9)
