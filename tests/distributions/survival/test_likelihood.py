import copy
import pickle

import numpy as np
import pytest

from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.likelihood import BLOCK, Likelihood, Observations, newton


def sample(n=600, *, censoring="all", seed=0):
    rng = np.random.default_rng(seed)
    X = np.c_[np.ones(n), rng.normal(size=(n, 2)) * [3, 0.1] + [5, 0]]
    t = pgw.quantile(rng.exponential(size=n), phi=np.exp(0.3 * X[:, 1] - 1), gamma=1.3, kappa=0.4)
    event = rng.random(n) < 0.7
    lower, upper, entry = t.copy(), np.where(event, t, np.inf), np.zeros(n)
    if censoring == "all":
        narrow = ~event & (rng.random(n) < 0.6)
        lower[narrow] *= 0.7
        upper[narrow] = t[narrow] * 1.5
        lower[narrow & (rng.random(n) < 0.3)] = 0
        entry = np.where(rng.random(n) < 0.3, 0.3 * lower, 0)
    return Observations(lower=lower, upper=upper, event=event, entry=entry, weight=rng.uniform(0.5, 2, n)), X


FREE = [
    ("phi_", "gamma_", "kappa_"), ("lambda_", "gamma_", "kappa_"), ("phi_", "lambda_", "gamma_", "kappa_"),
    ("lambda_", "kappa_"), ("phi_", "gamma_"), ("kappa_",),
]  # fmt: skip


@pytest.mark.parametrize("free", FREE, ids="+".join)
@pytest.mark.parametrize("shape", [np.log(0.3), 0.0, 1e-6, np.log(2), 3.0], ids=lambda v: f"nu={v:.2g}")
def test_gradient_and_hessian_equal_central_differences(free, shape):
    o, X = sample()
    f = Likelihood(o, {n: None if n == "kappa_" else X for n in free})
    theta = f.start({"phi_": -1.0, "kappa_": shape}) + 0.1 * np.random.default_rng(1).normal(size=f.size)
    at, e = f(theta), 1e-5
    near = [(f(theta + e * d), f(theta - e * d)) for d in np.eye(f.size)]
    np.testing.assert_allclose(at.gradient, [(a.value - b.value) / (2 * e) for a, b in near], atol=1e-7)
    np.testing.assert_allclose(at.hessian, [(a.gradient - b.gradient) / (2 * e) for a, b in near], atol=1e-7)


def test_blocks_change_nothing():
    n = 3 * BLOCK + 17
    o, X = sample(n, censoring="right")
    f = Likelihood(o, {"phi_": X, "gamma_": X, "kappa_": None})
    theta = f.start({"phi_": -1.0})
    whole = f(theta)
    parts = []
    for rows in np.array_split(np.arange(n), 5):
        g = Likelihood(o.take(rows), {"phi_": X[rows], "gamma_": X[rows], "kappa_": None})
        parts.append(g(np.linalg.solve(g.original(), f.original() @ theta)).value * g.total)
    assert whole.value * f.total == pytest.approx(sum(parts), rel=1e-12)


def test_value_is_the_sum_of_its_kinds():
    o = Observations(
        lower=np.array([1.0, 2.0, 0.0, 0.5, 3.0]), upper=np.array([1.0, np.inf, 1.5, 1.0, np.inf]),
        event=np.array([True, False, False, False, False]), entry=np.array([0, 0, 0, 0, 1.0]), weight=np.ones(5),
    )  # fmt: skip
    given = {"phi": 0.5, "gamma": 1.4, "kappa": 0.3}

    def H(t):
        return pgw.cumulative_hazard(t, **given)

    expected = (
        pgw.log_hazard(1.0, **given) - H(1.0) - H(2.0) + np.log(-np.expm1(-H(1.5)))
        + np.log(np.exp(-H(0.5)) - np.exp(-H(1.0))) - H(3.0) + H(1.0)
    )  # fmt: skip
    f = Likelihood(o, {"phi_": None, "gamma_": None, "kappa_": None})
    assert f(np.log([0.5, 1.4, 1.3])).value * 5 == pytest.approx(expected, rel=1e-12)


