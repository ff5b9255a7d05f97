"""Plots of pictures: before, the map, after."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from rankwise.report.plots.shared import panels, styled


@styled
def before_and_after(before: NDArray[Any], light: NDArray[Any], after: NDArray[Any]) -> Figure:
    """A picture, the illumination that it is divided by, and what comes of it.

    Parameters
    ----------
    before : ndarray
        ``(height, width, 3)``, uint8.
    light : ndarray
        ``(height, width)``, not below 0.
    after : ndarray
        As ``before``.

    Returns
    -------
    Figure
        Three panels.
    """
    figure, axes = panels(1, 3, size=(9, 3.2))
    for axis, picture, title in zip(axes, (before, light, after), ("before", "map of light", "after"), strict=True):
        shown = axis.imshow(picture, cmap="magma" if picture.ndim == 2 else None)
        axis.set_title(title)
        axis.set_axis_off()
        if picture.ndim == 2:
            figure.colorbar(shown, ax=axis, fraction=0.046)
    return figure
