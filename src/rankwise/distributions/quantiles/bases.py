"""Base models for quantile aggregation: adapters of other libraries' regressors, and two small networks of our own
(linear quantiles are in `linear`).

A base gives ``(n, m)`` quantiles. Models whose ``predict`` takes ``quantiles`` (the quantile-forest package) are fitted
once; models with a level among their parameters (scikit-learn's and LightGBM's) once a level, at no more than
`LEVELS` of them, with the rest interpolated on the scale of normal quantiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn

from rankwise.distributions.accepted import rows_and_response_of, rows_of
from rankwise.distributions.seeds import seed_of

Array = NDArray[np.float64]
LEVELS = 9  # fits of a model that takes one level at a time


def fit_base(estimator: Any, X: Array, y: Array, quantiles: Array) -> Any:
    """A fitted base; ``predict_base`` reads its quantiles."""
    if takes_quantiles(estimator):
        fresh: Any = clone(estimator)
        return fresh.fit(X, y)
    name = level_parameter(estimator)
    return [_at(estimator, name, float(t)).fit(X, y) for t in fitted_levels(quantiles)]


def predict_base(fitted: Any, X: Array, quantiles: Array) -> Array:
    """Quantiles ``(n, m)`` of a base."""
    if not isinstance(fitted, list):
        return np.asarray(fitted.predict(X, quantiles=list(map(float, quantiles))), dtype=float).reshape(len(X), -1)
    knots = norm.ppf(fitted_levels(quantiles))
    values = np.column_stack([f.predict(X) for f in fitted])
    return interpolate(values, knots, norm.ppf(quantiles))


def _at(estimator: Any, name: str, level: float) -> Any:
    fresh: Any = clone(estimator)
    return fresh.set_params(**{name: level})


def fitted_levels(quantiles: Array) -> Array:
    """All levels, or nine of them evenly from the first to the last."""
    if len(quantiles) <= LEVELS:
        return quantiles
    return quantiles[np.round(np.linspace(0, len(quantiles) - 1, LEVELS)).astype(int)]


def interpolate(values: Array, knots: Array, at: Array) -> Array:
    """Piecewise linear along the last axis, from values ``(n, k)`` at ``knots`` to ``(n, len(at))``."""
    right = np.clip(np.searchsorted(knots, at), 1, len(knots) - 1) if len(knots) > 1 else np.zeros(len(at), dtype=int)
    if len(knots) == 1:
        return np.repeat(values, len(at), axis=1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return values[:, right - 1] * (1 - share) + values[:, right] * share


def takes_quantiles(estimator: Any) -> bool:
    """Whether ``predict`` has a ``quantiles`` parameter."""
    return "quantiles" in signature(estimator.predict).parameters


def level_parameter(estimator: Any) -> str:
    """The parameter that is the level: ``quantile``, or ``alpha`` of a model with a quantile loss.

    Raises
    ------
    ValueError
        A model that predicts no quantiles.
    """
    p = estimator.get_params()
    if "quantile" in p and p.get("loss", "quantile") == "quantile":
        return "quantile"
    if "quantile" in (p.get("loss"), p.get("objective")):
        return "alpha"
    raise ValueError(
        f"{type(estimator).__name__} predicts no quantiles: its predict must take `quantiles`, or it must have a "
        "parameter `quantile`, or `alpha` with loss or objective 'quantile'"
    )


class _Network(RegressorMixin, BaseEstimator, ABC):
    """A multilayer perceptron trained with early stopping on a tenth of the rows; x and y standardised inside."""

    def __init__(self, hidden: tuple[int, ...] = (64, 64), *, epochs: int = 200, random_state: int | None = 0) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.random_state = random_state

    @classmethod
    def of(cls, arrays: dict[str, torch.Tensor], about: dict[str, Any], features: int):
        """A fitted network from its weights (``net.…``), its columns' ``mean`` and ``scale``, and ``hidden``,
        ``y_mean`` and ``y_scale``; only what the arrays hold is allocated.

        Raises
        ------
        ValueError, KeyError, TypeError, RuntimeError
            Arrays that are not those of such a network.
        """
        model = cls(tuple(int(h) for h in about["hidden"]))
        mean, scale = (np.array(arrays[n], dtype=float) for n in ("mean", "scale"))
        if mean.shape != (features,) or scale.shape != (features,):
            raise ValueError(f"a network of {mean.shape} columns, for {features} features")
        weights = {k.removeprefix("net."): v for k, v in arrays.items() if k.startswith("net.")}
        if len(weights) != 2 * (len(model.hidden) + 1):
            raise ValueError(f"{len(weights)} arrays for a network of {len(model.hidden)} hidden layers")
        with torch.device("meta"):
            model.net_ = mlp(features, model.hidden, model._outputs())
        model.net_.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        model.scaler_ = StandardScaler().fit(np.zeros((1, features)))
        model.scaler_.mean_, model.scaler_.scale_ = mean, scale
        model.y_mean_, model.y_scale_ = float(about["y_mean"]), float(about["y_scale"])
        vars(model)["n_features_in_"] = features  # scikit-learn sets it in `validate_data`
        return model

    @abstractmethod
    def _outputs(self) -> int: ...

    @abstractmethod
    def _loss(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor: ...

    def fit(self, X: ArrayLike, y: ArrayLike):
        """Fit to ``(n, d)`` and ``(n,)``."""
        X, y = rows_and_response_of(self, X, y)
        self.scaler_ = StandardScaler().fit(X)
        self.y_mean_, self.y_scale_ = float(y.mean()), float(y.std()) or 1.0
        seed = seed_of(self.random_state)
        g = torch.Generator().manual_seed(seed)
        x = torch.as_tensor(self.scaler_.transform(X), dtype=torch.float32)
        t = torch.as_tensor((y - self.y_mean_) / self.y_scale_, dtype=torch.float32)
        order = torch.randperm(len(x), generator=g)
        held, used = order[: max(len(x) // 10, 1)], order[max(len(x) // 10, 1) :] if len(x) > 1 else order
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net_ = mlp(X.shape[1], self.hidden, self._outputs())
        optimizer = torch.optim.Adam(self.net_.parameters(), lr=3e-3, weight_decay=1e-6, fused=True)
        best, kept, waited = float("inf"), None, 0
        for _ in range(self.epochs):
            for rows in used[torch.randperm(len(used), generator=g)].split(256):
                optimizer.zero_grad()
                self._loss(self.net_(x[rows]), t[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                value = float(self._loss(self.net_(x[held]), t[held]))
            waited = 0 if value < best else waited + 1
            if value < best:
                best, kept = value, {k: v.clone() for k, v in self.net_.state_dict().items()}
            if waited >= 20:
                break
        if kept is not None:
            self.net_.load_state_dict(kept)
        return self

    def _forward(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        given = rows_of(self, X, reset=False)
        with torch.no_grad():
            x = torch.as_tensor(self.scaler_.transform(given), dtype=torch.float32)
            return self.net_(x).double().numpy()


class GaussianNetwork(_Network):
    """Conditional normal distribution: a network for mean and log standard deviation.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the hidden layers. Default (64, 64); empty, the network is linear.
    epochs : int
        The most passes over the training rows; it stops after 20 without a better loss. Default 200.
    random_state : int or None
        Decides the rows held out, the start and the batches. Default 0; None draws anew.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.bases import GaussianNetwork
    >>> X = np.random.default_rng(0).uniform(size=(2000, 1))
    >>> y = X[:, 0] + np.random.default_rng(1).normal(size=2000)  # a standard deviation of 1
    >>> low, high = GaussianNetwork((8,)).fit(X, y).predict([[0.5]], quantiles=[0.1, 0.9])[0]
    >>> bool(abs(high - low - 2.56) < 0.3)  # what it is of a normal law
    True
    """

    def _outputs(self) -> int:
        return 2

    def _loss(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        log_s = out[:, 1].clamp(-6, 6)
        return (log_s + ((y - out[:, 0]) / log_s.exp()).square() / 2).mean()

    def predict(self, X: ArrayLike, quantiles: ArrayLike = (0.5,)) -> Array:
        """Quantiles ``(n, m)``; ``(n,)`` for one level."""
        out = self._forward(X)
        z = norm.ppf(np.asarray(quantiles, dtype=float))
        q = out[:, :1] + np.exp(np.clip(out[:, 1:], -6, 6)) * z
        return (q * self.y_scale_ + self.y_mean_).squeeze(1) if len(z) == 1 else q * self.y_scale_ + self.y_mean_


class QuantileNetwork(_Network):
    """One network for many quantiles at once, trained on their mean pinball loss.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the hidden layers. Default (64, 64); empty, the network is linear.
    epochs : int
        The most passes over the training rows; it stops after 20 without a better loss. Default 200.
    random_state : int or None
        Decides the rows held out, the start and the batches. Default 0; None draws anew.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.bases import QuantileNetwork
    >>> X = np.random.default_rng(0).uniform(size=(500, 1))
    >>> y = np.random.default_rng(1).uniform(size=500)  # whose quantile at τ is τ
    >>> q = QuantileNetwork((8,)).fit(X, y).predict([[0.5]], quantiles=[0.25, 0.5, 0.75])
    >>> bool(np.abs(q - [0.25, 0.5, 0.75]).max() < 0.1)
    True
    """

    _levels = np.linspace(0.01, 0.99, 25)

    def _outputs(self) -> int:
        return len(self._levels)

    def _loss(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        tau = torch.as_tensor(self._levels, dtype=torch.float32)
        e = y[:, None] - out
        return torch.maximum(tau * e, (tau - 1) * e).mean()

    def predict(self, X: ArrayLike, quantiles: ArrayLike = (0.5,)) -> Array:
        """Quantiles ``(n, m)``, interpolated between 25 trained levels; ``(n,)`` for one level."""
        z = norm.ppf(np.asarray(quantiles, dtype=float))
        q = interpolate(np.sort(self._forward(X), axis=1), norm.ppf(self._levels), z) * self.y_scale_ + self.y_mean_
        return q.squeeze(1) if len(z) == 1 else q


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, *, dropout: float = 0.0) -> nn.Sequential:
    """ELU layers and a linear output."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ELU(), *([nn.Dropout(dropout)] if dropout else [])]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
