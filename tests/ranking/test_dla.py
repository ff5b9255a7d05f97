"""Dual learning: optima in closed form, invariances, the released variant, and what is refused."""

from inspect import signature

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from rankwise.jobs.clicks import fit_log
from rankwise.ranking import PBM, DualLearningRanker, NaiveRanker, debias
from rankwise.ranking.dla import Positions

TINY = {"hidden": (4,), "steps": 3, "batch_size": 8}


def log(lists=30, n=5, d=3, seed=0, eta=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(lists, n, d))
    clicks = PBM(eta=eta).simulate(1 / (1 + np.exp(-2 * X[..., 0])), seed=seed)
    shown = {"query": np.repeat(np.arange(lists), n), "position": np.tile(np.arange(1, n + 1), lists)}
    return X.reshape(-1, d), {"clicks": clicks.ravel(), **shown}


def equal(lists=2000, n=6, eta=1.0):
    """One document everywhere: clicks tell examination alone."""
    clicks = PBM(eta=eta).simulate(np.full((lists, n), 0.8), seed=3)
    query = np.repeat(np.arange(lists), n)
    return np.ones((1, 1)), {"clicks": clicks.ravel(), "query": query, "document": np.zeros(lists * n, int)}, clicks


FULL = {"batch_size": 10_000, "steps": 200, "learning_rate": 0.3, "max_weight": None}


@pytest.mark.parametrize("propensity", ["position", "contextual"])
@pytest.mark.parametrize("reduce", ["batch", "list"])
def test_where_documents_are_equally_relevant_propensity_is_the_ratio_of_clicks(propensity, reduce):
    X, data, clicks = equal()
    model = DualLearningRanker("linear", propensity=propensity, reduce=reduce, **FULL).fit(X, **data)
    share = clicks / np.maximum(clicks.sum(1, keepdims=True), 1) if reduce == "list" else clicks
    exact = share.sum(0) / share.sum(0)[0]  # the optimum of g: softmax(g) is the clicks' distribution
    assert model.propensity_ == pytest.approx(exact, rel=0.01)
    if reduce == "batch":
        assert model.propensity_ == pytest.approx(PBM().of(6) / 0.68, abs=4 * np.sqrt(0.25 / 2000) / 0.5)


def test_the_default_rate_reaches_a_strong_bias_where_the_published_one_ends_on_the_way():
    """Of equally relevant documents with η 2: the tenth place is looked at 1/128 as often as the first."""
    X, data, clicks = equal(lists=4000, n=10, eta=2.0)
    exact = clicks.sum(0) / clicks.sum(0)[0]
    ours, published = (
        DualLearningRanker("linear", steps=400, propensity_learning_rate=rate).fit(X, **data).propensity_
        for rate in (None, 0.05)
    )
    assert ours == pytest.approx(exact, rel=0.35)
    assert (published[-3:] > 3 * exact[-3:]).all()
    assert np.log(published).min() >= -2 * 2 * 0.05 * np.sqrt(400)  # both ends of a ratio, 2 rate √t each


def test_propensities_follow_a_bias_that_changes_while_it_is_learned():
    model = DualLearningRanker("linear")
    for eta in (0.5, 1.5):
        X, data, clicks = equal(lists=4000, eta=eta)
        for _ in range(5):
            model.partial_fit(X, **data)
        assert model.propensity_ == pytest.approx(clicks.sum(0) / clicks.sum(0)[0], rel=0.15)


def test_the_rate_of_free_positions_is_for_adagrad_and_for_them_alone():
    X, data = log()
    for options, rate in (
        ({}, 0.5),
        ({"propensity_learning_rate": 0.2}, 0.2),
        ({"optimizer": "adam", "learning_rate": 0.03}, 0.03),
        ({"propensity": "contextual", "learning_rate": 0.03}, 0.03),
        ({"released": True, "max_weight": None, "max_norm": None}, 0.05),
    ):
        model = DualLearningRanker(**TINY, **options).fit(X, **data)
        assert model._optimizers[1].param_groups[0]["lr"] == rate


