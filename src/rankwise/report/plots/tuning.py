"""How far methods come with how many parameters, and how they learn."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from rankwise.report.plots.shared import COLOURS, panels, styled
from rankwise.report.tables import METRICS, SHORT


@styled
def score_versus_parameters(results: dict) -> Figure:
    """Score against trainable parameters, in domain and averaged out of domain, with the spread over seeds."""
    out, metric = results["out_of_domain"], METRICS[results["config"]["task"]]
    figure, axes = panels(1, 2 if out else 1, size=(8.4 if out else 4.6, 3.4), squeeze=False)
    for axis, domains, title in zip(
        axes[0], ([results["in_domain"]], out), ("in domain", "out of domain"), strict=False
    ):
        for m in results["methods"]:
            if not m["trials"]:
                continue
            per_seed = [
                np.mean([t["scores"][d]["score"] for d in domains]) for t in m["trials"] if t["status"] == "done"
            ]
            x = m["cost"]["trainable_parameters"] + m["cost"]["head_parameters"]
            spread = np.std(per_seed, ddof=1) if len(per_seed) > 1 else 0
            axis.errorbar(
                x,
                metric.shown(float(np.mean(per_seed))),
                100 * spread if metric.with_spread else 0,
                fmt="o",
                capsize=3,
                ms=6,
                color=COLOURS.get(m["name"], "#444444"),
                label=m["title"],
            )
        if "zero_shot" in results:
            untrained = float(np.mean([results["zero_shot"][d]["score"] for d in domains]))
            axis.axhline(metric.shown(untrained), color="#888888", ls="--", lw=1, label="zero-shot")
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xlim(low / 3, high * 3)  # a decade at least, or the tick labels overlap
        axis.set_xlabel("trained parameters (head included)")
        names = ", ".join(SHORT.get(str(d), str(d)) for d in domains)
        axis.set_title(f"{title}: {names}", fontsize=9)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(metric.axis)
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


@styled
def loss_curves(results: dict) -> Figure:
    """Training loss, smoothed, one line a method (mean over seeds)."""
    figure, axis = panels(size=(6.4, 3.2))
    for m in results["methods"]:
        curves = [np.array(t["loss_curve"]) for t in m["trials"] if t["loss_curve"]]
        if not curves:
            continue
        length = min(map(len, curves))
        mean = np.mean([c[:length, 1] for c in curves], axis=0)
        window = max(1, length // 8)
        smooth = np.array([mean[max(0, i - window) : i + 1].mean() for i in range(length)])
        axis.plot(curves[0][:length, 0], smooth, color=COLOURS.get(m["name"], "#444444"), label=m["title"], lw=1.6)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
