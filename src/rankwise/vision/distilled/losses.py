"""How near a student's logits are to a label's: by squares of differences, or by the divergence of softened answers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

LOSSES = ("mse", "centred", "kl")
TEMPERATURE = 4.0


def distance(logits: Tensor, goal: Tensor, kind: str) -> Tensor:
    """Mean over the batch: ``mse`` of logits, ``centred`` that of logits less their mean over the classes, ``kl`` of
    answers at temperature 4, times 16.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.losses import distance
    >>> two = torch.tensor([[2.0, 0.0]])
    >>> [round(float(distance(two, two - 1, kind)), 6) for kind in ("mse", "centred", "kl")]  # a shift is no answer
    [1.0, 0.0, 0.0]
    """
    if kind == "mse":
        return F.mse_loss(logits, goal)
    if kind == "centred":
        apart = logits - goal
        return (apart - apart.mean(-1, keepdim=True)).square().mean()
    said, meant = ((x / TEMPERATURE).log_softmax(-1) for x in (logits, goal))
    return F.kl_div(said, meant, reduction="batchmean", log_target=True) * TEMPERATURE**2


def hard(logits: Tensor, classes: Tensor, other: Tensor, share: float) -> Tensor:
    """Cross-entropy on the classes of mixed pictures: ``share`` of each one's own, the rest of the other's."""
    own, mixed = (F.cross_entropy(logits, y) for y in (classes, classes[other.to(classes.device)]))
    return share * own + (1 - share) * mixed
