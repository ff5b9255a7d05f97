import numpy as np
import pytest

from rankwise.distributions.density.regimes import CriticalBandwidths, critical_bandwidths, log_mean_term


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


def test_directions_without_variance_are_those_below_rounding():
    assert critical_bandwidths([1.0, 1e-9], 9).d == 2
    assert critical_bandwidths([1.0, 1e-11, 0.0, -1e-12], 9).d == 1
    assert critical_bandwidths([2.0, 5.0, 3.0], 9).spectrum.tolist() == [5, 3, 2]
    assert critical_bandwidths([1.0, -1e-9], 9).d == 1
    assert critical_bandwidths(np.ones(3), 2).n == 2
    for spectrum, n, message in (
        ([1.0, -1e-7], 9, "non-negative"),
        ([], 9, "non-negative"),
        ([1.0, np.nan], 9, "finite"),
        ([1.0, np.inf], 9, "finite"),
        (np.array([[1.0, 0.2], [0.1, 1.0]]), 9, r"symmetric covariance is needed, found shape \(2, 2\)"),
        (np.ones(3), 1.99, "n is 1.99"),
    ):
        with pytest.raises(ValueError, match=message):
            critical_bandwidths(spectrum, n)


def test_a_covariance_is_its_eigenvalues():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    given, rotated = critical_bandwidths([3.0, 2.0, 0.5], 50), critical_bandwidths(Q * [3.0, 2.0, 0.5] @ Q.T, 50)
    np.testing.assert_allclose(rotated.spectrum, given.spectrum)
    assert (rotated.h_g, rotated.h_opt) == pytest.approx((given.h_g, given.h_opt))
    assert given.alpha == pytest.approx(np.log(50) / 3)
    assert given.beta_g == pytest.approx(given.h_g**-2)
    assert given.h_opt == pytest.approx(np.sqrt(2 * given.e_min))


def test_regimes_change_at_one_and_two():
    c = CriticalBandwidths(
        n=9, d=1, alpha=2.0, beta_g=1.0, h_g=1.0, h_clt=2**0.5, h_opt=0.5, e_min=0.125, spectrum=np.ones(1)
    )
    assert [c.regime(h) for h in (0.999, 1.0, 1.414, 1.415)] == ["extreme-value", "stable", "stable", "CLT"]
    np.testing.assert_allclose(c.index([0.5, 1.0, 2.0]), [0.25, 1.0, 4.0])
    below, above = c.log_density([0.5, 2.0])
    assert below == pytest.approx(-2 - 4 * 0.125 + np.log(4 / (2 * np.pi)) / 2)
    assert above == pytest.approx(-np.log1p(0.25) / 2 - 0.25 / (2 * 1.25) + np.log(0.25 / (2 * np.pi)) / 2)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("n", [2, 10, 1e12])
def test_the_equation_is_solved_at_any_scale_and_number(scale, n):
    c = critical_bandwidths(scale * np.array([1.0, 0.3]), n)
    bs = c.beta_g * c.spectrum
    assert (np.log1p(bs) / 2 - bs / (2 * (1 + bs) ** 2)).sum() == pytest.approx(np.log(n), rel=1e-9)
