"""Polar factors: the nearest matrix with orthonormal columns, ``U (UᵀU)^{-1/2}``, also of several joined bases.

A matrix and its Gram matrix share directions: with ``UᵀU = V diag(σ²) Vᵀ`` the root is ``V diag(1/σ) Vᵀ``. Of bases
``U = [U_1 … U_T]`` with orthonormal columns the Gram matrix has identities on its diagonal. Of two, ``[A, B]``, only
``C = AᵀB`` is not known, and an eigenproblem of its size is left: with ``CᵀC = Q diag(c²) Qᵀ``, ``E = C Q`` and
``s = √(1 - c²)``, ``r = √(2 + 2s)``,

    (UᵀU)^{-1/2} = [I + E h Eᵀ, E o Qᵀ; Q o Eᵀ, Q g Qᵀ],   g = r / (2s),  o = -1 / (s r),
                                                          h = (g - 1) / c² = (1 + 2s) / (s (1 + s) (r + 2s))

that is ``g ± c o = (1 ± c)^{-1/2}`` for the sum and the difference of two directions whose angle has the cosine c.

Directions whose σ is small have too few digits in the Gram matrix: their images under U are taken in float64, freed
from those of all others, and made orthonormal among themselves.

What people get wrong: filling up with arbitrary directions, as an SVD does, where bases share some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.spectral.accepted import exact_products, finite, scaled
from rankwise.spectral.symmetric import gram, symmetric_eigh

_SMALL = 0.01  # of the largest σ²: above it float32 leaves columns orthonormal to about 3e-5
_NEAR = 0.99  # the cosine of two directions from which on their difference is as small as that
_NULL = 1e-6  # of the largest σ: below it is rounding
_INDEPENDENT = 0.1  # of a column: the least of it that must be new, for a float32 Gram matrix to tell


@exact_products
def polar_factor(U: Tensor, *, tol: float = _NULL) -> Tensor:
    """``U (UᵀU)^{-1/2}``: the nearest matrix with orthonormal columns (rows of a wide U), float32, shaped like U.

    On the range of U alone: directions whose singular value is at most ``tol`` times the largest stay zero, where an
    SVD would fill in arbitrary ones.

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
    return _orthonormalised(U, _by_gram(U, gram(U), tol), None)


@exact_products
def joined_polar(bases: Sequence[Tensor], *, times: Tensor | None = None) -> Tensor:
    """`polar_factor` of ``torch.cat(bases, 1)``, or its product with a matrix for less than both.

    Parameters
    ----------
    bases : sequence of Tensor
        ``(d, k_t)``, each with columns that are orthonormal or zero; any float dtype and device.
    times : Tensor, optional
        ``(Σ k_t, p)``, by which the factor is multiplied.

    Returns
    -------
    Tensor
        ``(d, Σ k_t)``, or ``(d, p)``; float32.

    Raises
    ------
    ValueError
        NaN or Inf entries.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import joined_polar
    >>> one, other = (torch.linalg.qr(torch.randn(10, 2)).Q for _ in range(2))
    >>> U = joined_polar([one, other])
    >>> torch.allclose(U.mT @ U, torch.eye(4), atol=1e-5)
    True
    """
    U = finite(torch.cat([x.float() for x in bases], 1), "joined_polar")
    if U.shape[0] < U.shape[1]:
        U = polar_factor(U)
        return U if times is None else U @ times
    held = U.norm(dim=0) > 0.5
    sizes = [int(h.sum()) for h in held.split([x.shape[1] for x in bases])]
    A = U if held.all() else U[:, held]
    split = _by_angles(A, *sizes) if len(sizes) == 2 and min(sizes) else _by_gram(A, _joined_gram(A, sizes))
    if times is not None:
        return _orthonormalised(A, split, times.float()[held])
    U[:, held] = _orthonormalised(A, split, None)
    return U


class _Split(NamedTuple):
    """The directions of a matrix U: those with large σ, and those with small ones."""

    root: Callable[[Tensor], Tensor]  # X to V diag(1/σ) Vᵀ X of the large ones
    small: Tensor  # V of the small ones, (k, s)
    images: Tensor  # U V of them, float64
    least: float  # σ that is no more than rounding


