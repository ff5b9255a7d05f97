"""The gradient of a tied embedding in one buffer.

A tied weight ``W: (vocabulary, d)`` is read by the embedding and by the output layer. Autograd keeps the output layer's
gradient through the whole backward pass, then makes the embedding's as a second matrix of that size and their sum as a
third. Here the output layer writes its part into ``W.grad`` itself and the embedding's part comes sparse, added in
place: the same numbers, two matrices fewer.

The two modules get another class for that time. A copy or a pickle of them has the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gather_in_place(model: nn.Module) -> Callable[[], None]:
    """Do so from now on, if the model ties ``nn.Embedding`` and a bias-free ``nn.Linear``; returns what undoes it."""
    linears = [m for m in model.modules() if type(m) is nn.Linear and m.bias is None]
    # exactly these types: a subclass may do more in its forward; torch has no sparse gradient divided by frequency
    tables = [m for m in model.modules() if type(m) is nn.Embedding and not m.scale_grad_by_freq]
    pairs = [(e, h) for e in tables for h in linears if h.weight is e.weight]
    if len(pairs) != 1:
        return lambda: None
    embedding, head = pairs[0]
    embedding.__class__, head.__class__ = _SparseEmbedding, _GatheringHead

    def undo() -> None:
        embedding.__class__, head.__class__ = nn.Embedding, nn.Linear

    return undo


def _gathers(W: Tensor) -> bool:
    """Whether ``W`` is the parameter itself and trains; a replica's weight is a copy that holds no gradient."""
    return torch.is_grad_enabled() and W.requires_grad and W.is_leaf


class _SparseEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        if not _gathers(self.weight):
            return super().forward(input)
        options = self.padding_idx, self.max_norm, self.norm_type
        return F.embedding(input, self.weight, *options, sparse=True)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return object.__new__, (nn.Embedding,), self.__dict__


class _GatheringHead(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _Head.apply(input, self.weight) if _gathers(self.weight) else super().forward(input)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return object.__new__, (nn.Linear,), self.__dict__


class _Head(torch.autograd.Function):
    """``x Wᵀ``, whose backward adds W's gradient to ``W.grad`` instead of handing it on."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = W
        return F.linear(x, W)

    @staticmethod
    def backward(ctx, g: Tensor):
        (x,), W = ctx.saved_tensors, ctx.weight
        rows = g.reshape(-1, g.shape[-1])
        part = (rows.mT @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(W.dtype)
        W.grad = part if W.grad is None else W.grad.add_(part)
        return g @ W.to(g.dtype), None