def test_without_bias_the_propensity_is_flat():
    X, data, _ = equal(eta=0.0)
    assert DualLearningRanker("linear", **FULL).fit(X, **data).propensity_ == pytest.approx(np.ones(6), abs=0.05)


def test_the_ranker_recovers_the_order_that_biased_clicks_hide():
    """Two documents a list, the worse one mostly first: naive clicks prefer it, corrected ones do not."""
    rng = np.random.default_rng(0)
    better_first = rng.random(6000) < 0.2
    document = np.where(better_first[:, None], [1, 0], [0, 1])  # document 1 is the better one
    clicks = PBM([1.0, 0.3]).simulate(np.array([0.5, 0.8])[document], seed=1)
    data = {"clicks": clicks.ravel(), "query": np.repeat(np.arange(6000), 2), "document": document.ravel()}
    X = np.eye(2)
    naive = NaiveRanker("linear", steps=300, learning_rate=0.3, batch_size=10_000).fit(X, **data).predict(X)
    dual = DualLearningRanker("linear", **FULL).fit(X, **data)
    assert naive[0] > naive[1]
    assert np.exp(np.diff(dual.predict(X))[0]) == pytest.approx(0.8 / 0.5, rel=0.1)
    assert dual.propensity_[1] == pytest.approx(0.3, rel=0.1)


def test_propensities_have_1_at_the_first_place_and_a_place_for_each_position():
    X, data = log()
    model = DualLearningRanker(**TINY, list_size=4).fit(X, **data)
    assert model.propensity_.shape == (4,)
    assert model.propensity_[0] == 1
    assert model.cut_ == 30
    assert model.history_.shape == (3,)


