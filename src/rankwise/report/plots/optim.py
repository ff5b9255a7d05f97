"""Outliers of blocks, and how often each is sampled."""

from __future__ import annotations

from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled


@styled
def outliers(records: list[dict]) -> Figure:
    """Outlier score, heavy-tail index and sampling probability of every block, and how the first two go together."""
    figure, axes = panels(1, 3, size=(10.5, 3.0))
    blocks = [r["block"] for r in records]
    for axis, key, label in (
        (axes[0], "outliers", "outlier score D (%)"),
        (axes[1], "probability", "sampling probability"),
    ):
        axis.bar(blocks, [r[key] for r in records], color="#0072b2")
        axis.set_xlabel("block")
        axis.set_ylabel(label)
    axes[2].scatter(
        [r["hill_alpha"] for r in records], [r["outliers"] for r in records], c=blocks, cmap="viridis", s=18
    )
    axes[2].set_xlabel("heavy-tail index (low: heavy)")
    axes[2].set_ylabel("outlier score D (%)")
    return figure
