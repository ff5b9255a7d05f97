"""Subspaces: angles between them, projections onto them, and the rotation that aligns one basis with another.

A subspace is given by a basis as columns ``(d, k)``; the basis need not be orthonormal. Complex entries and NaN are
errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankwise.spectral.accepted import finite, real, scaled
from rankwise.spectral.svd import spectrum_and_directions


def principal_angles(A: Tensor, B: Tensor) -> Tensor:
    """Principal angles between the column spaces of ``A: (d, p)`` and ``B: (d, q)``, radians, ascending, float64.

    Small angles come from sines and large ones from cosines (Björck & Golub, 1973): the cosine alone cannot resolve
    an angle below about 1e-8.
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
    """Rows of ``X: (n, d)`` projected onto the column space of ``basis: (d, k)``."""
    Q = torch.linalg.qr(finite(basis, "projection").double()).Q
    X = finite(X, "projection")
    return ((X.double() @ Q) @ Q.mT).to(X.dtype)


def subspace_overlap(A: Tensor, B: Tensor) -> float:
    """Mean squared cosine of the principal angles: 1 when the smaller space lies in the larger, 0 when orthogonal."""
    return float(principal_angles(A, B).cos().square().mean())


def orthogonality_error(Q: Tensor) -> Tensor:
    """``‖QᵀQ - I‖_F`` of columns ``(..., d, k)``: 0 exactly when they are orthonormal. ``(...)``, float64."""
    Q = real(Q, "orthogonality_error").double()
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.matrix_norm(Q.mT @ Q - eye)


def procrustes(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal ``R`` minimising ``‖A R - B‖_F`` for ``A, B: (n, k)`` (Schönemann, 1966), and the residual norm."""
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
    """
    if U.shape[0] < U.shape[1]:
        return polar_factor(U.mT, tol=tol).mT
    U, _ = scaled(U.float(), "polar_factor", single=True)  # scaling U changes nothing
    S, V = spectrum_and_directions(U)
    roots = torch.where(tol * S[0].clamp(min=torch.finfo(S.dtype).tiny) < S, 1 / S, 0.0)
    return ((U @ V) * roots.float()) @ V.mT
