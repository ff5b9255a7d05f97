"""What merging costs."""

from __future__ import annotations

from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled


@styled
def interference(points: list[dict]) -> Figure:
    """What summing two experts costs against how much their leading subspaces overlap, a point a pair and seed."""
    figure, axis = panels(size=(4.6, 3.4))
    for pair in dict.fromkeys(p["pair"] for p in points):
        mine = [p for p in points if p["pair"] == pair]
        axis.scatter([p["overlap"] for p in mine], [100 * p["loss"] for p in mine], label=pair, s=24)
    axis.set_xlabel("overlap of leading singular subspaces")
    axis.set_ylabel("accuracy lost by summing both (%)")
    axis.legend(frameon=False, fontsize=8)
    return figure
