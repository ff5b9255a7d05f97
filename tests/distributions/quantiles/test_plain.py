import numpy as np
import pytest
import torch
from lightgbm import LGBMRegressor
from quantile_forest import ExtraTreesQuantileRegressor, RandomForestQuantileRegressor
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.linear_model import QuantileRegressor

from rankwise.distributions.quantiles.bases import GaussianNetwork, QuantileNetwork, fit_base, predict_base
from rankwise.distributions.quantiles.linear import LinearQuantile
from rankwise.distributions.quantiles.plain import (
    DEEPEST,
    Boosting,
    Forest,
    Linear,
    NotPlainError,
    Trees,
    as_plain,
    kept_kind,
    rebuilt,
    tensors,
)

TAU = np.array([0.1, 0.5, 0.9])
RNG = np.random.default_rng(0)
X = np.column_stack([RNG.normal(size=(300, 3)), RNG.integers(0, 3, 300)])
Y = X[:, 0] + X[:, 3] * RNG.normal(size=300)
NEW = np.column_stack([3 * RNG.normal(size=(200, 3)), RNG.integers(0, 5, 200)])
LIGHT = {"objective": "quantile", "n_estimators": 8, "verbose": -1, "n_jobs": 1}
KINDS = [
    LinearQuantile(),
    QuantileRegressor(alpha=1e-3),
    LGBMRegressor(**LIGHT),
    LGBMRegressor(**LIGHT, boosting_type="dart", random_state=0),
    LGBMRegressor(**LIGHT, min_child_samples=290),  # trees of one leaf
    GradientBoostingRegressor(loss="quantile", n_estimators=8),
    HistGradientBoostingRegressor(loss="quantile", quantile=0.5, max_iter=8),
    RandomForestQuantileRegressor(8, min_samples_leaf=5),
    ExtraTreesQuantileRegressor(8),
    GaussianNetwork(epochs=2),
    QuantileNetwork((4,), epochs=2),
]


def apart(base, features: int = 4):
    """A fitted base taken apart and together again."""
    if isinstance(base, list):
        return [apart(b) for b in base]
    return rebuilt(*tensors(as_plain(base)), features)


@pytest.mark.parametrize("base", KINDS, ids=lambda b: type(b).__name__)
def test_arrays_predict_the_same_to_the_bit(base):
    fitted = fit_base(base, X, Y, TAU)
    np.testing.assert_array_equal(predict_base(apart(fitted), NEW, TAU), predict_base(fitted, NEW, TAU))


def test_arrays_of_arrays_are_themselves():
    fitted = apart(fit_base(KINDS[7], X, Y, TAU))
    np.testing.assert_array_equal(apart(fitted).predict(NEW, TAU), fitted.predict(NEW, TAU))


class Own(BaseEstimator):
    pass


class GaussianOfMine(GaussianNetwork):
    pass


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (LGBMRegressor(**LIGHT, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5), "any boosting_type but rf"),
        (LGBMRegressor(**LIGHT, linear_tree=True), "without categorical features, linear_tree"),
        (LGBMRegressor(**LIGHT, zero_as_missing=True), "zero_as_missing"),
        (GradientBoostingRegressor(loss="quantile", n_estimators=3, init="zero"), "default `init`"),
        (HistGradientBoostingRegressor(loss="quantile", quantile=0.5, max_iter=3, categorical_features=[3]), "categor"),
        (RandomForestQuantileRegressor(3, max_samples_leaf=None), "max_samples_leaf=1"),
        (GaussianOfMine(epochs=1), "GaussianOfMine cannot be kept"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_arrays_do_not_carry_is_refused_by_name(base, why):
    fitted = fit_base(base, X, Y, np.array([0.5]))
    with pytest.raises(NotPlainError, match=why):
        as_plain(fitted[0] if isinstance(fitted, list) else fitted)


def test_another_kind_is_refused_by_name():
    with pytest.raises(NotPlainError, match=r"Own cannot be kept as plain arrays; lightgbm.LGBMRegressor"):
        as_plain(Own())


def two(**change) -> Trees:
    """Two trees of one split."""
    arrays = {
        "feature": [0, -1, -1, 3, -1, -1], "threshold": [0.5, 0, 0, 1.5, 0, 0], "left": [1, 0, 0, 4, 0, 0],
        "right": [2, 0, 0, 5, 0, 0], "value": [0, 1, 2, 0, 10, 20], "starts": [0, 3, 6],
    } | change  # fmt: skip
    integers = ("feature", "left", "right", "starts")
    return Trees(**{n: np.array(v, dtype=np.int64 if n in integers else np.float64) for n, v in arrays.items()})


def test_a_row_goes_left_up_to_the_threshold():
    rows = np.array([[0.5, 0, 0, 1.6], [0.51, 0, 0, 1.5]])
    np.testing.assert_array_equal(two().leaves(rows), [[1, 20], [2, 10]])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"left": [6, 0, 0, 4, 0, 0]}, "behind its parent, in the same tree"),  # out of the arrays
        ({"left": [4, 0, 0, 4, 0, 0]}, "behind its parent, in the same tree"),  # into another tree
        ({"left": [3, 0, 0, 4, 0, 0]}, "behind its parent, in the same tree"),
        ({"right": [2, 0, 0, 6, 0, 0]}, "behind its parent, in the same tree"),
        ({"right": [0, 0, 0, 5, 0, 0]}, "behind its parent"),  # round and round
        ({"right": [-1, 0, 0, 5, 0, 0]}, "behind its parent"),
        ({"right": [2**62, 0, 0, 5, 0, 0]}, "behind its parent"),
        ({"feature": [4, -1, -1, 3, -1, -1]}, "not one of 4"),
        ({"feature": [-7, -1, -1, 3, -1, -1]}, "not one of 4"),
        ({"threshold": [np.nan, 0, 0, 1, 0, 0]}, "NaN or Inf"),
        ({"value": [0, np.inf, 2, 0, 10, 20]}, "NaN or Inf"),
        ({"value": [0, 1, 2, 0, 10]}, "different lengths"),
        ({"starts": [0, 3, 7]}, "roots"),
        ({"starts": [1, 3, 6]}, "roots"),
        ({"starts": [0, 0, 6]}, "roots"),
        ({"starts": [0]}, "roots"),
    ],
)
def test_indices_that_lead_astray_are_refused(change, why):
    two().check(4)
    with pytest.raises(ValueError, match=why):
        two(**change).check(4)


