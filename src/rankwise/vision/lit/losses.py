"""What prompts and network are trained on.

    S(I) = softmax(100 cos)[0]                                     probability of the backlit prompt
    h(a, b; m) = mean max(0, S(b) - S(a) + m)                      a must score higher than b, by m
    L_id = mean over pictures Σ_l α_l mean (Φ_l(I_t) - Φ_l(I_b))²   content, by a tower's stages

What people get wrong: the margins of the first two terms stay .9 whatever number of results there is, and it is the
older of two results that the dark picture is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# margins by the number of earlier results
MARGINS: dict[int, tuple[float, ...]] = {0: (1.0,), 1: (0.9, 0.9, 0.2), 2: (0.9, 0.9, 0.1, 0.1)}


def backlit_probability(images: Tensor, prompts: Tensor, scale: float = 100.0) -> Tensor:
    """``S`` of unit image features ``(batch, d)`` by unit prompts ``(2, d)``, backlit first: ``(batch,)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.losses import backlit_probability
    >>> backlit_probability(torch.eye(2), torch.eye(2)).round().tolist()
    [1.0, 0.0]
    """
    return (scale * images @ prompts.T).softmax(-1)[..., 0]


def hinge(higher: Tensor, lower: Tensor, margin: float) -> Tensor:
    """``h(a, b; m)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.losses import hinge
    >>> round(float(hinge(torch.tensor([0.9, 0.5]), torch.tensor([0.0, 0.5]), 0.9)), 3)
    0.45
    """
    return (lower - higher + margin).clamp(min=0).mean()


def rank_loss(dark: Tensor, results: Sequence[Tensor], well: Tensor) -> Tensor:
    """Scores in order: dark pictures, the results of earlier rounds (the oldest first; at most two), well-lit ones.

    Parameters
    ----------
    dark : Tensor
        ``S``, ``(batch,)``.
    results : sequence of Tensor
        None, one or two such.
    well : Tensor
        ``S``, ``(batch,)``.

    Raises
    ------
    ValueError
        More than two results.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.losses import rank_loss
    >>> low, high = torch.tensor([0.0]), torch.tensor([1.0])
    >>> float(rank_loss(high, [], low))  # the margin of 1 is met
    0.0
    >>> round(float(rank_loss(high, [high], low)), 3)
    0.9
    """
    if len(results) not in MARGINS:
        raise ValueError(f"{len(results)} results; none, one (the last round's) or two (the last two) are ranked")
    chain = [*results, well]
    pairs = [(dark, well), *([(dark, results[0])] if results else []), *pairwise(chain)]
    terms = [hinge(a, b, m) for (a, b), m in zip(pairs, MARGINS[len(results)], strict=True)]
    return torch.stack(terms).sum()


def identity_loss(
    result: Sequence[Tensor], source: Sequence[Tensor], weights: Sequence[float], *, summed: bool = False
) -> Tensor:
    """``L_id`` from a tower's stages, each ``(batch, …)``.

    Parameters
    ----------
    result, source : sequence of Tensor
        Stages of the enhanced pictures, and of the pictures.
    weights : sequence of float
        ``α`` of each.
    summed : bool
        Over the batch, as the released code does, instead of its mean: it then grows with the batch.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.losses import identity_loss
    >>> a, b = [torch.ones(2, 3)], [torch.zeros(2, 3)]
    >>> float(identity_loss(a, b, [0.5])), float(identity_loss(a, b, [0.5], summed=True))
    (0.5, 1.0)
    """
    each = sum(w * (r - s).square().flatten(1).mean(1) for w, r, s in zip(weights, result, source, strict=True))
    assert isinstance(each, Tensor)
    return each.sum() if summed else each.mean()
