"""Fitted base models as arrays: what they predict, without the libraries that fitted them.

    linear      q(x) = b + xᵀβ                                        LinearQuantile, scikit-learn's QuantileRegressor
    boosting    q(x) = b + Σ_t v(leaf_t(x))                           LightGBM, scikit-learn's gradient boosting
    forest      q(x; τ) = quantile at τ over trees t of v(leaf_t(x))  quantile-forest's, with one response a leaf

A tree sends a row left where ``x_feature <= threshold``. Arrays that come from a file are checked before they are used:
a child lies behind its parent and within its tree, so that every way down ends; features are those of the rows.

What people get wrong: reading a stranger's pickled model, or trees whose indices nobody looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rankwise.distributions.quantiles.bases import GaussianNetwork, QuantileNetwork, fitted_levels

Array = NDArray[np.float64]
Index = NDArray[np.int64]
DEEPEST = 1000  # steps from a root to a leaf
_BLOCK = 1 << 20  # rows times trees at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """Regression trees in one set of arrays.

    Attributes
    ----------
    feature : ndarray of int
        ``(nodes,)``; -1 at leaves.
    threshold, value : ndarray
        ``(nodes,)``; of the split, of the leaf.
    left, right : ndarray of int
        ``(nodes,)``, positions in these arrays.
    starts : ndarray of int
        ``(trees + 1,)``, the roots, and the number of nodes.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.plain import Trees
    >>> stump = Trees(
    ...     feature=np.array([0, -1, -1]), threshold=np.array([0.5, 0.0, 0.0]), left=np.array([1, 0, 0]),
    ...     right=np.array([2, 0, 0]), value=np.array([0.0, 10.0, 20.0]), starts=np.array([0, 3]),
    ... )
    >>> stump.check(features=1)
    >>> stump.leaves(np.array([[0.2], [0.8]])).tolist()
    [[10.0], [20.0]]
    """

    feature: Index
    threshold: Array
    left: Index
    right: Index
    value: Array
    starts: Index

    def check(self, features: int) -> None:
        """Refuse what would lead out of the arrays, or never end.

        Raises
        ------
        ValueError
            What is wrong.
        """
        n, starts = len(self.feature), self.starts
        if any(len(a) != n for a in (self.threshold, self.left, self.right, self.value)):
            raise ValueError("the arrays of trees have different lengths")
        if len(starts) < 2 or starts[0] != 0 or starts[-1] != n or (np.diff(starts) < 1).any():
            raise ValueError("the roots of trees are not in order")
        inner = self.feature >= 0
        here, end = np.flatnonzero(inner), np.repeat(starts[1:], np.diff(starts))[inner]
        for child in (self.left[inner], self.right[inner]):
            if (child <= here).any() or (child >= end).any():
                raise ValueError("a tree's child is not behind its parent, in the same tree")
        if (self.feature < -1).any() or (self.feature >= features).any():
            raise ValueError(f"a tree splits on a feature that is not one of {features}")
        if np.isnan(self.threshold[inner]).any() or not np.isfinite(self.value[~inner]).all():
            raise ValueError("a tree has NaN or Inf among its thresholds or values")

    def leaves(self, X: NDArray[np.floating]) -> Array:
        """Values ``(n, trees)`` of the leaves of rows ``(n, d)``."""
        trees = len(self.starts) - 1
        step = max(1, _BLOCK // trees)
        parts = [self._leaves(X[i : i + step]) for i in range(0, len(X), step)]
        return np.concatenate(parts) if parts else np.empty((0, trees))

    def _leaves(self, X: NDArray[np.floating]) -> Array:
        at = np.tile(self.starts[:-1], (len(X), 1))
        rows = np.broadcast_to(np.arange(len(X))[:, None], at.shape)
        for _ in range(DEEPEST):
            feature = self.feature[at]
            inner = feature >= 0
            if not inner.any():
                return self.value[at]
            node = at[inner]
            goes_left = X[rows[inner], feature[inner]] <= self.threshold[node]
            at[inner] = np.where(goes_left, self.left[node], self.right[node])
        raise ValueError(f"a tree is deeper than {DEEPEST}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """One level as a linear function.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.plain import Linear
    >>> Linear(coef=np.array([2.0, -1.0]), intercept=0.5).predict([[1.0, 1.0], [0.0, 0.0]]).tolist()
    [1.5, 0.5]
    """

    coef: Array
    intercept: float

    def predict(self, X: ArrayLike) -> Array:
        """``(n,)``."""
        return np.asarray(X, dtype=float) @ self.coef + self.intercept


@dataclass(frozen=True, kw_only=True, eq=False)
class Boosting:
    """One level as a sum of trees, on columns of ``single`` or double precision.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import GradientBoostingRegressor
    >>> from rankwise.distributions.quantiles.plain import as_plain
    >>> X, y = load_diabetes(return_X_y=True)
    >>> fitted = GradientBoostingRegressor(loss="quantile", alpha=0.9, n_estimators=5).fit(X, y)
    >>> plain = as_plain(fitted)
    >>> type(plain).__name__, bool((plain.predict(X) == fitted.predict(X)).all())
    ('Boosting', True)
    """

    trees: Trees
    baseline: float
    single: bool

    def predict(self, X: ArrayLike) -> Array:
        """``(n,)``."""
        leaves = self.trees.leaves(np.asarray(X, dtype=np.float32 if self.single else np.float64))
        out = np.full(len(leaves), self.baseline)
        for column in leaves.T:  # in their order, as the libraries add
            out += column
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Forest:
    """All levels as quantiles of a response a tree.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.plain import Forest, Trees
    >>> ends, none = np.array([10.0, 20.0, 30.0]), np.zeros(3, dtype=int)  # three trees that are a leaf each
    >>> trees = Trees(feature=none - 1, threshold=0 * ends, left=none, right=none, value=ends, starts=np.arange(4))
    >>> Forest(trees=trees).predict([[0.0]], quantiles=[0.25, 0.5]).tolist()
    [[15.0, 20.0]]
    """

    trees: Trees

    def predict(self, X: ArrayLike, quantiles: ArrayLike = (0.5,)) -> Array:
        """``(n, m)``."""
        leaves = self.trees.leaves(np.asarray(X, dtype=np.float32))
        return np.quantile(leaves, np.asarray(quantiles, dtype=float), axis=1).T


NETWORKS = {"gaussian": GaussianNetwork, "network": QuantileNetwork}
Plain = Linear | Boosting | Forest | GaussianNetwork | QuantileNetwork


class NotPlainError(ValueError):
    """A base model that cannot be kept as arrays.

    Examples
    --------
    >>> from sklearn.dummy import DummyRegressor
    >>> from rankwise.distributions.quantiles.plain import as_plain
    >>> as_plain(DummyRegressor(strategy="quantile", quantile=0.5))
    Traceback (most recent call last):
    rankwise.distributions.quantiles.plain.NotPlainError: DummyRegressor cannot be kept as plain arrays; ...
    """


def as_plain(fitted: Any) -> Plain:
    """A fitted model of one level, or of all, as arrays.

    Raises
    ------
    NotPlainError
        A model of another kind, or with options that arrays do not carry (which is said).
    """
    if isinstance(fitted, Linear | Boosting | Forest) or type(fitted) in NETWORKS.values():
        return fitted
    kind = kept_kind(fitted)
    if kind is None:
        raise NotPlainError(
            f"{type(fitted).__name__} cannot be kept as plain arrays; {', '.join(sorted(_KINDS))} and rankwise's own "
            "networks can"
        )
    found = _KINDS[kind](fitted)
    if isinstance(found, Boosting | Forest):
        found.trees.check(int(fitted.n_features_in_))
    return found


def kept_kind(estimator: Any) -> str | None:
    """The kind of an estimator that `as_plain` takes once it is fitted, None for others."""
    root = type(estimator).__module__.partition(".")[0]
    kind = f"{root}.{type(estimator).__name__}"
    return kind if kind in _KINDS or type(estimator) in NETWORKS.values() else None


def tensors(model: Plain) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of a plain model, and what goes with them as JSON."""
    if isinstance(model, Linear):
        return {"coef": torch.tensor(model.coef)}, {"kind": "linear", "intercept": model.intercept}
    if isinstance(model, Boosting | Forest):
        arrays = {n: torch.tensor(getattr(model.trees, n)) for n in Trees.__dataclass_fields__}
        if isinstance(model, Forest):
            return arrays, {"kind": "forest"}
        return arrays, {"kind": "boosting", "baseline": model.baseline, "single": model.single}
    kind = next(k for k, c in NETWORKS.items() if type(model) is c)
    arrays = {f"net.{k}": v.detach().clone() for k, v in model.net_.state_dict().items()}
    arrays |= {n: torch.tensor(getattr(model.scaler_, f"{n}_")) for n in ("mean", "scale")}
    return arrays, {
        "kind": kind, "hidden": list(model.hidden), "y_mean": model.y_mean_, "y_scale": model.y_scale_,
    }  # fmt: skip


