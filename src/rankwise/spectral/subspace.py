"""Subspaces: angles between them, projections onto them, and the rotation that aligns one basis with another.

A subspace is given by a basis as columns ``(d, k)``; the basis need not be orthonormal. Complex entries and NaN are
errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankwise.spectral.accepted import finite, real


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
