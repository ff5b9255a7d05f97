"""Plots of a job's results and of a model's spectra, as matplotlib figures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rankwise.report.tables import METRICS, SHORT

COLOURS = {
    "head": "#888888",
    "bitfit": "#b58900",
    "lora": "#0072b2",
    "adalora": "#56b4e9",
    "s2lora": "#d55e00",
    "eva": "#009e73",
    "full": "#000000",
    "galore": "#cc79a7",
    "owlore": "#882255",
    "lisa": "#999933",
    "lrc": "#44aa99",
    "n-lrc": "#aa4499",
}
plt.rcParams.update(
    {
        "figure.dpi": 120,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "text.parse_math": False,  # names of files and classes are no formulas
    }
)


def score_versus_parameters(results: dict) -> Figure:
    """Score against trainable parameters, in domain and averaged out of domain, with the spread over seeds."""
    out, metric = results["out_of_domain"], METRICS[results["config"]["task"]]
    figure, axes = plt.subplots(1, 2 if out else 1, figsize=(8.4 if out else 4.6, 3.4), squeeze=False)
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
    figure.tight_layout()
    return figure


def loss_curves(results: dict) -> Figure:
    """Training loss, smoothed, one line a method (mean over seeds)."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
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
    figure.tight_layout()
    return figure


