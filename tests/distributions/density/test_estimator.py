import warnings

import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.distributions.density.estimator import ConcentrationWarning, HighDimKDE

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore::rankwise.distributions.density.estimator.ConcentrationWarning")
RNG = np.random.default_rng(0)
Y, X = RNG.normal(size=(1500, 12)), RNG.normal(size=(300, 12))


def brute(X, Y, h, w=None):
    w = np.ones(len(Y)) if w is None else w
    D = ((X[:, None] - Y[None]) ** 2).sum(-1)
    return logsumexp(-D / (2 * h * h), 1, b=w) - np.log(w.sum()) - Y.shape[1] * np.log(h * np.sqrt(2 * np.pi))


@parametrize_with_checks([HighDimKDE(), HighDimKDE(0.7)])
def test_scikit_learn_checks(estimator, check):
    assert check(estimator) is None  # what does not hold is raised


@pytest.mark.parametrize("h", [0.05, 0.5, 1.0, 5.0])
def test_scores_equal_scikit_learns(h):
    theirs = KernelDensity(bandwidth=h, leaf_size=len(Y)).fit(Y)  # one leaf: no bounds, no rounding of theirs
    ours = HighDimKDE(h).fit(Y)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-10)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-10)


def test_far_from_the_origin_nothing_is_lost():
    far = 1e4
    here = HighDimKDE(0.8).fit(Y).score_samples(X)
    np.testing.assert_allclose(HighDimKDE(0.8).fit(Y + far).score_samples(X + far), here, rtol=1e-9)
    query, data = (np.asarray(a + 100, dtype=np.float32) for a in (X, Y))
    single = HighDimKDE(0.8).fit(data).score_samples(query)
    np.testing.assert_allclose(single, brute(query.astype(float), data.astype(float), 0.8), rtol=1e-9)


def test_tiles_and_grids_change_nothing():
    n = 2600  # several tiles of points and of queries
    data, grid = RNG.normal(size=(n, 5)), [0.1, 0.2, 0.31, 0.2 * np.sqrt(2), 1.7]
    kde = HighDimKDE(1.0).fit(data)
    many = kde.log_densities(data[:300], grid)
    for h, row in zip(grid, many, strict=True):
        np.testing.assert_allclose(row, brute(data[:300], data, h), rtol=1e-10)


@settings(max_examples=25, deadline=None)
@given(c=st.floats(1e-3, 1e3), h=st.floats(0.2, 3), seed=st.integers(0, 99))
def test_rescaling_shifts_the_log_density(c, h, seed):
    rng = np.random.default_rng(seed)
    data, at = rng.normal(size=(50, 4)), rng.normal(size=(7, 4))
    a, b = HighDimKDE(h).fit(data).score_samples(at), HighDimKDE(c * h).fit(c * data).score_samples(c * at)
    np.testing.assert_allclose(b, a - 4 * np.log(c), rtol=1e-8, atol=1e-8)


def test_leave_one_out_and_weights_equal_brute_force():
    w = RNG.uniform(0.1, 3, 60)
    kde = HighDimKDE(0.9).fit(Y[:60], sample_weight=w)
    np.testing.assert_allclose(kde.score_samples(X[:20]), brute(X[:20], Y[:60], 0.9, w), rtol=1e-10)
    for h, row in zip((0.5, 0.9), kde.leave_one_out([0.5, 0.9]), strict=True):
        expected = [brute(Y[i : i + 1], np.delete(Y[:60], i, 0), h, np.delete(w, i))[0] for i in range(60)]
        np.testing.assert_allclose(row, expected, rtol=1e-9)
    twice = HighDimKDE(0.9).fit(np.vstack([Y[:60], Y[:10]])).score_samples(X[:5])
    heavy = HighDimKDE(0.9).fit(Y[:60], sample_weight=np.r_[np.full(10, 2.0), np.ones(50)]).score_samples(X[:5])
    np.testing.assert_allclose(twice, heavy, rtol=1e-12)


def test_cross_validation_takes_the_best_of_a_fine_grid():
    kde = HighDimKDE("cv").fit(Y[:400, :3])
    grid = kde.bandwidth_ * np.geomspace(0.7, 1.4, 41)
    best = grid[kde.leave_one_out(list(grid)).mean(1).argmax()]
    assert kde.bandwidth_ == pytest.approx(best, rel=0.03)
    around = list(kde.bandwidth_ * np.array([0.3, 1, 3]))
    search = GridSearchCV(HighDimKDE(), {"bandwidth": around}, cv=5).fit(Y[:400, :3])
    assert search.best_params_["bandwidth"] == pytest.approx(kde.bandwidth_)


