"""Losses of lists of clicks, weighted against the bias of what was seen, and the weights.

With scores z ``(B, n)``, clicks c, weights w and a mask of what stands there:

    softmax    ℓ = -Σ c w log softmax(z)
    sigmoid    ℓ = Σ c w log(1 + e⁻ᶻ) + (1 - c) log(1 + eᶻ)
    pairwise   ℓ = Σ over c_i > c_j of w_i log(1 + e^{-(z_i - z_j)})

``reduce="batch"`` divides the batch's sum by the batch's weight (Σ c w, the number of documents, Σ of pairs' w);
``"list"`` does so list by list and takes the mean over lists that have any. Lists without a click have no part in
softmax and pairwise losses.

The weights of Ai et al. are relative to the first position: ``softmax(z)_1 / softmax(z)_i``, without a gradient. For
the sigmoid loss, the ratio of sigmoids. The released sigmoid loss caps c w at 1, which undoes every weight; here a
click weighs w and the rest weighs 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["list_log_probabilities", "list_loss", "relative_weights"]

LOSSES = ("softmax", "sigmoid", "pairwise")
REDUCE = ("batch", "list")


def list_log_probabilities(z: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax ``(B, n)`` over what stands in a list; 0 where nothing does.

    Examples
    --------
    >>> import torch
    >>> from rankwise.ranking import list_log_probabilities
    >>> list_log_probabilities(torch.zeros(1, 3), torch.tensor([[True, True, False]])).exp()
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    if mask.all():  # as most batches are
        return z.log_softmax(-1)
    return z.masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0.0)


def relative_weights(z: Tensor, mask: Tensor, *, max_weight: float | None = None, loss: str = "softmax") -> Tensor:
    """How much less likely each position is than the first, ``(B, n)``, without gradient; 0 where nothing stands.

    Parameters
    ----------
    z : Tensor
        ``(B, n)`` logits of examination (or of relevance).
    mask : Tensor
        ``(B, n)``, where something stands.
    max_weight : float, optional
        Larger weights are cut to it.
    loss : {"softmax", "sigmoid", "pairwise"}
        Whose probabilities: sigmoids for ``"sigmoid"``, softmax otherwise.

    Examples
    --------
    >>> import torch
    >>> from rankwise.ranking import relative_weights
    >>> relative_weights(torch.tensor([[1.0, 0.5]]).log(), torch.ones(1, 2, dtype=torch.bool))
    tensor([[1., 2.]])
    """
    log = F.logsigmoid(z) if loss == "sigmoid" else list_log_probabilities(z, mask)
    weights = (log[:, :1] - log).detach().exp()
    return (weights if max_weight is None else weights.clamp(max=max_weight)) * mask


def list_loss(
    z: Tensor, clicks: Tensor, weights: Tensor, mask: Tensor, *, loss: str = "softmax", reduce: str = "batch"
) -> Tensor:
    """One of the module's losses, a scalar; 0 where no list takes part.

    Parameters
    ----------
    z, clicks, weights, mask : Tensor
        ``(B, n)``; ``mask`` of bool.
    loss : {"softmax", "sigmoid", "pairwise"}
        See the module.
    reduce : {"batch", "list"}
        Whether the batch or each list is divided by its weight.

    Examples
    --------
    >>> import torch
    >>> from rankwise.ranking import list_loss
    >>> z, c = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    >>> list_loss(z, c, torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool))  # log 4
    tensor(1.3863)
    """
    total, weight = _TERMS[loss](z, clicks * mask, weights, mask)
    if reduce == "batch":
        return total.sum() / weight.sum().clamp(min=torch.finfo(z.dtype).tiny)
    taking = weight > 0
    return (total[taking] / weight[taking]).sum() / taking.sum().clamp(min=1)


def _softmax(z: Tensor, c: Tensor, w: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return -(c * w * list_log_probabilities(z, mask)).sum(-1), (c * w).sum(-1)


def _sigmoid(z: Tensor, c: Tensor, w: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return ((c * w * F.softplus(-z) + (1 - c) * F.softplus(z)) * mask).sum(-1), mask.sum(-1).to(z)


def _pairwise(z: Tensor, c: Tensor, w: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    pairs = (c[:, :, None] > c[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = pairs * w[:, :, None]
    return (weight * F.softplus(z[:, None, :] - z[:, :, None])).sum((1, 2)), weight.sum((1, 2))


_TERMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "softmax": _softmax, "sigmoid": _sigmoid, "pairwise": _pairwise,
}  # fmt: skip
