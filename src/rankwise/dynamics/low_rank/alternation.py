"""K-subspaces, all restarts at once: assign each row to the subspace that holds most of it, then turn the subspaces.

    C_k = {i : ‖U_kᵀ(x_i - m_k)‖² - ‖x_i - m_k‖² is largest at k},   maximise f = Σ_k Σ_{i∈C_k} ‖U_kᵀ(x_i - m_k)‖²

(for subspaces through the origin m_k = 0). A full eigendecomposition a cluster and step is more than is needed: one
step of orthogonal iteration, U_k ← basis of S_k U_k with S_k = X_kᵀX_k, maximises tr(VᵀS_kU_k), which lies below the
convex tr(VᵀS_kV) and touches it at U_k. So f never falls, and all restarts and clusters share two matrix products.
Where the subspaces are to be orthogonal to each other, the same bound is maximised by the polar factor of the stacked
[S_1U_1 … S_KU_K]. The best restart then ends with full decompositions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.spectral import truncated_svd

AT_ONCE = 2**24  # projections that are held together: restarts go in groups of so many


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Where K-subspaces ended.

    Attributes
    ----------
    bases : list of Tensor
        ``(D, d_k)``, float64, orthonormal columns.
    means : Tensor
        ``(K, D)``; zero for subspaces through the origin.
    labels : Tensor
        ``(n,)``.
    residual : float
        Σ of the squared distances to the rows' own subspaces: what is minimised.
    path : list of float
        Of the best restart: that residual after each step; it never rises.
    restarts : list of float
        Of every restart, ascending: how many found the same tells whether more are needed.
    """

    bases: list[Tensor]
    means: Tensor
    labels: Tensor
    residual: float
    path: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)


