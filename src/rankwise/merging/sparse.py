"""Task vectors thinned out, then added: TIES, DARE, DELLA, Breadcrumbs.

Each keeps a share ``density`` of a tensor's τ_t and zeroes the rest:

    TIES          the largest |τ|
    Breadcrumbs   the largest but for the share γ on top (outliers)
    DARE          at random, each entry with probability p = density; what stays is divided by p
    DELLA         at random, p from density - ε for a row's smallest |τ| to density + ε for its largest, linear in the
                  rank; what stays is divided by its own p

then ``θ = θ₀ + λ Σ w_t τ̂_t``, or, with *sign election*, ``θ = θ₀ + λ s Σ_agree w_t |τ̂_t| / Σ_agree w_t`` over the
experts whose sign is the elected ``s = sign Σ w_t τ̂_t`` (zero counts as plus), entry by entry.

Sources: Yadav et al., "TIES-Merging", arXiv 2306.01708; Yu et al., "Language models are super Mario" (DARE), arXiv
2311.03099; Deep et al., "DELLA-Merging", arXiv 2406.11617; Davari & Belilovsky, "Model Breadcrumbs", arXiv 2312.06795.

``rescale="l1"`` is mergekit's way: what stays is scaled to the l1 norm of the whole. Where several entries tie at the
threshold all of them stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rankwise.merging.entries import (
    Sparsify,
    as_rows,
    blocks,
    delta,
    fuse,
    keep_at_least,
    magnitude_at,
)
from rankwise.merging.registry import Parameter, density, lambda_, register, rescale, switch, weights

_ELECTION = {"election": Parameter(default="sum", choices=("sum", "count"))}
_GAMMA = {"gamma": Parameter(default=0.01, per_model=True, low=0.0, high=1.0)}
_EPSILON = {"epsilon": Parameter(default=0.15, per_model=True, low=0.0, high=1.0)}


@register(
    "ties", title="TIES", paper="arXiv 2306.01708",
    parameters=weights() | density(0.2) | lambda_() | switch("normalize", True) | rescale("none") | _ELECTION,
)  # fmt: skip
def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    density: Sequence[float],
    scale: float = 1.0,
    normalize: bool = True,
    rescale: str = "none",
    election: str = "sum",
) -> Tensor:
    """Keep the largest entries, elect a sign, average what agrees."""
    thin = [_rescaled(largest(base, e, d), base, e, rescale) for e, d in zip(experts, density, strict=True)]
    return fuse(base, experts, weight, thin, dtype=dtype, elect=election, normalize=normalize, scale=scale)


def _dare(elect: bool) -> Callable[..., Tensor]:
    def dare(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        dtype: torch.dtype,
        weight: Sequence[float],
        density: Sequence[float],
        scale: float = 1.0,
        normalize: bool = False,
        rescale: str = "expectation",
        election: str = "sum",
        seed: int = 0,
    ) -> Tensor:
        """Keep entries at random, scaled up."""
        thin = [
            _rescaled(dropped(d, rescale, seed + i), base, e, rescale)
            for i, (e, d) in enumerate(zip(experts, density, strict=True))
        ]
        way = election if elect else None
        return fuse(base, experts, weight, thin, dtype=dtype, elect=way, normalize=normalize, scale=scale)

    return dare


def _della(elect: bool) -> Callable[..., Tensor]:
    def della(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        dtype: torch.dtype,
        weight: Sequence[float],
        density: Sequence[float],
        epsilon: Sequence[float],
        scale: float = 1.0,
        normalize: bool = False,
        rescale: str = "expectation",
        election: str = "sum",
        seed: int = 0,
    ) -> Tensor:
        """Keep entries at random, large ones rather than small ones, scaled up."""
        thin = [
            _rescaled(dropped_by_rank(d, eps, rescale, seed + i), base, e, rescale)
            for i, (e, d, eps) in enumerate(zip(experts, density, epsilon, strict=True))
        ]
        way = election if elect else None
        return fuse(base, experts, weight, thin, dtype=dtype, elect=way, normalize=normalize, scale=scale)

    return della


def _breadcrumbs(elect: bool) -> Callable[..., Tensor]:
    def breadcrumbs(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        dtype: torch.dtype,
        weight: Sequence[float],
        density: Sequence[float],
        gamma: Sequence[float],
        scale: float = 1.0,
        normalize: bool = False,
        rescale: str = "none",
        election: str = "sum",
    ) -> Tensor:
        """Drop the largest entries, then the smallest."""
        thin = [
            _rescaled(middle(base, e, d, g), base, e, rescale) for e, d, g in zip(experts, density, gamma, strict=True)
        ]
        way = election if elect else None
        return fuse(base, experts, weight, thin, dtype=dtype, elect=way, normalize=normalize, scale=scale)

    return breadcrumbs


for _elect, _dare_name, _della_name, _crumbs_name in (
    (False, "dare_linear", "della_linear", "breadcrumbs"),
    (True, "dare_ties", "della", "breadcrumbs_ties"),
):
    _common = weights() | lambda_() | (_ELECTION if _elect else {})
    _signs = ", sign election" if _elect else ""
    register(
        _dare_name, title=f"DARE{_signs}", paper="arXiv 2311.03099", seeded=True,
        parameters=_common | switch("normalize", False) | density(0.2) | rescale("expectation"),
    )(_dare(_elect))  # fmt: skip
    register(
        _della_name, title=f"DELLA{_signs}", paper="arXiv 2406.11617", seeded=True,
        parameters=_common | switch("normalize", _elect) | density(0.5) | _EPSILON | rescale("expectation"),
    )(_della(_elect))  # fmt: skip
    register(
        _crumbs_name, title=f"Breadcrumbs{_signs}", paper="arXiv 2312.06795",
        parameters=_common | switch("normalize", False) | density(0.9) | _GAMMA | rescale("none"),
    )(_breadcrumbs(_elect))  # fmt: skip


def largest(base: Tensor, expert: Tensor, density: float) -> Sparsify | None:
    """Keep the ``⌊density · n⌋`` (at least one) largest |τ|."""
    if density >= 1 or base.numel() == 0:
        return None
    return keep_at_least(magnitude_at(base, expert, max(1, int(density * base.numel()))))


def middle(base: Tensor, expert: Tensor, density: float, gamma: float) -> Sparsify | None:
    """Drop the ``⌊γ n⌋`` largest |τ|, then the smallest until ``⌊density · n⌋`` are left; fewer outliers go where
    density asks for more than ``1 - γ``."""
    n = base.numel()
    if density >= 1 or n == 0:
        return None
    keep = int(density * n)
    top = min(int(gamma * n), n - keep)
    if keep == 0:
        return lambda tau, part: tau.zero_()
    floor = keep_at_least(magnitude_at(base, expert, top + keep))
    if top == 0:
        return floor
    ceiling = keep_at_least(magnitude_at(base, expert, top))
    return lambda tau, part: floor(tau, part) - ceiling(tau, part)


def dropped(density: float, rescale: str, seed: int) -> Sparsify | None:
    """Keep each entry with probability ``density``; blocks must come in order, each once."""
    if density >= 1:
        return None
    up = 1 / density if rescale == "expectation" else 1.0

    def thin(tau: Tensor, part: slice) -> Tensor:
        return tau.mul_(_draw(tau, density, seed, part)).mul_(up)

    return thin


def dropped_by_rank(density: float, epsilon: float, rescale: str, seed: int) -> Sparsify | None:
    """Keep an entry with a probability that rises linearly with the rank of its |τ| in its row.

    Raises
    ------
    ValueError
        ``density ± ε`` leaves (0, 1).
    """
    if density >= 1:
        return None
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise ValueError(f"density={density} ± epsilon={epsilon} leaves (0, 1); choose a smaller epsilon")

    def thin(tau: Tensor, part: slice) -> Tensor:
        columns = tau.shape[1]
        steps = (
            torch.linspace(density - epsilon, density + epsilon, columns) if columns > 1 else tau.new_tensor([density])
        )
        p = torch.empty_like(tau)
        p.scatter_(1, tau.abs().argsort(1), steps.to(tau).expand_as(tau))
        tau.mul_(_draw(tau, p, seed, part))
        return tau.div_(p) if rescale == "expectation" else tau

    return thin


def _draw(tau: Tensor, p: float | Tensor, seed: int, part: slice) -> Tensor:
    """A 0/1 mask; each block draws from its own stream, so that passes over the blocks agree."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + part.start) & 0x7FFF_FFFF_FFFF_FFFF)
    return (torch.rand(tau.shape, generator=generator).to(tau.device) < p).to(tau.dtype)


def _rescaled(thin: Sparsify | None, base: Tensor, expert: Tensor, rescale: str) -> Sparsify | None:
    """With ``l1``: what stays, times ``‖τ‖₁ / ‖what stays‖₁`` over the whole tensor."""
    if thin is None or rescale != "l1":
        return thin
    b, x = as_rows(base), as_rows(expert)
    whole = left = 0.0
    for part in blocks(*b.shape):
        tau = delta(b, x, part)
        whole += float(tau.abs().sum())
        left += float(thin(tau, part).abs().sum())
    if whole < 1e-7 or left < 1e-7:
        return thin
    return lambda tau, part: thin(tau, part).mul_(whole / left)
