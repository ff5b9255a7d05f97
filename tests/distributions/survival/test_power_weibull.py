import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankwise.distributions.survival import power_weibull as pgw

T = np.geomspace(1e-3, 8, 40)
KAPPAS = [-0.9, -0.3, -1e-9, 0.0, 1e-12, 1e-7, 1e-3, 0.2, 1.0, 2.0, 50.0]


def exact(t, kappa, gamma=1.0):
    """H_A with fifty digits."""
    with mpmath.workdps(50):
        k, y = mpmath.mpf(kappa), mpmath.mpf(t) ** gamma
        if k == 0:
            return float(mpmath.log(1 + y))
        return float((k + 1) / k * ((1 + y / (k + 1)) ** k - 1))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_cumulative_hazard_equals_the_formula_in_fifty_digits(kappa):
    found = pgw.cumulative_hazard(T, gamma=1.3, kappa=kappa)
    np.testing.assert_allclose(found, [exact(t, kappa, 1.3) for t in T], rtol=2e-13)


@pytest.mark.parametrize("kappa", [*KAPPAS, 200.0, np.inf])
def test_hazard_is_the_derivative_of_the_cumulative_hazard(kappa):
    given_ = {"phi": 0.7, "lambda_": 1.4, "gamma": 1.3, "kappa": kappa}
    h = 1e-6 * T
    slope = (pgw.cumulative_hazard(T + h, **given_) - pgw.cumulative_hazard(T - h, **given_)) / (2 * h)
    np.testing.assert_allclose(np.exp(pgw.log_hazard(T, **given_)), slope, rtol=1e-7)


