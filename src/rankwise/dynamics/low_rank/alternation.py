"""K-subspaces, all restarts at once: assign each row to the subspace that holds most of it, then turn the subspaces.

    C_k = {i : ‖U_kᵀ(x_i - m_k)‖² - ‖x_i - m_k‖² is largest at k},   maximise f = Σ_k Σ_{i∈C_k} ‖U_kᵀ(x_i - m_k)‖²

(for subspaces through the origin m_k = 0). A full eigendecomposition a cluster and step is more than is needed: a step
of orthogonal iteration, U_k ← basis of S_k U_k with S_k = X_kᵀX_k, maximises tr(VᵀS_kU_k), which lies below the convex
tr(VᵀS_kV) and touches it at U_k. So f never falls. All restarts are compared with all rows by one matrix product, in
float32 and until their gains are small; the best then ends with full decompositions, in float64. Where the subspaces
are to be orthogonal to each other, the same bound is maximised by the polar factor of the stacked [S_1U_1 … S_KU_K],
and there is no full decomposition to end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rankwise.spectral import truncated_svd

ROUGH = 1e-4  # gain, as a share of ‖X‖², at which a restart ends
TURNS = 2  # of orthogonal iteration, between two assignments
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

    Examples
    --------
    >>> from rankwise.dynamics import low_rank_mixture
    >>> from rankwise.dynamics.low_rank.alternation import k_subspaces
    >>> found = k_subspaces(low_rank_mixture(10, 2, n_clusters=2, samples=5).X, [2, 2])
    >>> found.residual < 1e-12, found.labels.bincount().tolist(), len(found.restarts)
    (True, [5, 5], 10)
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
    origin = X.mean(0) if affine else X.new_zeros(X.shape[1])
    X = X - origin  # what lies far from the origin loses its digits in float32, and in squares
    group = max(1, AT_ONCE // (n * len(dims) * width))
    size = float(X.abs().max())
    rough = X if orthogonal else (X / size).float()  # no scale leaves the range of float32
    best, scores, unit = None, [], 1.0 if orthogonal else size**2
    for first in range(0, restarts, group):
        U = starts(rough, dims, min(group, restarts - first), affine=affine, generator=generator)
        found = _alternate(
            rough, U, dims, affine=affine, orthogonal=orthogonal, max_iter=max_iter, tol=tol if orthogonal else ROUGH
        )
        scores += [unit * r for r in found.restarts]
        if best is None or found.residual < best.residual:
            best = found
    assert best is not None
    ended = replace(best, restarts=sorted(scores), path=[unit * r for r in best.path])
    if orthogonal:
        return ended
    ended = polished(X, ended, affine=affine, max_iter=max_iter, tol=tol)
    return replace(ended, means=ended.means + origin)


def starts(
    X: Tensor, dims: Sequence[int], restarts: int, *, affine: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """First subspaces ``(restarts, K, D, d)``: each spanned by a row and the rows most parallel to it.

    The row is drawn with a probability that grows with its squared distance to the subspaces there are (the first:
    with its squared length), so that the next subspace begins where the others do not reach; the largest comes first.
    Columns beyond a subspace's own dimension are zero.
    """
    n, D, width = *X.shape, max(dims)
    X = X - X.mean(0) if affine else X
    norms = X.norm(dim=1)
    unit = X / norms.clamp(min=torch.finfo(X.dtype).tiny)[:, None]
    left = norms.square().expand(restarts, n).clone()
    U = X.new_zeros(restarts, len(dims), D, width)
    for k, d in sorted(enumerate(dims), key=lambda pair: -pair[1]):  # a line in a volume would keep its rows
        seeds = torch.multinomial(left + 1e-12 * norms.square().mean() + 1e-300, 1, generator=generator)[:, 0]
        near = (unit[seeds] @ unit.T).abs()
        near[torch.arange(restarts), seeds] = 2  # itself first
        rows = X[near.topk(min(d, n), dim=1).indices].mT  # (restarts, D, d)
        fill = torch.randn(restarts, D, d, generator=generator, dtype=X.dtype) * norms.mean()
        U[:, k, :, :d] = torch.linalg.qr(torch.cat([rows, fill[:, :, rows.shape[2] :]], 2)).Q
        left = torch.minimum(left, norms.square() - (X @ U[:, k]).square().sum(-1)).clamp(min=0)
    return U


def residuals(X: Tensor, U: Tensor, means: Tensor | None = None) -> Tensor:
    """Squared distances ``(R, n, K)`` of rows to subspaces ``U: (R, K, D, d)`` through ``means: (R, K, D)``.

    Unused columns of U are zero.
    """
    R, K, D, d = U.shape
    if means is not None:  # near the rows, where the squares keep their digits
        origin = X.mean(0)
        X, means = X - origin, means - origin
    P = X @ U.permute(2, 0, 1, 3).reshape(D, -1)
    lengths = X.square().sum(1)[:, None]
    if means is not None:
        flat = means.reshape(R * K, D)
        P -= (flat[:, None] @ U.reshape(R * K, D, d)).flatten()
        lengths = lengths - 2 * X @ flat.T + flat.square().sum(1)
    held = P.square_().view(len(X), R * K, d).sum(-1)
    return (lengths - held).clamp_(min=0).view(len(X), R, K).transpose(0, 1)


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
    U = turned(U, dims, orthogonal=True) if orthogonal else U.clone()
    means = (X.mean(0) if affine else X.new_zeros(X.shape[1])).expand(R, K, -1).clone()
    labels, total = torch.zeros(R, len(X), dtype=torch.long), float(X.double().square().sum())
    going, paths = torch.arange(R), [[] for _ in range(R)]
    while len(going):
        left = residuals(X, U[going], means[going] if affine else None)
        least, labels[going] = left.min(-1)
        for r, now in zip(going.tolist(), least.double().sum(1).tolist(), strict=True):
            paths[r].append(now)
        on = [len(p) <= max_iter and (len(p) < 2 or p[-2] - p[-1] > tol * total) for p in (paths[r] for r in going)]
        least, going = least[on], going[on]
        for r, far in zip(going.tolist(), least, strict=True):
            U[r], means[r] = _turned_to(X, labels[r], U[r], means[r], far, dims, affine=affine, orthogonal=orthogonal)
    ended = [p[-1] for p in paths]
    r = min(range(R), key=ended.__getitem__)
    bases = [U[r, k, :, :d].clone() for k, d in enumerate(dims)]
    return Alternation(
        bases=bases, means=means[r].clone(), labels=labels[r], residual=ended[r], path=paths[r], restarts=ended
    )


def _turned_to(
    X: Tensor, labels: Tensor, U: Tensor, means: Tensor, far: Tensor, dims: Sequence[int], *, affine: bool,
    orthogonal: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Subspaces ``(K, D, d)`` and means ``(K, D)`` nearer to the rows of each cluster.

    An empty cluster begins anew from rows that are ``far``: nothing was said of it, so that nothing is lost.
    """
    K = len(U)
    counts = torch.bincount(labels, minlength=K).tolist()
    parts = X[labels.argsort()].split(counts)
    if affine:
        means = torch.stack([p.mean(0) if len(p) else m for p, m in zip(parts, means, strict=True)])
        parts = [p - m for p, m in zip(parts, means, strict=True)]
    empty = [] if orthogonal else [k for k in range(K) if not counts[k]]
    for _ in range(1 if orthogonal else TURNS):
        Y = torch.stack([p.T @ (p @ u) for p, u in zip(parts, U, strict=True)])
        if not orthogonal:  # a trace of the old basis, for directions that too few rows leave open
            Y = Y + 1e-6 * Y.abs().amax((-2, -1), keepdim=True) * U
        for k in empty:
            worst = far.topk(min(len(X), U.shape[-1] * (k + 1))).indices[-U.shape[-1] :]
            Y[k] = U[k] * 1e-6
            Y[k, :, : len(worst)] += X[worst].T - means[k][:, None]
        U = turned(Y[None], dims, orthogonal=orthogonal)[0]
    return U, means