def test_a_seed_decides_everything_and_the_users_own_draws_are_left_alone():
    X, data = log()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (DualLearningRanker(**TINY, random_state=s).fit(X, **data).predict(X) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_order_of_lists_changes_nothing_with_one_full_batch():
    X, data = log()
    order = np.random.default_rng(1).permutation(len(X))
    full = {**TINY, "batch_size": 100}
    a = DualLearningRanker(**full).fit(X, **data)
    b = DualLearningRanker(**full).fit(X[order], **{k: v[order] for k, v in data.items()})
    assert b.predict(X) == pytest.approx(a.predict(X), abs=1e-5)
    assert b.propensity_ == pytest.approx(a.propensity_, abs=1e-6)


def test_shorter_lists_are_masked_not_padded_with_documents():
    X, data = log(lists=12)
    kept = ~((data["query"] % 2 == 0) & (data["position"] > 3))
    some = {k: v[kept] for k, v in data.items()}
    model = DualLearningRanker(**TINY, scale=False).fit(X[kept], **some)
    again = DualLearningRanker(**TINY, scale=False).fit(np.where(kept[:, None], X, 1e6), **some | {
        "document": np.flatnonzero(kept)})  # fmt: skip
    assert np.array_equal(model.predict(X), again.predict(X))


def test_lists_without_a_click_are_counted_and_have_no_part():
    X, data = log()
    data["clicks"][:5] = 0
    used = np.isin(data["query"], np.unique(data["query"][data["clicks"] > 0]))
    model = DualLearningRanker(**TINY, scale=False).fit(X, **data)
    assert model.empty_ == 30 - used.sum() / 5 > 0
    alone = DualLearningRanker(**TINY, scale=False).fit(X[used], **{k: v[used] for k, v in data.items()})
    assert np.array_equal(model.predict(X), alone.predict(X))


def test_partial_fit_goes_on_with_its_optimisers_and_one_pass_a_call():
    X, data = log()
    model = DualLearningRanker(**TINY).partial_fit(X, **data)
    steps = len(model.history_)
    assert steps == -(-(30 - model.empty_) // 8)
    before = model._optimizers[0]
    model.partial_fit(X, **data)
    assert model._optimizers[0] is before
    assert len(model.history_) == 2 * steps
    nothing = {**data, "clicks": np.zeros(len(X))}
    scores = model.predict(X)
    assert np.array_equal(model.partial_fit(X, **nothing).predict(X), scores)


def test_any_module_ranks_and_examines_and_the_given_ones_stay_as_they_were():
    X, data = log()
    net, exam = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), nn.Linear(5 + 2, 1)
    kept = [p.clone() for m in (net, exam) for p in m.parameters()]
    context = np.random.default_rng(0).normal(size=(len(X), 2))
    model = DualLearningRanker(net, propensity=exam, **{**TINY, "hidden": ()}).fit(X, **data, context=context)
    assert all(torch.equal(a, b) for a, b in zip(kept, [p for m in (net, exam) for p in m.parameters()], strict=True))
    assert not torch.equal(model.net_[0].weight, net[0].weight)
    assert model.propensity_.shape == (5,)


def test_a_context_that_decides_examination_is_learned():
    """On half of the lists nobody looks past the first place."""
    lists, n = 4000, 3
    narrow = np.arange(lists) % 2
    theta = np.where(narrow[:, None], [1.0, 0.1, 0.1], [1.0, 0.9, 0.9])
    clicks = (np.random.default_rng(0).random((lists, n)) < 0.5 * theta).astype(int)
    data = {"clicks": clicks.ravel(), "query": np.repeat(np.arange(lists), n), "document": np.zeros(lists * n, int)}
    shown = np.repeat(narrow, n)[:, None] * np.tile(np.eye(n), (lists, 1))  # a column a place, 0 on wide pages
    model = DualLearningRanker("linear", propensity="contextual", **FULL).fit(np.ones((1, 1)), **data, context=shown)
    half = {k: v[np.repeat(narrow, n) == 1] for k, v in data.items()}
    model._finish(*model._taken(np.ones((1, 1)), half["clicks"], half["query"], None, half["document"],
                                shown[np.repeat(narrow, n) == 1])[1:])  # fmt: skip
    assert model.propensity_[1:] == pytest.approx([0.1, 0.1], abs=0.04)


@pytest.mark.parametrize(("loss", "of_one"), [("softmax", np.log(5)), ("sigmoid", None), ("pairwise", np.log(2))])
def test_both_losses_are_of_the_kind_that_is_asked_for(loss, of_one):
    """Where every score is 1 and every examination logit 0, each has its closed form."""
    X, data = log(lists=12)
    net = nn.Linear(3, 1)
    nn.init.zeros_(net.weight)
    nn.init.ones_(net.bias)
    model = DualLearningRanker(net, loss=loss, steps=1, batch_size=100).fit(X, **data)
    clicked = data["clicks"].mean()
    sigmoid = clicked * np.log1p(np.exp(-1)) + (1 - clicked) * np.log1p(np.e) + np.log(2)
    assert model.history_[0] == pytest.approx(sigmoid if of_one is None else 2 * of_one)


def test_the_released_variant_makes_new_optimisers_so_that_every_weight_moves_by_the_rate():
    X, data = log()
    options = {"hidden": (4,), "batch_size": 100, "released": True, "max_weight": None, "max_norm": None}
    one, two = (DualLearningRanker(**options, steps=s).fit(X, **data) for s in (1, 2))
    assert isinstance(one.net_[0], nn.LayerNorm)
    assert isinstance(one.propensity_net_[-1], nn.ELU)
    for a, b in zip(one.net_.parameters(), two.net_.parameters(), strict=True):
        assert b.grad is not None  # of the second step
        assert torch.allclose(a - b, 0.05 * b.grad / (b.grad.abs() + 1e-10), atol=1e-5)
    kept = DualLearningRanker(hidden=(4,), batch_size=100, steps=2, max_weight=None, max_norm=None).fit(X, **data)
    first = DualLearningRanker(hidden=(4,), batch_size=100, steps=1, max_weight=None, max_norm=None).fit(X, **data)
    moved = (kept.net_[0].weight - first.net_[0].weight).abs()
    assert moved.median() < 0.04  # Adagrad that remembers steps less


def test_positions_are_free_numbers():
    assert Positions(3)(torch.eye(3)[:2].expand(4, -1, -1)).shape == (4, 2)


def test_defaults_are_the_published_ones_and_a_cut_that_is_the_same_everywhere():
    assert DualLearningRanker().get_params() == {
        "ranker": "dnn", "hidden": (512, 256, 128), "list_size": 10, "loss": "softmax", "reduce": "batch",
        "optimizer": "adagrad", "learning_rate": 0.05, "max_norm": 5.0, "batch_size": 256, "steps": 1000, "l2": 0.0,
        "scale": True, "device": "cpu", "random_state": 0, "propensity": "position", "propensity_learning_rate": None,
        "max_weight": 100.0, "released": False,
    }  # fmt: skip
    for function in (debias, fit_log):
        assert signature(function).parameters["max_weight"].default == 100.0


def test_it_is_a_scikit_learn_estimator():
    model = DualLearningRanker("linear", max_weight=3.0)
    assert clone(model).get_params() == model.get_params()
    assert "max_weight=3.0" in repr(model)
    with pytest.raises(NotFittedError, match="call fit first"):
        model.predict([[1.0]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranker": "dn"}, "unknown ranker 'dn'; did you mean dnn"),
        ({"loss": "softmx"}, "did you mean softmax"),
        ({"reduce": "sum"}, "unknown reduction"),
        ({"optimizer": "lion"}, "unknown optimizer"),
        ({"propensity": "positions"}, "did you mean position"),
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"max_weight": 0.0}, "max_weight=0.0"),
        ({"l2": -1.0}, "l2=-1.0"),
        ({"l2": np.nan}, "l2=nan"),
        ({"l2": np.inf}, "l2=inf"),
        ({"learning_rate": np.nan}, "learning_rate=nan"),
        ({"learning_rate": np.inf}, "learning_rate=inf"),
        ({"learning_rate": 1e39}, r"learning_rate=1e\+39"),
        ({"propensity_learning_rate": np.inf}, "propensity_learning_rate=inf"),
        ({"learning_rate": "0.1"}, "learning_rate='0.1'"),
        ({"learning_rate": None}, "learning_rate=None: a number above 0 is accepted"),
        ({"max_norm": np.nan}, "max_norm=nan: a number above 0, or None, is accepted"),
        ({"max_weight": "10"}, "max_weight='10'"),
        ({"propensity_learning_rate": np.nan}, "propensity_learning_rate=nan"),
        ({"propensity_learning_rate": 0}, "propensity_learning_rate=0"),
        ({"steps": True}, "steps=True"),
        ({"steps": 1.0}, "steps=1.0"),
        ({"random_state": None}, "random_state=None"),
        ({"random_state": 2**64}, "random_state=18446744073709551616"),
        ({"hidden": 64}, "hidden=64: a sequence of whole numbers from 1 on"),
        ({"hidden": "64"}, "hidden='64'"),
        ({"hidden": (4, 0)}, r"hidden=\(4, 0\)"),
        ({"hidden": (10**6, 10**6)}, r"hidden=\(1000000, 1000000\) makes 1,000,004,000,000 weights of 3 features"),
        ({"scale": "no"}, "scale='no'"),
        ({"ranker": 3}, "unknown ranker '3'"),
        ({"loss": None}, "unknown loss 'None'"),
        ({"propensity": ["position"]}, "unknown propensity"),
        ({"device": "tpu9"}, "device='tpu9' is not there"),
        ({"device": 1.5}, "device=1.5 is not there"),
        ({"released": True}, "give max_weight=None and max_norm=None"),
        ({"released": True, "max_weight": None, "max_norm": None, "loss": "sigmoid"}, "released=True is"),
    ],
)
def test_options_are_refused_by_name(options, said):
    X, data = log(lists=2)
    with pytest.raises(ValueError, match=said):
        DualLearningRanker(**options).fit(X, **data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clicks": np.zeros(10)}, "none of 2 lists has a click"),
        ({"X": np.full((10, 3), np.nan)}, "X holds nan in row 0, column 0"),
        ({"X": np.ones((9, 3))}, "X has 9 rows for 10 clicks"),
        ({"document": np.full(10, 10)}, "document 10 is asked for, and X has 10 rows"),
        ({"context": np.ones((10, 1))}, "propensity='position' has no use for it"),
        ({"X": np.ones(10)}, "X has shape"),
    ],
)
def test_data_are_refused_by_name(change, said):
    X, data = log(lists=2)
    data["clicks"][0] = 1
    given = {"X": X, **data, **change}
    with pytest.raises(ValueError, match=said):
        DualLearningRanker(**TINY).fit(given.pop("X"), **given)