def test_named_cases_are_the_known_distributions():
    np.testing.assert_allclose(
        pgw.cumulative_hazard(T, phi=0.5, gamma=1.7, kappa=1.0), -stats.weibull_min(1.7, scale=2).logsf(T), rtol=1e-12
    )
    np.testing.assert_allclose(
        pgw.cumulative_hazard(T, phi=0.5, lambda_=0.6, gamma=1.7, kappa=0.0), -stats.burr12(1.7, 0.6, scale=2).logsf(T),
        rtol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(
        pgw.cumulative_hazard(T, phi=0.5, lambda_=0.6, kappa=np.inf), -stats.gompertz(0.6, scale=2).logsf(T), rtol=1e-12
    )
    np.testing.assert_allclose(pgw.cumulative_hazard(T, kappa=2.0), T + T**2 / 6, rtol=1e-12)  # a linear hazard


def test_infinite_kappa_is_the_limit_of_large_ones():
    gaps = [np.abs(pgw.cumulative_hazard(1.5, kappa=k) / np.expm1(1.5) - 1) for k in (1e3, 1e5, 1e7)]
    assert gaps[0] > 50 * gaps[1] > 2500 * gaps[2]
    assert pgw.cumulative_hazard(1.5, kappa=np.inf) == pytest.approx(np.expm1(1.5), rel=1e-14)


@pytest.mark.parametrize("order", range(6))
def test_continuous_in_kappa_at_zero_and_across_the_series(order):
    z = np.linspace(-4, 3, 15)
    for at in (0.0, 0.5 / np.log1p(np.exp(1.0))):
        below, above = (pgw.growth(z, pgw.log_shape(at + d))[0][order] for d in (-1e-12, 1e-12))
        np.testing.assert_allclose(below, above, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_derivatives_equal_central_differences(kappa):
    z, nu, e = np.linspace(-6, 2.5, 30), float(pgw.log_shape(kappa)), 1e-5
    for which in (0, 1):
        at = pgw.growth(z, nu)[which]
        up, down = pgw.growth(z + e, nu)[which], pgw.growth(z - e, nu)[which]
        right, left = pgw.growth(z, nu + e)[which], pgw.growth(z, nu - e)[which]
        for found, a, b in (
            (at.z, up.value, down.value), (at.nu, right.value, left.value), (at.zz, up.z, down.z),
            (at.znu, right.z, left.z), (at.nunu, right.nu, left.nu),
        ):  # fmt: skip
            np.testing.assert_allclose(found, (a - b) / (2 * e), rtol=1e-5, atol=1e-7)


@settings(max_examples=200, deadline=None)
@given(
    y=st.floats(1e-6, 20), kappa=st.floats(-0.95, 30), gamma=st.floats(0.3, 4), phi=st.floats(0.01, 50),
    lambda_=st.floats(0.1, 5),
)  # fmt: skip
def test_quantile_inverts_the_cumulative_hazard(y, kappa, gamma, phi, lambda_):
    given_ = {"phi": phi, "lambda_": lambda_, "gamma": gamma, "kappa": kappa}
    t = pgw.quantile(y, **given_)
    if kappa < 0 and y >= -lambda_ * (kappa + 1) / kappa * (1 - 1e-9):
        assert np.isinf(t) or pgw.cumulative_hazard(t, **given_) == pytest.approx(y, rel=1e-6)
    elif np.isfinite(t):
        assert pgw.cumulative_hazard(t, **given_) == pytest.approx(y, rel=1e-8)


def test_defective_hazard_ends_at_the_cured_share():
    p = pgw.cure_fraction(lambda_=0.8, kappa=-0.4)
    assert p == pytest.approx(np.exp(-0.8 * 0.6 / 0.4))
    assert np.exp(-pgw.cumulative_hazard(np.inf, lambda_=0.8, kappa=-0.4)) == pytest.approx(p)
    y = np.random.default_rng(0).exponential(size=20_000)
    cured = np.isinf(pgw.quantile(y, lambda_=0.8, kappa=-0.4)).mean()
    assert abs(cured - p) < 4 * np.sqrt(p * (1 - p) / 20_000)
    assert pgw.cure_fraction(kappa=0.3) == 0


def test_nikulin_haghighi_parametrisation_maps_to_ours():
    sigma, nu, g = 2.5, 1.4, 0.6
    k = 1 / g
    theirs = (1 + (T / sigma) ** nu) ** (1 / g) - 1
    ours = pgw.cumulative_hazard(T, phi=(k + 1) ** (1 / nu) / sigma, lambda_=k / (k + 1), gamma=nu, kappa=k)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)  # their - 1 cancels


@pytest.mark.parametrize(
    ("gamma", "kappa", "shape"),
    [
        (1, 1, "constant"), (1.5, 1, "increasing"), (0.6, 1, "decreasing"), (2, 0.2, "up then down"),
        (0.5, 4, "down then up"), (1, np.inf, "increasing"), (1, 0, "decreasing"),
    ],
)  # fmt: skip
def test_hazard_runs_as_its_shape_says(gamma, kappa, shape):
    assert pgw.hazard_shape(gamma, kappa) == shape
    log_h = pgw.log_hazard(np.geomspace(1e-4, 30 if kappa < 5 else 5, 400), gamma=gamma, kappa=kappa)
    turns = np.sign(np.round(np.diff(log_h), 12))
    turns = turns[turns != 0]
    found = {1: "increasing", -1: "decreasing"}.get(turns[0], "") if len(turns) and (turns == turns[0]).all() else None
    if found is None:
        found = "constant" if not len(turns) else ("up then down" if turns[0] > 0 else "down then up")
    assert found == shape


def test_no_power_of_time_overflows():
    values = pgw.cumulative_hazard([1e-300, 1e300], gamma=3, kappa=0.5)
    assert values[0] >= 0
    assert np.isfinite(pgw.log_hazard([1e-300, 1e300], gamma=3, kappa=0.5)).all()


def test_kappa_at_or_below_minus_one_is_refused():
    with pytest.raises(ValueError, match=r"kappa must be above -1, found -1\.0"):
        pgw.cumulative_hazard(1.0, kappa=-1.0)


@pytest.mark.parametrize("kappa", [-0.5, 0.0, 1e-8, 0.5, 1.0, 3.0, 50.0, np.inf])
@pytest.mark.parametrize("gamma", [0.6, 1.0, 2.0])
def test_hazard_at_the_ends_of_time_is_its_limit(kappa, gamma):
    given_ = {"phi": 0.3, "lambda_": 0.7, "gamma": gamma, "kappa": kappa}
    start, near = np.exp(pgw.log_hazard([0.0, 1e-12], **given_))
    assert start == {0.6: np.inf, 1.0: 0.7 * 0.3, 2.0: 0.0}[gamma] or start == pytest.approx(near, rel=1e-9)
    end = pgw.log_hazard(np.inf, **given_)
    if kappa * gamma == 1:
        assert end == pytest.approx(pgw.log_hazard(1e12, **given_), rel=1e-9)
    else:
        assert end == (np.inf if kappa * gamma > 1 else -np.inf)


@pytest.mark.parametrize("kappa", [-0.5, 0.0, 1e-8, 0.5, 1.0, 3.0, 50.0])
def test_log_cumulative_hazard_is_finite_where_the_hazard_overflows_or_vanishes(kappa):
    given_ = {"phi": 0.3, "lambda_": 0.7, "gamma": 3.0, "kappa": kappa}
    t = np.array([1e-3, 1.0, 5.0])
    H = pgw.cumulative_hazard(t, **given_)
    np.testing.assert_allclose(pgw.log_cumulative_hazard(t, **given_), np.log(H), rtol=1e-12)
    early, late = pgw.log_cumulative_hazard([1e-200, 1e40], **given_)
    assert early == pytest.approx(np.log(0.7) + 3 * np.log(0.3 * 1e-200), rel=1e-12)  # H → λ (φ t)^γ
    L = 3 * np.log(0.3 * 1e40) - np.log(kappa + 1)
    if kappa > 1e-3:  # H → λ m / κ e^{κ L}
        assert late == pytest.approx(np.log(0.7 * (kappa + 1) / kappa) + kappa * L, rel=1e-12)
    else:  # λ log(φ t)^γ, and the end of a defective hazard
        assert late == pytest.approx(np.log(0.7 * (L if kappa >= 0 else 1.0)), rel=1e-5)


def test_quantiles_far_out_keep_their_digits_for_small_kappa():
    with mpmath.workdps(60):
        k, y = mpmath.mpf(1e-10), mpmath.mpf(3000)
        expected = float(mpmath.log((k + 1) * (mpmath.power(1 + k * y / (k + 1), 1 / k) - 1)))
    assert pgw.log_quantile(3000.0, kappa=1e-10) == pytest.approx(expected, rel=1e-12)


def test_nothing_given_is_the_unit_exponential():
    np.testing.assert_allclose(pgw.cumulative_hazard(T), T, rtol=1e-14)
    np.testing.assert_allclose(pgw.log_hazard(T), 0, atol=1e-14)
    np.testing.assert_allclose(pgw.log_cumulative_hazard(T), np.log(T), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(pgw.quantile(T), T, rtol=1e-13)
    np.testing.assert_allclose(pgw.log_quantile(T), np.log(T), rtol=1e-12, atol=1e-14)
    assert pgw.cure_fraction() == 0
    assert pgw.cure_fraction(kappa=-0.5) == pytest.approx(np.exp(-1))
    assert pgw.cure_fraction(kappa=0.0) == 0


@pytest.mark.parametrize("name", ["phi", "lambda_", "gamma", "kappa"])
def test_what_is_not_given_is_one(name):
    others = {"phi": 0.7, "lambda_": 1.4, "gamma": 1.3, "kappa": 0.4}
    del others[name]
    for f in (pgw.cumulative_hazard, pgw.log_hazard, pgw.log_cumulative_hazard, pgw.quantile, pgw.log_quantile):
        np.testing.assert_allclose(f(T, **others), f(T, **others, **{name: 1.0}), rtol=1e-14)


def test_parameters_broadcast():
    kappa, gamma = np.array([[-0.3], [0.0], [2.0]]), np.array([0.5, 1.0, 2.0, 3.0])
    for f in (pgw.cumulative_hazard, pgw.log_hazard, pgw.log_cumulative_hazard, pgw.quantile):
        whole = f(0.7, kappa=kappa, gamma=gamma)
        assert whole.shape == (3, 4)
        each = [[float(f(0.7, kappa=k, gamma=g)) for g in gamma] for k in kappa[:, 0]]
        np.testing.assert_allclose(whole, each, rtol=1e-13)


def test_quantiles_beyond_the_end_of_a_defective_hazard_are_infinite():
    end = 0.8 * 0.6 / 0.4
    assert np.isinf(pgw.quantile([end * (1 + 1e-12), end + 1], lambda_=0.8, kappa=-0.4)).all()
    assert np.isfinite(pgw.quantile(end * (1 - 1e-9), lambda_=0.8, kappa=-0.4))
    assert pgw.quantile(0.0, kappa=-0.4) == 0
    assert np.isinf(pgw.quantile(1e6, kappa=0.0))  # overflows
    assert pgw.log_quantile(1e6, kappa=0.0) == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("gamma", "kappa", "shape"),
    [(1, 0.5, "decreasing"), (2, 0.5, "increasing"), (0.5, 2.0, "decreasing"), (1, 2, "increasing"),
     (0.5, np.inf, "down then up"), (2, np.inf, "increasing"), (2, -0.5, "up then down")],
)  # fmt: skip
def test_a_hazard_that_is_level_at_one_end_runs_one_way(gamma, kappa, shape):
    assert pgw.hazard_shape(gamma, kappa) == shape
