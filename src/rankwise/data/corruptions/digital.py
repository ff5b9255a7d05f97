"""What processing does: contrast, warping, coarse pixels, compression."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rankwise.data.corruptions.sampling import sampled

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.floating]
Draws = Sequence[np.random.Generator]


def contrast(x: Floats, keep: float, draws: Draws) -> Floats:
    """Every channel's deviations from its mean over the picture, times ``keep``."""
    mean = x.mean((1, 2), keepdims=True)
    return mean + keep * (x - mean)


def elastic(x: Floats, at: tuple[float, float, float], draws: Draws) -> Floats:
    """An affine map that moves three points about, then a smooth field of displacements; lengths go with the size.

    Parameters
    ----------
    at : (float, float, float)
        Of the shorter side: how far the field displaces, how smooth it is, and how far the three points move.
    """
    count, height, width, _ = x.shape
    reach, smooth, jitter = (part * min(height, width) for part in at)
    centre, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    before = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])  # x, y
    after = before + np.stack([rng.uniform(-jitter, jitter, (3, 2)) for rng in draws])
    ones = np.ones((count, 3, 1))
    back = np.linalg.solve(np.concatenate([after, ones], 2), np.broadcast_to(before, after.shape))  # (N, 3, 2)
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns, rows, np.ones_like(rows)], -1) @ back[:, None]
    x = sampled(x, places[..., 1], places[..., 0], edge_twice=False)
    if not reach:
        return x
    field = np.stack([rng.uniform(-1, 1, (2, height, width)) for rng in draws])
    field = reach * gaussian_filter(field, (0, 0, smooth, smooth), mode="reflect", truncate=3)
    return sampled(x, rows + field[:, 1], columns + field[:, 0], edge_twice=True)


def pixelate(x: Floats, share: float, draws: Draws) -> Floats:
    """Scaled down to a ``share`` of its sides by means over boxes, and up again by the nearest pixel."""
    from PIL import Image

    height, width = x.shape[1:3]

    def coarse(image: Image.Image) -> Image.Image:
        small = image.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _one_by_one(x, coarse)


def jpeg(x: Floats, quality: int, draws: Draws) -> Floats:
    """Written as a JPEG file of this quality, and read."""
    from PIL import Image

    def compressed(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _one_by_one(x, compressed)


def _one_by_one(x: Floats, change: Callable[[Image.Image], Image.Image]) -> Floats:
    from PIL import Image

    pictures = np.rint(x * 255).astype(np.uint8)
    return np.stack([np.asarray(change(Image.fromarray(p))) for p in pictures]).astype(np.float32) / 255
