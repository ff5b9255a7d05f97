"""Leaderboards of personalised summaries; how a network of peers learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b58900", "#882255", "#888888")


@styled
def personalisation(scores: Mapping[str, tuple[float, float, float]], distances: Mapping[str, float]) -> Figure:
    """PerSEval with its interval (score, low, high) a system, beside the mean distance: accuracy alone."""
    figure, (left, right) = panels(1, 2, size=(8.4, 1.1 + 0.32 * len(scores)), sharey=True)
    at = range(len(scores))[::-1]
    for y, (score, low, high) in zip(at, scores.values(), strict=True):
        left.plot([low, high], [y, y], color="#0072b2", lw=2)  # nothing where they are NaN
        left.plot(score, y, "o", color="#0072b2", ms=5)
    left.set_yticks(list(at), [_short(name) for name in scores])
    left.set_ylim(-0.6, len(scores) - 0.4)
    left.set_xlim(0, None)
    left.set_xlabel("PerSEval (high follows readers)")
    right.plot([distances[name] for name in scores], list(at), "s", color="#d55e00", ms=5)
    right.set_xlim(0, 1)
    right.set_xlabel("mean distance to what readers wrote (low is accurate)")
    return figure


@styled
def stability(by: Mapping[str, tuple[Sequence[float], Sequence[float], Mapping[str, Sequence[float]]]]) -> Figure:
    """What is left when less is measured: by what is drawn, the shares, Kendall's τ of the order, scores a system."""
    figure, axes = panels(1, 1 + len(by), size=(8.4, 3.0), squeeze=False)
    for (name, (shares, kendall, _)), colour in zip(by.items(), ("#222222", "#999999"), strict=False):
        axes[0, 0].plot([100 * s for s in shares], kendall, "o-", color=colour, label=f"of {name}")
    axes[0, 0].set_ylabel("Kendall's τ with the order by all")
    axes[0, 0].set_ylim(min(0, *(min(kendall) for _, kendall, _ in by.values())), 1.02)
    axes[0, 0].legend(frameon=False)
    for axis, (name, (shares, _, scores)) in zip(axes[0, 1:], by.items(), strict=True):
        for i, (system, values) in enumerate(scores.items()):
            axis.plot([100 * s for s in shares], values, ".-", color=COLOURS[i % len(COLOURS)], label=_short(system))
        axis.set_ylabel("PerSEval")
        axis.set_ylim(0, None)
        axis.set_title(f"{name} drawn", fontsize=9)
    for axis in axes[0]:
        axis.set_xlabel("share measured (%)")
    if len(scores) <= len(COLOURS):
        axes[0, -1].legend(frameon=False, fontsize=7)
    return figure


@styled
def network_learning(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    attacked: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Figure:
    """nDCG@10 (in points) of lists shown: by searches of each node, a line a ranking, and by the share of attackers."""
    figure, (left, right) = panels(1, 2, size=(8.4, 3.4), width_ratios=(3, 2))
    for i, (name, (rounds, values)) in enumerate(curves.items()):
        left.plot(rounds, values, color=COLOURS[i % len(COLOURS)], lw=2 if i == 0 else 1.2, label=name)
    left.set_xlabel("searches of each node")
    left.set_ylabel("nDCG@10 of the lists shown (%)")
    for (name, (shares, values)), colour, style in zip(attacked.items(), COLOURS, ("o-", "s--", "^:"), strict=False):
        right.plot(shares, values, style, color=colour, ms=4, label=name)
    right.set_xlabel("attackers in the network (%)")
    for axis, columns in ((left, 3), (right, 2)):
        axis.set_ylim(0, 100)
        axis.legend(frameon=False, fontsize=7, ncols=columns, loc="upper left")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
