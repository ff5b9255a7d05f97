"""How likely each position is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rankwise.report.plots.shared import panels, styled

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@styled
def propensities(
    curves: Mapping[str, ArrayLike], *, low: ArrayLike | None = None, high: ArrayLike | None = None
) -> Figure:
    """Propensity by position, relative to the first; the interval is the first curve's."""
    figure, axis = panels(size=(5.6, 3.4))
    for (name, curve), colour, style in zip(curves.items(), COLOURS, ("o-", "s--", "^:", "d-."), strict=False):
        at = np.arange(1, len(np.asarray(curve)) + 1)
        axis.plot(at, curve, style, color=colour, label=name, ms=4)
    if low is not None and high is not None:
        axis.fill_between(np.arange(1, len(np.asarray(low)) + 1), low, high, color=COLOURS[0], alpha=0.2, lw=0)
    axis.set_xlabel("position")
    axis.set_ylabel("propensity (first position: 1)")
    axis.set_ylim(0, None)
    if len(curves) > 1:
        axis.legend(frameon=False)
    return figure


@styled
def by_severity(eta: Sequence[float], scores: Mapping[str, Sequence[float]]) -> Figure:
    """nDCG@10 by how strong the position bias is, a line a ranker."""
    figure, axis = panels(size=(6.4, 3.6))
    for i, (name, values) in enumerate(scores.items()):
        axis.plot(
            eta, values, "o-", label=name, ms=4, color=(*COLOURS, "#56b4e9", "#b58900", "#882255", "#888888")[i % 8]
        )
    axis.set_xlabel("severity of position bias η")
    axis.set_ylabel("nDCG@10 on test queries")
    axis.legend(frameon=False, fontsize=7)
    return figure