def test_narrow_intervals_are_exact_times():
    o, X = sample(censoring="right")
    width = 1e-5
    exact = Likelihood(o, {"phi_": X, "gamma_": None})
    seen = o.event
    narrow = Observations(
        lower=np.where(seen, o.lower * (1 - width / 2), o.lower),
        upper=np.where(seen, o.lower * (1 + width / 2), np.inf),
        event=np.zeros(len(o), dtype=bool),
        entry=o.entry,
        weight=o.weight,
    )
    theta = exact.start({"phi_": -1.0})
    shift = (o.weight * seen * np.log(o.lower * width)).sum() / exact.total
    assert Likelihood(narrow, {"phi_": X, "gamma_": None})(theta).value - shift == pytest.approx(
        exact(theta).value, abs=1e-6
    )


def test_scores_square_to_the_sum_of_the_rows_own():
    o, X = sample(60)
    f = Likelihood(o, {"phi_": X, "gamma_": None, "kappa_": None})
    theta = f.start({"phi_": -1.0})
    rows = []
    for i in range(60):
        at = slice(i, i + 1)
        first = f._observed(theta, at, f._standard(at))[1]
        rows.append(np.concatenate([first["phi_"] * f._standard(at)["phi_"][0], first["gamma_"], first["kappa_"]]))
    np.testing.assert_allclose(f.scores(theta), np.array(rows).T @ rows, rtol=1e-10)
    np.testing.assert_allclose(np.sum(rows, 0) / f.total, f(theta).gradient, rtol=1e-9, atol=1e-12)


def test_newton_reaches_the_top_from_far():
    o, X = sample()
    f = Likelihood(o, {"phi_": X, "gamma_": X, "kappa_": None})
    near = newton(f, f.start({"phi_": -1.0}))
    far = newton(f, f.start({"phi_": 3.0, "gamma_": -1.0, "kappa_": 2.0}))
    assert near.converged
    assert far.converged
    np.testing.assert_allclose(near.theta, far.theta, atol=1e-5)


def test_newton_says_how_long_it_went_and_raises_no_warning_on_steps_too_far(recwarn):
    o, X = sample()
    f = Likelihood(o, {"phi_": X, "lambda_": None, "gamma_": X, "kappa_": None})
    top = newton(f, f.start({"phi_": 3.0, "gamma_": 1.5, "kappa_": 2.0}), max_iter=7)
    assert not top.converged
    assert top.iterations == 7
    assert not recwarn.list


def test_a_row_censored_at_zero_adds_nothing():
    o, X = sample(200)
    more = Observations(**{n: np.append(getattr(o, n), v) for n, v in (
        ("lower", 0.0), ("upper", np.inf), ("event", False), ("entry", 0.0), ("weight", 1.0))})  # fmt: skip
    f = Likelihood(o, {"phi_": X, "gamma_": None, "kappa_": None})
    g = Likelihood(more, {"phi_": np.vstack([X, X[:1]]), "gamma_": None, "kappa_": None})
    theta = f.start({"phi_": -1.0, "kappa_": 0.3}) + 0.1
    a, b = f(theta), g(np.linalg.solve(g.original(), f.original() @ theta))
    assert a.value * f.total == pytest.approx(b.value * g.total, rel=1e-12)
    assert np.isfinite(b.hessian).all()


def test_penalty_moves_value_gradient_and_hessian_alike():
    o, X = sample()
    f = Likelihood(o, {"phi_": X, "gamma_": None}, penalizer=0.3)
    theta, e = f.start({"phi_": -1.0}) + 0.2, 1e-5
    at = f(theta)
    near = [(f(theta + e * d), f(theta - e * d)) for d in np.eye(f.size)]
    np.testing.assert_allclose(at.gradient, [(a.value - b.value) / (2 * e) for a, b in near], atol=1e-7)
    np.testing.assert_allclose(at.hessian, [(a.gradient - b.gradient) / (2 * e) for a, b in near], atol=1e-7)
    assert f.shrunk.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_has_the_same_value_and_scales(copied):
    o, X = sample(200)
    f = Likelihood(o, {"phi_": X, "gamma_": X, "kappa_": None}, penalizer=0.1)
    theta = f.start({"phi_": -1.0}) + 0.1
    again = copied(f)
    assert again(theta).value == f(theta).value
    np.testing.assert_array_equal(again.original(), f.original())
    assert again.dependent() == f.dependent()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_start_is_the_constant_wherever_the_intercept_stands(place):
    o, X = sample(50)
    X = np.insert(X[:, 1:], place, 1.0, axis=1)
    f = Likelihood(o, {"phi_": X, "gamma_": None})
    theta = f.start({"phi_": -1.5, "gamma_": 0.3})
    np.testing.assert_allclose(X @ (f.original() @ theta)[f.slices["phi_"]], -1.5)
    assert theta[-1] == 0.3