def layer_grid(values: dict[str, float]) -> tuple[np.ndarray, list[str], list[str]]:
    """Values by layer name as a matrix block × projection (NaN where there is none), with both labels."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in values.items():
        match = re.search(r"^(.*?)\.(\d+)\.(.+)$", name)
        stack, block, projection = (match[1], int(match[2]), match[3]) if match else ("", 0, name)
        cells.setdefault((stack, block), {})[projection] = value
    stacks = list(dict.fromkeys(stack for stack, _ in cells))
    rows = sorted(cells, key=lambda at: (stacks.index(at[0]), at[1]))
    columns = list(dict.fromkeys(p for row in cells.values() for p in row))
    grid = np.array([[cells[row].get(p, np.nan) for p in columns] for row in rows], dtype=float)
    # encoder and decoder of one model: "model.encoder.layers" is read as "encoder"
    side = {s: next((part for part in s.split(".") if part in ("encoder", "decoder")), s) for s in stacks}
    return grid, [f"{side[s]} {b}" if len(stacks) > 1 else str(b) for s, b in rows], columns


def heat_maps(maps: dict[str, dict[str, float]], *, label: str) -> Figure:
    """Maps of one number a layer and projection side by side, each on its own scale, e.g. the ranks of two methods."""
    grids = [layer_grid(values) for values in maps.values()]
    width = max(3.6, 0.62 * max(len(columns) for *_, columns in grids) + 1.8)
    height = max(2.2, 0.24 * max(len(rows) for _, rows, _ in grids) + 1.5)
    figure, axes = plt.subplots(1, len(maps), figsize=(width * len(maps), height), squeeze=False)
    for axis, title, (grid, rows, columns) in zip(axes[0], maps, grids, strict=True):
        image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
        short = [re.sub(r"(attention\.self|self_attention|attn|mlp)\.|\.dense$|_proj$", "", c) for c in columns]
        axis.set_xticks(range(len(columns)), short, rotation=30, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set_ylabel("block")
        axis.set_title(title, fontsize=9)
        if grid.size <= 120:
            bright = np.nanmax(grid) * 0.6 if np.isfinite(grid).any() else 0
            for (i, j), v in np.ndenumerate(grid):
                if np.isfinite(v):
                    text, ink = f"{v:.0f}" if float(v).is_integer() else f"{v:.2g}", "black" if v > bright else "white"
                    axis.text(j, i, text, ha="center", va="center", fontsize=6, color=ink)
        figure.colorbar(image, ax=axis, shrink=0.8, label=label)
    figure.tight_layout()
    return figure


def spectra(rows: list[dict]) -> Figure:
    """Effective rank, tail index and outlier ratio of every layer, as three maps side by side."""
    parts = (
        ("effective_rank_share", "effective rank / full"),
        ("hill_alpha", "heavy-tail index"),
        ("outlier_ratio", "outliers (%)"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, max(2.8, 0.2 * len(rows) / 6 + 1.6)))
    for axis, (key, title) in zip(axes, parts, strict=True):
        scale = 100 if key == "outlier_ratio" else 1
        grid, labels, columns = layer_grid({r["layer"]: scale * r[key] for r in rows})
        image = axis.imshow(grid, aspect="auto", cmap="magma")
        axis.set_xticks(
            range(len(columns)),
            [c.split(".")[-2] if c.endswith("dense") else c.split(".")[-1] for c in columns],
            rotation=35,
            ha="right",
            fontsize=6,
        )
        axis.set_yticks(range(len(labels)), labels, fontsize=6)
        axis.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axis, shrink=0.8)
    axes[0].set_ylabel("block")
    figure.tight_layout()
    return figure


def singular_spectra(components: list[tuple[str, np.ndarray]]) -> Figure:
    """Normalised singular values of every matrix, a panel a projection, coloured by depth."""
    panels: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, values in components:
        match = re.search(r"\.(\d+)\.(.+)$", name)
        block, projection = (int(match[1]), match[2]) if match else (0, name)
        panels.setdefault(projection, []).append((block, values))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.7 * columns, 2.2 * rows), squeeze=False, sharey=True)
    depth = max(block for lines in panels.values() for block, _ in lines) or 1
    for axis, (projection, lines) in zip(axes.flat, panels.items(), strict=False):
        for block, values in lines:
            axis.plot(np.linspace(0, 1, len(values)), values, color=plt.get_cmap("viridis")(block / depth), lw=0.7)
        axis.set_title(projection.split(".")[-1], fontsize=8)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    axes[-1][0].set_xlabel("share of directions")
    axes[0][0].set_ylabel("normalised value")
    figure.suptitle("dark: first block, bright: last", fontsize=8)
    figure.tight_layout()
    return figure


def attention(tokens: list[str], weights: np.ndarray, *, title: str = "") -> Figure:
    """Attention over a text's words, a row a head ``(heads, words)``."""
    figure, axis = plt.subplots(figsize=(max(4.0, 0.38 * len(tokens) + 1.2), max(1.8, 0.2 * len(weights) + 1.2)))
    image = axis.imshow(weights, aspect="auto", cmap="Blues", vmin=0)
    axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(range(len(weights)), [str(i + 1) for i in range(len(weights))], fontsize=6)
    axis.set_ylabel("head")
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.8, label="attention")
    figure.tight_layout()
    return figure


