"""Subspaces: angles between them, projections onto them, and the rotation that aligns one basis with another.

A subspace is given by a basis as columns ``(d, k)``; the basis need not be orthonormal. Complex entries and NaN are
errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.spectral.accepted import finite, real, scaled
from rankwise.spectral.svd import spectrum_and_directions

_NEAR = 1 - 1e-3  # the cosine from which on float32 cannot tell two directions apart well


def principal_angles(A: Tensor, B: Tensor) -> Tensor:
    """Principal angles between the column spaces of ``A: (d, p)`` and ``B: (d, q)``, radians, ascending, float64.

    Small angles come from sines and large ones from cosines (Björck & Golub, 1973): the cosine alone cannot resolve
    an angle below about 1e-8.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import principal_angles
    >>> plane, line = torch.eye(3)[:, :2], torch.tensor([[1.0], [0.0], [1.0]])
    >>> round(float(principal_angles(plane, line).rad2deg()))
    45
    """
    if A.shape[0] != B.shape[0]:
        raise ValueError(f"bases live in different spaces: {A.shape[0]} and {B.shape[0]} dimensions")
    QA, QB = (torch.linalg.qr(finite(X, "principal_angles").double()).Q for X in (A, B))
    if QA.shape[1] < QB.shape[1]:
        QA, QB = QB, QA
    cosines = torch.linalg.svdvals(QA.mT @ QB).clamp(max=1)
    sines = torch.linalg.svdvals(QB - QA @ (QA.mT @ QB)).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def projection(X: Tensor, basis: Tensor) -> Tensor:
    """Rows of ``X: (n, d)`` projected onto the column space of ``basis: (d, k)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import projection
    >>> p = projection(torch.tensor([[1.0, 2.0, 3.0]]), torch.eye(3)[:, :2])
    >>> torch.allclose(p, torch.tensor([[1.0, 2.0, 0.0]]))
    True
    """
    Q = torch.linalg.qr(finite(basis, "projection").double()).Q
    X = finite(X, "projection")
    return ((X.double() @ Q) @ Q.mT).to(X.dtype)


def subspace_overlap(A: Tensor, B: Tensor) -> float:
    """Mean squared cosine of the principal angles: 1 when the smaller space lies in the larger, 0 when orthogonal.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import subspace_overlap
    >>> plane, line = torch.eye(3)[:, :2], torch.tensor([[1.0], [0.0], [1.0]])
    >>> round(subspace_overlap(plane, line), 3), round(subspace_overlap(plane, plane), 3)
    (0.5, 1.0)
    """
    return float(principal_angles(A, B).cos().square().mean())


def orthogonality_error(Q: Tensor) -> Tensor:
    """``‖QᵀQ - I‖_F`` of columns ``(..., d, k)``: 0 exactly when they are orthonormal. ``(...)``, float64.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import orthogonality_error
    >>> float(orthogonality_error(torch.eye(3)[:, :2])), float(orthogonality_error(2 * torch.eye(1)))
    (0.0, 3.0)
    """
    Q = real(Q, "orthogonality_error").double()
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.matrix_norm(Q.mT @ Q - eye)


def procrustes(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal ``R`` minimising ``‖A R - B‖_F`` for ``A, B: (n, k)`` (Schönemann, 1966), and the residual norm.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import procrustes
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> A = torch.randn(10, 2)
    >>> R, left = procrustes(A, A @ turn)
    >>> torch.allclose(R.float(), turn, atol=1e-5), bool(left < 1e-4)
    (True, True)
    """
    if A.shape != B.shape:
        raise ValueError(f"Procrustes alignment needs equal shapes, got {tuple(A.shape)} and {tuple(B.shape)}")
    A, B = finite(A, "procrustes"), finite(B, "procrustes")
    U, _, Vh = torch.linalg.svd(A.double().mT @ B.double())
    R = U @ Vh
    return R, torch.linalg.matrix_norm(A.double() @ R - B.double())


