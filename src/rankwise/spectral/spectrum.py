"""What a spectrum says: how many directions matter, and how heavy the tail is.

All functions take singular values (or, where named so, eigenvalues) along the last dimension and work in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.spectral.accepted import finite


class PowerLawFit(NamedTuple):
    """A power law ``p(x) ∝ x^-alpha`` for ``x >= xmin`` fitted by maximum likelihood.

    Attributes
    ----------
    alpha : float
        The exponent, above 1.
    xmin : float
        Where the tail begins: the value with the smallest Kolmogorov-Smirnov distance.
    distance : float
        That smallest Kolmogorov-Smirnov distance.
    n_tail : int
        How many values are in the tail.
    p_value : float
        Share of synthetic samples from the fitted model that fit worse; below 0.1 the power law is implausible. NaN
        when no test was asked for.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import power_law_fit
    >>> u = (torch.arange(500) + 0.5) / 500
    >>> fit = power_law_fit(u**-0.5, xmin=1.0)  # quantiles of p(x) = 2 / x³
    >>> round(fit.alpha, 1), fit.n_tail, fit.distance < 0.01
    (3.0, 500, True)
    """

    alpha: float
    xmin: float
    distance: float
    n_tail: int
    p_value: float


def effective_rank(S: Tensor) -> Tensor:
    """Entropy rank ``exp(-Σ p log p)``, ``p = σ / Σσ`` (Roy & Vetterli, 2007): between 1 and the rank. ``(...)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import effective_rank
    >>> round(float(effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0]))), 6)
    3.0
    """
    S = _relative(S)
    total = S.sum(-1, keepdim=True)
    p = S / total.clamp(min=torch.finfo(S.dtype).tiny)
    entropy = -(torch.where(p > 0, p * p.clamp(min=1e-300).log(), torch.zeros_like(p))).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def stable_rank(S: Tensor) -> Tensor:
    """``‖A‖_F² / ‖A‖₂² = Σσ² / σ₁²`` (Rudelson & Vershynin, 2007): at most the rank, robust to small values.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import stable_rank
    >>> float(stable_rank(torch.tensor([2.0, 1.0, 1.0])))
    1.5
    """
    return _relative(S).square().sum(-1)


def explained_variance(S: Tensor) -> Tensor:
    """Cumulative share ``Σ_{i<=k} σ_i² / Σσ²`` for ``k = 1 …``, ``(..., k)``; ``S`` descending. Zero where all are.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import explained_variance
    >>> explained_variance(torch.tensor([4.0, 3.0])).tolist()
    [0.64, 1.0]
    """
    energy = _relative(S).square().cumsum(-1)
    return energy / energy[..., -1:].clamp(min=torch.finfo(energy.dtype).tiny)


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of non-negative values: 0 when all are equal, ``(n-1)/n`` when one holds everything.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import gini
    >>> float(gini(torch.ones(4))), float(gini(torch.tensor([0.0, 0.0, 0.0, 5.0])))
    (0.0, 0.75)
    """
    x = _relative(values).sort(-1).values
    n = x.shape[-1]
    weights = 2 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device) - n - 1
    total = x.sum(-1)
    return torch.where(total > 0, (weights * x).sum(-1) / (n * total.clamp(min=1e-300)), torch.zeros_like(total))


