"""Task singular vectors: each expert keeps its leading directions, and all directions are made orthogonal.

For a matrix with task vectors ``τ_t = U_t Σ_t V_tᵀ`` (out, in), T experts, n = min(out, in):

    k = ⌊n / T⌋ leading triplets of each,   U = [U_1 … U_T],  Σ = diag(Σ_1 … Σ_T),  V = [V_1 … V_T]
    τ = U⊥ Σ V⊥ᵀ,    U⊥ = U (UᵀU)^{-1/2},   V⊥ likewise: the nearest matrices with orthonormal columns
    θ = θ₀ + λ τ

Other tensors (vectors, embeddings, heads) get ``θ₀ + λ mean τ_t``.

R-TSVM differs in what goes in, and in how much of it. *Outlier weights*: with ``O_t = {|τ_t| > μ_t + 3 σ_t}`` (mean and
deviation of |τ_t|) and ``o_t = ‖τ_t|O_t‖₁ / ‖τ_t‖₁``, the share of an expert's change that its few large entries carry,
expert t counts ``ω_t = T (1 + o_t) / Σ_s (1 + o_s)``: for the whole tensor, for each row of its own, or for the
outliers alone. A share has no scale and an expert without outliers keeps its say; of experts that are alike, all get 1.
*Ranks by sparsity*: ``s_t`` is the share of entries below ``ε σ(τ_t)``, and

    share     k_t = ⌊(1 - s_t) n / T⌋
    expert    k_t ∝ 1 - s_t, Σ_t k_t = n: shared out anew within the tensor
    layer     k_t = k_ℓ ∝ (1 - mean_t s_t) n_ℓ, Σ_ℓ k_ℓ as for TSVM, at most twice TSVM's: between the tensors

Both parts off is TSVM.

Sources: Gargiulo et al., "Task Singular Vectors", CVPR 2025, arXiv 2412.00081; Yang et al., "Mix Data or Merge
Models?", arXiv 2502.06876, named R-TSVM there first and RESM later. Neither its code nor its formulas are public:
weights and ranks are rebuilt here from its description, and are not the authors'.

What people get wrong: taking the polar factor by a full SVD where experts share directions. U is then rank-deficient,
and the SVD fills its null space with arbitrary directions, which Σ scales into the result; here they stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.merging.low_rank import LowRank
from rankwise.merging.methods.averaging import task_arithmetic
from rankwise.merging.methods.entries import as_rows, delta
from rankwise.merging.registry import Parameter, lambda_, register, weights
from rankwise.spectral import joined_polar, leading_right_vectors, nearly_orthogonal_qr, proportional

__all__ = ["rtsvm", "tsvm"]

_NULL = 1e-5  # of σ₁: what lies below is rounding, and no direction of the task
_STEEP = 0.1  # of σ₁: σ below which rounding leaves columns of τ V that should be orthogonal more than 1e-5 from it
_TINY = 1e-38
_MOST = 2  # κ: times TSVM's rank that a layer may get


@register(
    "tsvm", title="TSVM", paper="arXiv 2412.00081", low_rank=True, matrix=True,
    parameters=weights() | lambda_() | {"share": Parameter(default=1.0, low=0.0, high=1.0, low_open=True)},
)  # fmt: skip
def tsvm(
    base: Tensor,
    experts: Sequence[Tensor | LowRank],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    share: float = 1.0,
    matrix: bool = True,
) -> Tensor:
    """Merge the leading singular directions of each task vector, orthogonalised; ``share`` of ``n / T`` each.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import tsvm
    >>> one, other = torch.zeros(4, 4), torch.zeros(4, 4)
    >>> one[0, 0], other[1, 1] = 3.0, 2.0  # directions that do not meet are added up
    >>> merged = tsvm(torch.zeros(4, 4), [one, other], dtype=torch.float32, weight=[1.0, 1.0])
    >>> torch.allclose(merged, one + other, atol=1e-5)
    True
    """
    if not matrix:
        return _mean(base, experts, weight, scale, dtype)
    rank = max(1, int(share * min(as_rows(base).shape) / len(experts)))
    taus = [e if isinstance(e, LowRank) else _task_vectors(base, [e])[0] for e in experts]
    return _added(base, _merged(taus, weight, [rank] * len(taus)), scale, dtype)


def _survey(base: Tensor, experts: Sequence[Tensor], *, rank: str, epsilon: float, **_: object) -> float | None:
    """What ``rank="layer"`` has to know of every matrix before the first is merged: ``1 - mean_t s_t``."""
    if rank != "layer":
        return None
    return sum(dense_share(tau, epsilon) for tau in _task_vectors(base, experts)) / len(experts)


def _rations(surveyed: Sequence[tuple[float, int, int]]) -> list[dict[str, int]]:
    """``layer_rank`` of matrices that are given as ``(1 - s, n, T)``."""
    budget = sum(max(1, n // T) for _, n, T in surveyed)
    total = sum(dense * n for dense, n, _ in surveyed)
    exact = [budget * dense * n / total if total > 0 else n / T for dense, n, T in surveyed]
    return [
        {"layer_rank": min(max(1, round(k)), max(1, _MOST * n // T))}
        for k, (_, n, T) in zip(exact, surveyed, strict=True)
    ]


@register(
    "rtsvm", title="R-TSVM", paper="arXiv 2502.06876", matrix=True, survey=_survey, rations=_rations,
    parameters=weights() | lambda_() | {
        "weighting": Parameter(default="tensor", choices=("tensor", "row", "entries", "none")),
        "rank": Parameter(default="share", choices=("share", "expert", "layer", "uniform")),
        "outlier": Parameter(default=3.0, low=0.0),
        "epsilon": Parameter(default=1.0, low=0.0),
    },
)  # fmt: skip
def rtsvm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    weighting: str = "tensor",
    rank: str = "share",
    outlier: float = 3.0,
    epsilon: float = 1.0,
    matrix: bool = True,
    layer_rank: int | None = None,
) -> Tensor:
    """TSVM with experts weighted by their outliers and ranks by how dense each task vector is.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import rtsvm
    >>> base, experts = torch.zeros(8, 8), [torch.randn(8, 8), torch.randn(8, 8)]
    >>> merged = rtsvm(base, experts, dtype=torch.float32, weight=[1.0, 1.0], rank="uniform")
    >>> int(torch.linalg.matrix_rank(merged, rtol=1e-4))  # half of the directions of each
    8
    """
    if not matrix:
        return _mean(base, experts, weight, scale, dtype)
    taus = _task_vectors(base, experts)
    if rank == "layer":
        if layer_rank is None:
            raise ValueError("rank='layer' shares ranks out between the tensors of a model: use merge()")
        ranks = [layer_rank] * len(taus)
    else:
        ranks = adaptive_ranks(taus, rank, epsilon)
    if weighting != "none":
        taus = outlier_weighted(taus, weighting, outlier)
    return _added(base, _merged(taus, weight, ranks), scale, dtype)


def outlier_weighted(taus: Sequence[Tensor], weighting: str, outlier: float = 3.0) -> list[Tensor]:
    """The task vectors times ``ω_t``: a number a ``tensor``, a ``row``, or for outliers alone (``entries``)."""
    sizes = [tau.abs() for tau in taus]
    above = [size > size.mean() + outlier * size.std(correction=0) for size in sizes]
    carried = [size * at for size, at in zip(sizes, above, strict=True)]
    if weighting == "row":
        shares = [
            c.sum(1, keepdim=True) / s.sum(1, keepdim=True).clamp(min=_TINY)
            for c, s in zip(carried, sizes, strict=True)
        ]
    else:
        shares = [c.sum() / s.sum().clamp(min=_TINY) for c, s in zip(carried, sizes, strict=True)]
    total = sum(1 + o for o in shares)
    omega = [len(taus) * (1 + o) / total for o in shares]
    if weighting == "entries":
        return [torch.where(at, w * tau, tau) for at, w, tau in zip(above, omega, taus, strict=True)]
    return [w * tau for w, tau in zip(omega, taus, strict=True)]


def adaptive_ranks(taus: Sequence[Tensor], rank: str, epsilon: float = 1.0) -> list[int]:
    """``k_t`` of each task vector of a tensor: ``uniform``, ``share`` or ``expert``; at least 1."""
    n, T = min(taus[0].shape), len(taus)
    if rank == "uniform":
        return [max(1, n // T)] * T
    dense = [dense_share(tau, epsilon) for tau in taus]
    return [max(1, int(d * n / T)) for d in dense] if rank == "share" else proportional(dense, n, least=1)


def dense_share(tau: Tensor, epsilon: float = 1.0) -> float:
    """``1 - s_t``: the share of entries that reach ``ε σ(τ_t)``."""
    return float((tau.abs() >= epsilon * tau.std(correction=0)).float().mean())


def orthogonal_sum(pieces: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``U⊥ Σ V⊥ᵀ`` of ``(U_t Σ_t, V_tᵀ)`` pairs: ``(out, k_t)`` with orthogonal columns, ``(k_t, in)`` orthonormal.

    Orthonormal bases ``U_t Q_t`` and cores ``Q_tᵀ Σ_t`` give the same, since ``[U_t Q_t]⊥ = U⊥ diag(Q_t)``.
    """
    bases, rights, cores = [], [], []
    for US, Vh in pieces:
        S = US.norm(dim=0)
        real = _NULL * S.max() < S
        US, Vh, S = (US, Vh, S) if real.all() else (US[:, real], Vh[real], S[real])
        U, R = US / S, torch.eye(0)
        if len(S) and S.min() < _STEEP * S.max():
            U, R = nearly_orthogonal_qr(U)
        bases.append(U)
        rights.append(Vh.mT)
        cores.append((R, S))
    V = joined_polar(rights).mT.split([len(S) for _, S in cores])
    SV = [S[:, None] * v if not len(R) else R @ (S[:, None] * v) for (R, S), v in zip(cores, V, strict=True)]
    return joined_polar(bases, times=torch.cat(SV))