def k_subspaces(
    X: Tensor,
    dims: Sequence[int],
    *,
    affine: bool = False,
    orthogonal: bool = False,
    restarts: int = 10,
    max_iter: int = 100,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> Alternation:
    """The best of several alternations from different starts.

    Parameters
    ----------
    X : Tensor
        ``(n, D)``, float64.
    dims : sequence of int
        The dimension of every subspace, from 1 to D.
    affine : bool
        Each subspace goes through the mean of its rows instead of the origin.
    orthogonal : bool
        Subspaces are orthogonal to each other.
    restarts, max_iter : int
        How many starts; steps of each.
    tol : float
        Restarts end when no residual falls by more than this share of ‖X‖².
    generator : torch.Generator, optional
        Of the starts.
    """
    n, width = len(X), max(dims)
    group = max(1, AT_ONCE // (n * len(dims) * width))
    best: Alternation | None = None
    scores: list[float] = []
    for first in range(0, restarts, group):
        U = starts(X, dims, min(group, restarts - first), affine=affine, generator=generator)
        found = _alternate(X, U, dims, affine=affine, orthogonal=orthogonal, max_iter=max_iter, tol=tol)
        scores += found.restarts
        if best is None or found.residual < best.residual:
            best = found
    assert best is not None
    if not orthogonal:
        best = polished(X, best, affine=affine)
    return Alternation(
        bases=best.bases, means=best.means, labels=best.labels, residual=best.residual, path=best.path,
        restarts=sorted(scores),
    )  # fmt: skip


def starts(
    X: Tensor, dims: Sequence[int], restarts: int, *, affine: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """First subspaces ``(restarts, K, D, d)``: each spanned by a row and the rows most parallel to it.

    The row is drawn with a probability that grows with its squared distance to the subspaces there are (the first:
    with its squared length), so that the next subspace begins where the others do not reach. Columns beyond a
    subspace's own dimension are zero.
    """
    n, D, width = *X.shape, max(dims)
    X = X - X.mean(0) if affine else X
    norms = X.norm(dim=1)
    unit = X / norms.clamp(min=torch.finfo(X.dtype).tiny)[:, None]
    left = norms.square().expand(restarts, n).clone()
    U = X.new_zeros(restarts, len(dims), D, width)
    for k, d in enumerate(dims):
        seeds = torch.multinomial(left + 1e-12 * norms.square().mean() + 1e-300, 1, generator=generator)[:, 0]
        near = (unit[seeds] @ unit.T).abs()
        near[torch.arange(restarts), seeds] = 2  # itself first
        rows = X[near.topk(min(d, n), dim=1).indices].mT  # (restarts, D, d)
        fill = torch.randn(restarts, D, d, generator=generator, dtype=X.dtype) * norms.mean()
        U[:, k, :, :d] = torch.linalg.qr(torch.cat([rows, fill[:, :, rows.shape[2] :]], 2)).Q
        left = torch.minimum(left, norms.square() - (X @ U[:, k]).square().sum(-1)).clamp(min=0)
    return U


def residuals(X: Tensor, U: Tensor, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared distances ``(R, n, K)`` to subspaces ``U: (R, K, D, d)`` through ``means: (R, K, D)``, and the
    projections ``(R, n, K, d)``; U's unused columns are zero."""
    R, K, D, d = U.shape
    P = (X @ U.permute(2, 0, 1, 3).reshape(D, -1)).view(len(X), R, K, d).transpose(0, 1)
    lengths = X.square().sum(1)[None, :, None]
    if means is not None:
        P = P - (means[:, :, None] @ U).mT.reshape(R, 1, K, d)
        lengths = lengths - 2 * (X @ means.reshape(-1, D).T).view(len(X), R, K).transpose(0, 1)
        lengths = lengths + means.square().sum(-1)[:, None]
    return (lengths - P.square().sum(-1)).clamp(min=0), P


def turned(Y: Tensor, dims: Sequence[int], *, orthogonal: bool = False) -> Tensor:
    """Bases ``(R, K, D, d)`` of the columns of ``Y``, each its own; with ``orthogonal``, the nearest to Y that are
    orthonormal all together, the polar factor of the stacked columns."""
    if not orthogonal:
        used = torch.arange(Y.shape[-1]) < torch.tensor(dims)[:, None]
        return torch.linalg.qr(Y).Q * used[:, None].to(Y)
    stacked = torch.cat([Y[:, k, :, :d] for k, d in enumerate(dims)], -1)
    svd = truncated_svd(stacked, stacked.shape[-1], method="full")
    U = Y.new_zeros(Y.shape)
    for k, part in enumerate((svd.U @ svd.Vh).split(list(dims), -1)):
        U[:, k, :, : part.shape[-1]] = part
    return U


def _alternate(
    X: Tensor, U: Tensor, dims: Sequence[int], *, affine: bool, orthogonal: bool, max_iter: int, tol: float
) -> Alternation:
    R, K = U.shape[:2]
    if orthogonal:
        U = turned(U, dims, orthogonal=True)
    means = X.mean(0).expand(R, K, -1) if affine else None
    total, path = float(X.square().sum()), []
    while True:
        left, P = residuals(X, U, means)
        least, labels = left.min(-1)
        path.append(least.sum(1))
        if len(path) > max_iter or (len(path) > 1 and float((path[-2] - path[-1]).max()) <= tol * total):
            break
        Z = torch.zeros_like(left).scatter_(-1, labels[..., None], 1.0)
        if means is not None:  # the projections of the rows about the means that they have now
            counts = Z.sum(1).clamp(min=1)
            means = (Z.mT @ X) / counts[..., None]
            P = (X @ U.permute(2, 0, 1, 3).reshape(X.shape[1], -1)).view(len(X), *P.shape[:1], *P.shape[2:])
            P = P.transpose(0, 1) - (means[:, :, None] @ U).mT.reshape(R, 1, K, -1)
        Y = (X.T @ (P * Z[..., None]).transpose(0, 1).reshape(len(X), -1)).view(-1, *U.shape[:2], U.shape[3])
        Y = Y.permute(1, 2, 0, 3)
        U = turned(Y if orthogonal else _filled(Y, X, Z, least, U), dims, orthogonal=orthogonal)
    ended = path[-1]
    r = int(ended.argmin())
    bases = [U[r, k, :, :d].clone() for k, d in enumerate(dims)]
    return Alternation(
        bases=bases, means=X.new_zeros(K, X.shape[1]) if means is None else means[r].clone(), labels=labels[r],
        residual=float(ended[r]), path=[float(p[r]) for p in path], restarts=ended.tolist(),
    )  # fmt: skip


def _filled(Y: Tensor, X: Tensor, Z: Tensor, least: Tensor, U: Tensor) -> Tensor:
    """Y where a cluster has rows; elsewhere the rows that fit worst, so that an empty cluster begins anew.

    Directions that too few rows leave open stay as they were: Y gets a trace of the old basis.
    """
    counts, d = Z.sum(1), U.shape[-1]
    Y = Y + 1e-9 * Y.abs().amax((-2, -1), keepdim=True) * U
    for r, k in (counts == 0).nonzero().tolist():
        worst = least[r].topk(min(len(X), d * (k + 1))).indices[-d:]
        Y[r, k] = 1e-9 * U[r, k]
        Y[r, k, :, : len(worst)] += X[worst].T
    return Y


def polished(X: Tensor, found: Alternation, *, affine: bool, max_iter: int = 50) -> Alternation:
    """The same, gone on with full decompositions until no label changes."""
    bases, means, labels, path = found.bases, found.means, found.labels, list(found.path)
    width = max(b.shape[1] for b in bases)
    for _ in range(max_iter):
        means = torch.stack([
            X[labels == k].mean(0) if affine and bool((labels == k).any()) else means[k] for k in range(len(bases))
        ])  # fmt: skip
        bases = [leading(X[labels == k] - means[k], U) for k, U in enumerate(bases)]
        U = torch.stack([torch.nn.functional.pad(b, (0, width - b.shape[1])) for b in bases])[None]
        left, _ = residuals(X, U, means[None] if affine else None)
        least, now = left[0].min(-1)
        path.append(float(least.sum()))
        same = bool((now == labels).all())
        labels = now
        if same:
            break
    return Alternation(bases=bases, means=means, labels=labels, residual=path[-1], path=path, restarts=found.restarts)


def leading(X: Tensor, old: Tensor) -> Tensor:
    """Orthonormal ``(D, d)`` that span the leading right singular directions of the rows; where these are fewer than d,
    what is left of the ``old`` basis fills up."""
    r, d = min(*X.shape, old.shape[1]), old.shape[1]
    if r == 0:
        return old
    V = truncated_svd(X, r, method="gram").Vh.mT
    return torch.linalg.qr(torch.cat([V, old], 1)).Q[:, :d] if r < d else V
