"""Noise that a sensor adds: of the electronics, of counting light, of broken pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Draws = Sequence[np.random.Generator]


def gaussian(x: Floats, scale: float, draws: Draws) -> Floats:
    """``x + scale · ε``, ε standard normal, of every channel by itself."""
    return x + scale * np.stack([rng.standard_normal(x.shape[1:], np.float32) for rng in draws])


def shot(x: Floats, photons: float, draws: Draws) -> Floats:
    """Poisson counts of mean ``photons · x``, over ``photons``: mean x, variance x / photons."""
    counts = [rng.poisson(picture * photons) for picture, rng in zip(x, draws, strict=True)]
    return (np.stack(counts) / photons).astype(np.float32)


def impulse(x: Floats, share: float, draws: Draws) -> Floats:
    """A ``share`` of all values, channel by channel, becomes 0 or 1, either as often."""
    chance = np.stack([rng.random((2, *x.shape[1:]), np.float32) for rng in draws])
    return np.where(chance[:, 0] < share, (chance[:, 1] < 0.5).astype(np.float32), x)
