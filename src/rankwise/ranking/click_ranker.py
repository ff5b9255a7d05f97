"""Rankers that learn from lists of clicks: what all of them share, and the naive one.

A score network f maps documents ``(m, d)`` to scores ``(m,)``; a batch of lists is one forward pass of all its
documents, never a loop over positions. What a method is, is how it weighs clicks: see `dla` and `click_baselines`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from rankwise.nearest import unknown
from rankwise.ranking.click_losses import LOSSES, REDUCE, list_loss
from rankwise.ranking.lists import ClickLists, lists_of

__all__ = ["ClickRanker", "NaiveRanker"]

Array = NDArray[np.float64]
RANKERS = ("dnn", "linear")
MOST_WEIGHTS = 250_000_000  # of layers that are made: 1 GB
OPTIMIZERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(kw_only=True)
class Batch:
    """Some lists as tensors ``(B, n)``; ``context`` is ``(B, n, c)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.ranking.click_ranker import Batch
    >>> Batch(clicks=torch.zeros(2, 3), mask=torch.ones(2, 3, dtype=torch.bool)).context is None
    True
    """

    clicks: Tensor
    mask: Tensor
    context: Tensor | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class ClickRanker(BaseEstimator):
    """A ranker of documents trained on lists; subclasses say how clicks are weighed.

    Parameters
    ----------
    ranker : {"dnn", "linear"} or Module
        The score network: layers of ``hidden`` units with ELU, one linear map, or a module from ``(m, d)`` to ``(m,)``
        or ``(m, 1)``, of which a copy is trained, in float32.
    hidden : sequence of int
        Units of each hidden layer of ``"dnn"``.
    list_size : int
        Positions that are learned from; what stands below is cut and counted in ``cut_``.
    loss : {"softmax", "sigmoid", "pairwise"}
        See `rankwise.ranking.click_losses`.
    reduce : {"batch", "list"}
        Whether the batch or every list is divided by its weight.
    optimizer : {"adagrad", "adam", "sgd"}
        One for each network, kept from step to step.
    learning_rate : float
        Of the ranker.
    max_norm : float, optional
        Gradients of each network are cut to this norm; None leaves them.
    batch_size : int
        Lists a step.
    steps : int
        Of `fit`; `partial_fit` takes one pass over its lists.
    l2 : float
        Weight decay of the ranker.
    scale : bool
        Whether features are centred and divided by their standard deviation, as `fit` finds them.
    device : str
        Where the networks live.
    random_state : int
        Decides initial weights, batches, and what a module of your own draws in training.

    Attributes
    ----------
    net_ : Module
        The trained score network.
    history_ : ndarray
        ``(steps,)`` losses.
    empty_, cut_ : int
        Lists without a click, and rows beyond ``list_size``, of the last fit.
    n_features_in_ : int
        Features a document.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import NaiveRanker
    >>> X = np.array([[0.0], [1.0]])
    >>> log = dict(clicks=[0, 1, 0, 1], query=[0, 0, 1, 1], document=[0, 1, 1, 0])
    >>> NaiveRanker("linear", steps=5).fit(X, **log).predict(X).shape
    (2,)
    """

    ranker: str | nn.Module = field(default="dnn", kw_only=False)
    hidden: Sequence[int] = (512, 256, 128)
    list_size: int = 10
    loss: str = "softmax"
    reduce: str = "batch"
    optimizer: str = "adagrad"
    learning_rate: float = 0.05
    max_norm: float | None = 5.0
    batch_size: int = 256
    steps: int = 1_000
    l2: float = 0.0
    scale: bool = True
    device: str = "cpu"
    random_state: int = 0

    def fit(
        self,
        X: ArrayLike,
        clicks: ArrayLike,
        *,
        query: ArrayLike,
        position: ArrayLike | None = None,
        document: ArrayLike | None = None,
        context: ArrayLike | None = None,
    ) -> Any:
        """Learn from a log, from the start.

        Parameters
        ----------
        X : array
            ``(m, d)`` features: a row a row of the log, or a row a document where ``document`` is given.
        clicks : array
            ``(rows,)`` of 0 and 1.
        query : array
            ``(rows,)``, the id of the list that a row was shown in; a showing of a query is a list.
        position : array, optional
            ``(rows,)``, 1 for the first; the order of rows by default.
        document : array, optional
            ``(rows,)``, which row of ``X`` was shown.
        context : array, optional
            ``(rows, c)``, of how it was shown, for contextual propensities.

        Returns
        -------
        object
            Itself.

        Raises
        ------
        ValueError
            Options or data that are not accepted: the value and what is accepted are said; a loss that is not finite.
        """
        self._check()
        features, lists, shown = self._taken(X, clicks, query, position, document, context)
        used = lists.take(self._used(lists))
        if not len(used):
            raise ValueError(f"none of {len(lists):,} lists has a click: there is nothing to learn from")
        self._begin(features, lists, shown)
        self._generator = torch.Generator().manual_seed(self.random_state)
        self._train(features, used, shown, self._drawn(len(used)), self.steps)
        self._finish(lists, shown)
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        clicks: ArrayLike,
        *,
        query: ArrayLike,
        position: ArrayLike | None = None,
        document: ArrayLike | None = None,
        context: ArrayLike | None = None,
    ) -> Any:
        """One pass over further lists, in batches; the first call begins. Parameters as of `fit`.

        Lists without a click are passed over, and a call may hold no other.
        """
        self._check()
        features, lists, shown = self._taken(X, clicks, query, position, document, context)
        if not hasattr(self, "net_"):
            self._begin(features, lists, shown)
            self._generator = torch.Generator().manual_seed(self.random_state)
        for name, given, begun in (("X", features, self.n_features_in_), ("context", shown, self._shown)):
            if (columns := 0 if given is None else given.shape[1]) != begun:
                raise ValueError(f"{name} has {columns} features, and the ranker was begun with {begun}")
        used = lists.take(self._used(lists))
        self._train(features, used, shown, self._drawn(len(used)), -(-len(used) // self.batch_size))
        self._finish(lists, shown)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Scores ``(m,)`` of documents ``(m, d)``: the higher, the earlier.

        Raises
        ------
        ValueError
            Another number of features, or NaN.
        """
        if not hasattr(self, "net_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        features = _features(X)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {features.shape[1]} features, and the ranker was fitted with {self.n_features_in_}"
            )
        self.net_.eval()
        with torch.no_grad():
            parts = [self._scores(self._scaled(part)) for part in np.array_split(features, -(-len(features) // 65_536))]
        return torch.cat(parts).double().cpu().numpy()

    # --- what a method says

    def _weights(self, z: Tensor, batch: Batch) -> Tensor:
        """Of clicks, in the ranker's loss."""
        return torch.ones_like(z)

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        return list_loss(z, batch.clicks, self._weights(z, batch), batch.mask, loss=self.loss, reduce=self.reduce)

    def _networks(self) -> list[tuple[nn.Module, float, float]]:
        """Each network with its rate and its decay."""
        return [(self.net_, self.learning_rate, self.l2)]

    def _extra(self, lists: ClickLists, context: Tensor | None) -> None:
        """Make what the method has besides the ranker."""
        if context is not None:
            raise ValueError(f"{type(self).__name__} has no use for a context: leave it out")

    def _finish(self, lists: ClickLists, context: Tensor | None) -> None:
        """Set what is reported."""

    def _used(self, lists: ClickLists) -> NDArray[np.bool_]:
        """Lists that take part: of the sigmoid loss, those without a click too."""
        return np.ones(len(lists), bool) if self.loss == "sigmoid" else lists.clicked

    def _check(self) -> None:
        if hasattr(self, "net_") and not hasattr(self, "_optimizers"):
            raise ValueError("this ranker was loaded: it scores, and is not trained on; make a new one")
        for kind, value, accepted in (("loss", self.loss, LOSSES), ("reduction", self.reduce, REDUCE),
                                      ("optimizer", self.optimizer, OPTIMIZERS)):  # fmt: skip
            one_of(kind, value, accepted)
        one_of("ranker", self.ranker, RANKERS, or_module=True)
        for name, least in (("list_size", 1), ("batch_size", 1), ("steps", 1), ("random_state", 0)):
            value = getattr(self, name)
            if not _whole(value, least):
                raise ValueError(f"{name}={value!r}: a whole number from {least} on is accepted")
        units = self.hidden if isinstance(self.hidden, Sequence) and not isinstance(self.hidden, str) else [None]
        if not all(_whole(n, 1) for n in units):
            raise ValueError(f"hidden={self.hidden!r}: a sequence of whole numbers from 1 on is accepted")
        self._positive("learning_rate")
        self._positive("max_norm", optional=True)
        if not (_real(self.l2) and 0 <= self.l2 < np.inf):
            raise ValueError(f"l2={self.l2!r}: a number from 0 on is accepted")
        if not isinstance(self.scale, bool | np.bool_):
            raise ValueError(f"scale={self.scale!r}: True or False is accepted")
        _check_device(self.device)

    def _positive(self, name: str, *, optional: bool = False) -> None:
        """A learning rate, a weight or a norm; beyond float32 only where None would do as well."""
        value = getattr(self, name)
        if not (optional and value is None) and not (_real(value) and value > 0 and (optional or value < 3e38)):
            raise ValueError(f"{name}={value!r}: a number above 0{', or None,' * optional} is accepted")

    # --- the work

    def _taken(
        self, X: ArrayLike, clicks: ArrayLike, query: ArrayLike, position: ArrayLike | None,
        document: ArrayLike | None, context: ArrayLike | None,
    ) -> tuple[Array, ClickLists, Tensor | None]:  # fmt: skip
        features = _features(X)
        lists = lists_of(
            clicks, query=query, position=position, document=document, list_size=self.list_size, graded=self._graded()
        )
        rows = len(np.asarray(clicks))
        if document is None and len(features) != rows:
            raise ValueError(f"X has {len(features):,} rows for {rows:,} clicks: give document, or a row for each")
        if lists.rows.max() >= len(features):
            raise ValueError(f"document {lists.rows.max()} is asked for, and X has {len(features):,} rows, from 0 on")
        self.empty_, self.cut_ = int((~lists.clicked).sum()), lists.cut
        if context is None:
            return features, lists, None
        shown = _features(context, name="context")
        if len(shown) != rows:
            raise ValueError(f"context has {len(shown):,} rows for {rows:,} clicks")
        return features, lists, torch.as_tensor(shown, dtype=torch.float32, device=self.device)

    def _graded(self) -> bool:
        return False

    def _begin(self, features: Array, lists: ClickLists, context: Tensor | None) -> None:
        self.n_features_in_, self._shown = features.shape[1], 0 if context is None else context.shape[1]
        spread = features.std(0)
        self.center_ = features.mean(0) if self.scale else np.zeros(features.shape[1])
        self.scale_ = np.where(spread > 0, spread, 1.0) if self.scale else np.ones(features.shape[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.net_ = self._network(features.shape[1]).to(self.device, torch.float32)
            self._extra(lists, context)
        self.history_ = np.zeros(0)
        self._optimizers = self._fresh()

    def _network(self, features: int) -> nn.Module:
        if isinstance(self.ranker, nn.Module):
            return copy.deepcopy(self.ranker)
        return self._layers(features)

    def _layers(self, features: int, *, norm: bool = False) -> nn.Sequential:
        """Of a ranker that is a name."""
        hidden = () if self.ranker == "linear" else tuple(self.hidden)
        weights = sum(a * b for a, b in pairwise([features, *hidden, 1]))
        if weights > MOST_WEIGHTS:
            raise ValueError(
                f"hidden={hidden} makes {weights:,} weights of {features} features: {MOST_WEIGHTS:,} at most"
            )
        return mlp(features, hidden, norm=norm)

    def _fresh(self) -> list[torch.optim.Optimizer]:
        make: Any = OPTIMIZERS[self.optimizer]
        for net, *_ in self._networks():
            if not any(p.requires_grad for p in net.parameters()):
                raise ValueError(f"{type(net).__name__} has no parameters to train: give a module that has")
        return [make(net.parameters(), lr=rate, weight_decay=decay) for net, rate, decay in self._networks()]

    def _drawn(self, lists: int) -> Iterator[NDArray[np.int64]]:
        """Batches without end; all lists in order where one batch holds them, in a new order a pass otherwise."""
        while True:
            if lists <= self.batch_size:
                yield np.arange(lists)
            else:
                order = torch.randperm(lists, generator=self._generator).numpy()
                yield from (order[at : at + self.batch_size] for at in range(0, lists, self.batch_size))

    def _train(
        self, features: Array, lists: ClickLists, context: Tensor | None, batches: Iterator[NDArray[np.int64]],
        steps: int,
    ) -> None:  # fmt: skip
        x = self._scaled(features)
        rows, entries, mask, clicks = (
            torch.as_tensor(a, device=self.device) for a in (lists.rows, lists.entries, lists.mask, lists.clicks)
        )
        clicks, losses = clicks.float(), []
        self.net_.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state + len(self.history_))  # of dropout in a module
            for _ in range(steps):
                which = torch.as_tensor(next(batches), device=self.device)
                shown = None if context is None else context[entries[which]]
                batch = Batch(clicks=clicks[which], mask=mask[which], context=shown)
                f = self._scores(x.index_select(0, rows[which][batch.mask]))
                z = x.new_zeros(batch.mask.shape).masked_scatter(batch.mask, f)
                losses.append(self._step(self._loss(z, batch)))
        found = torch.stack(losses).cpu().numpy() if losses else np.zeros(0)
        wrong = np.flatnonzero(~np.isfinite(found))
        if wrong.size or not all(p.isfinite().all() for net, *_ in self._networks() for p in net.parameters()):
            said = f"the loss of step {wrong[0] + 1} is {found[wrong[0]]}" if wrong.size else "weights are not finite"
            raise ValueError(f"{said}: a learning_rate below {self.learning_rate}, or scaled features, may help")
        self.history_ = np.r_[self.history_, found]

    def _step(self, loss: Tensor) -> Tensor:
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, (net, *_) in zip(self._optimizers, self._networks(), strict=True):
            if self.max_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), self.max_norm)
            optimizer.step()
        return loss.detach()

    def _scaled(self, features: Array) -> Tensor:
        return torch.as_tensor((features - self.center_) / self.scale_, dtype=torch.float32, device=self.device)

    def _scores(self, x: Tensor) -> Tensor:
        out = self.net_(x)
        if out.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"the ranker gave {tuple(out.shape)} for {len(x)} documents: ({len(x)},) is needed")
        return out.reshape(-1)


class NaiveRanker(ClickRanker):
    """Takes clicks for relevance: every click weighs the same. Parameters as of `ClickRanker`.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import NaiveRanker
    >>> X = np.array([[0.0], [1.0]])
    >>> ranker = NaiveRanker("linear", steps=50).fit(X, [0, 1], query=[0, 0])
    >>> bool(np.diff(ranker.predict(X))[0] > 0)
    True
    """


def mlp(features: int, hidden: Sequence[int], *, norm: bool = False) -> nn.Sequential:
    """Linear layers with ELU between, one number out; ``norm`` puts a layer norm before every linear map."""
    sizes, layers = [features, *hidden, 1], []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.LayerNorm(a)] * norm + [nn.Linear(a, b)] + [nn.ELU()] * (k < len(hidden))
    return nn.Sequential(*layers)


def _real(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= int(value) < 2**63


def one_of(kind: str, value: Any, accepted: Iterable[str], *, or_module: bool = False) -> None:
    """Refuse an option that is none of the names, nor a module where one is."""
    if or_module and isinstance(value, nn.Module):
        return
    if not isinstance(value, str) or value not in accepted:
        raise unknown(kind, str(value), accepted)


def _check_device(device: Any) -> None:
    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(f"device={device!r} is not there: {str(error).splitlines()[0]}") from error


def _features(X: ArrayLike, name: str = "X") -> Array:
    features = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64)  # pyright: ignore[reportAttributeAccessIssue]  (scipy's)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{name} has shape {features.shape}: (rows, features) with at least one of each is accepted")
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise ValueError(
            f"{name} holds {features[row, column]} in row {row}, column {column}: finite numbers are needed"
        )
    return features