def polished(X: Tensor, found: Alternation, *, affine: bool, max_iter: int = 50, tol: float = 0.0) -> Alternation:
    """The same, gone on in float64 with full decompositions until no label changes, or little is gained."""
    bases, means, labels, path = [U.double() for U in found.bases], found.means.double(), found.labels, list(found.path)
    width, total = max(b.shape[1] for b in bases), float(X.square().sum())
    for _ in range(max_iter):
        parts = [X[labels == k] for k in range(len(bases))]
        if affine:
            means = torch.stack([p.mean(0) if len(p) else m for p, m in zip(parts, means, strict=True)])
        bases = [leading(p - m, U) for p, m, U in zip(parts, means, bases, strict=True)]
        U = torch.stack([torch.nn.functional.pad(b, (0, width - b.shape[1])) for b in bases])[None]
        least, now = residuals(X, U, means[None] if affine else None)[0].min(-1)
        path.append(float(least.sum()))
        same = bool((now == labels).all())
        labels = now
        if same or (len(path) > len(found.path) + 1 and path[-2] - path[-1] <= tol * total):
            break
    return replace(found, bases=bases, means=means, labels=labels, residual=path[-1], path=path)


def leading(X: Tensor, old: Tensor) -> Tensor:
    """Orthonormal ``(D, d)`` that span the leading right singular directions of the rows; where these are fewer than d,
    what is left of the ``old`` basis fills up."""
    r, d = min(*X.shape, old.shape[1]), old.shape[1]
    if r == 0:
        return old
    V = truncated_svd(X, r, method="gram").Vh.mT
    return torch.linalg.qr(torch.cat([V, old], 1)).Q[:, :d] if r < d else V
