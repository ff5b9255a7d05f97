"""Arithmetic on task vectors, a block of rows at a time.

A merge reads a tensor θ₀ of the base and θ_t of every expert in the dtype they are stored in; the task vectors
τ_t = θ_t - θ₀ exist only for one block of rows, in float32 and in the processor's cache, so that merging holds no copy
of any tensor but the result.

What people get wrong: subtracting in bfloat16. Two nearly equal numbers cancel to the rounding of their storage, so
each is widened first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 17  # entries: half a megabyte of float32
_SAMPLE = 1 << 15
_TINY = 1.2e-38  # the smallest normal float32
Sparsify = Callable[[Tensor, slice], Tensor]  # a block of τ_t and which rows it is → the same, thinned out


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of whole rows, of about `BLOCK` entries."""
    step = max(1, BLOCK // max(columns, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def as_rows(x: Tensor) -> Tensor:
    """``(out, …)`` as a matrix ``(out, rest)``; vectors and scalars are one row. A view of contiguous tensors."""
    return x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)


def widened(x: Tensor, part: slice) -> Tensor:
    """Rows of x, copied in float32.

    Raises
    ------
    ValueError
        NaN or Inf among them.
    """
    wide = x[part].to(torch.float32, copy=True)
    if not torch.isfinite(wide.sum()) and not torch.isfinite(wide).all():
        raise ValueError("has NaN or Inf")
    return wide


def delta(base: Tensor, expert: Tensor, part: slice) -> Tensor:
    """Rows of τ_t, float32."""
    return widened(expert, part).sub_(base[part].float())


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], *, dtype: torch.dtype) -> Tensor:
    """``Σ w_t θ_t``, accumulated in float32, in ``dtype``."""
    out = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    flat, into = [as_rows(t) for t in tensors], as_rows(out)
    for part in blocks(*into.shape):
        total = torch.zeros_like(into[part], dtype=torch.float32)
        for x, w in zip(flat, weights, strict=True):
            total.add_(widened(x, part), alpha=w)
        into[part] = total
    return out


def fuse(
    base: Tensor,
    experts: Sequence[Tensor],
    weights: Sequence[float],
    sparsify: Sequence[Sparsify | None],
    *,
    dtype: torch.dtype,
    elect: str | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """``θ₀ + λ Σ w_t τ_t`` over the sparsified task vectors, or over those that agree with the elected sign.

    Parameters
    ----------
    base, experts : Tensor
        The same shape; any float dtype.
    weights : sequence of float
        What each expert's task vector is multiplied with.
    sparsify : sequence of callable or None
        What thins each expert's task vector out; None leaves it whole.
    dtype : torch.dtype
        Of the result; arithmetic is in float32.
    elect : {None, "sum", "count"}
        No election; the sign of ``Σ w_t τ_t``; the sign most experts have. Zero counts as plus.
    normalize : bool
        Divide by the sum of the weights that took part, entry by entry with an election.
    scale : float
        λ, which the sum is multiplied with.
    """
    out = torch.empty(base.shape, dtype=dtype, device=base.device)
    b, flat, into = as_rows(base), [as_rows(e) for e in experts], as_rows(out)
    total_weight = sum(weights)
    for part in blocks(*into.shape):
        parts = []
        for x, w, thin in zip(flat, weights, sparsify, strict=True):
            tau = delta(b, x, part)
            parts.append((tau if thin is None else thin(tau, part)).mul_(w))
        if elect is None:
            merged = parts[0]
            for tau in parts[1:]:
                merged.add_(tau)
            if normalize and abs(total_weight) > 1e-8:
                merged.div_(total_weight)
        else:
            merged = _elected(parts, weights, elect, normalize)
        into[part] = merged.mul_(scale).add_(b[part].float())
    return out


def _elected(parts: list[Tensor], weights: Sequence[float], elect: str, normalize: bool) -> Tensor:
    """``s Σ relu(s w τ)``: what agrees with the elected sign s, by cheap unary operations instead of masks."""
    ballot = parts[0].clone() if elect == "sum" else parts[0].sign()
    for tau in parts[1:]:
        ballot.add_(tau if elect == "sum" else tau.sign())
    s = ballot.add_(_TINY).sign_()  # zero becomes plus
    merged, divisor = torch.zeros_like(s), torch.zeros_like(s)
    for tau, w in zip(parts, weights, strict=True):
        agreeing = tau.mul_(s).relu_()
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=w)
    if normalize:
        # where nothing took part, 0 / 0 is to be 0
        merged.div_(divisor.clamp_(min=_TINY) if min(weights) > 0 else divisor.add_(divisor.eq(0)))
    return merged.mul_(s)


def magnitude_at(base: Tensor, expert: Tensor, rank: int) -> float:
    """The ``rank``-th largest |τ_t| of a tensor (1 is the largest), exactly, without sorting or storing τ_t.

    A sample brackets it; one pass counts what lies above the bracket and keeps what lies inside, a per cent or so of
    the entries, among which it is selected.
    """
    b, x = as_rows(base), as_rows(expert)
    n = b.numel()
    if not 1 <= rank <= n:
        raise ValueError(f"rank {rank} is outside 1..{n}")
    low, high = 0.0, float("inf")
    if n > 4 * _SAMPLE:
        at = torch.randint(n, (_SAMPLE,), generator=torch.Generator().manual_seed(n))
        at = at.to(b.device)
        some = (x.reshape(-1)[at].float() - b.reshape(-1)[at].float()).abs().sort(descending=True).values
        share = rank / n
        margin = 5 * (_SAMPLE * share * (1 - share)) ** 0.5 + 5
        first, last = int(share * _SAMPLE - margin), int(share * _SAMPLE + margin)
        high = float(some[first]) if first >= 0 else high
        low = float(some[last]) if last < _SAMPLE else low
    while True:
        above, inside = 0, []
        for part in blocks(*b.shape):
            size = delta(b, x, part).abs_()
            above += int(F.threshold(size, high, 0.0).sign_().sum()) if high < float("inf") else 0
            inside.append(_between(size, low, high))
        candidates = np.concatenate(inside)
        if above < rank <= above + len(candidates):
            return float(np.partition(candidates, above + len(candidates) - rank)[above + len(candidates) - rank])
        low, high = 0.0, float("inf")  # the sample was unlucky: look at everything


def _between(size: Tensor, low: float, high: float) -> np.ndarray:
    flat = size.flatten().cpu().numpy()
    if low <= 0 and high == float("inf"):
        return flat.copy()
    return flat[np.flatnonzero((flat >= np.float32(low)) & (flat <= np.float32(high)))]


def keep_at_least(size: float) -> Sparsify:
    """Zero the entries with ``|τ| < size``."""
    below = float(np.nextafter(np.float32(size), np.float32(0)))  # hardshrink keeps what is strictly larger
    if size <= 0:
        return lambda tau, part: tau
    return lambda tau, part: F.hardshrink(tau, below)