def hill_index(eigenvalues: Tensor, *, k: int | None = None) -> Tensor:
    """Power-law exponent of the upper tail by Hill's estimator: ``1 + k / Σ_{i<=k} log(x_(i) / x_(k+1))``.

    Infinite where the tail's values are equal; NaN for a single value, which has no tail.

    Parameters
    ----------
    eigenvalues : Tensor
        ``(..., n)`` positive values in any order (the eigenvalues ``σ²`` of a weight's Gram matrix, usually).
    k : int, optional
        Size of the tail; half of the values by default.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import hill_index
    >>> u = (torch.arange(500) + 0.5) / 500
    >>> round(float(hill_index(u**-0.5)), 1)  # quantiles of p(x) = 2 / x³
    3.0
    """
    x = _relative(eigenvalues).sort(-1, descending=True).values
    n = x.shape[-1]
    if n == 1 and k is None:
        return torch.full_like(x[..., 0], math.nan)
    k = max(1, n // 2) if k is None else k
    if not 1 <= k < n:
        raise ValueError(f"k={k} is outside 1..{n - 1} for {n} values")
    tiny = torch.finfo(x.dtype).tiny
    logs = (x[..., :k].clamp(min=tiny) / x[..., k : k + 1].clamp(min=tiny)).log()
    return 1 + k / logs.sum(-1)


def power_law_fit(
    values: Tensor, *, xmin: float | None = None, n_tests: int = 0, min_tail: int = 10, seed: int = 0
) -> PowerLawFit:
    """Maximum-likelihood power law of the upper tail, with a goodness-of-fit test (Clauset, Shalizi & Newman, 2009).

    Parameters
    ----------
    values : Tensor
        ``(n,)`` positive values; zeros are ignored.
    xmin : float, optional
        Start of the tail; by default the value that minimises the Kolmogorov-Smirnov distance.
    n_tests : int
        Synthetic samples for the p-value (100 give ±0.05); 0 skips the test.
    min_tail : int
        The fewest values a tail may have when ``xmin`` is searched; at least 2.

    Raises
    ------
    ValueError
        Fewer than ``min_tail`` positive values, or fewer than 2 from ``xmin`` on.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import power_law_fit
    >>> u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    >>> power_law_fit((1 - u) ** -0.5, xmin=1.0, n_tests=20).p_value > 0.1
    True
    >>> power_law_fit(1 + u, xmin=1.0, n_tests=20).p_value  # uniform: no power law
    0.0
    """
    if min_tail < 2:
        raise ValueError(f"min_tail={min_tail}; a tail needs at least 2 values")
    x = _nonnegative(values).flatten().cpu().sort().values  # thousands of small steps
    x = x[x > 0]
    if len(x) < min_tail:
        raise ValueError(f"a power-law fit needs at least {min_tail} positive values, got {len(x)}")
    if xmin is not None and (above := int((x >= xmin).sum())) < 2:
        raise ValueError(f"xmin={xmin} leaves {above} of {len(x)} values for the tail; at least 2 are needed")
    alpha, start, distance = _fit_tail(x, xmin, min_tail)
    tail = x[x >= start]
    p_value = math.nan
    if n_tests:
        generator = torch.Generator().manual_seed(seed)
        body, share = x[x < start], len(tail) / len(x)
        worse = 0
        for _ in range(n_tests):
            sample = _synthetic(body, share, alpha, start, len(x), generator)
            worse += _fit_tail(sample, xmin, min_tail)[2] >= distance
        p_value = worse / n_tests
    return PowerLawFit(alpha, start, distance, len(tail), p_value)


def outlier_ratio(weights: Tensor, *, threshold: float = 5.0) -> Tensor:
    """Share of entries of each matrix ``(..., m, n)`` larger in size than ``threshold`` times the mean size.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import outlier_ratio
    >>> W = torch.ones(10, 10)
    >>> W[0, 0] = 100
    >>> float(outlier_ratio(W))
    0.01
    """
    magnitude = finite(weights, "outlier_ratio").abs()
    mean = magnitude.mean((-2, -1), keepdim=True)
    return (magnitude > threshold * mean).double().mean((-2, -1))


def _relative(values: Tensor) -> Tensor:
    """The values over their largest: no scale is too small or too large to square."""
    values = _nonnegative(values)
    top = values.amax(-1, keepdim=True)
    return values / torch.where(top > 0, top, 1.0)


def _nonnegative(values: Tensor) -> Tensor:
    if values.is_complex():
        raise ValueError(f"a spectrum is real, got {values.dtype}")
    values = values.double()
    if values.numel() == 0:
        raise ValueError("an empty spectrum has no rank")
    if not (torch.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("a spectrum must be finite and non-negative")
    return values


def _fit_tail(x: Tensor, xmin: float | None, min_tail: int) -> tuple[float, float, float]:
    """Exponent, start and Kolmogorov-Smirnov distance of the best tail of sorted ``x``."""
    logs, n = x.log(), len(x)
    if xmin is not None:
        starts = torch.tensor([int((x < xmin).sum())])
    else:
        starts = torch.arange(0, max(n - min_tail, 0) + 1)
        starts = starts[torch.cat([torch.tensor([True]), x[starts][1:] != x[starts][:-1]])]
    counts = (n - starts).double()
    suffix = torch.cat([logs.flip(0).cumsum(0).flip(0), logs.new_zeros(1)])
    spread = suffix[starts] - counts * logs[starts.clamp(max=n - 1)]
    alphas = 1 + counts / spread.clamp(min=1e-12)
    best = (math.inf, math.nan, math.nan)  # what a synthetic sample without a tail gets: it fits worse
    for start, alpha in zip(starts.tolist(), alphas.tolist(), strict=True):
        tail = x[start:]
        if len(tail) < 2:
            continue
        model = 1 - (tail / tail[0]).pow(1 - alpha)
        steps = torch.arange(len(tail) + 1, dtype=x.dtype) / len(tail)
        distance = float(torch.maximum((model - steps[:-1]).abs(), (model - steps[1:]).abs()).max())
        best = min(best, (distance, alpha, float(tail[0])))
    distance, alpha, start_value = best
    return alpha, start_value, distance


def _synthetic(body: Tensor, share: float, alpha: float, xmin: float, n: int, generator: torch.Generator) -> Tensor:
    """A sample of the fitted model: the tail from the power law, the body resampled from the data."""
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    in_tail = torch.rand(n, generator=generator) < share if len(body) else torch.ones(n, dtype=torch.bool)
    sample = xmin * (1 - uniform).pow(-1 / (alpha - 1))
    if len(body):
        picks = torch.randint(len(body), (n,), generator=generator)
        sample = torch.where(in_tail, sample, body[picks])
    return sample.sort().values
