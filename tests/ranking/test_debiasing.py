"""Curves and weights against closed forms, finite differences of the likelihood, and LightGBM."""

import warnings

import numpy as np
import pytest

from rankwise.ranking import PBM, debias, lists_of, propensity_curve, randomised_propensity


def ragged(seed=0, lists=400):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, lists)
    query = np.repeat(np.arange(lists), lengths)
    return lists_of(rng.integers(0, 2, len(query)), query=query), rng


def test_shuffled_lists_give_the_ratio_of_clicks_among_lists_that_are_long_enough():
    lists, _ = ragged()
    for k, found in enumerate(randomised_propensity(lists)):
        long = lists.mask[:, k]
        assert found == lists.clicks[long, k].sum() / lists.clicks[long, 0].sum()
    with pytest.raises(ValueError, match="no click at the first place of lists of at least 2 places"):
        randomised_propensity(lists_of([1, 0, 1], query=[0, 1, 1]))


def test_the_curve_is_the_optimum_of_the_weighted_likelihood_on_lists_of_any_length():
    lists, rng = ragged()
    f = rng.normal(size=lists.mask.shape)
    q = propensity_curve(lists, f, resamples=2, max_weight=5.0).propensity
    w = lists.clicks * np.minimum(np.exp(f[:, :1] - f), 5.0)

    def likelihood(log_q):
        z = np.where(lists.mask, log_q, -np.inf)
        return (w * np.where(lists.mask, z - np.log(np.exp(z).sum(1, keepdims=True)), 0)).sum()

    at = np.log(q)
    for k in range(4):
        step = np.eye(4)[k] * 1e-4
        assert (likelihood(at + step) - likelihood(at - step)) / 2e-4 == pytest.approx(0, abs=1e-3)
    assert likelihood(at) > likelihood(np.zeros(4))


def test_intervals_are_those_of_the_delta_method_and_draw_queries_whole():
    n = 2000
    clicks = PBM([0.8, 0.4]).simulate(np.full((n, 2), 0.9), seed=0)
    lists = lists_of(clicks.ravel(), query=np.repeat(np.arange(n), 2))
    curve = propensity_curve(lists, np.zeros((n, 2)), resamples=1000)
    ratio = clicks[:, 1].sum() / clicks[:, 0].sum()
    error = np.std(clicks[:, 1] - ratio * clicks[:, 0]) / clicks[:, 0].mean() / np.sqrt(n)
    assert curve.propensity[1] == pytest.approx(ratio)
    assert curve.low[1] == pytest.approx(ratio - 1.96 * error, abs=0.2 * error)
    assert curve.high[1] == pytest.approx(ratio + 1.96 * error, abs=0.3 * error)
    assert (curve.low[0], curve.high[0]) == (1, 1)


def test_one_clicked_query_has_a_curve_and_no_interval():
    lists = lists_of([1, 1, 0, 1, 0, 0], query=[0, 0, 1, 1, 2, 2])
    for group, clicked in (([7, 7, 8], 1), ([7, 8, 8], 2)):
        curve = propensity_curve(lists, np.zeros((3, 2)), group=group, resamples=50)
        assert curve.propensity.tolist() == [1, 2]
        assert np.isnan([curve.low, curve.high]).all() == (clicked == 1)


def test_weights_are_inverse_propensities_of_clicks_and_relevance_their_mean():
    X = np.zeros((2, 1))
    data = {"query": [0, 0, 1, 1], "document": [0, 1, 1, 0]}
    done = debias(X, [1, 1, 0, 1], propensity=[0.8, 0.2], **data)
    assert done.weight.tolist() == [1.0, 4.0, 1.0, 4.0]
    assert done.relevance.tolist() == [(1 + 4) / 2, 4 / 2]
    assert done.propensity.tolist() == [1.0, 0.25]
    assert debias(X, [1, 1, 0, 1], propensity=[0.8, 0.2], max_weight=3.0, **data).weight.tolist() == [1, 3, 1, 3]


def test_lightgbm_takes_the_weights():
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    clicks = PBM([1.0, 0.5, 0.3, 0.2]).simulate(1 / (1 + np.exp(-X[:, 0].reshape(100, 4))), seed=0).ravel()
    done = debias(X, clicks, query=np.repeat(np.arange(100), 4), ranker="linear", steps=20, list_size=3)
    assert (done.weight[3::4] == 0).all()  # beyond the list's size
    model = lightgbm.LGBMRanker(n_estimators=3, verbose=-1, n_jobs=1)
    model.fit(X, clicks, group=np.full(100, 4), sample_weight=done.weight)
    assert np.corrcoef(model.predict(X), X[:, 0])[0, 1] > 0.3


def test_features_of_other_rows_than_the_log_are_refused():
    with pytest.raises(ValueError, match="X has 3 rows for 2 clicks"):
        debias(np.zeros((3, 1)), [1, 0], query=[0, 0], propensity=[1.0, 0.5])


def test_a_curve_without_a_click_at_the_first_place_is_nan_without_a_warning():
    lists = lists_of([0, 1, 0, 1], query=[0, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = propensity_curve(lists, np.zeros((2, 2)), resamples=5)
    assert np.isnan(curve.propensity).all()
    assert np.isnan(curve.low).all()


def test_a_curve_takes_scores_of_its_lists_and_draws_at_least_once():
    lists = lists_of([1, 1], query=[0, 0])
    for scores, resamples in ((np.zeros((2, 2)), 5), (np.zeros((1, 2)), 0)):
        with pytest.raises(ValueError, match=r"\(1, 2\), and at least 1, are needed"):
            propensity_curve(lists, scores, resamples=resamples)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"propensity": [1.0]}, "2 values above 0"),
        ({"propensity": [1.0, 0.0]}, "2 values above 0"),
        ({"propensity": [1.0, np.nan]}, "2 values above 0 are needed, and finite ones"),
        ({"propensity": [1.0, np.inf]}, "2 values above 0 are needed, and finite ones"),
        ({"propensity": [1.0, 0.5], "document": [0, 2]}, "X has 2 rows for 2 clicks: give document, or a row for each"),
        ({"propensity": [1.0, 0.5], "steps": 3}, "steps: options of an estimate"),
        ({"propensity": [1.0, 0.5], "max_weight": 0}, "max_weight=0"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        debias([[0.0], [0.0]], [1, 0], query=[0, 0], **options)
