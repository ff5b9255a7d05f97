"""Task vectors that are low-rank by construction: those of LoRA-type adapters, ``τ = s B A``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.spectral import TruncatedSVD, truncated_svd


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``τ = s B A``, never multiplied out.

    Attributes
    ----------
    B : Tensor
        ``(out, r)``.
    A : Tensor
        ``(r, in)``.
    scale : float
        s, LoRA's ``alpha / r``.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

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
