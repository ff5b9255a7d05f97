"""Spectra of clusters that are subspaces; from how many rows subspaces are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled

if TYPE_CHECKING:
    from rankwise.dynamics import PhaseTransition

MOST = 12  # clusters that are drawn


@styled
def cluster_spectra(spectra: Sequence[np.ndarray], dims: Sequence[int], sizes: Sequence[int]) -> Figure:
    """Variances along principal directions, a panel a cluster; those inside its subspace are dark."""
    shown = sorted(range(len(spectra)), key=lambda k: -sizes[k])[:MOST]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = panels(rows, columns, size=(2.3 * columns + 0.6, 1.9 * rows + 0.4), squeeze=False, sharey=True)
    top = max((float(s[0]) for s in spectra if len(s) and s[0] > 0), default=1.0)
    for axis, k in zip(axes.flat, sorted(shown), strict=False):
        values = np.maximum(spectra[k], 1e-6 * top)
        colours = ["#0072b2" if i < dims[k] else "#bbbbbb" for i in range(len(values))]
        axis.bar(np.arange(1, len(values) + 1), values, color=colours, width=0.9)
        axis.set_title(f"cluster {k}: d = {dims[k]}, {sizes[k]:,} rows", fontsize=8)
        axis.set_yscale("log")
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("variance")
    for axis in axes[-1]:
        axis.set_xlabel("direction")
    return figure


@styled
def phase_maps(found: Sequence[PhaseTransition]) -> Figure:
    """Success of several estimators by dimension and rows: dashed N = d, solid the fitted threshold."""
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure, axes = panels(rows, columns, size=(2.6 * columns, 2.5 * rows), squeeze=False)
    for axis, one in zip(axes.flat, found, strict=False):
        one.plot(axis)
        axis.title.set_fontsize(8)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_visible(False)
    return figure