def polar_factor(U: Tensor, *, tol: float = 1e-6) -> Tensor:
    """``U (UᵀU)^{-1/2}``: the nearest matrix with orthonormal columns (rows of a wide U), float32, shaped like U.

    On the range of U alone: directions whose singular value is at most ``tol`` times the largest stay zero, where an
    SVD would fill in arbitrary ones. Joined bases of many directions are badly conditioned: the small singular values
    have to be right, as `spectrum_and_directions` takes care of.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import polar_factor
    >>> U = polar_factor(torch.randn(10, 3))
    >>> torch.allclose(U.mT @ U, torch.eye(3), atol=1e-5)
    True
    """
    if U.shape[0] < U.shape[1]:
        return polar_factor(U.mT, tol=tol).mT
    U, _ = scaled(U.float(), "polar_factor", single=True)  # scaling U changes nothing
    S, V = spectrum_and_directions(U)
    roots = torch.where(tol * S[0].clamp(min=torch.finfo(S.dtype).tiny) < S, 1 / S, 0.0)
    return U @ ((V * roots.float()) @ V.mT)


def joined_polar(bases: Sequence[Tensor]) -> Tensor:
    """`polar_factor` of ``torch.cat(bases, 1)``; of two orthonormal bases by one SVD of half the size.

    The SVD ``AᵀB = P cos(Θ) Qᵀ`` pairs the columns ``a = A P`` and ``b = B Q``; pairs are orthogonal to each other, and
    the singular directions of a pair are its sum and its difference. With both at unit length, ``p`` and ``m``, the
    polar factor of ``[a, b]`` is ``[p + m, p - m] / √2``, and that of ``[A, B]`` is the same turned back by ``Pᵀ`` and
    ``Qᵀ``. A shared direction (``a = b``) has no difference: both columns become ``p / √2``.

    Parameters
    ----------
    bases : sequence of Tensor
        ``(d, k_t)``, each with columns that are orthonormal or zero; any float dtype and device.

    Returns
    -------
    Tensor
        ``(d, Σ k_t)``, float32.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import joined_polar
    >>> one, other = (torch.linalg.qr(torch.randn(10, 2)).Q for _ in range(2))
    >>> U = joined_polar([one, other])
    >>> torch.allclose(U.mT @ U, torch.eye(4), atol=1e-5)
    True
    """
    U = torch.cat([x.float() for x in bases], 1)
    if len(bases) != 2 or U.shape[0] < U.shape[1]:
        return polar_factor(U)
    held, k = U.norm(dim=0) > 0.5, bases[0].shape[1]
    U[:, held] = _polar_of_pair(U[:, :k][:, held[:k]], U[:, k:][:, held[k:]])
    return U


def _polar_of_pair(A: Tensor, B: Tensor) -> Tensor:
    P, cosines, Qh = torch.linalg.svd(A.mT @ B)
    a, b = A @ P, B @ Qh.mT
    r, near = len(cosines), int((cosines > _NEAR).sum())
    plus, minus = a[:, :r] + b[:, :r], a[:, :r] - b[:, :r]
    plus /= plus.norm(dim=0)
    minus[:, near:] /= minus[:, near:].norm(dim=0)
    if near:  # a difference of nearly equal columns: in float64, and without what rounding left in it of the others
        D = A.double() @ P[:, :near].double() - B.double() @ Qh[:near].mT.double()
        rest = torch.cat([plus, minus[:, near:]], 1)
        D -= (rest @ (rest.mT @ D.float())).double()
        minus[:, :near] = _polar_of_few(D)
    a[:, :r], b[:, :r] = (plus + minus) * 0.5**0.5, (plus - minus) * 0.5**0.5
    return torch.cat([a @ P.mT, b @ Qh], 1)


def _polar_of_few(D: Tensor) -> Tensor:
    """The polar factor of a few short columns, float64; columns below 1e-6 stay zero."""
    squares, W = torch.linalg.eigh(D.mT @ D)
    lengths = squares.clamp(min=0).sqrt()
    return (D @ (W * torch.where(lengths > 1e-6, 1 / lengths, 0.0)) @ W.mT).float()
