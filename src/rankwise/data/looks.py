"""Photographs in eight looks, and captions that name what is seen and how: what a small CLIP is trained on.

A look is light (backlit, dark, overexposed), sharpness (blurry, pixelated), grain (noisy) or colour (black and white,
faded). Each is a function of a batch of images in [0, 1], ``(batch, 3, height, width)``, and of a generator, which
draws how strong it is for each image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Draw = torch.Generator | None


def _between(low: float, high: float, images: Tensor, draw: Draw) -> Tensor:
    """One number an image, uniform, ``(batch, 1, 1, 1)``."""
    return (torch.rand(len(images), 1, 1, 1, generator=draw) * (high - low) + low).to(images)


def backlit(images: Tensor, draw: Draw = None) -> Tensor:
    """A dark subject before a bright ground: light falls off inside a soft ellipse and rises outside of it."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    across, up = _between(-0.2, 0.2, images, draw), _between(-0.2, 0.2, images, draw)
    radius = _between(0.55, 0.9, images, draw)
    inside = torch.sigmoid(8 * (radius - ((x.to(images) - across) ** 2 + (y.to(images) - up) ** 2).sqrt()))
    dim, glare = _between(0.1, 0.3, images, draw), _between(0.3, 0.7, images, draw)
    return images * dim * inside + (1 - (1 - images) * glare) * (1 - inside)


def dark(images: Tensor, draw: Draw = None) -> Tensor:
    """Too little light over the whole image."""
    return images**1.5 * _between(0.15, 0.4, images, draw)


def overexposed(images: Tensor, draw: Draw = None) -> Tensor:
    """Too much light: what is bright is cut off at white."""
    return (images * _between(1.8, 2.6, images, draw) + 0.1).clamp(max=1)


def blurry(images: Tensor, draw: Draw = None) -> Tensor:
    """A Gaussian blur of 1 to 1.6 pixels of a 32 pixel image."""
    deviation = _between(1.0, 1.6, images, draw) * images.shape[-1] / 32
    reach = int(2.5 * 1.6 * images.shape[-1] / 32)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).to(images) ** 2) / (2 * deviation[:, 0, 0] ** 2))
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, 0)  # one an image and channel
    rows = F.pad(images, (reach,) * 4, mode="reflect").reshape(1, -1, *(s + 2 * reach for s in images.shape[-2:]))
    rows = F.conv2d(rows, kernel[:, None, None, :], groups=len(kernel))
    return F.conv2d(rows, kernel[:, None, :, None], groups=len(kernel)).reshape(images.shape)


def noisy(images: Tensor, draw: Draw = None) -> Tensor:
    """Independent Gaussian noise in every pixel and channel."""
    grain = torch.randn(images.shape, generator=draw).to(images)
    return (images + grain * _between(0.1, 0.2, images, draw)).clamp(0, 1)


def black_and_white(images: Tensor, draw: Draw = None) -> Tensor:
    """Luma (ITU-R BT.601) in all three channels."""
    return (
        (images * torch.tensor([0.299, 0.587, 0.114]).to(images)[:, None, None]).sum(1, keepdim=True).expand_as(images)
    )


def faded(images: Tensor, draw: Draw = None) -> Tensor:
    """Contrast shrunk towards a light grey."""
    return 0.6 + (images - 0.5) * _between(0.25, 0.45, images, draw)


def pixelated(images: Tensor, draw: Draw = None) -> Tensor:
    """Blocks of an eighth of the image's side."""
    size = images.shape[-2:]
    return F.interpolate(F.adaptive_avg_pool2d(images, (8, 8)), size=size, mode="nearest")


LOOKS: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "backlit": backlit,
    "dark": dark,
    "overexposed": overexposed,
    "blurry": blurry,
    "noisy": noisy,
    "black and white": black_and_white,
    "faded": faded,
    "pixelated": pixelated,
}
PLAIN = ("clear", "well-lit")  # words for an image as it was taken
NAMES = (PLAIN[0], *LOOKS)


def in_looks(images: Tensor, draw: Draw = None, *, plain: float = 0.5) -> tuple[Tensor, Tensor]:
    """Images, a share of ``plain`` as they were and the others each in one look; and each one's index in `NAMES`."""
    which = torch.randint(1, len(NAMES), (len(images),), generator=draw)
    which[torch.rand(len(images), generator=draw) < plain] = 0
    changed = images.clone()
    for index, look in enumerate(LOOKS.values(), start=1):
        if (rows := which == index).any():
            changed[rows] = look(images[rows], draw)
    return changed, which


def captions(classes: list[str], looks: Tensor, labels: Tensor, draw: Draw = None) -> list[str]:
    """A caption an image, all of one form: class and look, class alone or look alone (7, 2 and 1 times in 10).

    One form a batch, so that no caption in it is true of an image that has another.
    """
    form, plain = torch.rand((), generator=draw).item(), PLAIN[int(torch.randint(2, (), generator=draw))]
    names = [plain, *LOOKS]
    if form < 0.7:
        return [f"{article(names[k])} photo of {article(classes[c])}" for k, c in zip(looks, labels, strict=True)]
    if form < 0.9:
        return [f"a photo of {article(classes[c])}" for c in labels]
    return [f"{article(names[k])} photo" for k in looks]


def article(noun: str) -> str:
    """The noun with a or an before it."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
