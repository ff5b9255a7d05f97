"""Views of a batch of pictures: colours, a turn, a blur, a flip, noise; all of all pictures at once, on the device.

The augmentation of CoTTA (Wang et al., CVPR 2022, arXiv 2203.13591), which ViDA takes over. Each view has one draw for
the whole batch: brightness, contrast, saturation, hue and gamma in an order of its own; a rotation, shift and zoom,
sampled bilinearly with the edge going on beyond the border; a Gaussian blur of five taps; a flip; noise for each value.

Padding, affine map, crop and flip are one sampling of the picture; the blur follows on a rim of two pixels more, so
that it reads beyond the border what the published order of steps reads there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation"]

LUMA = (0.2989, 0.587, 0.114)
TAPS = 2  # pixels on each side that the blur reads
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views of pictures are drawn.

    Parameters
    ----------
    brightness, contrast, saturation, gamma : (float, float)
        Between which factors, and exponents, are drawn. Defaults (.6, 1.4), (.7, 1.3), (.5, 1.5), (.7, 1.3).
    hue : (float, float)
        Between which parts of the colour circle hues are turned. Default (-.06, .06).
    degrees : float
        Most that a picture is turned, either way. Default 15.
    shift : float
        Most that it is shifted, as a share of its side and in whole pixels. Default 1/8 (published as 1/16 of a picture
        padded to twice its side).
    zoom : (float, float)
        Between which factors it is scaled. Default (.9, 1.1).
    blur : (float, float)
        Between which standard deviations, in pixels, it is blurred. Default (.001, .5).
    flip : float
        Probability of a flip, left to right. Default .5.
    noise : float
        Standard deviation of the noise added to each value. Default .005.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import Augmentation
    >>> pixels = torch.rand(4, 3, 32, 32)
    >>> Augmentation()(pixels, 10, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([10, 4, 3, 32, 32])
    """

    brightness: Range = (0.6, 1.4)
    contrast: Range = (0.7, 1.3)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.06, 0.06)
    gamma: Range = (0.7, 1.3)
    degrees: float = 15.0
    shift: float = 0.125
    zoom: Range = (0.9, 1.1)
    blur: Range = (0.001, 0.5)
    flip: float = 0.5
    noise: float = 0.005

    def __call__(self, pixels: Tensor, views: int, *, generator: torch.Generator) -> Tensor:
        """Views of pictures.

        Parameters
        ----------
        pixels : Tensor
            ``(batch, 3, height, width)``, values in [0, 1]; others are cut off.
        views : int
            How many.
        generator : torch.Generator
            On the CPU; decides every draw.

        Returns
        -------
        Tensor
            ``(views, batch, 3, height, width)``, values in [0, 1].
        """
        seen = torch.stack([self._coloured(pixels.clamp(0, 1), generator) for _ in range(views)])
        maps = torch.stack([self._map(pixels.shape[-2:], generator) for _ in range(views)]).to(pixels)
        sigma = self._drawn(self.blur, generator, views).to(pixels)
        seen = blurred(sampled(seen, maps, rim=TAPS), sigma)
        return (seen + self.noise * normal(seen, generator)).clamp_(0, 1)

    @staticmethod
    def _drawn(between: Range, generator: torch.Generator, n: int = 1) -> Tensor:
        low, high = between
        return low + (high - low) * torch.rand(n, generator=generator)

    def _coloured(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Colours of one view, its five steps in an order of their own."""
        steps = [brightened, contrasted, saturated, turned_hue, raised]
        by = [
            float(self._drawn(r, generator))
            for r in (self.brightness, self.contrast, self.saturation, self.hue, self.gamma)
        ]
        for i in torch.randperm(len(steps), generator=generator).tolist():
            x = steps[i](x, by[i])
        return x

    def _map(self, sides: torch.Size, generator: torch.Generator) -> Tensor:
        """Where in the picture, in pixels from its middle, a view's pixels lie: ``(2, 3)``, of (x, y, 1)."""
        turn, zoom = (
            math.radians(float(self._drawn((-self.degrees, self.degrees), generator))),
            self._drawn(self.zoom, generator),
        )
        down, along = (float(torch.round(s * self._drawn((-self.shift, self.shift), generator))) for s in sides)
        mirrored = -1.0 if float(torch.rand(1, generator=generator)) < self.flip else 1.0
        back = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / zoom
        return torch.cat([back * torch.tensor([mirrored, 1.0]), -back @ torch.tensor([[along], [down]])], 1)


def brightened(x: Tensor, by: float) -> Tensor:
    """``by · x``, cut to [0, 1]."""
    return (x * by).clamp_(0, 1)


def contrasted(x: Tensor, by: float) -> Tensor:
    """Further from, or nearer to, each picture's mean grey."""
    return torch.lerp(grey(x).mean((-2, -1), keepdim=True), x, by).clamp_(0, 1)


def saturated(x: Tensor, by: float) -> Tensor:
    """Further from, or nearer to, each pixel's grey."""
    return torch.lerp(grey(x), x, by).clamp_(0, 1)


def raised(x: Tensor, by: float) -> Tensor:
    """``x`` to the power of ``by``."""
    return x.pow(by)


def grey(x: Tensor) -> Tensor:
    """Luma, ``(batch, 1, height, width)``."""
    r, g, b = x.split(1, -3)
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def turned_hue(x: Tensor, by: float) -> Tensor:
    """Hues turned by a share of the circle; brightest and darkest value of each pixel stay.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.augmentation import turned_hue
    >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    >>> turned_hue(red, 1 / 3).flatten().round(decimals=3).abs().tolist()  # green
    [0.0, 1.0, 0.0]
    """
    r, g, b = x.split(1, -3)
    top, low = x.amax(-3, keepdim=True), x.amin(-3, keepdim=True)
    chroma = top - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.where(top == r, (g - b) / safe, torch.where(top == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    # a channel's value by how far it lies on the circle from the hue: top within one sixth, low beyond two
    at = sixths + 6 * by + torch.tensor([5.0, 3.0, 1.0]).to(x).view(3, 1, 1)
    k = at.remainder_(6)
    return top - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def sampled(x: Tensor, maps: Tensor, *, rim: int) -> Tensor:
    """Pictures ``(views, batch, 3, h, w)`` where each view's map points, bilinearly, with ``rim`` pixels around.

    ``maps: (views, 2, 3)`` takes a pixel's place from the middle, (x, y, 1), to where its value lies; beyond the border
    lies the edge.
    """
    views, batch, channels, height, width = x.shape
    at = [torch.arange(-rim, n + rim, device=x.device, dtype=x.dtype) - (n - 1) / 2 for n in (width, height)]
    across, down = torch.meshgrid(at[0], at[1], indexing="xy")
    places = torch.stack([across, down, torch.ones_like(across)], -1) @ maps.mT[:, None]  # (views, h, w, 2)
    grid = places * (2 / torch.tensor([width, height], device=x.device, dtype=x.dtype))
    flat = x.reshape(views, batch * channels, height, width)
    found = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.view(views, batch, channels, height + 2 * rim, width + 2 * rim)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur of five taps, ``sigma: (views,)`` pixels wide; two pixels are cut off on each side."""
    taps = torch.arange(-TAPS, TAPS + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).mT[..., None, None, None, None]  # (taps, views, 1, 1, 1, 1)
    for dim in (-2, -1):
        size = x.shape[dim] - 2 * TAPS
        parts = [x.narrow(dim, k, size) for k in range(2 * TAPS + 1)]
        total = parts[0] * weights[0]
        for part, w in zip(parts[1:], weights[1:], strict=True):
            total.addcmul_(part, w)
        x = total
    return x


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers where ``like`` is; a generator of the CPU decides them on every device."""
    return torch.empty_like(like).normal_(generator=_there(like, generator))


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), float32, as `normal`."""
    return torch.empty_like(like, dtype=torch.float32).uniform_(generator=_there(like, generator))


def _there(like: Tensor, generator: torch.Generator) -> torch.Generator:
    if like.device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(like.device).manual_seed(seed)
