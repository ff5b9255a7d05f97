"""Pictures made of the crops that a teacher names best, after RDED (Sun et al., CVPR 2024, arXiv 2312.03526).

Of each class some real pictures are drawn, and of each picture some random squares; a picture's square of the lowest
cross-entropy under the teacher stays. The lowest ``ipc · tiles²`` of a class are put together: a picture has ``tiles``
rows and columns of them. Equal squares: the first one stays.

Ours: squares that show next to nothing of their picture come after all others. A teacher may be surest of a class where
it sees nothing at all, as of the digit 1 on black, and RDED then makes that class of empty squares (``empty=True``).

The released code shows a square to the teacher small, in a black frame; here it is shown at the pictures' size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Rng = np.random.Generator
Scorer = Callable[[Tensor], Tensor]
AREA = (0.08, 1.0)  # of a square, as a share of the largest one
# A square of less than this share of its picture's spread shows nothing. Of random squares these are 4 % of MNIST's
# ones, most of them black, but under 1 % of any class of CIFAR-10; a half would also take plain skies (4 % there).
SHARE = 0.25


def sides(size: int, tiles: int) -> list[int]:
    """Pixels of each row (and column) of tiles; the first ``size mod tiles`` have one more.

    Examples
    --------
    >>> from rankwise.vision.distilled.tiles import sides
    >>> sides(32, 2), sides(7, 2), sides(8, 3)
    ([16, 16], [4, 3], [3, 3, 2])
    """
    return [size // tiles + (i < size % tiles) for i in range(tiles)]


def scaled(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pictures ``(n, 3, h, w)`` at another size, without aliasing."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def random_squares(picture: Tensor, count: int, rng: Rng) -> Tensor:
    """``count`` random squares of a picture ``(3, h, w)``, each at the picture's size, ``(count, 3, s, s)``."""
    _, height, width = picture.shape
    size = min(height, width)
    found = []
    for share in rng.uniform(*AREA, size=count):
        side = max(1, min(size, round(size * share**0.5)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        found.append(scaled(picture[None, :, top : top + side, left : left + side], size, size))
    return torch.cat(found)


@torch.no_grad()
def best_squares(
    pictures: Tensor, label: int, teacher: Scorer, *, crops: int, keep: int, rng: Rng, empty: bool = False
) -> Tensor:
    """The ``keep`` squares of one class that the teacher is surest of, surest first, one of each picture at most.

    Parameters
    ----------
    pictures : Tensor
        ``(n, 3, s, s)`` in [0, 1], all of the class.
    label : int
        The class.
    teacher : callable
        Pictures to logits.
    crops, keep : int
        Squares drawn of each picture; how many stay.
    rng : numpy.random.Generator
        Of the draws.
    empty : bool
        Whether squares that show nothing are chosen like any other, as published.
    """
    drawn = torch.stack([random_squares(p, crops, rng) for p in pictures])  # (n, crops, 3, s, s)
    logits = torch.cat([teacher(part) for part in drawn.flatten(0, 1).split(256)])
    losses = F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device), reduction="none")
    last = None if empty else shows_nothing(drawn, pictures)
    return drawn[chosen(losses.view(len(pictures), crops), keep, last=last)]


def spread(pixels: Tensor) -> Tensor:
    """Standard deviation of pictures ``(…, 3, h, w)`` about the mean of each channel; of one colour: exactly 0.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.tiles import spread
    >>> spread(torch.tensor([0.0, 1.0]).expand(2, 3, 1, 2)).tolist(), float(spread(torch.full((3, 4, 4), 0.3)))
    ([0.5, 0.5], 0.0)
    """
    return pixels.var((-2, -1), correction=0).mean(-1).sqrt()


def shows_nothing(squares: Tensor, pictures: Tensor) -> Tensor:
    """Which squares ``(n, crops, 3, s, s)`` of pictures ``(n, 3, s, s)`` show next to nothing of them, ``(n, crops)``.

    Every square of a picture of one colour does.
    """
    whole = spread(pictures)[:, None]
    return (spread(squares) < SHARE * whole) | (whole == 0)


def chosen(losses: Tensor, keep: int, *, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the lowest number of each row, the lowest ``keep`` of them in order; ties: the first.

    Where ``last`` (of the numbers' shape) is true, a number comes after all others: of its row, and of all rows.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.tiles import chosen
    >>> rows, columns = chosen(torch.tensor([[3.0, 2.0], [1.0, 1.0], [0.5, 9.0]]), 2)
    >>> rows.tolist(), columns.tolist()
    ([2, 1], [0, 0])
    """
    numbers, after = losses.cpu().numpy(), np.zeros(losses.shape, bool) if last is None else last.cpu().numpy()
    columns = np.lexsort((numbers, after))[:, 0]
    own = np.arange(len(numbers)), columns
    rows = np.lexsort((numbers[own], after[own]))[:keep]
    return torch.from_numpy(rows), torch.from_numpy(columns[rows])


def shrunk(squares: Tensor, tiles: int) -> list[Tensor]:
    """Squares ``(tiles² · n, 3, s, s)`` at their tiles' sizes: the first n are the upper left tiles, then the next."""
    high = sides(squares.shape[-1], tiles)
    parts = squares.unflatten(0, (tiles * tiles, -1))
    return [scaled(part, high[k // tiles], high[k % tiles]) for k, part in enumerate(parts)]


def tiled(parts: list[Tensor]) -> Tensor:
    """Pictures of tiles ``(n, 3, h, w)`` that `shrunk` made, row by row.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.tiles import shrunk, tiled
    >>> greys = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    >>> tiled(shrunk(greys, 2))[0, 0].tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    tiles = round(len(parts) ** 0.5)
    return torch.cat([torch.cat(parts[i * tiles : (i + 1) * tiles], -1) for i in range(tiles)], -2)


def as_bytes(pixels: Tensor) -> Tensor:
    """Rounded to 256 steps, uint8."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