def test_rules_follow_their_formulas():
    (n, d), sigma = Y.shape, np.sqrt(Y.var(0).mean())
    assert HighDimKDE("scott").fit(Y).bandwidth_ == pytest.approx(sigma * n ** (-1 / (d + 4)))
    assert HighDimKDE("silverman").fit(Y).bandwidth_ == pytest.approx(sigma * (n * (d + 2) / 4) ** (-1 / (d + 4)))
    D = ((Y[:, None] - Y[None]) ** 2).sum(-1) + np.diag(np.full(n, np.inf))
    assert HighDimKDE("nn").fit(Y).bandwidth_ == pytest.approx(np.sqrt(D.min(1).mean() / d))
    theory = HighDimKDE().fit(Y)
    assert theory.bandwidth_ == theory.critical_.h_opt


def test_participation_goes_from_one_to_all():
    small = HighDimKDE(0.01).fit(Y).diagnose(X[:20])
    large = HighDimKDE(100.0).fit(Y).diagnose(X[:20])
    np.testing.assert_allclose(small["effective_number"], 1, atol=1e-6)
    np.testing.assert_allclose(large["effective_number"], len(Y), rtol=1e-2)
    assert set(small["regime"]) == {"extreme-value"}
    assert set(large["regime"]) == {"CLT"}
    terms = np.sort(-((X[0] - Y) ** 2).sum(1) / (2 * 100.0**2))[::-1]  # Hill's estimate from the 38 largest
    assert large["hill_index"].iloc[0] == pytest.approx(1 / (terms[:38] - terms[38]).mean(), rel=1e-9)
    h = small["h_condensed"].iloc[0]
    logs = -((X[0] - Y) ** 2).sum(1) / (2 * h * h)
    p = np.exp(logs - logsumexp(logs))
    assert -(p * np.log(np.maximum(p, 1e-300))).sum() == pytest.approx(1, abs=1e-6)


def test_log_density_follows_the_two_branches_of_the_theory():
    rng, d = np.random.default_rng(1), 40
    kde = HighDimKDE(1.0).fit(rng.normal(size=(20_000, d)))
    c = kde.critical_
    h = [c.h_opt, c.h_clt, 2 * c.h_g]
    found = kde.log_densities(rng.normal(size=(300, d)), h).mean(1) / d
    np.testing.assert_allclose(found[1:], c.log_density(h)[1:], atol=0.012)
    assert 0 < c.log_density(h[0]) - found[0] < 0.08  # a correction that vanishes with d


def test_samples_have_the_covariance_of_data_and_kernel():
    data = multivariate_normal([0, 0], [[2, 0.5], [0.5, 1]]).rvs(500, random_state=0)
    drawn = HighDimKDE(0.7).fit(data).sample(200_000, random_state=1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(data.T, bias=True) + 0.49 * np.eye(2), atol=0.03)