def _task_vectors(base: Tensor, experts: Sequence[Tensor]) -> list[Tensor]:
    return [delta(as_rows(base), as_rows(e), slice(None)) for e in experts]


def _merged(taus: Sequence[Tensor | LowRank], weight: Sequence[float], ranks: Sequence[int]) -> Tensor:
    """The orthogonal sum of the leading directions of every ``w_t τ_t``."""
    out, inner = taus[0].shape
    if out < inner:
        return _merged([tau.mT for tau in taus], weight, ranks).mT
    return orthogonal_sum([_triplets(tau, w, k) for tau, w, k in zip(taus, weight, ranks, strict=True)])


def _triplets(tau: Tensor | LowRank, weight: float, rank: int) -> tuple[Tensor, Tensor]:
    """``U Σ`` and ``Vᵀ`` of the leading directions of ``w τ``, which is tall."""
    if isinstance(tau, LowRank):
        svd = tau.svd(rank)
        return weight * svd.U * svd.S, svd.Vh
    V = leading_right_vectors(tau, rank)
    return weight * (tau @ V), V.mT


def _mean(base: Tensor, experts: Sequence, weight: Sequence[float], scale: float, dtype: torch.dtype) -> Tensor:
    shares = [w / len(experts) for w in weight]
    return task_arithmetic(base, experts, dtype=dtype, weight=shares, scale=scale)


def _added(base: Tensor, tau: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return tau.mul_(scale).add_(as_rows(base).float()).reshape(base.shape).to(dtype)
