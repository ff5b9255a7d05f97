"""Pictures and the patches of them that a model goes on with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankwise.report.plots.shared import panels, styled

UNIMPORTANT, SIMILAR = np.array([0.75, 0.85, 0.95]), np.array([0.84, 0.37, 0.0])  # what patches that left fade to


@styled
def kept_patches(
    pixels: NDArray[np.floating],
    grid: tuple[int, int],
    kept: dict[int, list[int]],
    similar: dict[int, list[int]] | None = None,
    *,
    title: str = "",
) -> Figure:
    """A picture, and after each pruning layer what is left of it.

    Parameters
    ----------
    pixels : ndarray
        ``(height, width, 3)``, from 0 to 1.
    grid : (int, int)
        Rows and columns of patches.
    kept, similar : dict of int to list of int
        Patches left after a layer, and those that left there for a likeness: these fade to orange, others to pale
        blue.
    title : str
        Above the picture.
    """
    figure, axes = panels(1, 1 + len(kept), size=(1.7 * (1 + len(kept)), 2.1), squeeze=False)
    axes[0, 0].imshow(pixels, interpolation="nearest")
    axes[0, 0].set_title(title, fontsize=8)
    gone: list[int] = []
    for axis, layer in zip(axes[0, 1:], kept, strict=True):
        gone += (similar or {}).get(layer, [])
        axis.imshow(_faded(pixels, grid, kept[layer], gone), interpolation="nearest")
        axis.set_title(f"after block {layer}: {len(kept[layer])}", fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    return figure


def _faded(
    pixels: NDArray[np.floating], grid: tuple[int, int], kept: Sequence[int], similar: Sequence[int]
) -> NDArray[np.floating]:
    """The picture with what is not kept faded: to orange where it was like another patch, else to pale blue."""
    strength, tint = np.full(grid[0] * grid[1], 0.12), np.tile(UNIMPORTANT, (grid[0] * grid[1], 1))
    tint[list(similar)], strength[list(similar)], strength[list(kept)] = SIMILAR, 0.55, 1.0

    def spread(values: NDArray[np.floating]) -> NDArray[np.floating]:
        high, wide = (-(-n // m) for n, m in zip(pixels.shape, grid, strict=False))
        image = values.reshape(*grid, -1).repeat(high, 0).repeat(wide, 1)
        return image[: pixels.shape[0], : pixels.shape[1]]

    weight = spread(strength)
    return pixels * weight + spread(tint) * (1 - weight)
