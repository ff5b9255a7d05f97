"""Task singular vectors: each expert keeps its leading directions, and all directions are made orthogonal.

For a matrix with task vectors ``τ_t = U_t Σ_t V_tᵀ`` (out, in), T experts, n = min(out, in):

    k = ⌊n / T⌋ leading triplets of each,   U = [U_1 … U_T],  Σ = diag(Σ_1 … Σ_T),  V = [V_1 … V_T]
    τ = U⊥ Σ V⊥ᵀ,    U⊥ = U (UᵀU)^{-1/2},   V⊥ likewise: the nearest matrices with orthonormal columns
    θ = θ₀ + λ τ

Other tensors (vectors, embeddings, heads) get ``θ₀ + λ mean τ_t``.

R-TSVM differs in what goes in. *Outlier-aware weighting*: with ``O_t = {|τ_t| > μ_t + 3 σ_t}`` (mean and deviation of
|τ_t|), expert t's row i is scaled by ``T ω_ti``, ``ω_ti = ‖τ_ti|O_t‖₁ / Σ_s ‖τ_si|O_s‖₁`` (equal where no expert has
outliers). *Sparsity-adaptive rank*: ``k_t ∝ 1 - s_t`` with ``Σ k_t = n``, where ``s_t`` is the share of entries below
``ε σ_t``. Both parts off is TSVM.

Sources: Gargiulo et al., "Task Singular Vectors", CVPR 2025, arXiv 2412.00081; Yang et al., "Mix Data or Merge
Models?", arXiv 2502.06876, whose R-TSVM is rebuilt here from its description, there being no code of it.

What people get wrong: taking the polar factor by a full SVD where experts share directions. U is then rank-deficient,
and the SVD fills its null space with arbitrary directions, which Σ scales into the result; here they stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.merging.averaging import task_arithmetic
from rankwise.merging.entries import as_rows, delta
from rankwise.merging.low_rank import LowRank
from rankwise.merging.registry import Parameter, lambda_, register, weights
from rankwise.spectral import leading_right_vectors, polar_factor, proportional

_NULL = 1e-5  # of σ₁: what lies below is rounding, and no direction of the task


@register("tsvm", title="TSVM", paper="arXiv 2412.00081", parameters=weights() | lambda_(), low_rank=True, matrix=True)
def tsvm(
    base: Tensor,
    experts: Sequence[Tensor | LowRank],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    matrix: bool = True,
) -> Tensor:
    """Merge the leading singular directions of each task vector, orthogonalised."""
    if not matrix:
        return _mean(base, experts, weight, scale, dtype)
    share = max(1, min(as_rows(base).shape) // len(experts))
    pieces = [_triplets(_task_vector(base, e), w, share) for e, w in zip(experts, weight, strict=True)]
    return _added(base, orthogonal_sum(pieces), scale, dtype)


@register(
    "rtsvm", title="R-TSVM", paper="arXiv 2502.06876", matrix=True,
    parameters=weights() | lambda_() | {
        "weighting": Parameter(default="outliers", choices=("outliers", "none")),
        "rank": Parameter(default="adaptive", choices=("adaptive", "uniform")),
        "outlier": Parameter(default=3.0, low=0.0),
        "epsilon": Parameter(default=0.1, low=0.0),
    },
)  # fmt: skip
def rtsvm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    weighting: str = "outliers",
    rank: str = "adaptive",
    outlier: float = 3.0,
    epsilon: float = 0.1,
    matrix: bool = True,
) -> Tensor:
    """TSVM with rows weighted by their outliers and ranks by how dense each task vector is."""
    if not matrix:
        return _mean(base, experts, weight, scale, dtype)
    taus = [delta(as_rows(base), as_rows(e), slice(None)) for e in experts]
    n, T = min(taus[0].shape), len(experts)
    ranks = [max(1, n // T)] * T if rank == "uniform" else adaptive_ranks(taus, n, epsilon)
    if weighting == "outliers":
        taus = [tau * rows[:, None] for tau, rows in zip(taus, row_weights(taus, outlier), strict=True)]
    pieces = [_triplets(tau, w, k) for tau, w, k in zip(taus, weight, ranks, strict=True)]
    return _added(base, orthogonal_sum(pieces), scale, dtype)


def row_weights(taus: Sequence[Tensor], outlier: float = 3.0) -> list[Tensor]:
    """``T ω_t``, a number a row (mean 1 over the experts): an expert's share of what the outliers of that row weigh."""
    weighed = []
    for tau in taus:
        size = tau.abs()
        above = size > size.mean() + outlier * size.std(correction=0)
        weighed.append((size * above).sum(1))
    total = sum(weighed[1:], start=weighed[0].clone())
    return [torch.where(total > 0, len(taus) * w / total.where(total > 0, 1.0), 1.0) for w in weighed]


def adaptive_ranks(taus: Sequence[Tensor], total: int, epsilon: float = 0.1) -> list[int]:
    """``k_t ∝ 1 - s_t`` summing to ``total``, at least 1 each; s_t is the share of entries below ``ε σ_t``."""
    dense = [float((tau.abs() >= epsilon * tau.std(correction=0)).float().mean()) for tau in taus]
    return proportional(dense, total, least=1)


def orthogonal_sum(pieces: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``U⊥ Σ V⊥ᵀ`` of ``(U_t Σ_t, V_tᵀ)`` pairs: ``(out, k_t)`` with orthogonal columns, ``(k_t, in)`` orthonormal."""
    Us, Ss, Vs = [], [], []
    for US, Vh in pieces:
        S = US.norm(dim=0)
        real = _NULL * S.max() < S
        Us.append(torch.where(real, US / S.where(real, 1.0), 0.0))
        Ss.append(S)
        Vs.append(torch.where(real[:, None], Vh, 0.0))
    U, S, Vh = torch.cat(Us, 1), torch.cat(Ss), torch.cat(Vs)
    return (polar_factor(U) * S) @ polar_factor(Vh)


def _task_vector(base: Tensor, expert: Tensor | LowRank) -> Tensor | LowRank:
    return expert if isinstance(expert, LowRank) else delta(as_rows(base), as_rows(expert), slice(None))


def _triplets(tau: Tensor | LowRank, weight: float, rank: int) -> tuple[Tensor, Tensor]:
    """``U Σ`` and ``Vᵀ`` of the leading directions of ``w τ``."""
    if isinstance(tau, LowRank):
        svd = tau.svd(rank)
        return weight * svd.U * svd.S, svd.Vh
    if tau.shape[0] >= tau.shape[1]:
        V = leading_right_vectors(tau, rank)
        return weight * (tau @ V), V.mT
    U = leading_right_vectors(tau.mT, rank)
    SVh = U.mT @ tau
    S = SVh.norm(dim=1).clamp(min=torch.finfo(SVh.dtype).tiny)
    return weight * U * S, SVh / S[:, None]


def _mean(base: Tensor, experts: Sequence, weight: Sequence[float], scale: float, dtype: torch.dtype) -> Tensor:
    shares = [w / len(experts) for w in weight]
    return task_arithmetic(base, experts, dtype=dtype, weight=shares, scale=scale)


def _added(base: Tensor, tau: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return tau.mul_(scale).add_(as_rows(base).float()).reshape(base.shape).to(dtype)
