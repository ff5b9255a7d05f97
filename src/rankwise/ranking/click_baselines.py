"""What dual learning is compared with, in the same form: known propensities, regression-EM, PairDebias, labels.

IPW             clicks weigh θ_1 / θ_k: known, of shuffled lists (`randomised_propensity`), or of a click model that is
                estimated from the log itself, which needs documents that were seen at several places
regression-EM   P(click) = θ_k σ(f): f is fitted to the posterior of relevance, θ to that of examination
                (Wang et al., WSDM 2018, the posterior as a soft target)
PairDebias      pairs clicked > not clicked weigh 1 / (t⁺_i t⁻_j), and t are ratios of losses by position
                (Hu et al., Unbiased LambdaMART, WWW 2019)
labels          grades y in place of clicks, gains 2^y - 1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rankwise.ranking.click_losses import list_loss
from rankwise.ranking.click_models import PBM, UBM, ClickModel
from rankwise.ranking.click_ranker import Batch, ClickRanker, one_of
from rankwise.ranking.lists import ClickLists

__all__ = ["IPWRanker", "LabelRanker", "PairDebiasRanker", "RegressionEMRanker"]

Array = NDArray[np.float64]
ESTIMATED: dict[str, type[PBM | UBM]] = {"pbm": PBM, "ubm": UBM}


@dataclass(kw_only=True, eq=False, repr=False)
class IPWRanker(ClickRanker):
    """Clicks weighted by inverse propensities that are known or were estimated before.

    Parameters
    ----------
    ranker, hidden, list_size, loss, reduce, optimizer, learning_rate, max_norm, batch_size, steps, l2, scale, device, \
