r"""Two linear layers, where everything can be solved: how the rank of the start decides the kernel's alignment.

f(x) = w₂ᵀ W₁ x, inputs x ``(d,)`` whitened, target βᵀx, gradient flow on ½‖W₁ᵀw₂ - β‖² from a small start::

    Ẇ₁ = w₂ (β - W₁ᵀw₂)ᵀ      ẇ₂ = W₁ (β - W₁ᵀw₂)        W₁W₁ᵀ - w₂w₂ᵀ stays what it is
    Θ(x, x') = xᵀ (W₁ᵀW₁ + ‖w₂‖² I) x'                     and ends as  ‖β‖ xᵀ (β̂β̂ᵀ + I) x'

whatever the start was. With M = W₁ᵀW₁ / ‖W₁‖² and ρ = ‖w₂‖² / ‖W₁‖² at the start, for β of that direction, and as the
mean over all directions::

    KA   = (β̂ᵀMβ̂ + 1 + ρ (d + 1)) / (√(‖M‖² + 2ρ + ρ²d) · √(d + 3))
    E KA = (1/d  + 1 + ρ (d + 1)) / (√(1/PR  + 2ρ + ρ²d) · √(d + 3)),    PR = (Σσ²)² / Σσ⁴

So it is the participation ratio PR of the start that counts, not its rank; a start along β is as lazy as can be (ρ = 1,
W₁ ∝ uβ̂ᵀ: KA = 1); and where the readout starts as large as the first layer the effect is almost gone: state ρ.

What people get wrong: the formula is of gradient flow from a small start. Momentum, large steps and large starts
differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankwise.dynamics.rich_lazy.starts import effective_rank

__all__ = ["expected_kernel_alignment", "linear_flow"]


def expected_kernel_alignment(W1: Tensor, w2: Tensor, *, target: Tensor | None = None) -> float:
    """Kernel alignment between start and end of gradient flow, for two linear layers.

    Parameters
    ----------
    W1, w2 : Tensor
        The start, ``(hidden, d)`` and ``(hidden,)``; only the spectrum of W₁ and ρ = ‖w₂‖² / ‖W₁‖² matter.
    target : Tensor, optional
        ``(d,)``, the task's β; by default the mean over tasks of all directions.

    Raises
    ------
    ValueError
        Shapes that do not fit, W₁ or the target zero, NaN or Inf.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import expected_kernel_alignment, low_rank_init
    >>> W = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    >>> low, full = (expected_kernel_alignment(low_rank_init(W, r), torch.zeros(60)) for r in (1, 12))
    >>> round(low, 2), low < full
    (0.28, True)
    """
    if W1.dim() != 2 or w2.shape != W1.shape[:1]:
        raise ValueError(f"W1 {tuple(W1.shape)} and w2 {tuple(w2.shape)}: (hidden, d) and (hidden,) are needed")
    spread = 1 / float(effective_rank(W1))
    W1, w2, d = W1.double(), w2.double(), W1.shape[1]
    if not bool(torch.isfinite(w2).all()):
        raise ValueError("w2 has NaN or Inf entries")
    norm = float(W1.square().sum())
    rho, along = float(w2.square().sum()) / norm, 1 / d
    if target is not None:
        size = float(target.double().norm())
        if target.shape != (d,) or not 0 < size < math.inf:
            raise ValueError(f"the target of shape {tuple(target.shape)} is to be ({d},), finite and not zero")
        along = float((W1 @ target.double()).square().sum()) / (norm * size**2)
    return (along + 1 + rho * (d + 1)) / (math.sqrt(spread + 2 * rho + rho**2 * d) * math.sqrt(d + 3))


def linear_flow(
    W1: Tensor, w2: Tensor, target: Tensor, *, time: float = 60.0, step: float = 0.02
) -> tuple[Tensor, Tensor]:
    """W₁ and w₂ after gradient flow for that time: Runge-Kutta's fourth-order steps, in float64, batched.

    Parameters
    ----------
    W1, w2, target : Tensor
        ``(..., hidden, d)``, ``(..., hidden)`` and ``(..., d)``. From a start of scale s, a task of size 1 takes a time
        of about log(1 / s) to begin.
    time, step : float
        How long, and in steps of what length.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import linear_flow
    >>> W1, w2 = 1e-3 * torch.randn(8, 3), torch.zeros(8)
    >>> W1, w2 = linear_flow(W1, w2, torch.tensor([1.0, 0.0, 0.0]), time=40)
    >>> [round(v, 3) + 0.0 for v in (w2 @ W1).tolist()]
    [1.0, 0.0, 0.0]
    """
    if not (time > 0 and 0 < step <= time):
        raise ValueError(f"time={time}, step={step}: a time above 0, and steps of it, are needed")
    W, w, beta = W1.double(), w2.double(), target.double()

    def slope(W: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        left = beta - (w[..., None, :] @ W)[..., 0, :]
        return w[..., :, None] * left[..., None, :], (W @ left[..., None])[..., 0]

    steps = math.ceil(time / step)
    h = time / steps
    for _ in range(steps):
        a = slope(W, w)
        b = slope(W + h / 2 * a[0], w + h / 2 * a[1])
        c = slope(W + h / 2 * b[0], w + h / 2 * b[1])
        d = slope(W + h * c[0], w + h * c[1])
        W, w = (x + h / 6 * (p + 2 * q + 2 * r + s) for x, p, q, r, s in zip((W, w), a, b, c, d, strict=True))
    return W, w
