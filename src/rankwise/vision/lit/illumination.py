"""Illumination of pictures of any size: the network sees a bounded copy, an edge-aware fit brings the map to full size.

    i ≈ a · luma + b  in windows of the copy (guided filter);  a, b are means over windows, interpolated;
    i(p) = a(p) · luma(p) + b(p)  at full size

The network's pooling is of the whole picture, so that tiles of a picture would each get another light; here only the
last line is of full size, and it is the same for rows taken one by one.

Source of the fit: He, Sun & Tang, Guided Image Filtering, ECCV 2010; with the copy, He & Sun, arXiv 1505.00996.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS, EPSILON = 4, 1e-4  # of windows, in pixels of the copy; of the fit, in units of luma²
LUMA = (0.299, 0.587, 0.114)
Affine = tuple[Tensor, Tensor]


def luma(pictures: Tensor) -> Tensor:
    """``(…, 3, H, W)`` to ``(…, 1, H, W)``, by ITU-R BT.601."""
    return (pictures * torch.tensor(LUMA).to(pictures).view(3, 1, 1)).sum(-3, keepdim=True)


def bounded(picture: Tensor, most: int) -> Tensor:
    """``(1, 3, H, W)`` made smaller, where needed, until no side is longer than ``most``: by areas' means.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.illumination import bounded
    >>> bounded(torch.rand(1, 3, 300, 600), 512).shape
    torch.Size([1, 3, 256, 512])
    """
    height, width = picture.shape[-2:]
    if max(height, width) <= most:
        return picture
    shrink = most / max(height, width)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)


def fitted(copy: Tensor, illumination: Tensor, *, radius: int = RADIUS, epsilon: float = EPSILON) -> Affine:
    """``a`` and ``b`` for each pixel of the copy.

    Parameters
    ----------
    copy : Tensor
        ``(1, 3, h, w)``.
    illumination : Tensor
        ``(1, 1, h, w)``.
    radius : int
        Windows are ``2 radius + 1`` wide, cut at the border.
    epsilon : float
        Where luma varies less than this, the map is smoothed rather than followed.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.illumination import fitted, luma
    >>> copy = torch.rand(1, 3, 40, 40)
    >>> a, b = fitted(copy, 0.5 * luma(copy) + 0.25, epsilon=0.0)  # what is affine in luma is found
    >>> bool((a - 0.5).abs().max() < 1e-3), bool((b - 0.25).abs().max() < 1e-3)
    (True, True)
    """
    guide = luma(copy)
    mean_g, mean_i = _mean(guide, radius), _mean(illumination, radius)
    variance = (_mean(guide * guide, radius) - mean_g**2).clamp(min=0)
    a = (_mean(guide * illumination, radius) - mean_g * mean_i) / (variance + epsilon).clamp(min=1e-12)
    return _mean(a, radius), _mean(mean_i - a * mean_g, radius)


def _mean(x: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def strips(picture: Tensor, affine: Affine, *, rows: int = 256) -> Iterator[tuple[slice, Tensor]]:
    """The map at full size, strip by strip: rows, and ``(1, 1, rows, W)`` not below 0.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.illumination import strips
    >>> flat = (torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5))
    >>> [(at.stop - at.start, float(i.mean())) for at, i in strips(torch.rand(1, 3, 20, 30), flat, rows=16)]
    [(16, 0.5), (4, 0.5)]
    """
    height, width = picture.shape[-2:]
    wide = [F.interpolate(part, (part.shape[-2], width), mode="bilinear", align_corners=False) for part in affine]
    low = wide[0].shape[-2]
    at = ((torch.arange(height, device=picture.device) + 0.5) * low / height - 0.5).clamp(0, low - 1)
    above = at.floor().long()
    share = (at - above).view(-1, 1)
    for start in range(0, height, rows):
        here = slice(start, min(start + rows, height))
        top, below = above[here], (above[here] + 1).clamp(max=low - 1)
        a, b = (part[..., top, :] * (1 - share[here]) + part[..., below, :] * share[here] for part in wide)
        yield here, (a * luma(picture[..., here, :]) + b).clamp(min=0)


def illumination_of(
    picture: Tensor, network: Callable[[Tensor], Tensor], *, most: int = 512, least: float = 0.0
) -> Tensor:
    """``(1, 1, H, W)``, from the network itself where the picture is no larger than ``most``, else through a copy.

    No value is below ``least``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.illumination import illumination_of, luma
    >>> picture = torch.rand(1, 3, 50, 70)
    >>> torch.equal(illumination_of(picture, luma), luma(picture))
    True
    """
    copy = bounded(picture, most)
    found = network(copy)
    if copy is picture:
        return found.clamp(min=least)
    return torch.cat([part for _, part in strips(picture, fitted(copy, found))], -2).clamp(min=least)
