"""What a student is shown of a picture: tiles in another order, a part of it, mirrored, mixed with another picture.

RDED's evaluation, which HeLlO takes over. Columns of tiles are shuffled, then rows: of 2 x 2 tiles four of the 24
orders occur. A seed decides a view: what labels were stored for can be shown again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.vision.distilled.tiles import sides

__all__ = ["Views"]


class View(NamedTuple):
    """Pictures as they are shown.

    Attributes
    ----------
    pixels : Tensor
        ``(n, 3, s, s)`` in [0, 1], mixed.
    other : Tensor
        ``(n,)``, which picture each is mixed with.
    share : float
        Of each picture's own pixels.
    """

    pixels: Tensor
    other: Tensor
    share: float


@dataclass(frozen=True, kw_only=True)
class Views:
    """How pictures are shown.

    Parameters
    ----------
    tiles : int
        Rows and columns of tiles that are shuffled; 1: none. Default 1.
    scale : tuple of float
        Least and largest share of a picture's area that is shown, scaled to its size. Default (1/2, 1).
    flip : bool
        Half of the pictures are mirrored. Default ``True``; ``False`` where left and right differ, as in digits.
    cutmix : float
        Parameter of the distribution of the mixed part's share; 0: none. Default 1.

    Raises
    ------
    ValueError
        A value out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from rankwise.vision import Views
    >>> view = Views(tiles=2)(torch.rand(4, 3, 8, 8), np.random.default_rng(0))
    >>> view.pixels.shape, 0 <= view.share <= 1
    (torch.Size([4, 3, 8, 8]), True)
    """

    tiles: int = 1
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale={self.scale}: two shares of a picture's area, 0 < least ≤ largest ≤ 1")
        if self.tiles < 1 or not 0 <= self.cutmix < float("inf"):
            raise ValueError(f"tiles={self.tiles}, cutmix={self.cutmix}: at least 1 tile, and no negative parameter")

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> View:
        """One view of each picture ``(n, 3, s, s)`` in [0, 1]."""
        if self.tiles > 1:
            pixels = shuffled(pixels, self.tiles, rng)
        if self.scale != (1.0, 1.0) or self.flip:
            pixels = cropped(pixels, self.scale, self.flip, rng)
        return mixed(pixels, self.cutmix, rng)


def shuffled(pixels: Tensor, tiles: int, rng: np.random.Generator) -> Tensor:
    """Columns of tiles, then rows, in an order of each picture's own."""
    ends = np.cumsum([0, *sides(pixels.shape[-1], tiles)]).tolist()

    def order() -> np.ndarray:
        return np.concatenate([np.arange(ends[k], ends[k + 1]) for k in rng.permutation(tiles)])

    columns, rows = (torch.from_numpy(np.stack([order() for _ in pixels])).to(pixels.device) for _ in range(2))
    which = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cropped(pixels: Tensor, scale: tuple[float, float], flip: bool, rng: np.random.Generator) -> Tensor:
    """A part of each picture, of an aspect from 3:4 to 4:3, at the picture's size; half of them mirrored."""
    count = len(pixels)
    area, aspect = rng.uniform(*scale, size=count), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), size=count))
    wide, high = (np.minimum(1.0, np.sqrt(a)) for a in (area * aspect, area / aspect))
    x, y = ((1 - part) * rng.uniform(-1, 1, size=count) for part in (wide, high))
    sign = np.where(rng.uniform(size=count) < 0.5, -1.0, 1.0) if flip else np.ones(count)
    zero = np.zeros(count)
    maps = np.stack([np.stack([sign * wide, zero, x], 1), np.stack([zero, high, y], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(maps).to(pixels), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def mixed(pixels: Tensor, alpha: float, rng: np.random.Generator) -> View:
    """A rectangle of each picture replaced by another picture's, the same rectangle throughout."""
    count, (height, width) = len(pixels), pixels.shape[-2:]
    if not alpha:
        return View(pixels, torch.arange(count), 1.0)
    other = torch.from_numpy(rng.permutation(count))
    part = np.sqrt(1 - rng.beta(alpha, alpha))
    (top, bottom), (left, right) = (_within(int(rng.integers(n)), part * n, n) for n in (height, width))
    pixels = pixels.clone()
    pixels[..., top:bottom, left:right] = pixels[other.to(pixels.device)][..., top:bottom, left:right]
    return View(pixels, other, 1 - (bottom - top) * (right - left) / (height * width))


def _within(centre: int, length: float, size: int) -> tuple[int, int]:
    half = int(length) // 2
    return max(0, centre - half), min(size, centre + half)
