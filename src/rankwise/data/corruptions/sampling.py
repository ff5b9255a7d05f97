"""Values between pixels: linear interpolation along axes, at places of one's own, and along lines."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def magnified(x: Floats, factor: float) -> Floats:
    """The middle of pictures, ``(N, height, width, channels)``, enlarged to their size by linear interpolation.

    Of each side the middle ``⌈size / factor⌉`` pixels are spread over ``round(⌈size / factor⌉ · factor)``, ends on
    ends, and the middle ``size`` of these are kept.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        inner = math.ceil(size / factor)
        outer = round(inner * factor)
        trim = (outer - size) // 2
        places = np.arange(trim, trim + size) * ((inner - 1) / (outer - 1))
        left = np.minimum(np.floor(places).astype(np.intp), inner - 2)
        part = np.expand_dims((places - left).astype(np.float32), (0, *({1, 2} - {axis}), 3))
        left = left + (size - inner) // 2
        x = np.take(x, left, axis) * (1 - part) + np.take(x, left + 1, axis) * part
    return x


def mirrored(at: NDArray[np.intp], size: int, *, edge_twice: bool) -> NDArray[np.intp]:
    """Indices beyond a line's ends, reflected: ``cba|abc|cba``, or ``cb|abc|ba`` where the edge stands once."""
    if edge_twice:
        around = at % (2 * size)
        return np.minimum(around, 2 * size - 1 - around)
    around = at % (2 * size - 2)
    return np.minimum(around, 2 * size - 2 - around)


def sampled(x: Floats, rows: NDArray[np.floating], columns: NDArray[np.floating], *, edge_twice: bool) -> Floats:
    """Bilinear values of ``x``, ``(N, height, width, channels)``, at ``rows`` and ``columns``, each ``(N, h, w)``."""
    which = np.arange(len(x))[:, None, None]
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, right = (rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32)
    r = [mirrored(top + i, x.shape[1], edge_twice=edge_twice) for i in (0, 1)]
    c = [mirrored(left + i, x.shape[2], edge_twice=edge_twice) for i in (0, 1)]
    upper = x[which, r[0], c[0]] * (1 - right) + x[which, r[0], c[1]] * right
    lower = x[which, r[1], c[0]] * (1 - right) + x[which, r[1], c[1]] * right
    return upper * (1 - down) + lower * down


def streaked(x: Floats, radius: int, sigma: float, angles: NDArray[np.floating]) -> Floats:
    """Pictures averaged along a line from each pixel on, by half a Gaussian; beyond the border lies its edge.

    Parameters
    ----------
    x : ndarray
        ``(N, height, width, channels)``.
    radius : int
        The line has ``2 · radius + 1`` steps of a pixel.
    sigma : float
        Standard deviation of the weights, in pixels.
    angles : ndarray
        ``(N,)``, degrees, clockwise from the right.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    which = np.arange(len(x))[:, None, None]
    rows, columns = np.arange(x.shape[1])[None, :, None], np.arange(x.shape[2])[None, None, :]
    turn = np.deg2rad(angles)[:, None, None]
    out = np.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        # the nearest pixel, halves down
        down = np.ceil(step * np.sin(turn) - 0.5).astype(np.intp)
        along = np.ceil(step * np.cos(turn) - 0.5).astype(np.intp)
        at = np.clip(rows + down, 0, x.shape[1] - 1), np.clip(columns + along, 0, x.shape[2] - 1)
        out += weight * x[which, at[0], at[1]]
    return out