def outliers(records: list[dict]) -> Figure:
    """Outlier score, heavy-tail index and sampling probability of every block, and how the first two go together."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.0))
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
    figure.tight_layout()
    return figure


def bars(labels: list[str], means: list[float], spreads: list[float], *, title: str, unit: str) -> Figure:
    """Horizontal bars with their spread."""
    figure, axis = plt.subplots(figsize=(6.4, 0.32 * len(labels) + 1.1))
    axis.barh(range(len(labels)), means, xerr=spreads, color="#0072b2", height=0.6, capsize=2)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    low = min(m - s for m, s in zip(means, spreads, strict=True))
    high = max(m + s for m, s in zip(means, spreads, strict=True))
    axis.set_xlim(low - 0.15 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9))
    axis.set_xlabel(unit)
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def interference(points: list[dict]) -> Figure:
    """What summing two experts costs against how much their leading subspaces overlap, a point a pair and seed."""
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    for pair in dict.fromkeys(p["pair"] for p in points):
        mine = [p for p in points if p["pair"] == pair]
        axis.scatter([p["overlap"] for p in mine], [100 * p["loss"] for p in mine], label=pair, s=24)
    axis.set_xlabel("overlap of leading singular subspaces")
    axis.set_ylabel("accuracy lost by summing both (%)")
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def depths(f: np.ndarray, g: np.ndarray, names: list[str]) -> Figure:
    """Distribution of the depths of two corpora with respect to the first."""
    figure, axis = plt.subplots(figsize=(5.4, 3.0))
    parts = axis.violinplot([g, f], orientation="horizontal", showmedians=True, widths=0.8)
    for body, colour in zip(parts["bodies"], ("#d55e00", "#0072b2"), strict=True):  # type: ignore[arg-type]
        body.set_facecolor(colour)
    axis.set_yticks([1, 2], [names[1], names[0]])
    axis.set_xlabel(f"depth in {names[0]} (high is central)")
    figure.tight_layout()
    return figure


def reliability(answers: dict[str, tuple[np.ndarray, np.ndarray]], *, bins: int = 8) -> Figure:
    """Share of right answers against the model's confidence, in bins of as many answers, by name."""
    figure, axis = plt.subplots(figsize=(4.2, 3.4))
    axis.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1, linestyle="--")
    colours = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
    for (name, (sure, right)), colour in zip(answers.items(), colours, strict=False):
        parts = np.array_split(np.argsort(sure, kind="stable"), min(bins, len(sure)))
        axis.plot([sure[p].mean() for p in parts], [right[p].mean() for p in parts], "o-", color=colour, label=name)
    axis.set_xlabel("confidence")
    axis.set_ylabel("share of right answers")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def hazard_curves(data: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Hazards over time by data set and model; the first of each is grey: what the others should follow."""
    figure, axes = plt.subplots(2, -(-len(data) // 2), figsize=(8.4, 5.2), squeeze=False)
    for axis, (name, curves) in zip(axes.flat, data.items(), strict=False):
        for (model, (t, h)), colour in zip(curves.items(), ("#999999", "#d55e00", "#0072b2"), strict=False):
            axis.plot(t, h, color=colour, lw=3 if colour == "#999999" else 1.6, label=model)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("years")
        axis.set_ylabel("hazard a year")
        axis.set_ylim(0, None)
    axes.flat[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def kde_phases(fluctuations: list[dict[str, float]]) -> Figure:
    """Critical bandwidths of standard normal data by α, and the measured fluctuations across them."""
    from rankwise.distributions.kde_regimes import critical_bandwidths

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
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
    figure.tight_layout()
    return figure


def quantile_fan(observed: np.ndarray, quantiles: np.ndarray, levels: list[float], *, unit: str) -> Figure:
    """Bands of symmetric levels over rows in the order of their median, with what was observed."""
    figure, axis = plt.subplots(figsize=(8.4, 3.8))
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
    figure.tight_layout()
    return figure


def noise_levels(data: dict[str, dict[str, list[float]]]) -> Figure:
    """Distance to the truth against the perturbation, a panel a case; numeric keys are levels."""
    figure, axes = plt.subplots(2, -(-len(data) // 2), figsize=(9.6, 4.8), squeeze=False, sharex=True)
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
    figure.tight_layout()
    return figure


def clouds(data: dict[str, np.ndarray]) -> Figure:
    """Scatters of ``(n, 2)`` points at one scale, up to four in a row."""
    across = min(len(data), 4)
    down = -(-len(data) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1.8 * across, 2.0 * down), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(data) :]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, data.items(), strict=False):
        axis.scatter(*points.T, s=1, color="#0072b2", alpha=0.5)
        axis.set_title(title, fontsize=8)
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    return figure


def as_data_uri(figure: Figure) -> str:
    """The figure as a PNG data URI, closed."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


__all__ = [
    "as_data_uri",
    "attention",
    "bars",
    "heat_maps",
    "layer_grid",
    "loss_curves",
    "outliers",
    "save",
    "score_versus_parameters",
    "singular_spectra",
    "spectra",
]
