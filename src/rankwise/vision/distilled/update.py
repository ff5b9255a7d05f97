"""Small squares that an encoder reads as it read the large ones: pixels are changed, the encoder stands still.

    G = mean square of E(p) - E(up(p̂)),    p̂ = the pixels of a tile, which start as p made small

``E`` gives unit features, from which labels are read. A square that lost nothing when it was made small has G = 0, and
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankwise.vision.distilled.tiles import scaled

Encoder = Callable[[Tensor], Tensor]


def lost(small: Tensor, goal: Tensor, encoder: Encoder, size: int) -> Tensor:
    """``G`` of small squares ``(n, 3, h, w)`` against features ``(n, d)`` of the large ones."""
    return (encoder(scaled(small, size, size)) - goal).square().mean()


def updated(small: Tensor, large: Tensor, encoder: Encoder, *, steps: int = 50, lr: float = 0.01) -> Tensor:
    """Small squares whose `lost` is lower, within [0, 1].

    Parameters
    ----------
    small, large : Tensor
        ``(n, 3, h, w)`` and ``(n, 3, s, s)``, the same squares.
    encoder : callable
        Pictures to features; it is not changed.
    steps, lr : int, float
        Of Adam.
    """
    if not len(small):
        return small
    with torch.no_grad():
        goal = encoder(large)
    pixels = small.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=lr)
    best, least = small, float("inf")
    for _ in range(steps + 1):
        loss = lost(pixels, goal, encoder, large.shape[-1])
        if (now := float(loss.detach())) < least:
            best, least = pixels.detach().clone(), now
        (pixels.grad,) = torch.autograd.grad(loss, [pixels])
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return best
