"""Task vectors that are low-rank by construction: those of LoRA-type adapters, ``τ = s B A``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.spectral import TruncatedSVD, truncated_svd

__all__ = ["LowRank"]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``τ = s B A``, never multiplied out.

    Attributes
    ----------
    B : Tensor
        The factor on the outputs' side, ``(out, r)``.
    A : Tensor
        The factor on the inputs' side, ``(r, in)``.
    scale : float
        The number s; of LoRA it is ``alpha / r``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import LowRank
    >>> change = LowRank(B=torch.randn(8, 2), A=torch.randn(2, 6), scale=0.5)
    >>> svd = change.svd(rank=2)
    >>> change.dense().shape, torch.allclose((svd.U * svd.S) @ svd.Vh, change.dense(), atol=1e-5)
    (torch.Size([8, 6]), True)
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def mT(self) -> LowRank:
        """``τᵀ``."""
        return LowRank(B=self.A.mT, A=self.B.mT, scale=self.scale)

    def dense(self) -> Tensor:
        """τ, ``(out, in)`` in float32."""
        return self.scale * (self.B.float() @ self.A.float())

    def svd(self, rank: int) -> TruncatedSVD:
        """The leading triplets by QR of both factors and the SVD of an ``(r, r)`` core: O(r² (in + out)).

        Fewer than ``rank`` where the factors have fewer.
        """
        Qb, Rb = torch.linalg.qr(self.B.float())
        Qa, Ra = torch.linalg.qr(self.A.float().mT)
        core = truncated_svd(self.scale * Rb @ Ra.mT, min(rank, Rb.shape[0], Ra.shape[0]), method="full")
        return TruncatedSVD(Qb @ core.U, core.S, core.Vh @ Qa.mT, core.error)
