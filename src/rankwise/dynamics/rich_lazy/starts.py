"""Starts of a given rank, and how many directions a start has.

A weight cut to rank R and rescaled to its former Frobenius norm has a larger top singular value and, as a rule, another
spectral radius: three scales, of which only one can be kept at a time. A comparison of ranks names which.
"""

from __future__ import annotations

import math
from numbers import Integral
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor

from rankwise.nearest import unknown
from rankwise.spectral import singular_values, truncated_svd

__all__ = ["effective_rank", "low_rank_init", "structured_init"]

NORMS = ("fro", "op", "radius")
STRUCTURES = ("gaussian", "dale", "types", "chains")
OWN = 2**31  # added to a seed, of which 32 bits count: not what W of the same seed was drawn from
EXCITATORY, TYPES, CHAINED = 0.8, 4, 0.25  # share of units that excite; kinds of units; correlation along a chain
KINDS = ("participation", "abs-eig", "stable")


def low_rank_init(W: Tensor, rank: int, *, norm: Literal["fro", "op", "radius"] = "fro") -> Tensor:
    """The best approximation of rank R, rescaled to the norm of W.

    Parameters
    ----------
    W : Tensor
        ``(..., m, n)``, real and finite.
    rank : int
        From 1 to ``min(m, n)``; the largest gives W back.
    norm : {"fro", "op", "radius"}
        What stays: the Frobenius norm (as published), the top singular value (which truncation keeps by itself), or the
        spectral radius of square W.

    Raises
    ------
    ValueError
        A rank out of range, an unknown norm, a radius of matrices that are not square or that truncation leaves without
        one, NaN or Inf.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import low_rank_init
    >>> W = torch.diag(torch.tensor([4.0, 3.0]))
    >>> low_rank_init(W, 1).tolist()
    [[5.0, 0.0], [0.0, 0.0]]
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    _check_matrix(W)
    if W.dim() < 2 or not isinstance(rank, Integral) or not 1 <= rank <= min(W.shape[-2:]):
        raise ValueError(
            f"rank={rank} of shape {tuple(W.shape)}: a whole number from 1 to the smaller side of (…, m, n)"
        )
    rank = int(rank)
    if norm == "radius" and W.shape[-1] != W.shape[-2]:
        raise ValueError(
            f"a matrix of shape {tuple(W.shape)} has no spectral radius; norm='fro' or 'op' is of any shape"
        )
    if rank == min(W.shape[-2:]):
        truncated_svd(W, 1)  # refuses what is not finite
        return W.clone()
    U, S, Vh, _ = truncated_svd(W, rank, method="full" if W.dtype == torch.float64 else "gram")
    low = (U * S.unsqueeze(-2)) @ Vh
    if norm == "op":
        return low.to(W.dtype)
    size = _radius if norm == "radius" else torch.linalg.matrix_norm
    had, has = size(W.double()), size(low.double())
    if bool((has <= 1e-9 * had).any()):
        raise ValueError(f"rank {rank} leaves a {'spectral radius' if norm == 'radius' else 'norm'} of zero")
    return (low * (had / has)[..., None, None].to(low.dtype)).to(W.dtype)


def structured_init(W: Tensor, kind: Literal["gaussian", "dale", "types", "chains"], *, seed: int = 0) -> Tensor:
    """A Gaussian matrix given a structure of neural circuits, at its Frobenius norm.

    ``W[i, j]`` is what unit i gets from unit j. The structure is that of the start; nothing keeps it while learning.

    Parameters
    ----------
    W : Tensor
        ``(n, n)``, of independent entries of mean 0 and equal variance; at least 5 units.
    kind : {"gaussian", "dale", "types", "chains"}
        * as it is;
        * Dale's law: the first four fifths of the units only excite and the others only inhibit, four times as
          strongly, so that a unit gets as much of both: ``s_j |W_ij|``;
        * four types of units, as many of each; the variance between two types is drawn, exponential of mean 1;
        * over-represented chains ``k → j → i``: ``√½ W_ij + ½ (z_i + z_j)``, z drawn with the entries' spread, by
          which two weights in a row correlate by ¼ (those that share a source or a target do so too).
    seed : int
        Of what is drawn besides W.

    Raises
    ------
    ValueError
        An unknown kind, a matrix that is not square, of zeros or not finite, or fewer than 5 units.

    Notes
    -----
    The paper starts from such structures (Liu et al., ICLR 2024, arXiv 2310.08513); these formulas are ours.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import effective_rank, structured_init
    >>> W = torch.randn(100, 100, generator=torch.Generator().manual_seed(0)) / 10
    >>> chains = structured_init(W, "chains")
    >>> bool(effective_rank(chains) < effective_rank(W)), bool(torch.isclose(chains.norm(), W.norm()))
    (True, True)
    """
    if kind not in STRUCTURES:
        raise unknown("kind", kind, STRUCTURES)
    _check_matrix(W)
    if W.dim() != 2 or W.shape[0] != W.shape[1] or len(W) <= TYPES:
        raise ValueError(f"a matrix of shape {tuple(W.shape)}: connections (n, n) of at least {TYPES + 1} units")
    if not W.is_floating_point() or not bool(torch.isfinite(W).all()) or not bool(W.any()):
        raise ValueError(f"a matrix of {W.dtype}: finite numbers of a floating dtype, not all zero, are needed")
    if kind == "gaussian":
        return W.clone()
    n, generator = len(W), torch.Generator().manual_seed(OWN + index(seed))
    top = W.abs().max()
    given, W = W, W / top  # squares of very large and very small entries leave float32
    if kind == "dale":
        sign = torch.ones(n).to(W)
        sign[round(EXCITATORY * n) :] = -EXCITATORY / (1 - EXCITATORY)
        found = W.abs() * sign
    elif kind == "types":
        spread = torch.empty(TYPES, TYPES).exponential_(generator=generator).sqrt().to(W)
        of = torch.arange(n, device=W.device) * TYPES // n
        found = W * spread[of[:, None], of]
    else:
        z = (torch.randn(n, generator=generator) * W.std().cpu()).to(W)
        found = math.sqrt(1 - 2 * CHAINED) * W + math.sqrt(CHAINED) * (z[:, None] + z)
    return (found * (torch.linalg.matrix_norm(W) / torch.linalg.matrix_norm(found)) * top).to(given)


def effective_rank(W: Tensor, *, kind: Literal["participation", "abs-eig", "stable"] = "participation") -> Tensor:
    """How many directions a matrix ``(..., m, n)`` has: ``(...)``, float64.

    Parameters
    ----------
    W : Tensor
        Real and finite, not zero.
    kind : {"participation", "abs-eig", "stable"}
        ``(Σσ²)² / Σσ⁴``, the participation ratio, which decides `expected_kernel_alignment`; ``Σ|λ| / (|λ₁| n)``, a
        share of the n eigenvalues, for square matrices, as the paper reports connectomes; ``Σσ² / σ₁²``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import effective_rank
    >>> float(effective_rank(torch.eye(4))), float(effective_rank(torch.eye(4), kind="abs-eig"))
    (4.0, 1.0)
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    _check_matrix(W)
    if W.dim() < 2 or W.numel() == 0:
        raise ValueError(f"matrices (…, m, n) with entries are needed, got shape {tuple(W.shape)}")
    if kind == "abs-eig":
        if W.shape[-1] != W.shape[-2]:
            raise ValueError(f"a matrix of shape {tuple(W.shape)} has no eigenvalues; take 'participation' or 'stable'")
        sizes = torch.linalg.eigvals(_finite(W)).abs()
        return _over(sizes.sum(-1), sizes.amax(-1) * W.shape[-1])
    power = singular_values(W).square()
    power = power / power.amax(-1, keepdim=True).clamp(min=math.ulp(0.0))
    return (
        _over(power.sum(-1).square(), power.square().sum(-1))
        if kind == "participation"
        else _over(power.sum(-1), power.amax(-1))
    )


def _check_matrix(W: Any) -> None:
    if not isinstance(W, Tensor) or W.is_complex():
        said = W.dtype if isinstance(W, Tensor) else type(W).__name__
        raise ValueError(f"a matrix of {said}: a real torch.Tensor is needed (torch.as_tensor takes an array)")


def _over(a: Tensor, b: Tensor) -> Tensor:
    if bool((b == 0).any()):
        raise ValueError("a matrix of zeros, or without eigenvalues other than zero, has no effective rank")
    return a / b


def _radius(W: Tensor) -> Tensor:
    return torch.linalg.eigvals(W).abs().amax(-1)


def _finite(W: Tensor) -> Tensor:
    if not bool(torch.isfinite(W).all()):
        raise ValueError("the matrix has NaN or Inf entries")
    return W.double()