def rebuilt(arrays: dict[str, Tensor], about: dict[str, Any], features: int) -> Plain:
    """What `tensors` took apart, of rows with so many features; every array checked.

    Raises
    ------
    ValueError, KeyError, TypeError, RuntimeError
        Anything that `tensors` does not write.
    """
    kind = about["kind"]
    if kind in NETWORKS:
        return NETWORKS[kind].of(arrays, about, features)
    if kind == "linear":
        coef = _vector(arrays, "coef", torch.float64)
        if coef.shape != (features,):
            raise ValueError(f"{len(coef)} coefficients for {features} features")
        return Linear(coef=coef, intercept=float(about["intercept"]))
    types = {"threshold": torch.float64, "value": torch.float64}
    trees = Trees(**{n: _vector(arrays, n, types.get(n, torch.int64)) for n in Trees.__dataclass_fields__})
    trees.check(features)
    if kind == "forest":
        return Forest(trees=trees)
    if kind != "boosting":
        raise ValueError(f"a base of kind {kind!r}")
    return Boosting(trees=trees, baseline=float(about["baseline"]), single=bool(about["single"]))


def _vector(arrays: dict[str, Tensor], name: str, dtype: torch.dtype) -> NDArray[Any]:
    found = arrays[name]
    if found.ndim != 1 or found.dtype != dtype:
        raise ValueError(f"'{name}' is {tuple(found.shape)} of {found.dtype}; one dimension of {dtype} is needed")
    return found.numpy()


