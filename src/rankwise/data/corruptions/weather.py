"""Weather: a layer that is laid over the picture, or more light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankwise.data.corruptions.sampling import magnified, streaked

Floats = NDArray[np.floating]
Draws = Sequence[np.random.Generator]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # how bright red, green and blue are


def snow(x: Floats, at: tuple[float, ...], draws: Draws) -> Floats:
    """Flakes (noise of a mean and deviation, enlarged, cut off below a bound) fall in streaks; the scene whitens.

    ``keep · x + (1 − keep) · max(x, 1.5 grey + 0.5) + s + s turned by 180°``.
    """
    mean, deviation, size, least, radius, sigma, keep = at
    flakes = np.stack([rng.normal(mean, deviation, x.shape[1:3]) for rng in draws]).astype(np.float32)
    flakes = magnified(flakes[..., None], size)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    fallen = streaked(flakes, int(radius), sigma, np.array([rng.uniform(-135, -45) for rng in draws]))
    whitened = np.maximum(x, (x @ LUMA)[..., None] * 1.5 + 0.5)
    return keep * x + (1 - keep) * whitened + fallen + fallen[:, ::-1, ::-1]


def frost(x: Floats, at: tuple[float, float], draws: Draws) -> Floats:
    """``scene · x + ice · frost``."""
    scene, ice = at
    return scene * x + ice * pane(x.shape[1], x.shape[2], draws)


def pane(height: int, width: int, draws: Draws) -> Floats:
    """Frosted panes, ``(N, height, width, 3)``: ridges of noise with more of the coarse, in a bluish grey of its own.

    Mean brightness 0.4 to 0.8 and deviation about 0.08, as in photographs of frost at this scale.
    """
    down, along = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(down, along)
    falloff = np.where(frequency > 0, np.maximum(frequency, 1e-9) ** -1.5, 0)
    noise = np.stack([rng.standard_normal((height, width)) for rng in draws])
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * falloff, (height, width))
    ridges = -np.abs(smooth / smooth.std((1, 2), keepdims=True))
    ridges = (ridges - ridges.mean((1, 2), keepdims=True)) / ridges.std((1, 2), keepdims=True)
    bright = np.array([rng.uniform(0.4, 0.8) for rng in draws])[:, None, None]
    grey = bright + 0.08 * ridges
    return np.clip(grey[..., None] + [-0.05, 0, 0.04], 0, 1).astype(np.float32)


def fog(x: Floats, at: tuple[float, float], draws: Draws) -> Floats:
    """``(x + thick · plasma) · m / (m + thick)``, m the picture's largest value."""
    thick, decay = at
    most = x.max((1, 2, 3), keepdims=True)
    layer = plasma(max(x.shape[1:3]), decay, draws)[:, : x.shape[1], : x.shape[2], None]
    return (x + thick * layer) * most / (most + thick)


def plasma(size: int, decay: float, draws: Draws) -> Floats:
    """Clouds, ``(N, s, s)``, s the power of two from ``size`` on, between 0 and 1, by the diamond-square rule.

    Every halving of the grid sets the middle of each square, then of each edge, to the mean of its four neighbours
    (around the borders) and noise whose range is divided by ``decay`` each time.
    """
    side = 1 << max(1, (size - 1).bit_length())
    noise = np.stack([rng.uniform(-1, 1, (side, side)) for rng in draws])
    field = np.zeros_like(noise)
    step, reach = side, 100.0
    while step >= 2:
        half = step // 2
        here = slice(0, side, step)
        middle = slice(half, side, step)
        corners = field[:, here, here]
        squares = corners + np.roll(corners, -1, 1)
        squares = squares + np.roll(squares, -1, 2)
        # the range is squared, as it was released
        field[:, middle, middle] = squares / 4 + reach**2 * noise[:, middle, middle]
        centres = field[:, middle, middle]
        upper = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 2)
        field[:, here, middle] = upper / 4 + reach**2 * noise[:, here, middle]
        left = centres + np.roll(centres, 1, 2) + corners + np.roll(corners, -1, 1)
        field[:, middle, here] = left / 4 + reach**2 * noise[:, middle, here]
        step, reach = half, reach / decay
    field -= field.min((1, 2), keepdims=True)
    return (field / field.max((1, 2), keepdims=True)).astype(np.float32)


def brightness(x: Floats, more: float, draws: Draws) -> Floats:
    """``more`` added to HSV's value, up to 1: hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    lit = np.minimum(value + more, 1)
    return np.where(value > 0, x * (lit / np.where(value > 0, value, 1)), lit)
