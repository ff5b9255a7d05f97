"""Distilled pictures, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankwise.report.plots.shared import panels, styled


@styled
def tile_sheet(
    images: NDArray[np.uint8], names: Sequence[str], *, most: int = 10, classes: int = 20, inches: float = 0.75
) -> Figure:
    """A row a class.

    Parameters
    ----------
    images : ndarray
        ``(classes · ipc, height, width, 3)``, class by class.
    names : sequence of str
        Of the classes.
    most, classes : int
        Pictures and classes that are shown at most.
    inches : float
        Of a picture's side.
    """
    ipc = len(images) // len(names)
    shown, wide = list(names)[:classes], min(ipc, most)
    figure, axes = panels(len(shown), wide, size=(1.3 + inches * wide, 1.04 * inches * len(shown)), squeeze=False)
    for i, name in enumerate(shown):
        for j in range(wide):
            axes[i, j].imshow(images[i * ipc + j], interpolation="nearest")
            axes[i, j].set(xticks=[], yticks=[])
        axes[i, 0].set_ylabel(name[:16], rotation=0, ha="right", va="center", fontsize=8)
    return figure
