"""What plots share: a style that leaves matplotlib's own settings alone, panels, maps of layers, keeping."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

Options = ParamSpec("Options")
STYLE: Any = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of files and classes are no formulas
}
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
}  # of methods


def styled(draw: Callable[Options, Figure]) -> Callable[Options, Figure]:
    """A function that draws in this library's style, with everything inside the figure."""

    @wraps(draw)
    def inside(*args: Options.args, **options: Options.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = draw(*args, **options)
            for axis in (part for axes in figure.axes for part in (axes.xaxis, axes.yaxis)):
                if axis.get_scale() in ("log", "symlog"):  # whose labels are formulas otherwise
                    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1 else f"{value:g}")
                    axis.set_minor_formatter(NullFormatter())
            figure.tight_layout()
            return figure

    return inside


def panels(rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure of that size in inches and its axes; ``options`` are those of `matplotlib.figure.Figure.subplots`."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


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


@styled
def heat_maps(maps: dict[str, dict[str, float]], *, label: str) -> Figure:
    """Maps of one number a layer and projection side by side, each on its own scale, e.g. the ranks of two methods."""
    grids = [layer_grid(values) for values in maps.values()]
    width = max(3.6, 0.62 * max(len(columns) for *_, columns in grids) + 1.8)
    height = max(2.2, 0.24 * max(len(rows) for _, rows, _ in grids) + 1.5)
    figure, axes = panels(1, len(maps), size=(width * len(maps), height), squeeze=False)
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
    return figure


def as_data_uri(figure: Figure) -> str:
    """The figure as a PNG data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
