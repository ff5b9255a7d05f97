import numpy as np
import pytest

from rankwise.distributions.kde_regimes import critical_bandwidths, log_mean_term


def test_log_mean_term_equals_monte_carlo():
    rng, d = np.random.default_rng(0), 40
    s = np.linspace(0.2, 3, d)
    found = []
    for _ in range(40):
        x = rng.normal(size=d) * np.sqrt(s)
        y = rng.normal(size=(20_000, d)) * np.sqrt(s)
        found.append(np.log(np.exp(-0.05 * ((x - y) ** 2).sum(1) / 2).mean()))
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(float(log_mean_term(0.05, s)), abs=4 * error)


@pytest.mark.parametrize("spectrum", [np.ones(60), np.geomspace(1e-3, 1, 60), np.r_[np.ones(5), np.zeros(20)]])
def test_condensation_solves_its_equation(spectrum):
    c = critical_bandwidths(spectrum, 100_000)
    bs = c.beta_g * c.spectrum
    assert (np.log1p(bs) / 2 - bs / (2 * (1 + bs) ** 2)).sum() == pytest.approx(np.log(100_000), rel=1e-12)
    assert c.h_clt == pytest.approx(np.sqrt(2) * c.h_g, rel=1e-14)
    # β_G Φ' - Φ = log n with Φ' by differences
    e = 1e-6 * c.beta_g
    slope = (log_mean_term(c.beta_g + e, c.spectrum) - log_mean_term(c.beta_g - e, c.spectrum)) / (2 * e)
    assert c.beta_g * slope - log_mean_term(c.beta_g, c.spectrum) == pytest.approx(np.log(100_000), rel=1e-7)
    assert -slope / c.d == pytest.approx(c.e_min, rel=1e-7)


def test_known_values_of_a_standard_normal_in_sixty_dimensions():
    c = critical_bandwidths(np.ones(60), 100_000)
    assert (c.alpha, c.h_g, c.h_opt) == pytest.approx((0.192, 1.064, 0.902), abs=5e-4)
    assert c.log_density([c.h_opt, c.h_g, 2 * c.h_g]) == pytest.approx([-1.5074, -1.5321, -1.8645], abs=1e-4)
    assert [c.regime(h) for h in (0.9, 1.2, 1.6)] == ["extreme-value", "stable", "CLT"]


def test_fewer_points_condense_at_larger_bandwidths_and_scale_moves_all():
    few, many = critical_bandwidths(np.ones(30), 100), critical_bandwidths(np.ones(30), 10**6)
    assert few.h_g > many.h_g
    assert critical_bandwidths(np.ones(30), 2).beta_g < 1
    scaled = critical_bandwidths(9 * np.eye(30), 100)
    assert (scaled.h_g, scaled.h_opt) == pytest.approx((3 * few.h_g, 3 * few.h_opt))


def test_h_opt_maximises_the_theory():
    c = critical_bandwidths(np.ones(60), 100_000)
    h = np.geomspace(0.3, 3, 4001)
    assert h[np.argmax(c.log_density(h))] == pytest.approx(c.h_opt, rel=1e-3)


@pytest.mark.parametrize(
    ("spectrum", "n", "message"),
    [
        (np.ones(3), 1, "n is 1"),
        (np.zeros(3), 9, "no direction"),
        ([-1.0, 1], 9, "non-negative"),
        (np.ones((2, 3)), 9, "symmetric"),
    ],
)
def test_bad_spectra_are_refused(spectrum, n, message):
    with pytest.raises(ValueError, match=message):
        critical_bandwidths(spectrum, n)
