"""The mixture of low-rank Gaussians with noise, by expectation-maximisation.

    x ~ Σ_k π_k N(m_k, U_k diag(λ_k - σ²) U_kᵀ + σ² I),   λ_kj ≥ σ²

Clusters have means (or none), subspaces, dimensions and variances of their own and one noise σ² together, as in the
paper's x = U_k a + e: a cluster that few rows fit exactly cannot take the likelihood to infinity alone. Given the
responsibilities, with eigenvalues e_kj of the weighted covariances, U_k are leading eigenvectors, λ_kj = max(e_kj, σ²),
and σ² is the root of

    Σ_k N_k [(D - d_k) σ² - Σ_{j>d_k} e_kj] + Σ_k N_k Σ_{j≤d_k} max(σ² - e_kj, 0) = 0,

whose left side rises: the maximum is exact, so that the likelihood never falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.spectral import truncated_eigh

FLOOR = 1e-9  # least σ², as a share of the mean variance of a column


@dataclass(kw_only=True)
class Mixture:
    """A mixture of K low-rank Gaussians with noise.

    Attributes
    ----------
    weights : Tensor
        π, ``(K,)``.
    means : Tensor
        ``(K, D)``.
    bases, variances : list of Tensor
        U_k ``(D, d_k)`` and λ_k ``(d_k,)``, the variance along each direction, its noise included.
    noise : float
        σ².
    path : list of float
        Mean log-likelihood of a row, after each step.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import low_rank_mixture
    >>> from rankwise.dynamics.low_rank.mixture import expectation_maximisation
    >>> sample = low_rank_mixture(10, 2, n_clusters=2, samples=200, noise=0.1)
    >>> model = expectation_maximisation(sample.X, torch.nn.functional.one_hot(sample.labels).double(), [2, 2])
    >>> model.dims, round(model.noise, 3)
    ([2, 2], 0.01)
    >>> bool((model.log_joint(sample.X).argmax(1) == sample.labels).double().mean() > 0.95)
    True
    """

    weights: Tensor
    means: Tensor
    bases: list[Tensor]
    variances: list[Tensor]
    noise: float
    path: list[float] = field(default_factory=list)

    @property
    def dims(self) -> list[int]:
        """d_k."""
        return [U.shape[1] for U in self.bases]

    def parameters(self, *, affine: bool) -> int:
        """How many numbers are free: bases up to a rotation, variances, means, weights and σ²."""
        D = self.means.shape[1]
        return sum(free(D, d) + affine * D for d in self.dims) + len(self.bases)

    def log_joint(self, X: Tensor) -> Tensor:
        """``log π_k + log p(x_i | k)``, ``(n, K)``."""
        n, D = X.shape
        out = X.new_empty(n, len(self.bases))
        for k, (U, variance) in enumerate(zip(self.bases, self.variances, strict=True)):
            centred = X - self.means[k]
            squares = (centred @ U).square()
            left = (centred.square().sum(1) - squares.sum(1)).clamp(min=0)
            log_det = variance.log().sum() + (D - U.shape[1]) * math.log(self.noise) + D * math.log(2 * math.pi)
            out[:, k] = self.weights[k].log() - 0.5 * (log_det + left / self.noise + (squares / variance).sum(1))
        return out


def free(D: int, d: int) -> int:
    """Numbers that a d-dimensional subspace of D dimensions with d variances takes."""
    return D * d - d * (d - 1) // 2


def maximised(
    X: Tensor, shares: Tensor, dims: Sequence[int] | None, *, affine: bool, floor: float, most: int = 0
) -> Mixture:
    """The mixture that is most likely given responsibilities ``shares: (n, K)``.

    Without ``dims`` each cluster takes the dimension, up to ``most``, whose gain of log-likelihood pays for its
    parameters at ½ log n each (the Bayesian information criterion).
    """
    n, D = X.shape
    counts = shares.sum(0).clamp(min=1e-10)
    means = (shares.T @ X) / counts[:, None] if affine else X.new_zeros(len(counts), D)
    wanted = [most] * len(counts) if dims is None else list(dims)
    values, vectors, totals = [], [], []
    for k, d in enumerate(wanted):
        rows = (X - means[k]) * (shares[:, k] / counts[k]).sqrt()[:, None]
        C = rows.T @ rows
        e, V = truncated_eigh(C, max(d, 1))
        values.append(e[:d])
        vectors.append(V[:d])
        totals.append(float(C.trace()))
    if dims is None:
        wanted = paying(values, totals, counts, n, D, floor)
        values = [e[:d] for e, d in zip(values, wanted, strict=True)]
    noise = pooled(values, totals, counts, D, floor)
    return Mixture(
        weights=counts / counts.sum(), means=means,
        bases=[V[:d].mT.clone() for V, d in zip(vectors, wanted, strict=True)],
        variances=[e.clamp(min=noise) for e in values], noise=noise,
    )  # fmt: skip


def pooled(values: Sequence[Tensor], totals: Sequence[float], counts: Tensor, D: int, floor: float) -> float:
    """σ²: the mean of the eigenvalues outside the subspaces, and of those inside that are no larger than it."""
    inside = torch.cat(list(values))
    weight = torch.cat([c.expand(len(e)) for c, e in zip(counts, values, strict=True)])
    outside = sum(c * max(t - float(e.sum()), 0.0) for c, t, e in zip(counts.tolist(), totals, values, strict=True))
    room = sum(c * (D - len(e)) for c, e in zip(counts.tolist(), values, strict=True))
    noise = outside / room
    while True:  # to take in smaller values lowers σ², which leaves fewer of them below it
        small = inside <= noise
        now = (outside + float((weight * inside)[small].sum())) / (room + float(weight[small].sum()))
        if now >= noise * (1 - 1e-12):
            return max(noise, floor)
        noise = now


def paying(
    values: Sequence[Tensor], totals: Sequence[float], counts: Tensor, n: int, D: int, floor: float
) -> list[int]:
    """Dimensions and σ² in turn: direction j pays while N_k (e/σ² - 1 - log(e/σ²)) exceeds log n times its numbers."""
    dims = [int((e > t / D).sum()) for e, t in zip(values, totals, strict=True)]
    for _ in range(50):
        noise = pooled([e[:d] for e, d in zip(values, dims, strict=True)], totals, counts, D, floor)
        now = []
        for e, count in zip(values, counts.tolist(), strict=True):
            u = (e / noise).clamp(min=1)
            price = torch.tensor([free(D, d) for d in range(1, len(e) + 1)], dtype=e.dtype) * math.log(n)
            gain = torch.cat([e.new_zeros(1), (count * (u - 1 - u.log())).cumsum(0) - price])
            now.append(int(gain.argmax()))
        if now == dims:
            break
        dims = now
    return dims


def expectation_maximisation(
    X: Tensor, shares: Tensor, dims: Sequence[int] | None, *, affine: bool = False, max_iter: int = 200,
    tol: float = 1e-6, most: int = 0,
) -> Mixture:  # fmt: skip
    """From responsibilities ``shares: (n, K)`` on, until the mean log-likelihood rises by less than ``tol``.

    ``dims`` None: dimensions are chosen at every step, see `maximised`.
    """
    floor = least_noise(X, affine=affine)
    path: list[float] = []
    while True:
        model = maximised(X, shares, dims, affine=affine, floor=floor, most=most)
        joint = model.log_joint(X)
        path.append(float(joint.logsumexp(1).mean()))
        if len(path) > max_iter or (len(path) > 1 and abs(path[-1] - path[-2]) <= tol):
            model.path = path
            return model
        shares = joint.softmax(1)


def least_noise(X: Tensor, *, affine: bool) -> float:
    """The floor of σ². Noise that ends there was not measured: rows lie within their subspaces, whose likelihood is
    then as large as the floor is small."""
    return FLOOR * float((X - X.mean(0) if affine else X).square().mean())


def information(model: Mixture, n: int, *, affine: bool) -> float:
    """The Bayesian information criterion, ``-2 log L + p log n``: low is good."""
    return -2 * n * model.path[-1] + model.parameters(affine=affine) * math.log(n)
