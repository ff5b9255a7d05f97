"""The other rankers: where each has an answer in closed form, it finds it."""

import numpy as np
import pytest
import torch

from rankwise.ranking import (
    PBM,
    UBM,
    Cascade,
    IPWRanker,
    LabelRanker,
    NaiveRanker,
    PairDebiasRanker,
    RegressionEMRanker,
)
from rankwise.ranking.click_baselines import pair_debias, posteriors

FULL = {"learning_rate": 0.3, "batch_size": 10_000}


@pytest.fixture(scope="module")
def hidden():
    """Two documents a list, the worse one mostly first: attraction 0.5 and 0.8, examination 1 and 0.3."""
    better_first = np.random.default_rng(0).random(3000) < 0.2
    document = np.where(better_first[:, None], [1, 0], [0, 1])
    clicks = PBM([1.0, 0.3]).simulate(np.array([0.5, 0.8])[document], seed=1)
    return np.eye(2), {"clicks": clicks.ravel(), "query": np.repeat(np.arange(3000), 2), "document": document.ravel()}


@pytest.mark.parametrize("propensity", [[1.0, 0.3], [0.5, 0.15], PBM([1.0, 0.3])], ids=repr)
def test_known_propensities_recover_relevance(hidden, propensity):
    X, data = hidden
    ranker = IPWRanker("linear", propensity=propensity, steps=200, **FULL).fit(X, **data)
    assert np.exp(np.diff(ranker.predict(X))[0]) == pytest.approx(0.8 / 0.5, rel=0.1)
    assert ranker.propensity_ == pytest.approx([1.0, 0.3])


def test_a_click_model_weighs_by_the_clicks_before():
    from rankwise.ranking.click_ranker import Batch

    clicks, mask = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.ones(2, 2, dtype=torch.bool)
    for ranker, weights in (
        (IPWRanker("linear", propensity=UBM([[1.0], [0.5, 0.8]])), [[1.0, 2.0], [1.0, 1.25]]),
        (IPWRanker("linear", propensity=Cascade(), max_weight=3.0), [[1.0, 3.0], [1.0, 1.0]]),
    ):
        ranker.fit(np.eye(2), [1, 1], query=[0, 0])
        assert ranker._inverse(Batch(clicks=clicks, mask=mask)).tolist() == weights


@pytest.mark.parametrize("name", ["pbm", "ubm"])
def test_a_click_model_by_name_is_estimated_from_the_log_where_documents_move(name):
    theta, a = np.array([1.0, 0.5, 0.2]), np.array([0.3, 0.5, 0.8])
    document = np.random.default_rng(0).permuted(np.tile(np.arange(3), (4000, 1)), axis=1)
    log = {"clicks": PBM(theta).simulate(a[document], seed=0).ravel(), "query": np.repeat(np.arange(4000), 3),
           "document": document.ravel()}  # fmt: skip
    ranker = IPWRanker("linear", propensity=name, steps=200, **FULL).fit(np.eye(3), **log)
    assert ranker.propensity_ == pytest.approx(theta, abs=0.03)
    assert np.exp(np.diff(ranker.predict(np.eye(3)))) == pytest.approx(a[1:] / a[:-1], rel=0.1)
    assert ranker.click_model_.examination(np.zeros((1, 3)))[0] / ranker.propensity_ == pytest.approx(
        ranker.click_model_.examination(np.zeros((1, 3)))[0, 0])  # fmt: skip


def test_regression_em_and_pair_debias_order_what_naive_clicks_reverse(hidden):
    X, data = hidden
    assert np.diff(NaiveRanker("linear", steps=100, **FULL).fit(X, **data).predict(X))[0] < 0
    em = RegressionEMRanker("linear", steps=600, **FULL).fit(X, **data)
    assert np.diff(em.predict(X))[0] > 0
    assert em.propensity_[1] == pytest.approx(0.3, abs=0.05)
    pairs = PairDebiasRanker("linear", steps=300, **FULL).fit(X, **data)
    assert pairs.propensity_[1] < 0.7


def test_posteriors_are_bayes_rule_and_theta_moves_a_step():
    gamma, theta = np.array([[0.2, 0.7]]), np.array([0.9, 0.4])
    z, c = torch.tensor(np.log(gamma / (1 - gamma))), torch.tensor([[0.0, 1.0]]).double()
    relevant, moved = posteriors(z, c, torch.tensor(theta), torch.ones(1, 2, dtype=torch.bool))
    r = 0.2 * (1 - 0.9) / (0.2 * 0.1 + 0.8 * 0.9 + 0.8 * 0.1)  # relevant and unseen, of all without a click
    e = 0.9 * 0.8 / (1 - 0.9 * 0.2)
    assert relevant.numpy() == pytest.approx(np.array([[r, 1.0]]))
    assert moved.numpy() == pytest.approx([0.95 * 0.9 + 0.05 * e, 0.95 * 0.4 + 0.05])


def test_pair_debias_is_its_sums():
    z, c = torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    plus, minus = torch.tensor([1.0, 0.8, 0.6]), torch.tensor([1.0, 1.2, 1.5])
    value, up, down = pair_debias(z, c, plus, minus, torch.ones(1, 3, dtype=torch.bool))
    a, b = np.log(1 + np.exp(-0.5)), np.log(1 + np.exp(-0.7))  # pairs (1, 2) and (3, 2)
    assert value.item() == pytest.approx((a / 1.2 + b / (0.6 * 1.2)) / 2, rel=1e-5)
    assert up.numpy() == pytest.approx([1.0, 0.95 * 0.8, 0.95 * 0.6 + 0.05 * np.sqrt(b / a)], rel=1e-5)
    assert down.numpy() == pytest.approx(minus.numpy())  # no loss of an unclicked first place: nothing moves


def test_labels_are_learned_as_gains():
    ranker = LabelRanker("linear", steps=300, **FULL).fit(np.eye(2), [1, 2], query=[0, 0])
    assert np.diff(ranker.predict(np.eye(2)))[0] == pytest.approx(np.log(3), abs=0.02)  # gains 1 and 3


@pytest.mark.parametrize(
    ("ranker", "said"),
    [
        (IPWRanker(propensity=[1.0]), "propensity has 1 values, and lists have 2 places"),
        (IPWRanker(propensity=[1.0, 0.0]), "a number above 0 for each position"),
        (IPWRanker(propensity=[1.0, 0.5], max_weight=0), "max_weight=0"),
        (IPWRanker(propensity="dbn"), "unknown propensity 'dbn'"),
        (RegressionEMRanker(loss="softmax"), "loss 'sigmoid' alone"),
        (PairDebiasRanker(loss="softmax"), "loss 'pairwise' alone"),
        (PairDebiasRanker(reduce="list"), "reduce='batch' alone"),
        (LabelRanker(loss="sigmoid"), "gains are no probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(ranker, said):
    with pytest.raises(ValueError, match=said):
        ranker.fit(np.eye(2), [1, 0], query=[0, 0])
