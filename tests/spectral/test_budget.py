import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import allocate, allocate_threshold, proportional

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


def test_the_best_value_per_cost_comes_first():
    V = [torch.tensor([6.0, 5.0]), torch.tensor([1.9, 1.8])]  # per cost 2, 1.67 and 1.9, 1.8
    assert [allocate(V, total, cost=[3, 1]) for total in range(3, 9)] == [
        [1, 0],
        [1, 1],
        [1, 2],
        [1, 2],
        [1, 2],
        [2, 2],
    ]


@given(values, st.integers(0, 12))
def test_threshold_rule_keeps_exactly_what_reaches_the_threshold(V, total):
    ranks, threshold = allocate_threshold(V, total)
    assert ranks == [int((v.double() >= threshold).sum()) for v in V]
    assert sum(ranks) <= total
    lower = [float(x) for v in V for x in v.double() if x < threshold]
    if lower:  # the next level would not fit
        assert sum(int((v.double() >= max(lower)).sum()) for v in V) > total


def test_threshold_rule_counts_costs_and_stays_between_minimum_and_maximum():
    V = [torch.tensor([4.0, 3.0, 2.0]), torch.tensor([3.5, 1.0, 0.5])]
    assert allocate_threshold(V, 5, cost=[2, 3]) == ([1, 1], 3.5)
    assert allocate_threshold(V, 7, cost=[2, 3]) == ([2, 1], 3.0)
    assert allocate_threshold(V, 3, min_rank=[0, 2]) == ([1, 2], 3.5)
    assert allocate_threshold(V, 4, max_rank=[1, 3]) == ([1, 3], 0.5)
    assert allocate_threshold(V, 2, min_rank=1) == ([1, 1], 3.5)
    assert allocate_threshold(V, 0) == ([0, 0], math.inf)


def test_ties_go_to_the_earlier_matrix():
    same = torch.tensor([0.5, 0.5])
    assert allocate([same, same, same], 4) == [2, 2, 0]


def test_minimum_and_maximum_are_respected():
    V = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([0.1, 0.1, 0.1])]
    assert allocate(V, 3, min_rank=1) == [2, 1]
    assert allocate(V, 4, max_rank=2) == [2, 2]
    assert allocate(V, 4, min_rank=[0, 3], max_rank=[3, 2]) == [2, 2]
    assert allocate(V, 6, min_rank=5) == [3, 3]
    assert allocate(V, 9, cost=[2, 3], min_rank=[0, 2]) == [1, 2]


def test_a_total_that_just_holds_the_minimum_ranks_is_enough():
    assert allocate([torch.ones(3)], 6, cost=3, min_rank=2) == [2]
    with pytest.raises(ValueError, match="total of 5 cannot hold the minimum ranks, which cost 6"):
        allocate([torch.ones(3)], 5, cost=3, min_rank=2)


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match="total of 1 cannot hold"):
        allocate([torch.ones(2), torch.ones(2)], 1, min_rank=1)
    for bad in (torch.tensor([0.1, 0.2]), torch.tensor([0.5, math.nan]), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="values of matrix 1 are not descending"):
            allocate([torch.ones(1), bad], 1)
    for name in ("cost", "min_rank", "max_rank"):
        with pytest.raises(ValueError, match=f"{name} has 1 entries for 2"):
            allocate([torch.ones(2), torch.ones(2)], 9, **{name: [1]})
    with pytest.raises(ValueError, match="every cost must be at least 1"):
        allocate([torch.ones(2), torch.ones(2)], 1, cost=[1, 0])


@pytest.mark.parametrize(
    ("shares", "total", "least", "parts"),
    [
        ([1, 1, 2], 8, 0, [2, 2, 4]),
        ([1, 1, 1], 10, 0, [4, 3, 3]),  # a tie of remainders goes to the earlier
        ([1, 1, 1], 11, 0, [4, 4, 3]),
        ([5, 3, 2], 7, 0, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([6, 1, 3], 4, 0, [3, 0, 1]),  # 2.4, 0.4, 1.2: equal remainders
        ([0, 0], 3, 0, [2, 1]),
        ([3, 1], 10, 2, [7, 3]),  # 2 + 4.5, 2 + 1.5
        ([1, 0], 5, 1, [4, 1]),
        ([1, 2], 3, 2, [2, 2]),  # the total does not suffice
        ([1, 2], 0, 0, [0, 0]),
    ],
)
def test_whole_parts_follow_the_largest_remainders(shares, total, least, parts):
    assert proportional(shares, total, least=least) == parts
    assert least or proportional(shares, total) == parts


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.integers(0, 50))
def test_whole_parts_sum_to_the_total_and_each_is_its_share_rounded(shares, total):
    parts, whole = proportional(shares, total), sum(shares)
    assert sum(parts) == total
    if whole > 0:
        assert all(abs(p - total * s / whole) < 1 + 1e-9 for p, s in zip(parts, shares, strict=True))


@pytest.mark.parametrize("share", [-1e-9, math.nan, math.inf])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="must be finite and not negative"):
        proportional([1.0, share], 3)


def test_the_first_direction_bought_is_the_one_worth_most_for_its_price():
    values = [torch.tensor([0.5]), torch.tensor([0.9])]
    assert allocate(values, total=10, cost=[1, 10], min_rank=0) == [1, 0]