random_state
        As of `ClickRanker`.
    propensity : {"pbm", "ubm"}, sequence of float or ClickModel
        Of each position, above 0, on any scale; or a click model, which says how likely a place was examined given
        the clicks before it; or the name of one, `PBM` or `UBM`, that is estimated from the first log.
    max_weight : float, optional
        Weights are cut to it.

    Attributes
    ----------
    propensity_ : ndarray
        ``(n,)``, relative to the first place; of a click model, where nothing was clicked before.
    click_model_ : ClickModel or None
        Given or estimated.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import IPWRanker
    >>> log = dict(clicks=[1, 1, 0, 0], query=[0, 0, 1, 1])
    >>> ranker = IPWRanker("linear", propensity=[1.0, 0.5], steps=50).fit(np.eye(4), **log)
    >>> ranker.propensity_
    array([1. , 0.5])
    """

    propensity: Sequence[float] | Array | ClickModel | str = ()
    max_weight: float | None = None

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        weights = self._inverse(batch).to(z)
        return list_loss(z, batch.clicks, weights, batch.mask, loss=self.loss, reduce=self.reduce)

    def _inverse(self, batch: Batch) -> Tensor:
        if self.click_model_ is not None:
            p = torch.as_tensor(np.maximum(self.click_model_.examination(batch.clicks.cpu().numpy()), 1e-6))
        else:
            p = torch.as_tensor(self.propensity_[: batch.mask.shape[1]]).expand(batch.mask.shape)
        weights = p[:, :1] / p
        return weights if self.max_weight is None else weights.clamp(max=self.max_weight)

    def _extra(self, lists: ClickLists, context: Tensor | None) -> None:
        super()._extra(lists, context)
        n, given = lists.mask.shape[1], self.propensity
        self.click_model_ = ESTIMATED[given].estimate(lists) if isinstance(given, str) else None
        if isinstance(given, ClickModel):
            self.click_model_ = given
        if self.click_model_ is not None:
            found = self.click_model_.examination(np.zeros((1, n)))[0]
        else:
            found = np.asarray(given, dtype=np.float64)
            if found.ndim != 1 or not (np.isfinite(found) & (found > 0)).all():
                raise ValueError(f"propensity is {given!r}: a number above 0 for each position is accepted")
            if len(found) < n:
                raise ValueError(f"propensity has {len(found)} values, and lists have {n} places")
        self.propensity_ = found / found[0]

    def _check(self) -> None:
        super()._check()
        if isinstance(self.propensity, str):
            one_of("propensity", self.propensity, ESTIMATED)
        self._positive("max_weight", optional=True)


class _OwnLoss(ClickRanker, ABC):
    """Of one loss alone, whose propensities move with it rather than by a gradient."""

    @abstractmethod
    def _moving(self) -> Tensor:
        """Propensities ``(n,)`` on any scale."""

    def _finish(self, lists: ClickLists, context: Tensor | None) -> None:
        moved = self._moving()
        self.propensity_ = (moved / moved[0]).double().cpu().numpy()

    def _check(self) -> None:
        super()._check()
        if self.loss != type(self).loss:
            said = f"has loss '{type(self).loss}' alone; '{self.loss}' was given: leave it out"
            raise ValueError(f"{type(self).__name__} {said}")
        if self.reduce != "batch":
            raise ValueError(f"{type(self).__name__} has reduce='batch' alone; '{self.reduce}' was given")


@dataclass(kw_only=True, eq=False, repr=False)
class RegressionEMRanker(_OwnLoss):
    """Examination and relevance by expectation maximisation in batches. Parameters as of `ClickRanker`.

    ``loss`` is ``"sigmoid"`` alone, and lists without a click take part.

    Attributes
    ----------
    propensity_ : ndarray
        ``(n,)``, θ relative to the first place.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import RegressionEMRanker
    >>> RegressionEMRanker("linear", steps=5).fit(np.eye(2), [0, 1], query=[0, 0]).propensity_.shape
    (2,)
    """

    loss: str = "sigmoid"

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        n = z.shape[1]
        relevant, self.theta_[:n] = posteriors(z.detach(), batch.clicks, self.theta_[:n], batch.mask)
        return (F.binary_cross_entropy_with_logits(z, relevant, reduction="none") * batch.mask).sum() / batch.mask.sum()

    def _extra(self, lists: ClickLists, context: Tensor | None) -> None:
        super()._extra(lists, context)
        self.theta_ = torch.full((lists.mask.shape[1],), 0.9, device=self.device)

    def _moving(self) -> Tensor:
        return self.theta_

    def _used(self, lists: ClickLists) -> NDArray[np.bool_]:
        return np.full(len(lists), bool(lists.clicked.any()))


@dataclass(kw_only=True, eq=False, repr=False)
class PairDebiasRanker(_OwnLoss):
    """Pairs weighted by ratios of losses, learned along. Parameters as of `ClickRanker`; ``loss`` is ``"pairwise"``.

    Attributes
    ----------
    propensity_ : ndarray
        ``(n,)``, t⁺ of each position, 1 for the first.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import PairDebiasRanker
    >>> PairDebiasRanker("linear", steps=5).fit(np.eye(2), [0, 1], query=[0, 0]).propensity_.shape
    (2,)
    """

    loss: str = "pairwise"

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        n = z.shape[1]
        value, self.plus_[:n], self.minus_[:n] = pair_debias(
            z, batch.clicks, self.plus_[:n], self.minus_[:n], batch.mask
        )
        return value

    def _extra(self, lists: ClickLists, context: Tensor | None) -> None:
        super()._extra(lists, context)
        self.plus_, self.minus_ = (torch.ones(lists.mask.shape[1], device=self.device) for _ in range(2))

    def _moving(self) -> Tensor:
        return self.plus_


class LabelRanker(ClickRanker):
    """Learns from grades: what clicks are measured against. Parameters as of `ClickRanker`; ``clicks`` are grades.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import LabelRanker
    >>> scores = LabelRanker("linear", steps=50).fit(np.eye(2), [1, 2], query=[0, 0]).predict(np.eye(2))
    >>> bool(scores[1] > scores[0])
    True
    """

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        gains = (2**batch.clicks - 1) * batch.mask
        return list_loss(z, gains, torch.ones_like(z), batch.mask, loss=self.loss, reduce=self.reduce)

    def _graded(self) -> bool:
        return True

    def _check(self) -> None:
        super()._check()
        if self.loss == "sigmoid":
            raise ValueError("LabelRanker has loss 'softmax' or 'pairwise': gains are no probabilities")


def posteriors(z: Tensor, clicks: Tensor, theta: Tensor, mask: Tensor, *, step: float = 0.05) -> tuple[Tensor, Tensor]:
    """Posterior of relevance ``(B, n)``, and θ ``(n,)`` moved by ``step`` to the mean posterior of examination."""
    gamma = torch.sigmoid(z)
    neither = (1 - theta * gamma).clamp(min=1e-6)
    relevant = clicks + (1 - clicks) * (1 - theta) * gamma / neither
    examined = clicks + (1 - clicks) * theta * (1 - gamma) / neither
    shown = mask.sum(0)
    mean = (examined * mask).sum(0) / shown.clamp(min=1)
    return relevant, torch.where(shown > 0, (1 - step) * theta + step * mean, theta)


def pair_debias(
    z: Tensor, clicks: Tensor, plus: Tensor, minus: Tensor, mask: Tensor, *, step: float = 0.05, p: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of pairs clicked > not clicked, each by 1 / (t⁺ t⁻), and both ``(n,)`` moved to their ratios of losses.

    t⁺_i goes to (Σ_j ℓ_ij / t⁻_j relative to that of i = 1)^{1/(p + 1)}, t⁻ alike; nothing moves without a loss at 1.
    """
    pairs = ((clicks[:, :, None] > clicks[:, None, :]) & mask[:, :, None] & mask[:, None, :]).to(z)
    losses = pairs * F.softplus(z[:, None, :] - z[:, :, None])
    value = (losses / (plus[:, None] * minus)).sum() / pairs.sum().clamp(min=1)
    fixed = losses.detach()
    ups, downs = (fixed / minus).sum((0, 2)), (fixed / plus[:, None]).sum((0, 1))
    return value, _moved(plus, ups, step, p), _moved(minus, downs, step, p)


def _moved(t: Tensor, total: Tensor, step: float, p: float) -> Tensor:
    ratio = (total / total[0].clamp(min=1e-12)) ** (1 / (p + 1))
    return torch.where(total[0] > 0, (1 - step) * t + step * ratio, t).clamp(min=1e-3)
