"""What is left after every step of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled


@styled
def chains(stages: Sequence[str], lines: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Mean log-probability of the right answer with its interval, a line a chain."""
    figure, axis = panels(size=(6.0, 3.2))
    for i, (name, points) in enumerate(lines.items()):
        at = [x + 0.06 * (i - (len(lines) - 1) / 2) for x in range(len(stages))]
        mean, low, high = zip(*points, strict=True)
        below, above = ([abs(m - e) for m, e in zip(mean, ends, strict=True)] for ends in (low, high))
        axis.errorbar(at, mean, yerr=[below, above], label=name, marker="o", markersize=4, capsize=2)
    axis.set_xticks(range(len(stages)), stages)
    axis.set_ylabel("log-probability of the right answer")
    axis.legend(frameon=False)
    return figure
