"""Entries that several experts stand behind: consensus merging, and parameter competition balancing (PCB).

    consensus   m_t = 1[|τ_t| ≥ κ_t |τ_MTL - τ_t|],  τ_MTL = Σ τ_t;    θ = θ₀ + λ τ_MTL ∘ 1[Σ m_t ≥ 2]
    PCB         β_t = β_intra,t ∘ β_inter,t,  thinned to its largest share;   θ = θ₀ + λ Σ β_t ∘ τ_t / Σ β_t
                β_intra,t = softmax(T · N(τ_t²)),   β_inter,t = Σ_j softmax(N(τ_t τ_j)),   N(x) = x / max |x|

Softmaxes run over the entries of a tensor; both are kept relative to their mean, so that nothing underflows.

Sources: Wang et al., "Localizing task information for improved model merging" (TALL masks, consensus), arXiv
2405.07813; Du et al., "Parameter competition balancing for model merging", arXiv 2410.02396.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.merging.methods.entries import as_rows, blocks, delta
from rankwise.merging.registry import Parameter, lambda_, register, weights
from rankwise.merging.registry import density as density_

__all__ = ["consensus", "pcb"]


@register(
    "consensus", title="Consensus (TALL masks)", paper="arXiv 2405.07813",
    parameters=weights() | lambda_() | {"kappa": Parameter(default=0.4, per_model=True, low=0.0)},
    least=2,
)  # fmt: skip
def consensus(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    kappa: Sequence[float],
    scale: float = 1.0,
) -> Tensor:
    """Keep of the summed task vectors what at least two experts claim.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import consensus
    >>> experts = [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])]  # the second entry is one expert's alone
    >>> consensus(torch.zeros(2), experts, dtype=torch.float32, weight=[1.0, 1.0], kappa=[0.4, 0.4]).tolist()
    [2.0, 0.0]
    """
    out = torch.empty(base.shape, dtype=dtype, device=base.device)
    b, flat, into = as_rows(base), [as_rows(e) for e in experts], as_rows(out)
    for part in blocks(*into.shape):
        taus = [delta(b, x, part).mul_(w) for x, w in zip(flat, weight, strict=True)]
        total = sum(taus[1:], start=taus[0].clone())
        claims = torch.zeros_like(total)
        for tau, k in zip(taus, kappa, strict=True):
            claims += tau.abs() >= k * (total - tau).abs()
        into[part] = total.mul_(claims >= 2).mul_(scale).add_(b[part].float())
    return out


@register("pcb", title="PCB", paper="arXiv 2410.02396", parameters=weights() | lambda_() | density_(0.2), whole=True)
def pcb(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    weight: Sequence[float],
    density: Sequence[float],
    scale: float = 1.0,
) -> Tensor:
    """Weigh every entry by how it does within its task and across tasks; drop the losers, average the rest.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import pcb
    >>> experts = [torch.tensor([3.0, 0.1]), torch.tensor([3.0, -0.1])]
    >>> pcb(torch.zeros(2), experts, dtype=torch.float32, weight=[1.0, 1.0], density=[0.5, 0.5]).tolist()
    [3.0, 0.0]
    """
    taus = [w * delta(as_rows(base), as_rows(e), slice(None)) for e, w in zip(experts, weight, strict=True)]
    merged, total = torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for tau, share in zip(taus, density, strict=True):
        if share == 0:
            continue
        beta = balance(tau, taus)
        keep = max(1, int(share * beta.numel()))
        if keep < beta.numel():
            beta = beta * (beta >= beta.flatten().kthvalue(beta.numel() - keep + 1).values)
        merged.addcmul_(beta, tau)
        total.add_(beta)
    merged.div_(total.add_(total.eq(0)))
    return merged.mul_(scale).add_(as_rows(base).float()).reshape(base.shape).to(dtype)


def balance(tau: Tensor, taus: Sequence[Tensor]) -> Tensor:
    """``β_intra ∘ β_inter`` of one task vector among all, relative to their means."""
    inter = sum(_softmax(_unit(tau * other)) for other in taus)
    return _softmax(len(taus) * _unit(tau.square())) * inter


def _unit(x: Tensor) -> Tensor:
    largest = x.abs().max() if x.numel() else x.sum()
    return x / largest if largest > 0 else x


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.flatten(), 0).reshape(x.shape) * x.numel()
