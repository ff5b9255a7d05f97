"""Hazards, densities, quantiles and generated points."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from rankwise.report.plots.shared import panels, styled


@styled
def hazard_curves(data: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Hazards over time by data set and model; the first of each is grey: what the others should follow."""
    figure, axes = panels(2, -(-len(data) // 2), size=(8.4, 5.2), squeeze=False)
    for axis, (name, curves) in zip(axes.flat, data.items(), strict=False):
        for (model, (t, h)), colour in zip(curves.items(), ("#999999", "#d55e00", "#0072b2"), strict=False):
            axis.plot(t, h, color=colour, lw=3 if colour == "#999999" else 1.6, label=model)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("years")
        axis.set_ylabel("hazard a year")
        axis.set_ylim(0, None)
    axes.flat[0].legend(frameon=False, fontsize=7)
    return figure


@styled
def kde_phases(fluctuations: list[dict[str, float]]) -> Figure:
    """Critical bandwidths of standard normal data by α, and the measured fluctuations across them."""
    from rankwise.distributions.density.regimes import critical_bandwidths

    figure, (left, right) = panels(1, 2, size=(8.4, 3.2))
    n = np.geomspace(10, 1e8, 60)
    found = [critical_bandwidths(np.ones(60), int(k)) for k in n]
    for name, label, colour in (
        ("h_clt", "h_CLT", "#0072b2"), ("h_g", "h_G", "#d55e00"), ("h_opt", "h_opt", "#009e73"),
    ):  # fmt: skip
        left.plot([c.alpha for c in found], [getattr(c, name) for c in found], color=colour, label=label)
    left.set_ylim(0, 3.5)
    left.set_xlabel("α = log n / d")
    left.set_ylabel("bandwidth (standard deviations)")
    left.legend(frameon=False)
    ratio = [f["ratio"] for f in fluctuations]
    right.plot(ratio, [f["anderson"] for f in fluctuations], "o-", color="#d55e00", label="Anderson-Darling")
    right.plot(
        ratio, [100 * f["effective"] for f in fluctuations], "o-", color="#0072b2", label="points that count (%)"
    )
    for at in (1, np.sqrt(2)):
        right.axvline(at, color="#888888", lw=1, ls="--")
    right.set_xlabel("bandwidth / h_G")
    right.set_yscale("log")
    right.legend(frameon=False)
    return figure


@styled
def quantile_fan(observed: np.ndarray, quantiles: np.ndarray, levels: list[float], *, unit: str) -> Figure:
    """Bands of symmetric levels over rows in the order of their median, with what was observed."""
    figure, axis = panels(size=(8.4, 3.8))
    middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
    order = np.argsort(quantiles[:, middle])
    if len(order) > 200:
        order = order[np.linspace(0, len(order) - 1, 200).astype(int)]
    at, pairs = np.arange(len(order)), [(i, len(levels) - 1 - i) for i in range(len(levels) // 2)]
    for i, j in pairs:
        axis.fill_between(
            at, quantiles[order, i], quantiles[order, j], color="#0072b2", alpha=0.6 / len(pairs), lw=0, step="mid"
        )
    axis.plot(at, quantiles[order, middle], color="#0072b2", lw=1, label="median")
    axis.plot(at, observed[order], ".", ms=3, color="#d55e00", label="observed")
    axis.set_xlabel("test rows by predicted median")
    axis.set_ylabel(unit)
    axis.set_xlim(0, max(len(order) - 1, 1))
    axis.legend(frameon=False)
    return figure


@styled
def noise_levels(data: dict[str, dict[str, list[float]]]) -> Figure:
    """Distance to the truth against the perturbation, a panel a case; numeric keys are levels."""
    figure, axes = panels(2, -(-len(data) // 2), size=(9.6, 4.8), squeeze=False, sharex=True)
    for axis, (title, scores) in zip(axes.T.flat, data.items(), strict=False):
        levels = [k for k in scores if k.replace(".", "").isdigit()]
        values = np.array([scores[k] for k in levels])
        axis.errorbar([float(k) for k in levels], values.mean(1), values.std(1), marker="o", ms=3, color="#0072b2")
        for name, colour in (("kde", "#d55e00"), ("wgan", "#009e73"), ("floor", "#888888")):
            axis.axhline(float(np.mean(scores[name])), color=colour, lw=1, ls="--", label=name)
        axis.set_xscale("symlog", linthresh=0.01)
        axis.set_title(title, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("perturbation σ̃")
    axes[0, 0].set_ylabel("Wasserstein-1 to the truth")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return figure


@styled
def clouds(data: dict[str, np.ndarray]) -> Figure:
    """Scatters of ``(n, 2)`` points at one scale, up to four in a row."""
    across = min(len(data), 4)
    down = -(-len(data) // across)
    figure, axes = panels(down, across, size=(1.8 * across, 2.0 * down), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(data) :]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, data.items(), strict=False):
        axis.scatter(*points.T, s=1, color="#0072b2", alpha=0.5)
        axis.set_title(title, fontsize=8)
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
    return figure
