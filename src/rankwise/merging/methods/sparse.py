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
threshold all of them stay. An expert of density 0 adds nothing.

What people get wrong: seeds. A seed that another is added or shifted to meets the next expert's, or loses its upper
half in a generator that reads 32 bits; here the stream's key is a hash of seed, tensor, expert and block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.merging.methods.entries import (
    Sparsify,
    as_rows,
    blocks,
    delta,
    fuse,
    keep_at_least,
    magnitude_at,
)
from rankwise.merging.registry import Parameter, density, lambda_, register, rescale, switch, weights

__all__ = ["ties"]


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
    """Keep the largest entries, elect a sign, average what agrees.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import ties
    >>> experts = [torch.tensor([4.0, 0.1, 2.0]), torch.tensor([2.0, 0.2, -1.0])]
    >>> merged = ties(torch.zeros(3), experts, dtype=torch.float32, weight=[1.0, 1.0], density=[0.67, 0.67])
    >>> merged.tolist()  # the small ones go, and the sign of the larger sum wins
    [3.0, 0.0, 2.0]
    """
    return _thinned(
        [largest(base, e, d) for e, d in zip(experts, density, strict=True)], base, experts,
        dtype=dtype, weight=weight, scale=scale, normalize=normalize, rescale=rescale, election=election,
    )  # fmt: skip


def dare(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    density: Sequence[float],
    rescale: str = "expectation",
    seed: object = 0,
    **fusing: Any,
) -> Tensor:
    """Keep entries at random, scaled up; sign election where ``election`` is given."""
    thin = [dropped(d, rescale, (seed, i)) for i, d in enumerate(density)]
    return _thinned(thin, base, experts, dtype=dtype, weight=weight, rescale=rescale, **fusing)


def della(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: str = "expectation",
    seed: object = 0,
    **fusing: Any,
) -> Tensor:
    """Keep entries at random, large ones rather than small ones, scaled up; sign election as for `dare`."""
    pairs = zip(density, epsilon, strict=True)
    thin = [dropped_by_rank(d, eps, rescale, (seed, i)) for i, (d, eps) in enumerate(pairs)]
    return _thinned(thin, base, experts, dtype=dtype, weight=weight, rescale=rescale, **fusing)


def breadcrumbs(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    **fusing: Any,
) -> Tensor:
    """Drop the largest entries, then the smallest; sign election as for `dare`."""
    thin = [middle(base, e, d, g) for e, d, g in zip(experts, density, gamma, strict=True)]
    return _thinned(thin, base, experts, dtype=dtype, weight=weight, **fusing)


def _thinned(
    thin: Sequence[Sparsify | None],
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
    rescale: str = "none",
    election: str | None = None,
) -> Tensor:
    if rescale == "l1":
        thin = [_rescaled(t, base, e) for t, e in zip(thin, experts, strict=True)]
    return fuse(base, experts, weight, thin, dtype=dtype, elect=election, normalize=normalize, scale=scale)


_PLAIN = weights() | lambda_()
_ELECT = _PLAIN | {"election": Parameter(default="sum", choices=("sum", "count"))}


def _probabilities(options: Mapping[str, Any]) -> None:
    """DELLA's are to stay inside (0, 1)."""
    for share, epsilon in zip(options["density"], options["epsilon"], strict=True):
        if 0 < share < 1 and (share - epsilon <= 0 or share + epsilon >= 1):
            raise ValueError(f"density={share} ± epsilon={epsilon} leaves (0, 1); choose a smaller epsilon")


_GAMMA = {"gamma": Parameter(default=0.01, per_model=True, low=0.0, high=1.0)}
_EPSILON = {"epsilon": Parameter(default=0.15, per_model=True, low=0.0, high=1.0)}
_DARE = density(0.2) | rescale("expectation", "l1", "none") | switch("normalize", False)
_DELLA = density(0.5) | _EPSILON | rescale("expectation", "l1", "none")
_CRUMBS = density(0.9) | _GAMMA | rescale("none", "l1") | switch("normalize", False)

