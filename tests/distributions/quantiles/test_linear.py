import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.data.frames import regression
from rankwise.distributions.quantiles.linear import LinearQuantile, _direction, _gap, _reach, interior_point
from rankwise.distributions.quantiles.metrics import pinball

TAU = (0.05, 0.25, 0.5, 0.9)


def made(n: int = 200, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-2, 3, size=d) + rng.normal(size=d)
    y = (X / X.std(0)) @ rng.normal(size=d) + (1 + np.abs(X[:, 0] / X[:, 0].std())) * rng.standard_t(3, size=n)
    return X, 1000 + 50 * y


def objective(model: LinearQuantile | QuantileRegressor, X: np.ndarray, y: np.ndarray) -> float:
    """With columns and response standardised."""
    loss = pinball(y, model.predict(X)[:, None], [model.quantile]).mean()
    return float(loss + model.alpha * np.abs(model.coef_ * X.std(0)).sum()) / y.std()


@pytest.mark.parametrize("tau", TAU)
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.03])
def test_equals_scikit_learns_linear_programme_on_standardised_data(tau, alpha):
    X, y = regression("boston")
    Z = StandardScaler().fit_transform(X)
    t = ((y - y.mean()) / y.std(ddof=0)).to_numpy()
    mine = LinearQuantile(tau, alpha=alpha).fit(Z, t)
    theirs = QuantileRegressor(quantile=tau, alpha=alpha).fit(Z, t)
    assert abs(objective(mine, Z, t) - objective(theirs, Z, t)) < 1e-7  # the gap that ends the steps
    # from a vertex the objective rises by about 1 / n a unit, and the last gap is below 1e-8
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from(TAU), n=st.integers(30, 120), d=st.integers(1, 6))
def test_as_many_rows_are_below_as_the_level_says(seed, tau, n, d):
    X, y = made(n, d, seed)
    e = y - LinearQuantile(tau, alpha=0.0, tol=1e-10).fit(X, y).predict(X)
    near = 1e-5 * y.std()  # d + 1 rows lie on the plane
    assert (e < -near).sum() <= n * tau + 1e-9 <= n - (e > near).sum() + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from(TAU))
def test_gap_bounds_what_any_other_coefficients_could_gain(seed, tau):
    rng = np.random.default_rng(seed)
    X, y = np.column_stack([np.ones(60), rng.normal(size=(60, 2))]), rng.standard_cauchy(60)

    def loss(b: np.ndarray) -> float:
        return float(np.maximum(tau * (y - X @ b), (tau - 1) * (y - X @ b)).sum())

    beta, _, gap = interior_point(X, y, tau, tol=1e-3)
    others = beta + rng.normal(size=(200, 3)) * 10.0 ** rng.uniform(-6, 1, size=(200, 1))
    assert min(loss(b) for b in others) >= loss(beta) - gap - 1e-9


@pytest.mark.parametrize("tau", TAU)
@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_a_promise_for_any_multipliers(tau, seed):
    """Of any dual variables in [0, 1], which need not be at right angles to the columns, and of any coefficients."""
    rng = np.random.default_rng(seed)
    X, y = np.column_stack([np.ones(60), rng.normal(size=(60, 2)) + 5]), rng.standard_cauchy(60)
    best = QuantileRegressor(quantile=tau, alpha=0.0, fit_intercept=False).fit(X, y).coef_
    e, Q = y - X @ best, np.linalg.qr(X)[0]
    optimum = np.maximum(tau * e, (tau - 1) * e).sum()
    for _ in range(50):
        beta = best + rng.normal(size=3) * 10.0 ** rng.uniform(-6, 0)
        e = y - X @ beta
        lost = np.maximum(tau * e, (tau - 1) * e).sum() - optimum
        assert _gap(X, Q, y, tau, beta, rng.uniform(size=60)) >= lost - 1e-9
        assert _gap(X, Q, y, tau, beta, (e > 0).astype(float)) >= lost - 1e-9


