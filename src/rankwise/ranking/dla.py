r"""DLA: a ranker from click logs, without randomised results and without knowing how people look at a page.

A click needs a document that is looked at and relevant. Ai et al. (SIGIR 2018, arXiv 1804.05938) learn both at once: a
ranker f(X) ``(B, n)`` and an examination model g, for positions ``(n,)``, each correcting the clicks c for the other::

    Q = softmax(g)    w_rank = Q_1 / Q_i    rank loss = L(f, w_rank)
    P = softmax(f)    w_exam = P_1 / P_i    exam loss = L(g, w_exam)
    L(z, w) = -Σ c w log softmax(z) / Σ c w

Weights carry no gradient: the rank loss moves f alone, the exam loss g alone. ``propensity_`` is Q_i / Q_1: only the
ratio to the first position is identified.

What people get wrong: where the logging system already ranks well, relevance and position go together, and g takes up
part of the relevance (arXiv 2212.13937, 2409.12043): a steep curve is then no proof of position bias. On a real log of
billions of clicks, better fitting clicks did not reliably mean agreeing better with experts (arXiv 2404.02543).

Where we differ from what was released: one optimiser for each network is kept over the run (the PyTorch port makes new
ones every step, so that Adagrad steps by ±rate); g is a free vector (the port's goes through an ELU and cannot fall
below -1) with a rate of its own (t steps of Adagrad move a logit by 2 rate √t at most: at the published 0.05 a
propensity of 0.06 takes thousands); weights are cut at ``max_weight`` (there the option does nothing); lists of any
length are masked.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.ranking.click_losses import list_loss, relative_weights
from rankwise.ranking.click_ranker import Batch, ClickRanker, mlp, one_of
from rankwise.ranking.lists import ClickLists

__all__ = ["DualLearningRanker"]

PROPENSITIES = ("position", "contextual")
FREE_RATE = 0.5  # of free positions under Adagrad
SMOOTHED = 1e-7  # what the port adds to every click


@dataclass(kw_only=True, eq=False, repr=False)
class DualLearningRanker(ClickRanker):
    """Ranker and propensity learned together from clicks.

    Parameters
    ----------
    ranker, hidden, list_size, loss, reduce, optimizer, learning_rate, max_norm, batch_size, steps, l2, scale, device, \
