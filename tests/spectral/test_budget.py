import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import allocate, allocate_threshold

values = st.lists(
    st.lists(st.floats(0, 1), min_size=1, max_size=4).map(lambda v: torch.tensor(sorted(v, reverse=True))),
    min_size=1,
    max_size=4,
)


@given(values, st.integers(0, 12))
def test_unit_costs_give_the_largest_sum_any_allocation_reaches(V, total):
    ranks = allocate(V, total)
    kept = sum(float(v[:r].double().sum()) for v, r in zip(V, ranks, strict=True))
    best = max(
        sum(float(v[:r].double().sum()) for v, r in zip(V, choice, strict=True))
        for choice in itertools.product(*[range(len(v) + 1) for v in V])
        if sum(choice) <= total
    )
    assert kept == pytest.approx(best)
    assert sum(ranks) == min(total, sum(len(v) for v in V))


@given(values, st.integers(0, 40), st.data())
def test_unequal_costs_never_exceed_the_total_and_leave_no_room(V, total, data):
    cost = data.draw(st.lists(st.integers(1, 9), min_size=len(V), max_size=len(V)))
    ranks = allocate(V, total, cost=cost)
    spent = sum(r * c for r, c in zip(ranks, cost, strict=True))
    assert spent <= total
    assert all(r == len(v) or c > total - spent for v, r, c in zip(V, ranks, cost, strict=True))


@given(values, st.integers(0, 12))
def test_threshold_rule_keeps_exactly_what_reaches_the_threshold(V, total):
    ranks, threshold = allocate_threshold(V, total)
    assert ranks == [int((v.double() >= threshold).sum()) for v in V]
    assert sum(ranks) <= total
    lower = [float(x) for v in V for x in v.double() if x < threshold]
    if lower:  # the next level would not fit
        assert sum(int((v.double() >= max(lower)).sum()) for v in V) > total


def test_ties_go_to_the_earlier_matrix():
    same = torch.tensor([0.5, 0.5])
    assert allocate([same, same, same], 4) == [2, 2, 0]


def test_minimum_and_maximum_are_respected():
    V = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([0.1, 0.1, 0.1])]
    assert allocate(V, 3, min_rank=1) == [2, 1]
    assert allocate(V, 4, max_rank=2) == [2, 2]


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match="total of 1 cannot hold"):
        allocate([torch.ones(2), torch.ones(2)], 1, min_rank=1)
    with pytest.raises(ValueError, match="not descending"):
        allocate([torch.tensor([0.1, 0.2])], 1)
    with pytest.raises(ValueError, match="cost has 1 entries for 2"):
        allocate([torch.ones(2), torch.ones(2)], 1, cost=[1])
