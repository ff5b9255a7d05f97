"""Quantiles that do not cross: sorting, isotonic projection and sweeping from the median, each with its gradient.

All take ``(..., m)`` and work along the last axis. Sorting and isotonic projection never increase the pinball loss
averaged over the levels; the sweep may, and keeps the median.

Source: Fakoor, Kim, Mueller, Smola & Tibshirani, "Flexible Model Aggregation for Quantile Regression", JMLR 2023, arXiv
2103.00083, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankwise.nearest import unknown

WAYS = ("none", "sort", "isotonic", "sweep")


def monotone(Q: Tensor, way: str, *, middle: int | None = None) -> Tensor:
    """``Q`` made non-decreasing along its last axis.

    Parameters
    ----------
    Q : Tensor
        ``(..., m)``.
    way : {"none", "sort", "isotonic", "sweep"}
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

    Pool adjacent violators on all rows at once: every row keeps a stack of blocks, column by column.
    """
    n, m = Q.shape
    out, first = Q.clone(), torch.arange(m, device=Q.device).expand(n, m).clone()
    bad = torch.nonzero((Q[:, 1:] < Q[:, :-1]).any(1))[:, 0]
    if not len(bad):
        return out, first
    rows, at = Q[bad], torch.arange(len(bad), device=Q.device)
    total, size = torch.zeros_like(rows), torch.zeros_like(rows)  # of the stack's blocks
    start = torch.zeros(len(bad), m, dtype=torch.long, device=Q.device)
    top = torch.full((len(bad),), -1, device=Q.device)
    for k in range(m):
        top = top + 1
        total[at, top], size[at, top], start[at, top] = rows[:, k], 1.0, k
        live = at
        while True:
            live = live[top[live] > 0]
            t = top[live]
            worse = total[live, t] / size[live, t] <= total[live, t - 1] / size[live, t - 1]
            live, t = live[worse], t[worse]
            if not len(live):
                break
            total[live, t - 1] += total[live, t]
            size[live, t - 1] += size[live, t]
            top[live] = t - 1
    index = torch.arange(m, device=Q.device)
    inside = index[None] <= top[:, None]
    marks = torch.zeros(len(bad), m, dtype=torch.long, device=Q.device)
    r, c = torch.nonzero(inside, as_tuple=True)
    marks[r, start[r, c]] = 1
    block = marks.cumsum(1) - 1
    out[bad] = (total / size.clamp(min=1)).gather(1, block)
    first[bad] = start.gather(1, block)
    return out, first


class _Isotonic(torch.autograd.Function):
    """The projection's derivative averages within blocks."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor) -> Tensor:  # type: ignore[override]
        flat, first = isotonic(Q.reshape(-1, Q.shape[-1]))
        ctx.save_for_backward(first)
        return flat.reshape(Q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (first,) = ctx.saved_tensors
        g = grad.reshape(first.shape)
        sums = torch.zeros_like(g).scatter_add_(1, first, g)
        sizes = torch.zeros_like(g).scatter_add_(1, first, torch.ones_like(g))
        return (sums.gather(1, first) / sizes.gather(1, first)).reshape(grad.shape)