def test_weights_and_norms_may_be_infinite_which_is_none():
    X, data = log(lists=4)
    cut, free = (DualLearningRanker(**TINY, max_weight=w, max_norm=w).fit(X, **data) for w in (np.inf, None))
    assert np.array_equal(cut.predict(X), free.predict(X))


def test_a_module_that_draws_is_decided_by_the_seed_alone():
    X, data = log()
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    nn.init.normal_(net[0].weight)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        found.append(NaiveRanker(net, steps=4, batch_size=100, random_state=seed).fit(X, **data).predict(X))
        assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_modules_of_double_precision_are_trained_in_single():
    X, data = log()
    net, exam = nn.Linear(3, 1).double(), nn.Linear(5, 1).double()
    model = DualLearningRanker(net, propensity=exam, **TINY).fit(X, **data)
    assert model.net_.weight.dtype == torch.float32
    assert net.weight.dtype == torch.float64


def test_an_examination_model_of_another_shape_is_refused():
    X, data = log()
    with pytest.raises(ValueError, match=r"the examination model gave \(8, 5, 3\) for \(8, 5, 5\): \(B, n\) is needed"):
        DualLearningRanker(propensity=nn.Linear(5, 3), **TINY).fit(X, **data)


@pytest.mark.parametrize(("steps", "said"), [(1, "weights are not finite"), (9, r"the loss of step \d is (nan|inf)")])
def test_a_training_that_leaves_finite_numbers_ends_by_name(steps, said):
    X, data = log()
    ranker = NaiveRanker("linear", optimizer="sgd", learning_rate=2e38, max_norm=None, steps=steps, scale=False)
    with pytest.raises(ValueError, match=rf"{said}: a learning_rate below 2e\+38"):
        ranker.fit(1e3 * X, **data)