def test_estimates_on_few_points_are_reported():
    with pytest.warns(ConcentrationWarning, match="rest on fewer than"):
        HighDimKDE().fit(RNG.normal(size=(500, 50)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HighDimKDE("scott").fit(Y[:, :1])


def test_duplicates_are_reported_under_cross_validation():
    with pytest.raises(ValueError, match="40 rows have an exact duplicate"):
        HighDimKDE("cv").fit(np.repeat(RNG.normal(size=(20, 3)), 2, axis=0))


def test_constant_features_and_single_points():
    flat = np.c_[Y[:100, :3], np.ones(100)]
    kde = HighDimKDE().fit(flat)
    assert kde.critical_.d == 3
    assert np.isfinite(kde.score_samples(flat)).all()
    assert HighDimKDE(1.0).fit(Y[:1]).score_samples(Y[:1])[0] == pytest.approx(-6 * np.log(2 * np.pi))
    with pytest.raises(ValueError, match=r"found 1 sample; give a number"):
        HighDimKDE().fit(Y[:1])


@pytest.mark.parametrize(
    ("bandwidth", "message"), [(0.0, "bandwidth is 0.0"), (-1, "above 0"), ("scot", "did you mean scott")]
)
def test_bad_bandwidths_are_refused(bandwidth, message):
    with pytest.raises(ValueError, match=message):
        HighDimKDE(bandwidth).fit(Y)


def test_the_regime_map_and_its_plot():
    kde = HighDimKDE().fit(Y)
    table = kde.regime_map(rows=200)
    assert list(dict.fromkeys(table["regime"])) == ["extreme-value", "stable", "CLT"]
    assert (np.diff(table["effective_number"]) > -1e-9).all()
    assert kde.plot_regimes().lines
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("rule", ["theory", "scott", "silverman", "cv", "nn", 0.8])
def test_rows_of_weight_zero_change_nothing(rule):
    data = Y[:200, :3]
    w = RNG.uniform(0.5, 2, 200)
    far = np.vstack([data, 50 + RNG.normal(size=(300, 3))])
    plain, more = (
        HighDimKDE(rule).fit(data, sample_weight=w),
        HighDimKDE(rule).fit(far, sample_weight=np.r_[w, np.zeros(300)]),
    )
    assert more.bandwidth_ == pytest.approx(plain.bandwidth_, rel=1e-9)
    assert more.critical_.h_g == pytest.approx(plain.critical_.h_g, rel=1e-9)
    np.testing.assert_allclose(more.score_samples(X[:9, :3]), plain.score_samples(X[:9, :3]), rtol=1e-9)
    pd.testing.assert_frame_equal(more.diagnose(X[:9, :3]), plain.diagnose(X[:9, :3]))
    pd.testing.assert_frame_equal(more.regime_map(rows=50), plain.regime_map(rows=50))


def test_rules_count_weighted_rows_as_kish_does():
    data, w = Y[:, :3], RNG.uniform(0.1, 3, 1500)
    n, d = w.sum() ** 2 / (w**2).sum(), 3
    mean = np.average(data, axis=0, weights=w)
    sigma = np.sqrt(np.average((data - mean) ** 2, axis=0, weights=w).mean())
    kde = HighDimKDE("scott").fit(data, sample_weight=w)
    assert kde.n_effective_ == pytest.approx(n)
    assert kde.bandwidth_ == pytest.approx(sigma * n ** (-1 / (d + 4)))
    assert kde.bandwidth_ == pytest.approx(sigma * gaussian_kde(data.T, weights=w).scotts_factor())
    assert kde.critical_.alpha == pytest.approx(np.log(n) / d)
    assert HighDimKDE("silverman").fit(data, sample_weight=7 * w).bandwidth_ == pytest.approx(
        sigma * (n * (d + 2) / 4) ** (-1 / (d + 4))
    )


def test_data_driven_rules_weigh_rows():
    data, w = np.r_[Y[:150, :2], 0.05 * Y[150:300, :2] + 9], np.r_[np.full(150, 1e-6), np.ones(150)]
    D = ((data[:, None] - data[None]) ** 2).sum(-1) + np.diag(np.full(300, np.inf))
    assert HighDimKDE("nn").fit(data, sample_weight=w).bandwidth_ == pytest.approx(
        np.sqrt(np.average(D.min(1), weights=w) / 2)
    )
    tight = HighDimKDE("cv").fit(data[150:]).bandwidth_
    assert HighDimKDE("cv").fit(data, sample_weight=w).bandwidth_ == pytest.approx(tight, rel=0.05)
    assert HighDimKDE("cv").fit(data).bandwidth_ > 1.3 * tight


def test_weights_that_count_as_one_row_need_a_bandwidth():
    w = np.r_[1.0, np.full(99, 1e-9)]
    with pytest.raises(ValueError, match="100 samples whose weights count as 1; give a number"):
        HighDimKDE("scott").fit(Y[:100], sample_weight=w)
    assert np.isfinite(HighDimKDE(1.0).fit(Y[:100], sample_weight=w).score_samples(X)).all()


def test_settings_are_these_where_none_are_given():
    assert HighDimKDE().get_params() == {"bandwidth": "theory", "kernel": "gaussian"}
    assert HighDimKDE(1.0).fit(Y).sample().shape == (1, 12)
    table = HighDimKDE().fit(Y).regime_map()
    c = HighDimKDE().fit(Y).critical_
    np.testing.assert_allclose(table["bandwidth"], np.geomspace(c.h_opt / 4, 4 * c.h_clt, 33))
    np.testing.assert_array_equal(table, HighDimKDE().fit(Y).regime_map(rows=500, seed=0))
    assert not table["log_density"].equals(HighDimKDE().fit(Y).regime_map(rows=499)["log_density"])
    assert not table["log_density"].equals(HighDimKDE().fit(Y).regime_map(seed=1)["log_density"])


def entropy(D, w, h):
    logs = np.log(w) - D / (2 * h * h)
    p = np.exp(logs - logsumexp(logs))
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


@pytest.mark.parametrize("tail", [None, 1, 9, 500])
def test_on_how_much_an_estimate_rests_by_its_definitions(tail):
    data, at, w, h = Y[:80, :3], X[:6, :3], RNG.uniform(0.3, 2, 80), 0.6
    kde = HighDimKDE(h).fit(data, sample_weight=w)
    found = kde.diagnose(at, tail=tail)
    k = min(tail or 8, 79)
    for row, x in zip(found.itertuples(), at, strict=True):
        D = ((x - data) ** 2).sum(1)
        logs = np.sort(np.log(w) - D / (2 * h * h))[::-1]
        p = np.exp(logs - logsumexp(logs))
        assert row.effective_number == pytest.approx(1 / (p**2).sum())
        assert row.top_share == pytest.approx(p.max())
        assert row.hill_index == pytest.approx(1 / (logs[:k] - logs[k]).mean())
        assert entropy(D, w, row.h_condensed) == pytest.approx(1, abs=1e-6)
        local = (h / row.h_condensed) ** 2
        assert row.local_regime == ("extreme-value" if local < 1 else "stable" if local < 2 else "CLT")
    np.testing.assert_allclose(found["log_density"], brute(at, data, h, w))
    np.testing.assert_allclose(found["index"], (h / kde.critical_.h_g) ** 2)
    assert set(found["regime"]) == {kde.critical_.regime(h)}
    single = HighDimKDE(1.0).fit(Y[:1]).diagnose(X[:2])
    assert single["hill_index"].isna().all()
    assert single["index"].isna().all()
    assert set(single["regime"]) == {"unknown"}
    assert len(HighDimKDE(1.0).fit(Y[:2]).diagnose(X[:2])) == 2


def test_the_regime_map_is_theory_beside_what_is_left_out():
    data, w, h = Y[:70, :3], RNG.uniform(0.3, 2, 70), np.array([0.3, 0.7, 1.5])
    kde = HighDimKDE(1.0).fit(data, sample_weight=w)
    table, c = kde.regime_map(h), kde.critical_
    np.testing.assert_array_equal(table["bandwidth"], h)
    np.testing.assert_allclose(table["index"], (h / c.h_g) ** 2)
    np.testing.assert_allclose(table["theory"], 3 * c.log_density(h))
    for row, b in zip(table.itertuples(), h, strict=True):
        left = [brute(data[i : i + 1], np.delete(data, i, 0), b, np.delete(w, i))[0] for i in range(70)]
        assert row.log_density == pytest.approx(np.average(left, weights=w))
        D = ((data[:, None] - data[None]) ** 2).sum(-1) + np.diag(np.full(70, np.inf))
        logs = np.log(w) - D / (2 * b * b)
        p = np.exp(logs - logsumexp(logs, 1, keepdims=True))
        effective = np.sort(1 / (p**2).sum(1))
        assert row.effective_number == pytest.approx(effective[34])  # torch's median is the lower one
        assert row.regime == c.regime(b)
    flat = HighDimKDE(1.0).fit(np.c_[data, np.ones(70)]).regime_map(h)
    assert flat["theory"].isna().all()  # of fewer directions than the data have
    with pytest.raises(ValueError, match="at least two points and some variance"):
        HighDimKDE(1.0).fit(Y[:1]).regime_map()


def test_the_plot_shows_the_map_and_the_critical_bandwidths():
    kde = HighDimKDE().fit(Y[:200])
    ax, table = kde.plot_regimes(), kde.regime_map()
    left, right = ax, next(a for a in ax.figure.axes if a is not ax)
    lines = {line.get_label(): line for line in left.lines}
    np.testing.assert_allclose(lines["leave-one-out log-density"].get_xydata(), table[["bandwidth", "log_density"]])
    np.testing.assert_allclose(lines["theory"].get_xydata(), table[["bandwidth", "theory"]])
    assert lines["chosen"].get_xdata()[0] == kde.bandwidth_
    c = kde.critical_
    named = {t.get_text(): t.xy[0] for t in left.texts}
    assert named == {"h_opt": c.h_opt, "h_G": c.h_g, "h_CLT": c.h_clt}
    at = sorted(line.get_xdata()[0] for line in left.lines if len(set(line.get_xdata())) == 1)
    np.testing.assert_allclose(at, sorted([c.h_opt, c.h_g, c.h_clt, kde.bandwidth_]))
    np.testing.assert_allclose(right.lines[0].get_xydata(), table[["bandwidth", "effective_number"]])
    assert (left.get_xscale(), right.get_yscale()) == ("log", "log")
    assert (left.get_xlabel(), left.get_ylabel()) == ("bandwidth", "mean log-density")
    assert right.get_ylabel() == "effective number of points"
    assert left.get_legend() is not None
    other = matplotlib.pyplot.subplots()[1]
    flat = HighDimKDE(1.0).fit(np.c_[Y[:50, :2], np.ones(50)])
    assert flat.plot_regimes(other) is other
    assert "theory" not in {line.get_label() for line in other.lines}
    matplotlib.pyplot.close("all")


def test_cross_validation_finds_the_top_to_a_sixty_fourth_of_an_octave():
    data = np.r_[Y[:60, :2], 3 + 0.2 * Y[60:100, :2]]
    fine = np.geomspace(0.05, 1.5, 4000)
    D = ((data[:, None] - data[None]) ** 2).sum(-1) + np.diag(np.full(100, np.inf))
    left = [(logsumexp(-D / (2 * h * h), 1) - 2 * np.log(h)).mean() for h in fine]
    found = HighDimKDE("cv").fit(data).bandwidth_
    assert abs(np.log2(found / fine[int(np.argmax(left))])) <= 1 / 64 + 2e-3


def test_samples_are_of_rows_by_their_weight_and_a_seed_decides_them():
    data, w = np.array([[0.0, 10], [5, 10], [9, 30]]), np.array([1.0, 3, 0])
    kde = HighDimKDE(0.01).fit(data, sample_weight=w)
    drawn = kde.sample(4000, random_state=3)
    assert (drawn[:, 0] > 2.5).mean() == pytest.approx(0.75, abs=0.03)
    assert drawn[:, 0].max() < 6
    assert drawn[:, 1].mean() == pytest.approx(10, abs=0.01)
    np.testing.assert_array_equal(kde.sample(5, random_state=3), kde.sample(5, random_state=3))
    assert not np.array_equal(kde.sample(5, random_state=4), kde.sample(5, random_state=3))


@pytest.mark.parametrize("w", [[-1.0, 1, 1], [0.0, 0, 0]])
def test_weights_are_not_negative_and_not_all_zero(w):
    with pytest.raises(ValueError, match=r"non-negative with a positive sum|at least one non-zero"):
        HighDimKDE(1.0).fit(Y[:3], sample_weight=w)
    with pytest.raises(ValueError, match="did you mean gaussian"):
        HighDimKDE(1.0, kernel="gaussia").fit(Y)
    for bad in (np.inf, np.nan):
        with pytest.raises(ValueError, match="bandwidth is"):
            HighDimKDE(bad).fit(Y)
    with pytest.raises(ValueError, match="at least two points"):
        HighDimKDE(1.0).fit(Y[:1]).leave_one_out([1.0])
    with pytest.raises(ValueError, match="found 5 samples without any variance"):
        HighDimKDE("scott").fit(np.ones((5, 2)))
    with pytest.raises(ValueError, match="every row has an exact duplicate"):
        HighDimKDE("nn").fit(np.repeat(Y[:9], 2, axis=0))


def test_half_the_points_decide_whether_estimates_are_concentrated():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(400, 2))
    D = ((data[:, None] - data[None]) ** 2).sum(-1) + np.diag(np.full(400, np.inf))

    def median(h, rows):
        p = np.exp(-D[rows] / (2 * h * h))
        p /= p.sum(1, keepdims=True)
        return np.sort(1 / (p**2).sum(1))[(len(rows) - 1) // 2]

    rows = np.random.default_rng(0).permutation(400)[:200]
    low, high = 0.01, 2.0  # the bandwidth at which half rest on ten
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if median(middle, rows) < 10 else (low, middle)
    with pytest.warns(ConcentrationWarning, match=r"rest on fewer than 10\.0 others") as record:
        kde = HighDimKDE(low * 0.9999).fit(data)
    assert record[0].filename == __file__
    assert f"h above {kde.critical_.h_clt:.3g}" in str(record[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HighDimKDE(high * 1.0001).fit(data)
        HighDimKDE(0.01).fit(data[:39])  # too few to say
    with pytest.warns(ConcentrationWarning):
        HighDimKDE(0.01).fit(data[:40])


def test_rows_left_out_are_those_asked_for():
    kde = HighDimKDE(0.9).fit(Y[:60], sample_weight=np.linspace(1, 2, 60))
    whole = kde.leave_one_out([0.5, 0.9])
    rows = np.array([7, 3, 59])
    np.testing.assert_allclose(kde.leave_one_out([0.5, 0.9], rows), whole[:, rows], rtol=1e-12)
