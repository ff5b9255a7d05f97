"""What a lens, a pane or a movement does: every blur is an average of neighbours, and keeps a constant picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate, gaussian_filter

from rankwise.data.corruptions.sampling import magnified, streaked

Floats = NDArray[np.floating]
Draws = Sequence[np.random.Generator]
ANGLES = 45.0  # degrees: the most that a motion deviates from the horizontal


def defocus(x: Floats, at: tuple[float, float], draws: Draws) -> Floats:
    """Averaged over a disk of a radius, whose edge is softened by a Gaussian of 3 x 3."""
    return correlate(x, disk(*at)[None, :, :, None], mode="mirror")


def disk(radius: float, softness: float) -> Floats:
    """The weights, ``(k, k)``, which sum to 1."""
    reach = int(radius) + 1
    offsets = np.arange(-reach, reach + 1)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    kernel = correlate(inside / inside.sum(), np.outer(soft, soft) / soft.sum() ** 2, mode="constant")
    return kernel.astype(np.float32)


def glass(x: Floats, at: tuple[float, int], draws: Draws) -> Floats:
    """Pixels change places with a neighbour, from the lower right on, ``rounds`` times; a Gaussian before and after."""
    sigma, rounds = at
    x = np.asarray(gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest"))
    orders = [exchanged(x.shape[1], x.shape[2], rounds, rng) for rng in draws]
    x = np.stack([p.reshape(-1, 3)[order].reshape(p.shape) for p, order in zip(x, orders, strict=True)])
    return gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def exchanged(height: int, width: int, rounds: int, rng: np.random.Generator) -> list[int]:
    """Which pixel, counted by rows, comes to lie where: each changes places with itself or one to the left or above."""
    order = list(range(height * width))
    for _ in range(rounds):
        back = (rng.integers(0, 2, (height, width, 2)) @ [width, 1]).tolist()
        for row in range(height - 1, 1, -1):
            for column in range(width - 1, 1, -1):
                here = row * width + column
                there = here - back[row][column]
                order[here], order[there] = order[there], order[here]
    return order


def motion(x: Floats, at: tuple[int, float], draws: Draws) -> Floats:
    """Averaged along a line at an angle of its own, up to 45° from the horizontal."""
    return streaked(x, *at, np.array([rng.uniform(-ANGLES, ANGLES) for rng in draws]))


def zoom(x: Floats, steps: int, draws: Draws) -> Floats:
    """The mean of the picture and of its middle enlarged 1, 1.01, … times."""
    return (x + sum(magnified(x, 1 + 0.01 * step) for step in range(steps + 1))) / (steps + 2)
