"""Low-rank blocks on a model's linear layers, each with a weight a row of the batch; the model itself stays as it is.

    y = W x + Σ_t w_t(row) · s · B_t A_t x,     A_t: (rank, in), B_t: (out, rank)

While no block acts there is no hook, and the model computes what it computed before, bit for bit. Several blocks are
one product: their factors side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Factors = dict[str, tuple[Tensor, Tensor]]


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[1], layer.weight.shape[0]
    known: Any = layer  # a quantised one packs its weight, and still says its features
    return known.out_features, known.in_features


@contextmanager
def acting(
    layers: Mapping[str, nn.Module],
    blocks: Sequence[Factors],
    weights: Tensor,
    *,
    scaling: float = 1.0,
    dropout: float = 0.0,
) -> Iterator[None]:
    """Blocks act for a while.

    Parameters
    ----------
    layers : mapping
        The model's linear layers by name.
    blocks : sequence of Factors
        Those of weight 0 in every row cost nothing.
    weights : Tensor
        ``(rows, blocks)``, or one row for all. A row that a generation repeats (beams) keeps its weight.
    scaling : float
        ``s``.
    dropout : float
        Probability, on the blocks' inputs.

    Raises
    ------
    ValueError
        While the model runs: a batch of another number of rows, or a layer whose input is not laid out by rows.
    """
    used = [i for i in range(len(blocks)) if bool((weights[:, i] != 0).any())]
    handles = []
    try:
        for name in dict.fromkeys(n for i in used for n in blocks[i]):
            own = [i for i in used if name in blocks[i]]
            device = next(layers[name].parameters()).device
            A = torch.cat([blocks[i][name][0] for i in own]).to(device)
            B = scaling * torch.cat([blocks[i][name][1] for i in own], 1).to(device)
            ranks = torch.tensor([len(blocks[i][name][0]) for i in own])
            rows = weights[:, own].to(A).repeat_interleave(ranks.to(A.device), 1)
            handles.append(layers[name].register_forward_hook(_added(name, A, B, rows, dropout)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(name: str, A: Tensor, B: Tensor, rows: Tensor, dropout: float) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = nn.functional.dropout(args[0].to(A.dtype), dropout) if dropout else args[0].to(A.dtype)
        inner = x @ A.mT
        if len(rows) == 1:
            return output + ((inner * rows[0]) @ B.mT).to(output.dtype)
        again, left = divmod(len(x), len(rows))
        if left or x.dim() < 3:
            raise ValueError(f"{name} sees {tuple(x.shape)}, which is not one entry for each of {len(rows)} weights")
        return output + ((inner * rows.repeat_interleave(again, 0)[:, None]) @ B.mT).to(output.dtype)

    return hook


def fresh(layers: Mapping[str, nn.Module], rank: int, earlier: Sequence[Factors], *, seed: int) -> Factors:
    """A block that does nothing yet: B is 0, A drawn as LoRA's and turned away from the rows of earlier ones."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, layer in layers.items():
        rows, columns = shape_of(layer)
        A = torch.empty(rank, columns).uniform_(-1, 1, generator=generator) / math.sqrt(columns)
        before = earlier_rows(name, earlier)
        if before is not None and len(before) < columns:
            basis = torch.linalg.qr(before.double().cpu().mT)[0]
            A = (A.double() - A.double() @ basis @ basis.mT).float()
        out[name] = A, torch.zeros(rows, rank)
    return out


def earlier_rows(name: str, earlier: Sequence[Factors]) -> Tensor | None:
    """``A`` of all earlier blocks of a layer, one above another."""
    found = [block[name][0] for block in earlier if name in block]
    return torch.cat(found) if found else None


def overlap(block: Factors, earlier: Sequence[Factors]) -> Tensor:
    """``Σ_layers Σ_{s<t} ‖A_s A_tᵀ‖_F²``: 0 where the rows of every A are orthogonal to those of earlier ones."""
    total = torch.zeros((), device=next(iter(block.values()))[0].device)
    for name, (A, _) in block.items():
        before = earlier_rows(name, earlier)
        if before is not None:
            total = total + (before.to(A) @ A.mT).square().sum()
    return total
