"""Rank budgets: how many directions each of many matrices may keep under one total.

Matrix ``m`` offers directions with values ``v_m1 >= v_m2 >= …`` (explained variance ratios, importance scores), each
at a cost ``c_m`` (1 when ranks are counted, ``in + out`` when parameters are). Ties go to the earlier matrix, so the
result depends on nothing but the arguments.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor


def allocate(
    values: Sequence[Tensor],
    total: int,
    *,
    cost: Sequence[int] | int = 1,
    min_rank: Sequence[int] | int = 0,
    max_rank: Sequence[int] | int | None = None,
) -> list[int]:
    """Greedy allocation: the best value per cost first, until nothing more fits.

    With equal costs the sum of the values kept is the largest possible (values of a matrix are descending, so the
    greedy choice is exact); with unequal costs it is the best-ratio rule, and no further direction fits at the end.

    Parameters
    ----------
    values : sequence of Tensor
        One descending, finite 1-D tensor a matrix.
    total : int
        What the ranks times their costs may not exceed.
    cost, min_rank, max_rank
        One number, or one a matrix. ``max_rank`` is the length of the matrix' values unless lower.

    Returns
    -------
    list of int
        The rank of every matrix.

    Raises
    ------
    ValueError
        Values not descending, sequences of different length, or a total below what ``min_rank`` costs.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import allocate
    >>> allocate([torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.9, 0.05, 0.05])], total=3)
    [2, 1]
    """
    lists, costs, ranks, limits = _checked(values, total, cost, min_rank, max_rank)
    left = total - sum(r * c for r, c in zip(ranks, costs, strict=True))
    heap = [(-v[r] / c, m) for m, (v, r, c, top) in enumerate(zip(lists, ranks, costs, limits, strict=True)) if r < top]
    heapq.heapify(heap)
    while heap:
        _, m = heapq.heappop(heap)
        if costs[m] > left:
            continue  # never affordable again: what is left only shrinks
        ranks[m] += 1
        left -= costs[m]
        if ranks[m] < limits[m]:
            heapq.heappush(heap, (-lists[m][ranks[m]] / costs[m], m))
    return ranks


def allocate_threshold(
    values: Sequence[Tensor],
    total: int,
    *,
    cost: Sequence[int] | int = 1,
    min_rank: Sequence[int] | int = 0,
    max_rank: Sequence[int] | int | None = None,
) -> tuple[list[int], float]:
    """One threshold for all matrices: keep every direction whose value reaches it; the lowest threshold that fits.

    Arguments as for `allocate`. Directions that tie at the threshold are all kept or all dropped.

    Returns
    -------
    (list of int, float)
        The ranks, and the threshold (infinite when only ``min_rank`` fits).

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import allocate_threshold
    >>> allocate_threshold([torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.75, 0.125, 0.125])], total=3)
    ([2, 1], 0.25)
    """
    lists, costs, floors, limits = _checked(values, total, cost, min_rank, max_rank)

    def ranks_at(threshold: float) -> list[int]:
        return [
            min(max(sum(x >= threshold for x in v), low), top)
            for v, low, top in zip(lists, floors, limits, strict=True)
        ]

    def price(threshold: float) -> int:
        return sum(r * c for r, c in zip(ranks_at(threshold), costs, strict=True))

    levels = sorted({x for v in lists for x in v}, reverse=True)
    low, high = 0, len(levels)  # the price grows along levels: find how many of them fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if price(levels[middle - 1]) <= total else (low, middle - 1)
    threshold = levels[low - 1] if low else float("inf")
    return ranks_at(threshold), threshold


def _checked(values, total, cost, min_rank, max_rank):
    lists = [torch.as_tensor(v).double().flatten().tolist() for v in values]
    n = len(lists)

    def per_matrix(given: Sequence[int] | int, name: str) -> list[int]:
        out = [given] * n if isinstance(given, int) else [int(x) for x in given]
        if len(out) != n:
            raise ValueError(f"{name} has {len(out)} entries for {n} matrices")
        return out

    for m, v in enumerate(lists):
        if any(a < b for a, b in pairwise(v)) or not all(map(math.isfinite, v)):
            raise ValueError(f"values of matrix {m} are not descending and finite")
    costs = per_matrix(cost, "cost")
    if any(c < 1 for c in costs):
        raise ValueError("every cost must be at least 1")
    limits = [len(v) for v in lists]
    if max_rank is not None:
        limits = [min(a, b) for a, b in zip(limits, per_matrix(max_rank, "max_rank"), strict=True)]
    floors = [min(a, b) for a, b in zip(per_matrix(min_rank, "min_rank"), limits, strict=True)]
    need = sum(r * c for r, c in zip(floors, costs, strict=True))
    if need > total:
        raise ValueError(f"a total of {total} cannot hold the minimum ranks, which cost {need}")
    return lists, costs, floors, limits


def proportional(shares: Sequence[float], total: int, *, least: int = 0) -> list[int]:
    """Whole numbers in proportion to ``shares`` that sum to ``total``, by largest remainders (ties to the earlier).

    Parameters
    ----------
    shares : sequence of float
        Not negative; all zero counts as all equal.
    total : int
        What the numbers sum to.
    least : int
        The smallest each may get, before the rest is shared out. Where ``total`` does not suffice, all get ``least``.

    Examples
    --------
    >>> from rankwise.spectral import proportional
    >>> proportional([1, 1, 2], total=5)
    [1, 1, 3]
    """
    if any(not 0 <= s < float("inf") for s in shares):
        raise ValueError(f"shares {list(shares)} must be finite and not negative")
    # as fractions, in which equal remainders are equal
    weights = [Fraction(float(s)) for s in shares] if any(shares) else [Fraction(1)] * len(shares)
    free = max(0, total - least * len(weights))
    exact = [least + free * w / sum(weights) for w in weights]
    parts = [int(x) for x in exact]
    order = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in order[: max(0, least * len(parts) + free - sum(parts))]:
        parts[i] += 1
    return parts