def _orthonormalised(U: Tensor, split: _Split, times: Tensor | None) -> Tensor:
    root, V, D, least = split
    D = D - (U @ root(root(U.mT @ D.float()))).double()  # rounding left in them what the others hold
    squares, W = torch.linalg.eigh(D.mT @ D)
    lengths = squares.clamp(min=0).sqrt()
    D = (D @ (W * torch.where(lengths > least, 1 / lengths, 0.0)) @ W.mT).float()
    if times is not None:
        return U @ root(times) + D @ (V.mT @ times)
    square = len(U) < 2 * U.shape[1]
    return (root(U.mT).mT if square else U @ root(torch.eye(U.shape[1]).to(U))) + D @ V.mT


def _by_gram(U: Tensor, G: Tensor, tol: float = _NULL) -> _Split:
    squares, V = symmetric_eigh(G)
    most = float(squares[-1]) if len(squares) else 0.0
    few = int((squares <= _SMALL * most).sum())
    large, roots = V[:, few:], squares[few:, None]
    roots = torch.where(roots > tol**2 * most, roots.rsqrt(), 0.0)
    small = V[:, :few]
    return _Split(
        lambda X: large @ (roots * (large.mT @ X)), small, U.double() @ small.double(), max(tol * most**0.5, 1e-30)
    )


def _joined_gram(U: Tensor, sizes: Sequence[int]) -> Tensor:
    G, left = torch.eye(U.shape[1]).to(U), 0
    for right in torch.tensor(sizes).cumsum(0).tolist():
        G[right:, left:right] = U[:, right:].mT @ U[:, left:right]
        G[left:right, right:] = G[right:, left:right].mT
        left = right
    return G


def _by_angles(U: Tensor, p: int, q: int) -> _Split:
    if p < q:  # the second decides what it costs
        turned = _by_angles(U.roll(q, 1), q, p)
        return _Split(lambda X: turned.root(X.roll(q, 0)).roll(p, 0), turned.small.roll(p, 0), *turned[2:])
    A, B = U.split([p, q], 1)
    C = A.mT @ B
    squares, Q = symmetric_eigh(gram(C))
    squares, E = squares[:, None].clamp(0, 1), C @ Q
    far = int((squares <= _NEAR**2).sum())
    s = (1 - squares).sqrt()
    r = (2 + 2 * s).sqrt()
    g, o, h = r / (2 * s), -1 / (s * r), (1 + 2 * s) / (s * (1 + s) * (r + 2 * s))
    c = squares[far:].sqrt()  # of nearly equal directions: their sum alone
    g[far:] = 0.5 * (1 + c).rsqrt()
    o[far:], h[far:] = g[far:] / c, (g[far:] - 1) / c.square()

    def root(X: Tensor) -> Tensor:
        X, Y = X.split([p, q])
        x, y = E.mT @ X, Q.mT @ Y
        return torch.cat([X + E @ (h * x + o * y), Q @ (o * x + g * y)])

    U, b = U.double(), Q[:, far:].double()
    a = U[:, :p].mT @ (U[:, p:] @ b)
    V = 0.5**0.5 * torch.cat([a / a.norm(dim=0), -b])  # their differences
    return _Split(root, V.float(), U @ V, _NULL)


@exact_products
def nearly_orthogonal_qr(Y: Tensor) -> tuple[Tensor, Tensor]:
    """``Y = Q R`` of columns ``(m, k)`` of about unit length, by the Cholesky factor of their Gram matrix.

    In Y's precision where no column lies near the span of those before it; else by Householder, in float64.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import nearly_orthogonal_qr
    >>> Y = torch.eye(9)[:, :4] + 0.01 * torch.randn(9, 4)
    >>> Q, R = nearly_orthogonal_qr(Y)
    >>> torch.allclose(Q @ R, Y, atol=1e-5), torch.allclose(Q.mT @ Q, torch.eye(4), atol=1e-5)
    (True, True)
    """
    R, failed = torch.linalg.cholesky_ex(gram(finite(Y, "nearly_orthogonal_qr")), upper=True)
    if failed or R.diagonal().min() < _INDEPENDENT:
        Q, R = torch.linalg.qr(Y.double())
        return Q.to(Y.dtype), R.to(Y.dtype)
    return torch.linalg.solve_triangular(R, Y, upper=True, left=False), R
