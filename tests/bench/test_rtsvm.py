"""The recipe of R-TSVM: its list of methods and its grid of λ."""

import pytest

from rankwise.bench.merging import rtsvm
from rankwise.merging.registry import checked_options, find


@pytest.mark.parametrize(("peak", "found"), [(0.9, 1.0), (4.0, 2.25 * 1.5), (0.1, 0.3 / 1.5**3)])
def test_the_grid_of_scales_goes_on_until_the_best_point_is_inside(peak, found):
    asked = []

    def score(s):
        asked.append(s)
        return -abs(s - peak)

    best, at_edge = rtsvm.inside(score)
    assert best == pytest.approx(found)
    assert not at_edge
    assert min(asked) < best < max(asked)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_grid_that_ends_at_its_best_point_says_so(sign):
    best, at_edge = rtsvm.inside(lambda s: sign * s)
    assert at_edge
    assert best * rtsvm.STEP**sign > rtsvm.MOST or best / rtsvm.STEP < rtsvm.LEAST


def test_the_recipes_methods_are_its_own_list_and_take_its_options():
    assert len(rtsvm.COMPARED) == 14
    for method, options in rtsvm.VARIANTS.values():
        checked_options(find(method), options, 3)