def test_units_of_columns_and_response_do_not_matter():
    X, y = made()
    plain = LinearQuantile(0.9).fit(X, y).predict(X)
    scaled = LinearQuantile(0.9).fit(X * [1e3, 1e-3, 2, 1] + 5, 7 * y - 100).predict(X * [1e3, 1e-3, 2, 1] + 5)
    np.testing.assert_allclose(scaled, 7 * plain - 100, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1e-2])
def test_a_column_twice_and_a_constant_one_gain_nothing(alpha):
    X, y = made()
    more = np.column_stack([X, X[:, :1], np.full(len(X), 3.0)])
    plain, twice = (LinearQuantile(0.25, alpha=alpha).fit(Z, y) for Z in (X, more))
    assert abs(objective(plain, X, y) - objective(twice, more, y)) < 2e-7  # the gaps of two fits


def test_a_large_penalty_leaves_the_sample_quantile():
    X, y = made(201)
    model = LinearQuantile(0.25, alpha=10.0).fit(X, y)
    np.testing.assert_allclose(model.predict(X), np.quantile(y, 0.25), rtol=1e-5)


def test_more_columns_than_rows():
    X, y = made(20, 40)
    model = LinearQuantile(0.5, alpha=0.02).fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    assert (np.abs(model.coef_ * X.std(0)) > 1e-4 * y.std()).sum() <= 20  # a vertex of the lasso


def test_constant_response_is_predicted():
    X, _ = made()
    np.testing.assert_allclose(LinearQuantile(0.3).fit(X, np.full(len(X), 2.5)).predict(X), 2.5)


def test_a_gap_that_stays_is_told(monkeypatch):
    X, y = made()
    monkeypatch.setattr("rankwise.distributions.quantiles.linear._STEPS", 3)
    with pytest.warns(ConvergenceWarning, match="after 3 steps, above tol=1e-07"):
        LinearQuantile(0.5).fit(X, y)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"quantile": 1.0}, "between 0 and 1"), ({"alpha": -1.0}, "at least 0"), ({"tol": 0.0}, "above 0")],
)
def test_bad_options_are_named(options, why):
    X, y = made()
    with pytest.raises(ValueError, match=why):
        LinearQuantile(**options).fit(X, y)


@parametrize_with_checks([LinearQuantile(0.5)])
def test_scikit_learn_checks(estimator, check):
    assert check(estimator) is None  # what does not hold is raised


