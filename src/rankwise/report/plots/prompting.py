"""Depths of corpora, and how far confidence can be trusted."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled


@styled
def depths(f: np.ndarray, g: np.ndarray, names: list[str]) -> Figure:
    """Distribution of the depths of two corpora with respect to the first."""
    figure, axis = panels(size=(5.4, 3.0))
    parts = axis.violinplot([g, f], orientation="horizontal", showmedians=True, widths=0.8)
    for body, colour in zip(parts["bodies"], ("#d55e00", "#0072b2"), strict=True):
        body.set_facecolor(colour)
    axis.set_yticks([1, 2], [names[1], names[0]])
    axis.set_xlabel(f"depth in {names[0]} (high is central)")
    return figure
