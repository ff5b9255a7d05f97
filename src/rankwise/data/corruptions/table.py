"""Which corruptions there are, how strong each is, and their application to a batch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.data.corruptions import blur, digital, noise, weather
from rankwise.data.images.collection import Images, Stack
from rankwise.nearest import unknown

Floats = NDArray[np.floating]
Draws = Sequence[np.random.Generator]
SEVERITIES = (1, 2, 3, 4, 5)
AT_ONCE = 4_000_000  # numbers of a batch that are worked on at a time
# in the paper's order; the five parameters of each are those of the CIFAR-10 variant
_TABLE: dict[str, tuple[Callable[[Floats, Any, Draws], Floats], Sequence[Any]]] = {
    "gaussian_noise": (noise.gaussian, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (noise.shot, (500, 250, 100, 75, 50)),
    "impulse_noise": (noise.impulse, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (blur.defocus, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (blur.glass, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (blur.motion, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (blur.zoom, (6, 11, 15, 20, 25)),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        digital.elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (digital.jpeg, (80, 65, 58, 50, 40)),
}
CORRUPTIONS = tuple(_TABLE)


def corrupt(
    pixels: NDArray[np.uint8],
    name: str,
    *,
    severity: int,
    seed: int = 0,
    rows: Sequence[int] | NDArray[np.integer] | None = None,
) -> NDArray[np.uint8]:
    """Corrupted pictures.

    Parameters
    ----------
    pixels : ndarray
        ``(N, height, width, 3)``, or one picture, ``(height, width, 3)``; uint8, at least 8 pixels a side.
    name : str
        One of `CORRUPTIONS`, as the files of CIFAR-10-C are called, e.g. ``fog``.
    severity : int
        1 (mild) to 5.
    seed : int
        Decides every draw, together with the name and the row.
    rows : sequence of int, optional
        Where each picture stands in its collection (`Batch.rows`), so that its draws do not depend on the batch; by
        default they are counted from 0.

    Returns
    -------
    ndarray
        Of the same shape, uint8.

    Raises
    ------
    ValueError
        Another name, severity, shape or dtype.

    Examples
    --------
    >>> from rankwise.data import read_images
    >>> from rankwise.data.corruptions import corrupt
    >>> batch = next(read_images("digits").batches(4, seed=0))
    >>> foggy = corrupt(batch.pixels, "fog", severity=3, rows=batch.rows)
    >>> foggy.shape, foggy.dtype
    ((4, 8, 8, 3), dtype('uint8'))
    """
    if name not in _TABLE:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES or isinstance(severity, bool):
        raise ValueError(f"severity={severity}; 1 (mild) to 5, and a clean picture is the picture itself")
    given = np.asarray(pixels)
    batch = given[None] if given.ndim == 3 else given
    if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != np.uint8 or min(batch.shape[1:3]) < 8:
        raise ValueError(
            f"pictures of shape {given.shape}, {given.dtype}; uint8 of (N, height, width, 3), at least 8 x 8, is needed"
        )
    at = np.arange(len(batch)) if rows is None else np.asarray(rows)
    if at.shape != (len(batch),) or (at.size and (at.dtype.kind not in "iu" or at.min() < 0)):
        raise ValueError(f"rows={rows}; {len(batch)} whole numbers from 0 on are needed, one a picture")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed}; a whole number from 0 on")
    function, table = _TABLE[name]
    out = np.empty_like(batch)
    for part in _parts(batch):
        draws = [np.random.default_rng([seed, zlib.crc32(name.encode()), int(row)]) for row in at[part]]
        found = function(batch[part].astype(np.float32) / 255, table[severity - 1], draws)
        out[part] = np.rint(np.clip(found, 0, 1) * 255)
    return out.reshape(given.shape)


def corrupted(images: Images, name: str, *, severity: int, seed: int = 0) -> Images:
    """A collection with every picture corrupted, as one array.

    Parameters
    ----------
    images : Images
        Pictures of one size; ``images.stacked(size)`` makes them so.
    name, severity, seed
        As for `corrupt`; a picture's row is its place in ``images``.

    Raises
    ------
    ValueError
        As `corrupt`; also pictures of several sizes.

    Examples
    --------
    >>> from rankwise.data import read_images
    >>> from rankwise.data.corruptions import corrupted
    >>> digits = read_images("digits")
    >>> noisy = corrupted(digits, "shot_noise", severity=5)
    >>> noisy.name, len(noisy), bool((noisy.labels == digits.labels).all())
    ('digits, shot_noise 5', 1797, True)
    """
    held = images.stacked()
    assert isinstance(held.store, Stack)
    pixels = corrupt(held.store.array, name, severity=severity, seed=seed)
    groups = images.groups or images.digests  # a picture stays on the side of the split of its clean self
    return replace(images, name=f"{images.name}, {name} {severity}", store=Stack(pixels), groups=groups)


def _parts(batch: NDArray[np.uint8]) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, batch[0].size)) if len(batch) else 1
    return (slice(start, start + step) for start in range(0, len(batch), step))