def dependent(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full-rank columns, the same with ones that they make up, and a response."""
    rng = np.random.default_rng(seed)
    X, group = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
    dummies = np.eye(4)[group]
    y = X[:, 0] + dummies @ [1.0, 2, 3, 4] + rng.standard_t(3, size=n)
    plain = np.column_stack([X, dummies[:, 1:]])
    twice = (X[:, 0] * 1e4).astype(np.float32)  # to seven digits
    return plain, np.column_stack([X, dummies, X[:, 0] + X[:, 1], twice, X[:, 2], np.full(n, 3.0)]), y


@pytest.mark.parametrize("tau", TAU)
@pytest.mark.parametrize("n", [60, 400])
def test_dependent_columns_reach_the_optimum_without_a_penalty(tau, n):
    for seed in range(5):
        plain, more, y = dependent(n, seed)
        best = QuantileRegressor(quantile=tau, alpha=0.0).fit(plain, y)
        model = LinearQuantile(tau, alpha=0.0).fit(more, y)
        assert objective(model, more, y) == pytest.approx(
            objective(LinearQuantile(tau, alpha=0.0).fit(plain, y), plain, y), abs=2e-7
        )
        assert objective(model, more, y) <= objective(best, plain, y) + 1e-6
        assert np.abs(model.coef_).max() < 50  # and not 1e14 against -1e14


def test_equal_columns_share_their_coefficient():
    plain, _, y = dependent(200, 0)
    model = LinearQuantile(0.5, alpha=0.0).fit(np.column_stack([plain, plain[:, 0], plain[:, 0]]), y)
    once = LinearQuantile(0.5, alpha=0.0).fit(plain, y).coef_[0]
    np.testing.assert_allclose(model.coef_[[0, -2, -1]], once / 3, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 6, 100])
def test_the_gap_is_that_of_the_coefficients_returned(monkeypatch, steps):
    monkeypatch.setattr("rankwise.distributions.quantiles.linear._STEPS", steps)
    _, more, y = dependent(150, 1)
    X = np.column_stack([np.ones(150), more])
    least = (
        150
        * pinball(
            y, QuantileRegressor(quantile=0.3, alpha=0).fit(more[:, :6], y).predict(more[:, :6])[:, None], [0.3]
        ).mean()
    )
    beta, _, gap = interior_point(X, y, 0.3, tol=1e-9)
    above = 150 * pinball(y, (X @ beta)[:, None], [0.3]).mean() - least
    assert above <= gap + 1e-6  # a promise
    assert steps == 100 or gap > 1e-9


def test_settings_are_these_where_none_are_given():
    assert LinearQuantile().get_params() == {"quantile": 0.5, "alpha": 1e-3, "tol": 1e-7}
    X, y = made()
    for options in ({"alpha": 0.0}, {"quantile": 1e-3}, {"quantile": 1 - 1e-3}, {"tol": 1e-12}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            assert np.isfinite(LinearQuantile(**options).fit(X, y).coef_).all()
    for options in (
        {"alpha": -1e-9},
        {"alpha": np.nan},
        {"quantile": 0.0},
        {"quantile": 1.0},
        {"tol": 0.0},
        {"tol": -1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .* is accepted"):
            LinearQuantile(**options).fit(X, y)


def test_a_gap_is_told_to_who_asked(monkeypatch):
    monkeypatch.setattr("rankwise.distributions.quantiles.linear._STEPS", 2)
    with pytest.warns(ConvergenceWarning, match=r"the gap of the 0\.25 quantile is .* a row after 2 steps") as record:
        model = LinearQuantile(0.25).fit(*made())
    assert record[0].filename == __file__
    assert model.n_iter_ == 2


def test_predictions_are_coefficients_and_intercept_in_the_datas_units():
    X, y = made()
    model = LinearQuantile(0.3, alpha=0.01).fit(X, y)
    np.testing.assert_allclose(model.predict(X[:7]), X[:7] @ model.coef_ + model.intercept_, rtol=1e-12)
    assert 0 < model.n_iter_ < 40
    assert np.mean(y <= model.predict(X)) == pytest.approx(0.3, abs=0.05)
    flat = LinearQuantile(0.3).fit(X, np.full(len(X), 7.0))
    np.testing.assert_allclose(flat.predict(X), 7.0, atol=1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.8])
def test_the_step_solves_newtons_equations(tau):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(30, 3)))[0]
    a = rng.uniform(0.1, 0.9, 30)
    s, z, w = 1 - a, rng.uniform(0.1, 2, 30), rng.uniform(0.1, 2, 30)
    low, high = rng.uniform(0, 0.1, 30), rng.uniform(0, 0.1, 30)
    q = 1 / (z / a + w / s)
    db, da, dz, dw = _direction(Q, (Q * q[:, None]).T @ Q, q, (a, s, z, w), low, high)
    np.testing.assert_allclose(Q.T @ da, 0, atol=1e-10)
    np.testing.assert_allclose(dz - dw, Q @ db, atol=1e-9)
    np.testing.assert_allclose(a * z + a * dz + z * da, low, atol=1e-9)
    np.testing.assert_allclose(s * w + s * dw - w * da, high, atol=1e-9)


def test_a_step_reaches_nearly_to_the_nearest_bound_and_never_beyond_one():
    assert _reach(np.array([1.0, 2.0]), np.array([0.5, 3.0])) == 1.0  # nothing falls
    assert _reach(np.array([1.0, 2.0]), np.array([-0.5, -0.1])) == 1.0  # not to zero
    assert _reach(np.array([1.0, 2.0]), np.array([-4.0, -4.0])) == pytest.approx(0.9995 / 4)
    assert _reach(np.array([1.0]), np.array([-0.9995])) == pytest.approx(1.0)
