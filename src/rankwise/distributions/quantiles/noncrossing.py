"""Quantiles that do not cross: sorting, isotonic projection and sweeping from the median, each with its gradient.

All take ``(..., m)`` and work along the last axis. Sorting and isotonic projection never increase the pinball loss
averaged over the levels; the sweep may, and keeps the median.

Source: Fakoor, Kim, Mueller, Smola & Tibshirani, "Flexible Model Aggregation for Quantile Regression", JMLR 2023, arXiv
2103.00083, section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from rankwise.nearest import unknown

WAYS = ("none", "sort", "isotonic", "sweep")
_ROWS = 4096


def monotone(Q: Tensor, way: str, *, middle: int | None = None) -> Tensor:
    """``Q`` made non-decreasing along its last axis.

    Parameters
    ----------
    Q : Tensor
        ``(..., m)``.
    way : {"none", "sort", "isotonic", "sweep"}
        How they are put in order, see the module; ``"none"`` leaves them.
    middle : int, optional
        For ``"sweep"``: the position of the median, ``m // 2`` by default.
    """
    if way == "none":
        return Q
    if way == "sort":
        return Q.sort(-1).values
    if way == "isotonic":
        return _Isotonic.apply(Q)
    if way == "sweep":
        k = Q.shape[-1] // 2 if middle is None else middle
        up = Q[..., k:].cummax(-1).values
        down = Q[..., : k + 1].flip(-1).cummin(-1).values.flip(-1)
        return torch.cat([down[..., :k], up], -1)
    raise unknown("way to keep quantiles in order", way, WAYS)


def isotonic(Q: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares projection of each row onto non-decreasing sequences, and the first position of each entry's block.

    Many rows are one long sequence, each lifted above the one before: no block crosses a row's end, and one pass of
    scipy's pool-adjacent-violators does them all. On the CPU, float64 inside.
    """
    values = Q.detach().double().cpu().numpy()
    m, lift = values.shape[1], float(np.ptp(values)) + 1.0 if values.size else 1.0
    out, first = np.empty_like(values), np.empty(values.shape, dtype=np.int64)
    for at in range(0, len(values), _ROWS):  # the lift costs digits in the comparisons: not too many rows at once
        rows = values[at : at + _ROWS]
        starts = isotonic_regression((rows + lift * np.arange(len(rows))[:, None]).ravel()).blocks
        sizes = np.diff(starts)
        means = np.add.reduceat(rows.ravel(), starts[:-1]) / sizes
        out[at : at + _ROWS] = np.repeat(means, sizes).reshape(rows.shape)
        first[at : at + _ROWS] = np.repeat(starts[:-1] % m, sizes).reshape(rows.shape)
    return torch.from_numpy(out).to(Q), torch.from_numpy(first).to(Q.device)


class _Isotonic(torch.autograd.Function):
    """The projection's derivative averages within blocks."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor) -> Tensor:
        flat, first = isotonic(Q.reshape(-1, Q.shape[-1]))
        ctx.save_for_backward(first)
        return flat.reshape(Q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (first,) = ctx.saved_tensors
        g = grad.reshape(first.shape)
        sums = torch.zeros_like(g).scatter_add_(1, first, g)
        sizes = torch.zeros_like(g).scatter_add_(1, first, torch.ones_like(g))
        return (sums.gather(1, first) / sizes.gather(1, first)).reshape(grad.shape)