def _linear(fitted: Any) -> Linear:
    return Linear(coef=np.asarray(fitted.coef_, dtype=float), intercept=float(fitted.intercept_))


def _joined(parts: list[tuple[NDArray[Any], ...]]) -> Trees:
    """Trees of ``(feature, threshold, left, right, value)``, with positions counted within each."""
    sizes = [len(p[0]) for p in parts]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    shift = np.repeat(starts[:-1], sizes)
    feature, threshold, left, right, value = (np.concatenate(a) for a in zip(*parts, strict=True))
    inner = feature >= 0
    return Trees(
        feature=np.where(inner, feature, -1).astype(np.int64), threshold=np.where(inner, threshold, 0.0),
        left=np.where(inner, left + shift, 0), right=np.where(inner, right + shift, 0),
        value=np.where(inner, 0.0, value), starts=starts,
    )  # fmt: skip


def _of_scikit_learn(tree: Any, value: Array) -> tuple[NDArray[Any], ...]:
    feature = np.where(tree.children_left < 0, -1, tree.feature)
    return feature, tree.threshold, tree.children_left, tree.children_right, value


def _forest(fitted: Any) -> Forest:
    if fitted.max_samples_leaf != 1 or fitted.monotonic_cst is not None or len(fitted.forest_.y_train) != 1:
        raise NotPlainError(
            f"{type(fitted).__name__} is kept with max_samples_leaf=1, without monotonic_cst, for one response"
        )
    y, kept, parts = np.asarray(fitted.forest_.y_train)[0], fitted.forest_.y_train_leaves, []
    for tree, leaves in zip((e.tree_ for e in fitted.estimators_), kept, strict=True):
        rows = np.asarray(leaves)[: tree.node_count, 0, 0]
        parts.append(_of_scikit_learn(tree, y[np.maximum(rows, 1) - 1]))
    return Forest(trees=_joined(parts))


