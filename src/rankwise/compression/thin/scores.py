"""ThinK's mathematics: which channels and tokens stay; see `rankwise.compression.think` for the equations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_scores(Q: Tensor, K: Tensor, *, queries: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
    """``s: (batch, key heads, dim)``: mean square of a channel over queries times that over keys, in float32.

    Parameters
    ----------
    Q : Tensor
        ``(batch, query heads, window, dim)``, after RoPE; consecutive query heads share a key head.
    K : Tensor
        ``(batch, key heads, rows, dim)``.
    queries, keys : Tensor, optional
        ``(batch, window)`` and ``(batch, key heads, rows)``, False for padding.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.thin.scores import channel_scores
    >>> Q, K = torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0], [1.0, 0.0]]]])
    >>> channel_scores(Q, K).tolist()
    [[[9.0, 2.0]]]
    """
    q = Q.float().square().unflatten(1, (K.shape[1], -1))
    return _mean(q, None if queries is None else queries[:, None, None], (2, 3)) * _mean(K.float().square(), keys, (2,))


def _mean(x: Tensor, valid: Tensor | None, dims: tuple[int, ...]) -> Tensor:
    """Over some axes; where ``valid`` (all but the last axis) says so."""
    if valid is None:
        return x.mean(dims)
    valid = valid.expand(x.shape[:-1])[..., None]
    return x.masked_fill(~valid, 0).sum(dims) / valid.sum(dims).clamp_min(1)


def kept(scores: Tensor, ratio: float) -> Tensor:
    """The channels to keep, ``(…, D - ⌊ratio · D⌋)``, ascending: those of largest score.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.thin.scores import kept
    >>> kept(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5).tolist()
    [0, 2]
    """
    D = scores.shape[-1]
    return scores.topk(D - int(ratio * D), -1).indices.sort(-1).values


def attention_of(
    Q: Tensor, K: Tensor, *, scaling: float | None, softcap: float | None = None, valid: Tensor | None = None
) -> Tensor:
    """Attention of the last queries, mean over a group: ``(batch, key heads, window, rows)``; zero for padding."""
    group, rows, window = Q.unflatten(1, (K.shape[1], -1)), K.shape[2], Q.shape[2]
    logits = (group @ K[:, :, None].mT).float() * (K.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    hidden = ~torch.ones(window, rows, dtype=torch.bool, device=K.device).tril(rows - window)
    P = _softmax(logits, hidden if valid is None else hidden | ~valid[:, None, None, None])
    return P if valid is None else P.masked_fill(~valid[:, None, -window:, None], 0)


def _softmax(logits: Tensor, hidden: Tensor) -> Tensor:
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0).mean(2)


def value_scores(P: Tensor, V: Tensor, valid: Tensor | None = None) -> Tensor:
    """``(batch, key heads, dim)``: the squared norm of each channel of ``P V``, what the window reads of it."""
    V = V.float() if valid is None else V.float().masked_fill(~valid[..., None], 0)
    return (P @ V).square().sum(2)


def snapkv(P: Tensor, budget: int, *, pooling: str = "mean", kernel: int = 5) -> Tensor:
    """Positions that SnapKV keeps, ``(batch, key heads, budget)``, ascending: the window, and what it attends to most.

    Parameters
    ----------
    P : Tensor
        ``(batch, key heads, window, rows)``, attention of the last queries.
    budget : int
        At least the window.
    pooling : {"mean", "max"}
        Over ``kernel`` neighbours.
    kernel : int
        Odd.
    """
    window, rows = P.shape[2:]
    votes = P[..., : rows - window].sum(2)
    pool = F.avg_pool1d if pooling == "mean" else F.max_pool1d
    best = pool(votes, kernel, stride=1, padding=kernel // 2).topk(budget - window, -1).indices.sort(-1).values
    last = torch.arange(rows - window, rows, device=P.device).expand(*best.shape[:2], -1)
    return torch.cat([best, last], -1)


def picked(rows: Tensor, channels: Tensor | None) -> Tensor:
    """Rows ``(batch, heads, n, dim)`` with some channels each; all for None."""
    return rows if channels is None else rows.gather(-1, channels[:, :, None].expand(-1, -1, rows.shape[2], -1))


def filled(rows: Tensor, channels: Tensor | None, dim: int) -> Tensor:
    """The opposite of `picked`: zero where a channel is missing."""
    if channels is None:
        return rows
    wide = rows.new_zeros(*rows.shape[:-1], dim)
    return wide.scatter_(-1, channels[:, :, None].expand(-1, -1, rows.shape[2], -1), rows)
