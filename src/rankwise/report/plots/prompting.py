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


@styled
def reliability(answers: dict[str, tuple[np.ndarray, np.ndarray]], *, bins: int = 8) -> Figure:
    """Share of right answers against the model's confidence, in bins of as many answers, by name."""
    figure, axis = panels(size=(4.2, 3.4))
    axis.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1, linestyle="--")
    colours = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
    for (name, (sure, right)), colour in zip(answers.items(), colours, strict=False):
        parts = np.array_split(np.argsort(sure, kind="stable"), min(bins, len(sure)))
        axis.plot([sure[p].mean() for p in parts], [right[p].mean() for p in parts], "o-", color=colour, label=name)
    axis.set_xlabel("confidence")
    axis.set_ylabel("share of right answers")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False)
    return figure