def _gradient_boosting(fitted: Any) -> Boosting:
    if type(fitted.init_).__name__ != "DummyRegressor":
        raise NotPlainError("GradientBoostingRegressor is kept with its default `init`")
    rate = fitted.learning_rate
    parts = [_of_scikit_learn(e.tree_, rate * e.tree_.value[:, 0, 0]) for e in fitted.estimators_[:, 0]]
    return Boosting(trees=_joined(parts), baseline=float(np.ravel(fitted.init_.constant_)[0]), single=True)


def _histogram(fitted: Any) -> Boosting:
    parts = []
    for (predictor,) in fitted._predictors:
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            raise NotPlainError("HistGradientBoostingRegressor is kept without categorical_features")
        feature = np.where(nodes["is_leaf"], -1, nodes["feature_idx"].astype(np.int64))
        children = (nodes[n].astype(np.int64) for n in ("left", "right"))
        parts.append((feature, nodes["num_threshold"], *children, nodes["value"]))
    return Boosting(trees=_joined(parts), baseline=float(np.ravel(fitted._baseline_prediction)[0]), single=False)


def _lightgbm(fitted: Any) -> Boosting:
    """From LightGBM's own text: splits first, then leaves, each known as ``-1 - i``."""
    head, *blocks = fitted.booster_.model_to_string().partition("end of trees")[0].split("\nTree=")
    if "\naverage_output" in head or "\nobjective=quantile" not in head:
        raise NotPlainError("LGBMRegressor is kept with objective='quantile' and any boosting_type but rf")
    return Boosting(trees=_joined([_lightgbm_tree(block) for block in blocks]), baseline=0.0, single=False)


def _lightgbm_tree(block: str) -> tuple[NDArray[Any], ...]:
    said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)

    def read(name: str, dtype: type) -> NDArray[Any]:
        return np.array(said.get(name, "").split(), dtype=dtype)

    kinds, leaves = read("decision_type", int), read("leaf_value", float)
    if said["num_cat"] != "0" or said["is_linear"] != "0" or (kinds & 1).any() or ((kinds >> 2) & 3 == 1).any():
        raise NotPlainError("LGBMRegressor is kept without categorical features, linear_tree and zero_as_missing")
    inner, none = len(kinds), np.zeros(len(leaves))
    children = [np.where(c < 0, inner - 1 - c, c) for c in (read("left_child", int), read("right_child", int))]
    return (
        np.concatenate([read("split_feature", int), none.astype(int) - 1]),
        np.concatenate([read("threshold", float), none]),
        *(np.concatenate([c, none.astype(int)]) for c in children),
        np.concatenate([np.zeros(inner), leaves]),
    )


_KINDS: dict[str, Callable[[Any], Linear | Boosting | Forest]] = {
    "rankwise.LinearQuantile": _linear,
    "sklearn.QuantileRegressor": _linear,
    "sklearn.GradientBoostingRegressor": _gradient_boosting,
    "sklearn.HistGradientBoostingRegressor": _histogram,
    "lightgbm.LGBMRegressor": _lightgbm,
    "quantile_forest.RandomForestQuantileRegressor": _forest,
    "quantile_forest.ExtraTreesQuantileRegressor": _forest,
}


def bases_apart(bases: list[Any]) -> tuple[dict[str, Tensor], list[list[dict[str, Any]]]]:
    """Arrays of fitted bases, and the rest as JSON: for each base its fits, of which a base of all levels has one."""
    arrays, about = {}, []
    for b, base in enumerate(bases):
        fits = base if isinstance(base, list) else [base]
        about.append([])
        for k, fit in enumerate(fits):
            found, more = tensors(as_plain(fit))
            arrays |= {f"base.{b}.{k}.{name}": v for name, v in found.items()}
            about[-1].append(more)
    return arrays, about


def bases_together(arrays: dict[str, Tensor], about: list[list[dict[str, Any]]], features: int, tau: Array) -> list:
    """What `bases_apart` took apart."""
    out = []
    for b, fits in enumerate(about):
        found = []
        for k, more in enumerate(fits):
            prefix = f"base.{b}.{k}."
            own = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
            found.append(rebuilt(own, more, features))
        every = bool(found) and not isinstance(found[0], Linear | Boosting)
        if len(found) != (1 if every else len(fitted_levels(tau))):
            raise ValueError(f"base {b} has {len(found)} fits for {len(tau)} levels")
        out.append(found[0] if every else found)
    return out