for _name, _title, _paper, _function, _parameters in (
    ("ties", "TIES", "2306.01708", ties, _ELECT | density(0.2) | rescale("none", "l1") | switch("normalize", True)),
    ("dare_linear", "DARE", "2311.03099", dare, _PLAIN | _DARE),
    ("dare_ties", "DARE, sign election", "2311.03099", dare, _ELECT | _DARE),
    ("della_linear", "DELLA", "2406.11617", della, _PLAIN | _DELLA | switch("normalize", False)),
    ("della", "DELLA, sign election", "2406.11617", della, _ELECT | _DELLA | switch("normalize", True)),
    ("breadcrumbs", "Breadcrumbs", "2312.06795", breadcrumbs, _PLAIN | _CRUMBS),
    ("breadcrumbs_ties", "Breadcrumbs, sign election", "2312.06795", breadcrumbs, _ELECT | _CRUMBS),
):
    register(
        _name, title=_title, paper=f"arXiv {_paper}", parameters=_parameters, seeded=_function in (dare, della),
        check=_probabilities if _function is della else None,
    )(_function)  # fmt: skip


def largest(base: Tensor, expert: Tensor, density: float) -> Sparsify | None:
    """Keep the ``⌊density · n⌋`` (at least one, but of density 0) largest |τ|."""
    if density >= 1 or base.numel() == 0:
        return None
    if density == 0:
        return _nothing
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
        return _nothing
    floor = keep_at_least(magnitude_at(base, expert, top + keep))
    if top == 0:
        return floor
    ceiling = keep_at_least(magnitude_at(base, expert, top))
    return lambda tau, part: floor(tau, part) - ceiling(tau, part)


def _nothing(tau: Tensor, part: slice) -> Tensor:
    return tau.zero_()


def dropped(density: float, rescale: str, seed: tuple[object, ...]) -> Sparsify | None:
    """Keep each entry with probability ``density``."""
    if density >= 1:
        return None
    if density == 0:
        return _nothing
    up = 1 / density if rescale == "expectation" else 1.0

    def thin(tau: Tensor, part: slice) -> Tensor:
        return tau.mul_(_draw(tau, density, seed, part)).mul_(up)

    return thin


def dropped_by_rank(density: float, epsilon: float, rescale: str, seed: tuple[object, ...]) -> Sparsify | None:
    """Keep an entry with a probability that rises linearly with the rank of its |τ| in its row."""
    if density >= 1:
        return None
    if density == 0:
        return _nothing

    def thin(tau: Tensor, part: slice) -> Tensor:
        low, high = (density - epsilon, density + epsilon) if tau.shape[1] > 1 else (density, density)
        steps = torch.linspace(low, high, tau.shape[1])
        p = torch.empty_like(tau)
        p.scatter_(1, tau.abs().argsort(1), steps.to(tau).expand_as(tau))
        tau.mul_(_draw(tau, p, seed, part))
        return tau.div_(p) if rescale == "expectation" else tau

    return thin


def _draw(tau: Tensor, p: float | Tensor, seed: tuple[object, ...], part: slice) -> Tensor:
    """A 0/1 mask; each block draws from its own stream, so that passes over the blocks agree."""
    key = hashlib.blake2b(repr((*seed, part.start)).encode(), digest_size=16).digest()
    stream = np.random.default_rng(int.from_bytes(key, "little"))
    drawn = torch.from_numpy(stream.random(tuple(tau.shape), dtype=np.float32))
    return (drawn.to(tau.device) < p).to(tau.dtype)


def _rescaled(thin: Sparsify | None, base: Tensor, expert: Tensor) -> Sparsify | None:
    """What stays, times ``‖τ‖₁ / ‖what stays‖₁`` over the whole tensor."""
    if thin is None:
        return None
    b, x = as_rows(base), as_rows(expert)
    whole = left = 0.0
    for part in blocks(*b.shape):
        tau = delta(b, x, part)
        whole += float(tau.abs().sum())
        left += float(thin(tau, part).abs().sum())
    if whole < 1e-7 or left < 1e-7:
        return thin
    return lambda tau, part: thin(tau, part).mul_(whole / left)
