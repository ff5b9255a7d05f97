"""From how many rows a subspace is found: samples of known subspaces, errors, and where success begins.

    error_k = ‖Û_kÛ_kᵀ - U_kU_kᵀ‖_F   (subspaces matched one to one),   P(success) = logistic((N/d - ρ) / w)

With N ≥ d rows a subspace, every optimum of the theory's objective has an error of at most
``c √(Σ‖e_i‖²) / (√N - √(d-1))`` with high probability; with fewer rows there are optima as far off as
``√(2 min(d - N, n - d))``. ρ, the rows a dimension from which an estimator succeeds half of the time, is what tells
estimators apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, minimize
from torch import Tensor

from rankwise.dynamics.low_rank.alternation import k_subspaces, leading
from rankwise.dynamics.low_rank.denoising import MoLRGDenoiser
from rankwise.nearest import unknown
from rankwise.parallel import fan_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MixtureSample",
    "PhaseTransition",
    "low_rank_mixture",
    "phase_transition",
    "recovery_threshold",
    "subspace_error",
]

Array = NDArray[np.float64]
STEPS = 1000  # of training a denoiser


class MixtureSample(NamedTuple):
    """Rows of a mixture of low-rank Gaussians, and what made them.

    Attributes
    ----------
    X : Tensor
        ``(K N, D)``, float64.
    labels : Tensor
        ``(K N,)``.
    bases : list of Tensor
        ``(D, d)``.
    noise : Tensor
        ``(K N, D)``: e, which X holds too.

    Examples
    --------
    >>> from rankwise.dynamics import low_rank_mixture
    >>> sample = low_rank_mixture(48, 3, n_clusters=2, samples=5)
    >>> sample.X.shape, sample.labels.tolist()
    (torch.Size([10, 48]), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """

    X: Tensor
    labels: Tensor
    bases: list[Tensor]
    noise: Tensor


def low_rank_mixture(
    features: int, dim: int, *, n_clusters: int = 1, samples: int = 100, noise: float = 0.0, angle: float = 90.0,
    seed: int = 0,
) -> MixtureSample:  # fmt: skip
    """``x = U_k a + e`` with a ~ N(0, I) and e ~ N(0, noise² I), as many rows of every subspace.

    Parameters
    ----------
    features, dim : int
        D; d of every subspace. ``n_clusters · dim`` is at most D (one more ``dim`` below 90°).
    n_clusters, samples : int
        K; rows of each.
    noise : float
        Deviation of e.
    angle : float
        Every principal angle between any two subspaces, in degrees, above 0 and up to 90:
        ``U_k = √cos B + √(1 - cos) W_k`` with orthonormal [B, W_1, …, W_K].
    seed : int
        Of bases, coefficients and noise.

    Examples
    --------
    >>> from rankwise.dynamics import low_rank_mixture
    >>> from rankwise.spectral import principal_angles
    >>> first, second = low_rank_mixture(20, 2, n_clusters=2, angle=30.0).bases
    >>> principal_angles(first, second).rad2deg().round().tolist()
    [30.0, 30.0]
    """
    shared = angle < 90
    if not 0 < angle <= 90:
        raise ValueError(f"angle={angle}: above 0 and up to 90 degrees is accepted")
    if min(dim, n_clusters, samples) < 1 or (n_clusters + shared) * dim > features:
        raise ValueError(
            f"{n_clusters} subspaces of dimension {dim}{' at such an angle' if shared else ''} need "
            f"{(n_clusters + shared) * dim} features and at least one sample; got {features} and {samples}"
        )
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: a deviation of at least 0 is accepted")
    g = torch.Generator().manual_seed(2**31 + int(seed))  # apart from the draws of whoever starts from the same seed
    Q = torch.linalg.qr(torch.randn(features, (n_clusters + shared) * dim, generator=g, dtype=torch.float64)).Q
    *own, B = [*Q.split(dim, 1)] if shared else [*Q.split(dim, 1), torch.zeros(features, dim)]
    c = math.cos(math.radians(angle)) if shared else 0.0
    bases = [math.sqrt(c) * B + math.sqrt(1 - c) * W for W in own]
    clean = torch.cat([torch.randn(samples, dim, generator=g, dtype=torch.float64) @ U.mT for U in bases])
    e = noise * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    return MixtureSample(clean + e, torch.arange(n_clusters).repeat_interleave(samples), bases, e)


def subspace_error(found: Sequence[Tensor | Array], truth: Sequence[Tensor | Array]) -> Array:
    """``‖ÛÛᵀ - UUᵀ‖_F`` of every true subspace and the one matched to it, ``(K,)`` in the order of the truth.

    Parameters
    ----------
    found, truth : sequence of array_like
        Orthonormal ``(D, d_k)``, as many of both. They are matched so that the sum of squared errors is least.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import subspace_error
    >>> one, other = torch.eye(4)[:, :2], torch.eye(4)[:, 2:]
    >>> subspace_error([other, one], [one, other]).tolist(), subspace_error([other], [one]).tolist()
    ([0.0, 0.0], [2.0])
    """
    if len(found) != len(truth) or not truth:
        raise ValueError(f"{len(found)} subspaces found and {len(truth)} true ones: as many, at least one, are needed")
    A, B = ([torch.as_tensor(U).double() for U in bases] for bases in (found, truth))
    if len({U.shape[0] for U in [*A, *B]}) > 1:
        raise ValueError("subspaces lie in spaces of different dimension")
    if not all(_orthonormal(U) for U in [*A, *B]):
        raise ValueError("columns that are not orthonormal: give torch.linalg.qr(U).Q, which spans what U spans")
    squares = np.array([[_squared(a, b) for a in A] for b in B])
    rows, columns = linear_sum_assignment(squares)
    return np.sqrt(np.maximum(squares[rows, columns], 0))


def _orthonormal(U: Tensor) -> bool:
    return bool((U.mT @ U - torch.eye(U.shape[1], dtype=U.dtype, device=U.device)).abs().max() < 1e-3)  # of float32's


def _squared(a: Tensor, b: Tensor) -> float:
    return float((a @ a.mT - b @ b.mT).square().sum())


@dataclass(frozen=True, kw_only=True)
class PhaseTransition:
    """Errors over a grid of dimensions and rows a subspace.

    Attributes
    ----------
    name : str
        The estimator's.
    dims, samples : list of int
        d, and N of each subspace.
    errors : ndarray
        ``(dims, samples, seeds)``: the largest error of a subspace.
    tolerance : float
        An error below it is a success.

    Examples
    --------
    >>> from rankwise.dynamics import phase_transition
    >>> found = phase_transition("pca", dims=[2, 4], samples=[1, 2, 3, 4, 5], seeds=3)
    >>> found.success.tolist()  # all at once at N = d
    [[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 1.0]]
    >>> 0.5 < found.threshold <= 1
    True
    """

    name: str
    dims: list[int]
    samples: list[int]
    errors: Array
    tolerance: float = 0.5

    @property
    def success(self) -> Array:
        """Share of successes, ``(dims, samples)``."""
        return (self.errors < self.tolerance).mean(-1)

    @property
    def threshold(self) -> float:
        """ρ: rows a dimension from which half of the runs succeed; infinite where none does."""
        ratios = np.array(self.samples)[None] / np.array(self.dims)[:, None]
        seeds = self.errors.shape[-1]
        return recovery_threshold(ratios.ravel(), (self.success * seeds).ravel(), np.full(ratios.size, seeds))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Success over the grid, with the line N = d and the fitted one."""
        from matplotlib import pyplot as plt

        ax = plt.gca() if ax is None else ax
        d, N = np.array(self.dims, dtype=float), np.array(self.samples, dtype=float)
        ax.pcolormesh(d, N, self.success.T, cmap="viridis", vmin=0, vmax=1, shading="nearest")
        ax.plot(d, d, color="white", lw=1, ls="--")
        rho = self.threshold
        if 0 < rho < math.inf:
            ax.plot(d, np.clip(rho * d, N.min(), N.max()), color="#d55e00", lw=1.5)
        ax.set_title(f"{self.name}: N = {rho:.2g} d" if math.isfinite(rho) else f"{self.name}: never")
        ax.set_xlabel("dimension d")
        ax.set_ylabel("rows a subspace N")
        return ax


def recovery_threshold(
    ratio: Sequence[float] | Array, successes: Sequence[float] | Array, trials: Sequence[float] | Array
) -> float:
    """ρ of ``P(success) = logistic((ratio - ρ) / w)``, w > 0, by maximum likelihood.

    Parameters
    ----------
    ratio, successes, trials : array_like
        ``(cells,)``: N/d, how often it went well, and of how many.

    Returns
    -------
    float
        The ratio ρ; infinite where nothing succeeded, the smallest ratio where all did.

    Examples
    --------
    >>> from rankwise.dynamics import recovery_threshold
    >>> round(recovery_threshold([1, 2, 3, 4, 5], [0, 1, 5, 9, 10], [10] * 5), 2)
    3.0
    """
    x, hits, n = (np.asarray(v, dtype=np.float64) for v in (ratio, successes, trials))
    if not (x.shape == hits.shape == n.shape and x.size and (n > 0).all() and ((hits >= 0) & (hits <= n)).all()):
        raise ValueError("ratio, successes and trials: as many of each, successes from 0 to trials, are needed")
    if not hits.any():
        return math.inf
    if (hits == n).all():
        return float(x.min())

    def cost(at: Array) -> float:
        z = (x - at[0]) / math.exp(max(at[1], -4.0))  # narrower than the grid tells: the step is sharp
        return float((hits * np.logaddexp(0, -z) + (n - hits) * np.logaddexp(0, z)).sum())

    tries = [minimize(cost, [rho, -1.0], method="Nelder-Mead") for rho in np.quantile(x, (0.2, 0.5, 0.8))]
    return float(min(tries, key=lambda t: t.fun).x[0])


Recover = Callable[[MixtureSample, int], Sequence[Tensor]]


def phase_transition(
    estimator: str | Recover,
    *,
    features: int = 48,
    dims: Sequence[int] = tuple(range(2, 9)),
    samples: Sequence[int] = tuple(range(2, 16)),
    n_clusters: int = 1,
    noise: float = 0.0,
    angle: float = 90.0,
    seeds: int = 6,
    tolerance: float = 0.5,
) -> PhaseTransition:
    """How often an estimator finds the subspaces, over a grid of dimensions and rows.

    Parameters
    ----------
    estimator : {"pca", "k-subspaces", "em", "denoiser"} or callable
        Principal components of each class, labels known; `rankwise.dynamics.SubspaceClustering` by either method; the
        soft denoiser, trained. Or ``estimator(sample, seed)`` that gives bases ``(D, d)``; with
        `rankwise.parallel.spread_over` a function of a module.
    features : int
        D.
    dims, samples : sequence of int
        d; N, rows of each subspace.
    n_clusters : int
        K.
    noise, angle : float
        As of `low_rank_mixture`.
    seeds : int
        Runs a cell, each with bases and rows of its own.
    tolerance : float
        What error is a success.
    """
    if isinstance(estimator, str) and estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    dims, samples = list(dims), list(samples)
    if not dims or not samples or not all(isinstance(v, Integral) and v >= 1 for v in (seeds, *dims, *samples)):
        raise ValueError(f"{seeds} seeds, dims {dims}, samples {samples}: whole numbers, at least one of each, from 1")
    dims, samples = [int(d) for d in dims], [int(N) for N in samples]
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: an error above 0 is accepted")
    work = ESTIMATORS[estimator] if isinstance(estimator, str) else estimator
    told = {"features": features, "n_clusters": n_clusters, "noise": noise, "angle": angle}
    low_rank_mixture(features, max(dims), n_clusters=n_clusters, noise=noise, angle=angle, samples=min(samples))
    items = [(work, told, d, N, seeds) for d in dims for N in samples]
    errors = np.array(fan_out(_cell, items)).reshape(len(dims), len(samples), seeds)
    name = estimator if isinstance(estimator, str) else getattr(estimator, "__name__", "estimator")
    return PhaseTransition(name=name, dims=dims, samples=samples, errors=errors, tolerance=tolerance)


def _cell(item: tuple[Recover, dict, int, int, int]) -> list[float]:
    work, told, d, N, seeds = item
    out = []
    for seed in range(seeds):
        sample = low_rank_mixture(dim=d, samples=N, seed=seed, **told)
        out.append(float(subspace_error(work(sample, seed), sample.bases).max()))
    return out


def _components(sample: MixtureSample, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    fill = [torch.randn(U.shape, generator=g, dtype=U.dtype) for U in sample.bases]
    return [leading(sample.X[sample.labels == k], torch.linalg.qr(f).Q) for k, f in enumerate(fill)]


def _alternated(sample: MixtureSample, seed: int) -> list[Tensor]:
    dims = [U.shape[1] for U in sample.bases]
    return k_subspaces(sample.X, dims, restarts=20, generator=torch.Generator().manual_seed(seed)).bases


def _fitted(sample: MixtureSample, seed: int) -> list[Tensor]:
    from rankwise.dynamics.low_rank.selection import selected

    dims = [U.shape[1] for U in sample.bases]
    g = torch.Generator().manual_seed(seed)
    (choice,) = selected(sample.X, [(len(dims), dims)], affine=False, restarts=20, max_iter=100, tol=1e-6, generator=g)
    return choice.model.bases


def _denoising(sample: MixtureSample, seed: int) -> list[Tensor]:
    model = MoLRGDenoiser(sample.X.shape[1], len(sample.bases), sample.bases[0].shape[1], seed=seed)
    model.fit(sample.X, steps=STEPS, batch_size=64, restarts=8, seed=seed)
    return [U.detach() for U in model.bases]


ESTIMATORS: dict[str, Recover] = {
    "pca": _components, "k-subspaces": _alternated, "em": _fitted, "denoiser": _denoising,
}  # fmt: skip
