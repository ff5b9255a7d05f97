"""Averages of models and sums of task vectors.

    linear            θ = Σ w_t θ_t / Σ w_t                    (a weight average; a rewarded soup)
    task arithmetic   θ = θ₀ + λ Σ w_t τ_t
    model stock       θ = r mean θ_t + (1 - r) θ₀,   r = T c / (1 + (T - 1) c),   c = mean pairwise cosine of the τ_t

Sources: Wortsman et al., "Model soups", arXiv 2203.05482; Ramé et al., "Rewarded soups", arXiv 2306.04488; Ilharco et
al., "Editing models with task arithmetic", arXiv 2212.04089; Jang et al., "Model Stock", arXiv 2403.19522.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from rankwise.merging.low_rank import LowRank
from rankwise.merging.methods.entries import as_rows, blocks, delta, fuse, weighted_sum
from rankwise.merging.registry import lambda_, register, switch, weights

__all__ = ["linear", "model_stock", "rewarded_soup", "task_arithmetic"]


def _some_weight(options: Mapping[str, Any]) -> None:
    if options["normalize"] and sum(options["weight"]) == 0:
        raise ValueError(f"weights {options['weight']} sum to zero: normalize must be false")


@register(
    "linear", title="Weight average", paper="arXiv 2203.05482", parameters=weights() | switch("normalize", True),
    needs_base=False, check=_some_weight,
)  # fmt: skip
def linear(
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    normalize: bool = True,
) -> Tensor:
    """``Σ w_t θ_t``, divided by ``Σ w_t`` if ``normalize``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import linear
    >>> linear(None, [torch.zeros(2), torch.ones(2)], dtype=torch.float32, weight=[1.0, 3.0]).tolist()
    [0.75, 0.75]
    """
    total = sum(weight) if normalize else 1.0
    return weighted_sum(experts, [w / total for w in weight], dtype=dtype)


@register(
    "task_arithmetic", title="Task arithmetic", paper="arXiv 2212.04089", low_rank=True,
    parameters=weights() | lambda_() | switch("normalize", False),
)  # fmt: skip
def task_arithmetic(
    base: Tensor,
    experts: Sequence[Tensor | LowRank],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """``θ₀ + λ Σ w_t τ_t``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import task_arithmetic
    >>> experts = [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])]
    >>> task_arithmetic(torch.ones(2), experts, dtype=torch.float32, weight=[1.0, 1.0], scale=0.5).tolist()
    [1.5, 2.0]
    """
    total = sum(weight) if normalize and abs(sum(weight)) > 1e-8 else 1.0
    factors = [scale * w / total for w in weight]
    whole = [e for e in experts if not isinstance(e, LowRank)]
    if len(whole) == len(experts):
        return fuse(base, whole, factors, [None] * len(whole), dtype=dtype)
    out = base.to(torch.float32, copy=True)
    for e, w in zip(experts, factors, strict=True):
        if isinstance(e, LowRank):
            as_rows(out).addmm_(e.B.float(), e.A.float(), alpha=w * e.scale)
        else:
            out.add_(e.float() - base.float(), alpha=w)
    return out.to(dtype)


@register(
    "model_stock", title="Model Stock", paper="arXiv 2403.19522", least=2, parameters=switch("filter_wise", False)
)
def model_stock(base: Tensor, experts: Sequence[Tensor], *, dtype: torch.dtype, filter_wise: bool = False) -> Tensor:
    """The point nearest to the base in the plane of the experts; ``filter_wise`` takes the cosine row by row.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import model_stock
    >>> experts = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]  # at a right angle
    >>> model_stock(torch.zeros(1, 2), experts, dtype=torch.float32).tolist()  # the base stays
    [[0.0, 0.0]]
    """
    T, rows = len(experts), as_rows(base).shape[0]
    norms, dots = _products(base, experts)
    if not filter_wise:
        norms = [n.sum().expand(rows) for n in norms]
        dots = [d.sum().expand(rows) for d in dots]
    cosines = [
        (d / (norms[i] * norms[j]).sqrt().clamp(min=1e-6)).clamp(-1, 1)
        for (i, j), d in zip(combinations(range(T), 2), dots, strict=True)
    ]
    c = torch.stack(cosines).mean(0)
    denominator = 1 + (T - 1) * c
    # where opposing task vectors leave no direction, the base stays
    r = torch.where(denominator.abs() < 1e-6, 0.0, T * c / denominator.where(denominator.abs() >= 1e-6, 1.0)).float()
    out = torch.empty(base.shape, dtype=dtype, device=base.device)
    b, flat, into = as_rows(base), [as_rows(e) for e in experts], as_rows(out)
    for part in blocks(*into.shape):
        mean = sum((delta(b, x, part) for x in flat[1:]), start=delta(b, flat[0], part)).div_(T)
        into[part] = mean.mul_(r[part, None]).add_(b[part].float())
    return out


def _products(base: Tensor, experts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Row by row, float64: ``‖τ_t‖²`` of each, and ``⟨τ_i, τ_j⟩`` of each pair."""
    b, flat = as_rows(base), [as_rows(e) for e in experts]
    norms = [torch.empty(len(b), dtype=torch.float64, device=b.device) for _ in experts]
    dots = [torch.empty_like(norms[0]) for _ in combinations(experts, 2)]
    for part in blocks(*b.shape):
        taus = [delta(b, x, part) for x in flat]
        for into, tau in zip(norms, taus, strict=True):
            into[part] = tau.square().sum(1).double()
        for into, (u, v) in zip(dots, combinations(taus, 2), strict=True):
            into[part] = (u * v).sum(1).double()
    return norms, dots


def simplex(models: int, parts: int) -> Iterator[tuple[float, ...]]:
    """All weights ``w ≥ 0, Σ w = 1`` on a grid of step ``1 / parts``."""
    if models == 1:
        yield (1.0,)
        return
    for bars in combinations(range(parts + models - 1), models - 1):
        edges = [-1, *bars, parts + models - 1]
        yield tuple((b - a - 1) / parts for a, b in pairwise(edges))


def rewarded_soup(
    score: Callable[[tuple[float, ...]], float], models: int, *, parts: int = 4
) -> tuple[tuple[float, ...], float]:
    """The simplex weights of the best score, by looking at a whole grid.

    Parameters
    ----------
    score : callable
        Weights to a number, higher is better: usually a merge with ``linear`` and an evaluation.
    models : int
        How many models there are to weigh.
    parts : int
        The grid's step is ``1 / parts``; it has ``C(parts + models - 1, models - 1)`` points.

    Returns
    -------
    (tuple of float, float)
        The weights and their score; the first of equals.

    Examples
    --------
    >>> from rankwise.merging import rewarded_soup
    >>> weights, score = rewarded_soup(lambda w: -abs(w[0] - 0.7), models=2, parts=10)  # a merge and its evaluation
    >>> weights
    (0.7, 0.3)
    """
    found = [(w, score(w)) for w in simplex(models, parts)]
    return max(found, key=lambda pair: pair[1])
