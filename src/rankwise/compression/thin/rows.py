"""Rows of a cache ``(batch, heads, n, d)`` as they are held: as they came, or as whole numbers of 8 or 4 bits.

Keys have channels that are large in every row, so a channel of 32 rows shares one scale; values have none, so a row
does (KIVI, arXiv 2402.02750). A number x becomes ``round((x - low) / step)``, ``step = (high - low) / (2^bits - 1)``:
what is read back is at most half a step away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

GROUP = 32  # rows of keys that share a scale
Bits = Literal[8, 4]
Axis = Literal["rows", "channels"]


class HeldRows:
    """Rows that grow at their end.

    Parameters
    ----------
    rows : Tensor
        ``(batch, heads, n, d)``; with ``bits`` and ``shared="rows"``, n is a multiple of 32.
    bits : {8, 4}, optional
        Of a number. Default: as they are.
    shared : {"rows", "channels"}
        What shares a scale: 32 rows of a channel, or the channels of a row.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.thin.rows import HeldRows
    >>> rows = torch.linspace(0, 255, 64).view(1, 1, 2, 32)
    >>> held = HeldRows(rows, bits=8, shared="channels")
    >>> len(held), bool((held.read() - rows).abs().max() < 0.3)  # half of a step of 127/255
    (2, True)
    """

    def __init__(self, rows: Tensor, *, bits: Bits | None = None, shared: Axis = "rows") -> None:
        self.bits, self.shared, self.width, self.dtype = bits, shared, rows.shape[-1], rows.dtype
        self.parts = self._packed(rows)

    def __len__(self) -> int:
        return self.parts[0].shape[2] * (GROUP if self._grouped else 1)

    @property
    def _grouped(self) -> bool:
        return self.bits is not None and self.shared == "rows"

    def _packed(self, rows: Tensor) -> list[Tensor]:
        if self.bits is None:
            return [rows.clone(memory_format=torch.contiguous_format)]
        if self._grouped:  # (batch, heads, groups, 32, d)
            rows = rows.unflatten(2, (-1, GROUP))
        codes, step, low = quantised(rows, self.bits, dim=3 if self._grouped else -1)
        return [packed(codes) if self.bits == 4 else codes, step, low]

    def read(self) -> Tensor:
        """All rows ``(batch, heads, n, d)``."""
        if self.bits is None:
            return self.parts[0]
        codes, step, low = self.parts
        if self.bits == 4:
            codes = unpacked(codes, self.width)
        rows = codes.to(self.dtype).mul_(step).add_(low)
        return rows.flatten(2, 3) if self._grouped else rows

    def add(self, rows: Tensor) -> None:
        """Append rows."""
        self.parts = [torch.cat(pair, 2) for pair in zip(self.parts, self._packed(rows), strict=True)]

    def drop_last(self, n: int) -> Tensor:
        """Remove the last n rows; what else has to go with them, because a scale is shared, is returned."""
        groups = -(-n // GROUP) if self._grouped else n
        cut = groups * GROUP - n if self._grouped else 0
        left = self.read()[:, :, len(self) - n - cut : len(self) - n].clone()
        self.parts = [p[:, :, : p.shape[2] - groups].clone() for p in self.parts]
        return left

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor that is held (along the batch, or to another device)."""
        self.parts = [change(p) for p in self.parts]


def quantised(x: Tensor, bits: int, *, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers of ``bits`` bits (uint8), their step and the lowest value; both shared along ``dim``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.thin.rows import quantised
    >>> codes, step, low = quantised(torch.tensor([[-1.0, 0.0, 2.0]]), 2, dim=-1)
    >>> codes.tolist(), float(step), float(low)
    ([[0, 1, 3]], 1.0, -1.0)
    """
    low = x.amin(dim, keepdim=True)
    top = 2**bits - 1
    step = ((x.amax(dim, keepdim=True).float() - low.float()) / top).to(x.dtype)
    codes = (x.float() - low.float()) / step.float().clamp_min(torch.finfo(torch.float32).tiny)
    return codes.round().clamp_(0, top).to(torch.uint8), step, low


def packed(codes: Tensor) -> Tensor:
    """Two numbers of four bits a byte, along the last axis (an odd one out gets a zero beside it)."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpacked(codes: Tensor, width: int) -> Tensor:
    """The ``width`` numbers that `packed` put into bytes."""
    return torch.stack([codes & 15, codes >> 4], -1).flatten(-2)[..., :width]
