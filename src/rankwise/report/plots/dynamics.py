"""Learning over time beside its theory; spectra of clusters that are subspaces, and how many rows find them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled

if TYPE_CHECKING:
    import pandas as pd

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


@styled
def learning_from_context(
    frame: pd.DataFrame, *, pairs: int, labels: int, theory: pd.DataFrame | None = None
) -> Figure:
    """Loss, accuracy and the measures of an induction head over training: means over seeds, a thin line each seed.

    Parameters
    ----------
    frame : DataFrame
        As `rankwise.dynamics.InContextResult.frame`.
    pairs, labels : int
        ``N`` and ``L``, of which log N and log L are drawn.
    theory : DataFrame, optional
        ``step`` and ``loss`` of the phenomenological model.
    """
    figure, (left, middle, right) = panels(1, 3, size=(10.2, 2.9))
    _lines(left, frame, {"loss": "network"})
    if theory is not None:
        left.plot(theory.step, theory.loss, color="black", linestyle="--", label="theory, time stretched")
    for value, name in ((math.log(labels), "log L"), (math.log(pairs), "log N")):
        left.axhline(value, color="0.7", linewidth=0.6, zorder=0)
        left.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    left.set(ylabel="loss (nats)", ylim=(0, None))
    _lines(middle, frame, {"ic": "new classes", "ic2": "swapped labels", "iwl": "known classes"})
    middle.set(ylabel="accuracy", ylim=(0, 1.02))
    _lines(right, frame, {"cla": "CLA", "tla2": "TLA2", "ila1": "ILA1", "tila2": "TILA2"})
    right.set(ylabel="share", ylim=(0, 1.02))
    for axis in (left, middle, right):
        axis.set_xlabel("step")
        axis.legend(frameon=False, fontsize=7)
    return figure


def _lines(axis, frame: pd.DataFrame, columns: dict[str, str]) -> None:
    for number, (column, name) in enumerate(columns.items()):
        colour = f"C{number}"
        for _, rows in frame.groupby("seed"):
            axis.plot(rows.step, rows[column], color=colour, linewidth=0.4, alpha=0.5)
        mean = frame.groupby("step")[column].mean()
        axis.plot(mean.index, mean, color=colour, linewidth=1.6, label=name)


ALIGNMENTS = {
    "kernel_alignment": "kernel alignment",
    "representation_alignment": "representation alignment",
    "sign_similarity": "equal signs",
}


@styled
def along_training(histories: Mapping[str, Sequence[Mapping[str, Any]]], *, measure: str | None = None) -> Figure:
    """How lazy learning stays over training; 1 is lazy.

    Parameters
    ----------
    histories : mapping of str to sequence of mapping
        Records with ``step`` and measures, as of `rankwise.dynamics.LazinessCallback`; a colour each, of several
        records of one step (seeds) the mean with the range.
    measure : str, optional
        One of the records' measures; by default three of them, a panel each.
    """
    shown = [measure] if measure else list(ALIGNMENTS)
    figure, axes = panels(1, len(shown), size=(3.4 * len(shown) + 0.4, 3.0), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for number, (label, rows) in enumerate(histories.items()):
            found: dict[int, list[float]] = {}
            for row in rows:
                if row.get(name) is not None and math.isfinite(row[name]):
                    found.setdefault(int(row["step"]), []).append(float(row[name]))
            steps = sorted(found)
            colour = f"C{number}"
            axis.plot(steps, [np.mean(found[s]) for s in steps], "o-", ms=3, color=colour, label=label)
            if any(len(found[s]) > 1 for s in steps):
                low, high = ([f(found[s]) for s in steps] for f in (min, max))
                axis.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        axis.set_xlabel("step")
        axis.set_ylabel(ALIGNMENTS.get(name, name.replace("_", " ")))
        axis.set_xscale("symlog", linthresh=50)
    if len(histories) > 1:
        axes[0][0].legend(frameon=False, fontsize=7)
    return figure
