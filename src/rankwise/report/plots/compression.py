"""Spectra of weights, and attention over words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from rankwise.report.plots.shared import layer_grid, panels, styled


@styled
def spectra(rows: list[dict]) -> Figure:
    """Effective rank, tail index and outlier ratio of every layer, as three maps side by side."""
    parts = (
        ("effective_rank_share", "effective rank / full"),
        ("hill_alpha", "heavy-tail index"),
        ("outlier_ratio", "outliers (%)"),
    )
    figure, axes = panels(1, 3, size=(11, max(2.8, 0.2 * len(rows) / 6 + 1.6)))
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
    return figure


@styled
def singular_spectra(components: list[tuple[str, np.ndarray]]) -> Figure:
    """Normalised singular values of every matrix, a panel a projection, coloured by depth."""
    groups: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, values in components:
        match = re.search(r"\.(\d+)\.(.+)$", name)
        block, projection = (int(match[1]), match[2]) if match else (0, name)
        groups.setdefault(projection, []).append((block, values))
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = panels(rows, columns, size=(2.7 * columns, 2.2 * rows), squeeze=False, sharey=True)
    depth = max(block for lines in groups.values() for block, _ in lines) or 1
    for axis, (projection, lines) in zip(axes.flat, groups.items(), strict=False):
        for block, values in lines:
            axis.plot(np.linspace(0, 1, len(values)), values, color=colormaps["viridis"](block / depth), lw=0.7)
        axis.set_title(projection.split(".")[-1], fontsize=8)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    axes[-1][0].set_xlabel("share of directions")
    axes[0][0].set_ylabel("normalised value")
    figure.suptitle("dark: first block, bright: last", fontsize=8)
    return figure


@styled
def attention(tokens: list[str], weights: np.ndarray, *, title: str = "") -> Figure:
    """Attention over a text's words, a row a head ``(heads, words)``."""
    figure, axis = panels(size=(max(4.0, 0.38 * len(tokens) + 1.2), max(1.8, 0.2 * len(weights) + 1.2)))
    image = axis.imshow(weights, aspect="auto", cmap="Blues", vmin=0)
    axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(range(len(weights)), [str(i + 1) for i in range(len(weights))], fontsize=6)
    axis.set_ylabel("head")
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.8, label="attention")
    return figure


@styled
def thin_caches(rows: list[dict], whole: int) -> Figure:
    """Bytes, perplexity, equal next tokens and speed of decoding over the share of key channels dropped."""
    parts = (
        ("bytes", "cache, of the whole one", 1 / whole),
        ("perplexity", "perplexity of what follows", 1.0),
        ("agreement", "same next token", 1.0),
        ("tokens_per_second", "decoded tokens a second", 1.0),
    )
    figure, axes = panels(1, len(parts), size=(11, 2.6))
    for axis, (key, title, scale) in zip(axes, parts, strict=True):
        axis.plot([100 * r["ratio"] for r in rows], [scale * r[key] for r in rows], marker="o")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("key channels dropped (%)")
        axis.grid(alpha=0.25)
    axes[0].set_ylim(0, 1.05)
    axes[2].set_ylim(min(0.5, *(r["agreement"] for r in rows)), 1.01)
    return figure


@styled
def kept_channels(layers: Sequence[Any], *, channels: int) -> Figure:
    """How many heads of each block keep a channel; ``layers``: indices ``(heads, kept)`` of each block."""
    shares = np.array([[np.mean([c in head for head in np.asarray(k)]) for c in range(channels)] for k in layers])
    figure, axis = panels(size=(8, 3.6))
    image = axis.imshow(shares, aspect="auto", cmap="magma", vmin=0, vmax=1)
    axis.set_xlabel("channel of the key")
    axis.set_ylabel("block")
    figure.colorbar(image, ax=axis, label="share of key heads that keep it")
    return figure