def test_partial_fit_goes_on_with_as_many_columns_of_context_as_it_began_with():
    X, data = log()
    model = DualLearningRanker(propensity="contextual", **TINY).partial_fit(X, **data, context=X)
    for context, columns in ((X[:, :2], 2), (None, 0)):
        with pytest.raises(ValueError, match=f"context has {columns} features, and the ranker was begun with 3"):
            model.partial_fit(X, **data, context=context)
    with pytest.raises(ValueError, match="X has 2 features, and the ranker was begun with 3"):
        model.partial_fit(X[:, :2], **data, context=X)


def test_other_features_than_fitted_are_refused():
    X, data = log()
    model = NaiveRanker("linear", steps=1).fit(X, **data)
    with pytest.raises(ValueError, match="X has 2 features, and the ranker was fitted with 3"):
        model.predict(X[:, :2])
    with pytest.raises(ValueError, match="NaiveRanker has no use for a context"):
        NaiveRanker("linear").fit(X, **data, context=X)
    with pytest.raises(ValueError, match=r"the ranker gave \(\d+, 3\)"):
        NaiveRanker(nn.Linear(3, 3), steps=1).fit(X, **data)
    with pytest.raises(ValueError, match="Identity has no parameters to train"):
        NaiveRanker(nn.Identity(), steps=1).fit(X, **data)
