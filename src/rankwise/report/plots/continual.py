"""What a stream of tasks did: accuracies after each task, and how far the weights went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rankwise.report.plots.shared import panels, styled


@styled
def accuracy_matrices(
    tables: Mapping[str, ArrayLike], tasks: Sequence[str], *, domains: Sequence[str] | None = None, first: str = ""
) -> Figure:
    """Tables of accuracy side by side: a row after each task, a column a domain; what is learned already is bold.

    Parameters
    ----------
    tables : dict of array_like
        ``(rows, domains)``, in [0, 1], by title.
    tasks : sequence of str
        In the order of learning.
    domains : sequence of str, optional
        The columns; the tasks by default.
    first : str
        Where tables have a row more, of the model before all tasks: what it is called.
    """
    columns = list(domains or tasks)
    rows = [*([first] if first else []), *tasks]
    size = (max(2.6, 0.52 * len(columns) + 1.6), max(2.0, 0.34 * len(rows) + 1.2))
    figure, axes = panels(1, len(tables), size=(size[0] * len(tables), size[1]), squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        a = np.asarray(table, dtype=float)
        axis.imshow(a, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(a):
            ink, weight = "white" if value > 0.6 else "black", "bold" if i - bool(first) >= j else "normal"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=ink, fontweight=weight)
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set_title(title, fontsize=9)
    axes[0, 0].set_ylabel("after")
    return figure


@styled
def drifts(lines: Mapping[str, Sequence[float]], tasks: Sequence[str], *, label: str = "‖W - W₀‖") -> Figure:
    """How far the weights are from the first ones after each task, a line a method."""
    figure, axis = panels(size=(max(3.2, 0.5 * len(tasks) + 1.6), 2.6))
    for name, values in lines.items():
        axis.plot(range(len(tasks)), values, marker="o", markersize=3, label=name)
    axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=7)
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=7)
    return figure


@styled
def along_streams(
    errors: Mapping[str, ArrayLike],
    kinds: Sequence[str],
    *,
    uncertainty: ArrayLike | None = None,
    theta: float = 0.05,
) -> Figure:
    """Errors of each kind of picture along a stream, round after round; above it, where given, how unsure a model was.

    Parameters
    ----------
    errors : dict of array_like
        ``(rounds · kinds,)``, in [0, 1], in the order seen, by method.
    kinds : sequence of str
        What changes along the stream.
    uncertainty : array_like, optional
        Of each batch, in the order seen.
    theta : float
        From which on the wide branch is turned up.
    """
    segments = len(np.asarray(next(iter(errors.values()))))
    figure, axes = panels(
        1 if uncertainty is None else 2, 1, size=(max(4.5, 0.28 * segments + 1.5), 2.6 if uncertainty is None else 4.0),
        squeeze=False, sharex=True,
    )  # fmt: skip
    below = axes[-1, 0]
    for name, values in errors.items():
        a = np.asarray(values, dtype=float)
        below.step(np.arange(segments + 1), np.append(a, a[-1]) * 100, where="post", label=name)
    for start in range(0, segments, len(kinds)):
        for axis in axes[:, 0]:
            axis.axvline(start, color="0.8", linewidth=0.6, zorder=0)
    below.set_xticks(
        np.arange(segments) + 0.5, [*kinds] * (segments // len(kinds)), rotation=60, ha="right", fontsize=6
    )
    below.set_ylabel("error (%)")
    below.set_ylim(bottom=0)
    below.legend(frameon=False, fontsize=7)
    if uncertainty is not None:
        U, above = np.asarray(uncertainty, dtype=float), axes[0, 0]
        above.plot((np.arange(len(U)) + 0.5) * segments / len(U), U, linewidth=0.7, color="C3")
        above.axhline(theta, color="0.5", linestyle=":", linewidth=0.8)
        above.set_ylabel("uncertainty")
        above.set_ylim(bottom=0)
    return figure


@styled
def switches(weights: Mapping[str, ArrayLike], grid: ArrayLike, curves: Mapping[str, ArrayLike]) -> Figure:
    """How many texts of each kind have a weight of at least so much, and the scale that routers make of a weight.

    Parameters
    ----------
    weights : mapping of str to array
        Weights of texts, by kind.
    grid : array
        Weights at which routers are drawn.
    curves : mapping of str to array
        Scales on the grid, by router.
    """
    figure, (left, right) = panels(1, 2, size=(7.2, 2.8))
    for name, w in weights.items():
        least = np.sort(np.asarray(w, dtype=float))[::-1]
        left.step(least, np.arange(1, len(least) + 1) / len(least), label=name)
    left.set(xlabel="weight", ylabel="texts with at least this weight", xlim=(1, 0), ylim=(0, 1))
    left.legend(frameon=False)
    for name, scale in curves.items():
        right.plot(grid, scale, label=name)
    right.set(xlabel="weight", ylabel="scale of the block", ylim=(-0.05, 1.7))
    right.legend(frameon=False, loc="upper left")  # above every curve
    return figure