@pytest.mark.parametrize("kind", ["boosting", "forest"])
def test_no_tree_is_used_unchecked(kind):
    arrays, about = tensors(apart(fit_base(KINDS[2 if kind == "boosting" else 7], X, Y, np.array([0.5])))[0]
                            if kind == "boosting" else apart(fit_base(KINDS[7], X, Y, TAU)))  # fmt: skip
    arrays["left"] = arrays["left"] + 10**9
    with pytest.raises(ValueError, match="behind its parent"):
        rebuilt(arrays, about, 4)
    with pytest.raises(ValueError, match=r"a tree splits on a feature|behind"):
        rebuilt(arrays | {"left": arrays["left"] - 10**9}, about, 1)


def test_arrays_of_another_type_or_shape_are_refused():
    arrays, about = tensors(as_plain(LinearQuantile().fit(X, Y)))
    with pytest.raises(ValueError, match="4 coefficients for 9 features"):
        rebuilt(arrays, about, 9)
    for wrong in (arrays["coef"].int(), arrays["coef"][None]):
        with pytest.raises(ValueError, match=r"'coef' is .* one dimension of torch.float64 is needed"):
            rebuilt({"coef": wrong}, about, 4)
    with pytest.raises(ValueError, match="a base of kind 'pickle'"):
        rebuilt(tensors(apart(fit_base(KINDS[7], X, Y, TAU)))[0], {"kind": "pickle"}, 4)


@pytest.mark.parametrize("hidden", [[10**9], [64, 10**9], [64] * 500, [], [-1, 64]])
def test_a_network_s_declared_size_allocates_nothing(hidden):
    arrays, about = tensors(as_plain(GaussianNetwork(epochs=1).fit(X, Y)))
    with pytest.raises((ValueError, RuntimeError)):
        rebuilt(arrays, about | {"hidden": hidden}, 4)
    with pytest.raises(ValueError, match="a network of"):
        rebuilt(arrays, about, 10**9)


def test_a_chain_of_nodes_that_takes_for_ever_is_refused():
    n = 2 * DEEPEST + 3
    inner = np.arange(0, n - 1, 2)
    feature, left, right = np.full(n, -1), np.zeros(n, dtype=int), np.zeros(n, dtype=int)
    feature[inner], left[inner], right[inner] = 0, inner + 1, inner + 2
    trees = two(feature=feature, left=left, right=right, threshold=np.zeros(n), value=np.zeros(n), starts=[0, n])
    trees.check(4)
    with pytest.raises(ValueError, match="deeper than 1000"):
        trees.leaves(np.ones((2, 4)))
    assert torch.is_tensor(tensors(as_plain(LinearQuantile().fit(X, Y)))[0]["coef"])


def test_trees_are_walked_in_blocks_and_a_tree_may_be_a_leaf(monkeypatch):
    rows = RNG.normal(size=(50, 4))
    whole = two().leaves(rows)
    assert whole.shape == (50, 2)
    np.testing.assert_array_equal(whole[:, 0], np.where(rows[:, 0] <= 0.5, 1, 2))
    np.testing.assert_array_equal(whole[:, 1], np.where(rows[:, 3] <= 1.5, 10, 20))
    monkeypatch.setattr("rankwise.distributions.quantiles.plain._BLOCK", 7)
    np.testing.assert_array_equal(two().leaves(rows), whole)
    assert two().leaves(rows[:0]).shape == (0, 2)
    leaf = Trees(feature=np.array([-1]), threshold=np.zeros(1), left=np.array([0]), right=np.array([0]),
                 value=np.array([3.5]), starts=np.array([0, 1]))  # fmt: skip
    leaf.check(1)
    assert leaf.leaves(rows[:2]).tolist() == [[3.5], [3.5]]