random_state
        As of `ClickRanker`.
    propensity : {"position", "contextual"} or Module
        The examination model: a free number a position; the authors' small network of position and, where `fit` is
        given one, context; or a module from ``(B, n, n + c)``, one-hot positions and context, to ``(B, n)`` or
        ``(B, n, 1)``, of which a copy is trained.
    propensity_learning_rate : float, optional
        Of the examination model; by default 0.5 for a free number a position under Adagrad, else the ranker's.
    max_weight : float, optional
        Weights of both losses are cut to it; None leaves them. Propensities far below its inverse are not learned.
    released : bool
        As the PyTorch port computes: fresh optimisers every step, 1e-7 on every click, an ELU behind the propensity,
        layer norms before the ranker's linear maps. Its cuts of weights and gradients have no effect: ``max_weight``
        and ``max_norm`` have to be None.

    Attributes
    ----------
    propensity_ : ndarray
        ``(n,)``, how likely each position is looked at, relative to the first; with context, the geometric mean over
        the lists of the last fit.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import PBM, DualLearningRanker
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 10, 3))
    >>> clicks = PBM().simulate(1 / (1 + np.exp(-X[..., 0])), seed=0)
    >>> log = dict(query=np.repeat(np.arange(500), 10), position=np.tile(np.arange(1, 11), 500))
    >>> model = DualLearningRanker("linear", steps=100).fit(X.reshape(-1, 3), clicks.ravel(), **log)
    >>> model.propensity_.shape, bool(model.propensity_[0] == 1)
    ((10,), True)
    """

    propensity: str | nn.Module = "position"
    propensity_learning_rate: float | None = None
    max_weight: float | None = 100.0
    released: bool = False

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        """Rank loss and exam loss; each moves one network, since weights are constants."""
        g = self._examination(batch)
        clicks = batch.clicks + SMOOTHED if self.released else batch.clicks
        rank, exam = dual_losses(
            z, g, clicks, batch.mask, loss=self.loss, reduce=self.reduce, max_weight=self.max_weight
        )
        return rank + exam

    def _step(self, loss: Tensor) -> Tensor:
        if self.released:
            self._optimizers = self._fresh()
        return super()._step(loss)

    def _networks(self) -> list[tuple[nn.Module, float, float]]:
        free = isinstance(self.propensity_net_, Positions) and self.optimizer == "adagrad"
        rate = self.propensity_learning_rate or (FREE_RATE if free else self.learning_rate)
        return [*super()._networks(), (self.propensity_net_, rate, 0.0)]

    def _extra(self, lists: ClickLists, context: Tensor | None) -> None:
        if context is not None and self.propensity == "position":
            raise ValueError("a context is given, and propensity='position' has no use for it: name 'contextual'")
        self.positions_ = min(self.list_size, lists.mask.shape[1])
        size = self.positions_ + (0 if context is None else context.shape[-1])
        if isinstance(self.propensity, nn.Module):
            self.propensity_net_ = copy.deepcopy(self.propensity)
        elif self.released:
            self.propensity_net_ = nn.Sequential(nn.Linear(size, 1), nn.ELU())
        elif self.propensity == "position":
            self.propensity_net_ = Positions(size)
        else:
            self.propensity_net_ = mlp(size, ((size + 6) // 2, (size + 6) // 4))
        self.propensity_net_.to(self.device, torch.float32)

    def _network(self, features: int) -> nn.Module:
        if self.released and not isinstance(self.ranker, nn.Module):
            return self._layers(features, norm=True)
        return super()._network(features)

    def _examination(self, batch: Batch) -> Tensor:
        """Logits ``(B, n)``."""
        rows, n = batch.mask.shape
        if n > self.positions_:
            raise ValueError(f"lists of {n} places, and the examination model was begun with {self.positions_}")
        shown = torch.eye(self.positions_, device=batch.mask.device)[:n].expand(rows, -1, -1)
        if batch.context is not None:
            shown = torch.cat([shown, batch.context], -1)
        elif isinstance(self.propensity_net_, Positions):
            shown = shown[:1]  # the same for every list
        g = self.propensity_net_(shown)
        if g.shape not in (shown.shape[:2], (*shown.shape[:2], 1)):
            raise ValueError(f"the examination model gave {tuple(g.shape)} for {tuple(shown.shape)}: (B, n) is needed")
        return g.reshape(len(shown), n).expand(rows, n)

    def _finish(self, lists: ClickLists, context: Tensor | None) -> None:
        self.propensity_net_.eval()
        with torch.no_grad():
            full = lists.mask if context is not None else np.ones((1, self.positions_), bool)
            shown = None if context is None else context[torch.as_tensor(lists.entries, device=self.device)]
            mask = torch.as_tensor(full, device=self.device)
            g = self._examination(Batch(clicks=mask.float(), mask=mask, context=shown)).double()
            log = F.logsigmoid(g) if self.loss == "sigmoid" else g
            ratio = ((log - log[:, :1]) * mask).sum(0) / mask.sum(0)
        self.propensity_: NDArray[np.float64] = ratio.exp().cpu().numpy()
        self.propensity_net_.train()

    def _check(self) -> None:
        super()._check()
        one_of("propensity", self.propensity, PROPENSITIES, or_module=True)
        self._positive("max_weight", optional=True)
        if self.propensity_learning_rate is not None:
            self._positive("propensity_learning_rate")
        if self.released and (self.max_weight is not None or self.max_norm is not None):
            raise ValueError("released=True cuts neither weights nor gradients: give max_weight=None and max_norm=None")
        if self.released and (self.propensity != "position" or self.loss != "softmax" or self.reduce != "batch"):
            raise ValueError("released=True is propensity='position', loss='softmax' and reduce='batch'")


class Positions(nn.Module):
    """A free logit a position.

    Examples
    --------
    >>> import torch
    >>> from rankwise.ranking.dla import Positions
    >>> Positions(3)(torch.eye(3)[None]).shape
    torch.Size([1, 3])
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n))

    def forward(self, shown: Tensor) -> Tensor:
        """Logits ``(B, n)`` of one-hot positions ``(B, n, N)``."""
        return shown @ self.logits


def dual_losses(
    f: Tensor, g: Tensor, clicks: Tensor, mask: Tensor, *, loss: str = "softmax", reduce: str = "batch",
    max_weight: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rank loss and exam loss of scores f and examination logits g, all ``(B, n)``: the same with parts exchanged."""
    rank, exam = (
        list_loss(z, clicks, relative_weights(other, mask, max_weight=max_weight, loss=loss), mask, loss=loss,
                  reduce=reduce)
        for z, other in ((f, g), (g, f))
    )  # fmt: skip
    return rank, exam
