"""Augmentation as one affine map a picture: all pictures of a tuple go through the same.

Flips and transposition with probability one half each; a zoom and a rotation of up to a quarter turn with .3 each;
beyond the border a picture is reflected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OFTEN, SELDOM = 0.5, 0.3
NETWORK_ZOOM, PROMPT_ZOOM = (0.7, 1.3), (0.5, 1.5)


def drawn(count: int, zoom: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Maps from a view's coordinates to its picture's, ``(count, 2, 3)``, both from -1 to 1.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.views import NETWORK_ZOOM, drawn
    >>> drawn(8, NETWORK_ZOOM, torch.Generator().manual_seed(0)).shape
    torch.Size([8, 2, 3])
    """

    def chosen(often: float) -> Tensor:
        return torch.rand(count, generator=generator) < often

    def between(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    signs = torch.where(torch.stack([chosen(OFTEN), chosen(OFTEN)], 1), -1.0, 1.0)
    linear = torch.diag_embed(signs)
    linear = torch.where(chosen(OFTEN).view(-1, 1, 1), linear.flip(1), linear)
    linear = linear / torch.where(chosen(SELDOM), between(*zoom), torch.ones(count)).view(-1, 1, 1)
    turn = torch.where(chosen(SELDOM), between(-1, 1) * torch.pi / 2, torch.zeros(count))
    c, s = turn.cos(), turn.sin()
    turned = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    return F.pad(turned @ linear, (0, 1))


def moved(pictures: Tensor, maps: Tensor) -> Tensor:
    """Square pictures ``(count, 3, S, S)`` seen through ``maps``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.views import moved
    >>> mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    >>> picture = torch.rand(1, 3, 8, 8)
    >>> torch.allclose(moved(picture, mirror), picture.flip(-1), atol=1e-5)
    True
    """
    grid = F.affine_grid(maps.to(pictures), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
