"""Calibration and switches against quadrature, hand-made intervals and scikit-learn."""

import numpy as np
import pytest
from scipy.integrate import quad
from sklearn.metrics import roc_auc_score

from rankwise.continual.unlearning.router import ROUTERS, Calibration, auroc, switch

bells = Calibration(1.0, 0.7, 0.2)
GRID = np.linspace(-3, 5, 4001)
LEVELS = {"low": 0.2, "high": 0.5, "top": 1.0}


def density(x):
    both = [np.exp(-0.5 * ((x - m) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi)) for m in (1.0, 0.7)]
    return sum(both) / 2


@pytest.mark.parametrize("g", [0.2, 0.6, 0.85, 1.3])
def test_likeness_is_the_mass_of_both_tails_beyond_a_score(g):
    far = abs(g - 0.85)
    tails = quad(density, -5, 0.85 - far)[0] + quad(density, 0.85 + far, 6)[0]
    assert bells.likeness(g, two_sided=True) == pytest.approx(tails, abs=1e-7)


def test_likeness_is_one_at_the_centre_symmetric_and_falls_with_distance():
    p = bells.likeness(GRID, two_sided=True)
    assert bells.centre == pytest.approx(0.85)
    assert bells.likeness(bells.centre, two_sided=True) == 1
    mirrored = bells.likeness(2 * bells.centre - GRID, two_sided=True)
    np.testing.assert_allclose(p, mirrored, atol=1e-12)
    assert (p >= 0).all()
    assert (p <= 1).all()
    assert (np.diff(p[bells.centre > GRID]) >= 0).all()
    assert (np.diff(p[bells.centre < GRID]) <= 0).all()


def test_one_sided_likeness_only_rises_and_stays_on_above_the_centre():
    p = bells.likeness(GRID)
    assert (np.diff(p) >= 0).all()
    assert (p[bells.centre < GRID] == 1).all()
    np.testing.assert_array_equal(p[bells.centre > GRID], bells.likeness(GRID[bells.centre > GRID], two_sided=True))


def test_the_switch_is_nearly_one_at_the_centre_and_an_eighth_far_away():
    np.testing.assert_allclose(switch([1.0, 0.0]), [1 / (1 + np.exp(-8)), 1 / (1 + np.exp(2))], rtol=1e-12)


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_our_routers_are_monotone_without_a_hole(name):
    w = ROUTERS[name](np.linspace(0, 1, 1001), **LEVELS)
    assert (np.diff(w) >= 0).all()
    assert w[0] == 0
    assert w[-1] == 1


def test_the_soft_router_is_off_at_low_half_in_the_middle_full_at_high_and_never_jumps():
    soft = ROUTERS["soft"]
    np.testing.assert_allclose(
        soft(np.array([0.119, 0.2, 0.35, 0.5, 0.9]), **LEVELS | {"top": 1.2}), [0, 0, 0.6, 1.2, 1.2]
    )
    assert np.abs(np.diff(soft(np.linspace(0, 1, 10001), **LEVELS))).max() < 1e-3


def test_the_hard_router_steps_in_the_middle():
    np.testing.assert_array_equal(ROUTERS["hard"](np.array([0.349, 0.351]), **LEVELS), [0, 1])


def test_the_released_router_has_its_three_intervals_and_its_hole():
    w = np.array([0.3, 0.3001, 0.4, 0.4001, 0.9, 0.9001])
    np.testing.assert_array_equal(ROUTERS["released"](w, **LEVELS), [0, 0.3001, 0.4, 0, 0, 1.2])


def test_the_released_tofu_router_has_its_three_intervals():
    w = np.array([0.2, 0.25, 0.3199, 0.32, 1.0])
    np.testing.assert_allclose(ROUTERS["released-tofu"](w, **LEVELS), [0, 0.625, 10 * 0.3199**2, 1, 1])


def test_no_router_is_always_on():
    np.testing.assert_array_equal(ROUTERS["off"](np.zeros((2, 1)), **LEVELS), np.ones((2, 1)))


def test_auroc_is_scikit_learns_ties_included():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 30) * 1.0
    assert auroc(a, b) == pytest.approx(roc_auc_score([1] * 40 + [0] * 30, np.concatenate([a, b])))


@pytest.mark.parametrize("numbers", [(0, 0, 0), (np.nan, 0, 1), (0, 0, np.inf)])
def test_a_calibration_without_spread_is_refused(numbers):
    with pytest.raises(ValueError, match="calibration"):
        Calibration(*numbers)