def test_what_the_arrays_say_is_what_is_predicted():
    linear = Linear(coef=np.array([1.0, -2.0]), intercept=0.5)
    assert linear.predict([[3, 1], [0, 0]]).tolist() == [1.5, 0.5]
    boosting = Boosting(trees=two(), baseline=100.0, single=False)
    assert boosting.predict([[0.5, 0, 0, 1.6], [0.51, 0, 0, 1.5]]).tolist() == [121, 112]
    edge = 0.5 + 1e-12  # more than float32 holds
    assert boosting.predict([[edge, 0, 0, 0]]).tolist() == [112]
    assert Boosting(trees=two(), baseline=100.0, single=True).predict([[edge, 0, 0, 0]]).tolist() == [111]
    forest = Forest(trees=two())
    np.testing.assert_allclose(forest.predict([[0.5, 0, 0, 1.6]], [0.0, 0.5, 1.0]), [[1, 10.5, 20]])
    assert forest.predict([[0.5, 0, 0, 1.6]]).tolist() == [[10.5]]


def test_every_array_has_the_length_of_the_nodes():
    for name in ("threshold", "left", "right", "value"):
        arrays = {n: getattr(two(), n) for n in Trees.__dataclass_fields__}
        arrays[name] = np.append(arrays[name], arrays[name][-1])
        with pytest.raises(ValueError, match="different lengths"):
            Trees(**arrays).check(4)
    two(threshold=[np.inf, np.nan, 0, -np.inf, 0, 0]).check(4)  # nothing is asked of a leaf's threshold
    two(value=[np.nan, 1, 2, np.inf, 10, 20]).check(4)  # nor of a split's value
    two(left=[1, 99, 0, 4, 0, 0]).check(4)  # nor of a leaf's children
    for bad in (-2, 4):
        with pytest.raises(ValueError, match="a tree"):
            two(feature=[0, -1, bad, 3, -1, -1]).check(4)
    with pytest.raises(ValueError, match="NaN or Inf"):
        two(value=[0, 1, 2, 0, np.nan, 20]).check(4)


def test_what_goes_with_the_arrays_is_plain():
    linear = as_plain(LinearQuantile(0.3).fit(X, Y))
    arrays, about = tensors(linear)
    assert about == {"kind": "linear", "intercept": linear.intercept}
    assert list(arrays) == ["coef"]
    boosting = as_plain(GradientBoostingRegressor(loss="quantile", n_estimators=2).fit(X, Y))
    arrays, about = tensors(boosting)
    assert about == {"kind": "boosting", "baseline": boosting.baseline, "single": True}
    assert set(arrays) == {"feature", "threshold", "left", "right", "value", "starts"}
    light = as_plain(LGBMRegressor(**LIGHT).fit(X, Y))
    assert tensors(light)[1] == {"kind": "boosting", "baseline": 0.0, "single": False}
    network = GaussianNetwork((5,), epochs=1).fit(X, Y)
    arrays, about = tensors(network)
    assert about == {"kind": "gaussian", "hidden": [5], "y_mean": network.y_mean_, "y_scale": network.y_scale_}
    assert set(arrays) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "mean", "scale"}
    again = rebuilt(arrays, about, 4)
    assert (again.hidden, again.n_features_in_, again.y_mean_) == ((5,), 4, network.y_mean_)
    for name in ("mean", "scale"):
        with pytest.raises(ValueError, match="columns, for 4 features"):
            rebuilt(arrays | {name: arrays[name][:-1]}, about, 4)
    with pytest.raises(ValueError, match=r"3 arrays for a network of 1 hidden layers"):
        rebuilt({k: v for k, v in arrays.items() if k != "net.0.bias"}, about, 4)
    assert tensors(QuantileNetwork((5,), epochs=1).fit(X, Y))[1]["kind"] == "network"


@pytest.mark.parametrize("name", ["feature", "threshold", "left", "right", "value", "starts"])
def test_every_array_of_trees_has_its_type(name):
    arrays, about = tensors(Forest(trees=two()))
    assert rebuilt(arrays, about, 4).trees.starts.tolist() == [0, 3, 6]
    wrong = arrays[name].float() if name in ("threshold", "value") else arrays[name].int()
    for given in (wrong, arrays[name][None]):
        with pytest.raises(ValueError, match=f"'{name}' is .* one dimension of torch"):
            rebuilt(arrays | {name: given}, about, 4)
    with pytest.raises(KeyError):
        rebuilt({k: v for k, v in arrays.items() if k != name}, about, 4)


def test_kinds_are_known_by_their_library_and_name():
    assert kept_kind(LinearQuantile()) == "rankwise.LinearQuantile"
    assert kept_kind(GaussianNetwork()) == "rankwise.GaussianNetwork"
    assert kept_kind(LGBMRegressor()) == "lightgbm.LGBMRegressor"
    assert kept_kind(ExtraTreesQuantileRegressor()) == "quantile_forest.ExtraTreesQuantileRegressor"
    assert kept_kind(GaussianOfMine()) is kept_kind(Own()) is None
