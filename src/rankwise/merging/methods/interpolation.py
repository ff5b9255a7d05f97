"""Two models along an arc, and one model as it is.

    slerp         θ = sin((1 - t) φ) / sin φ · θ₀ + sin(t φ) / sin φ · θ₁,   cos φ = ⟨θ₀, θ₁⟩ / (‖θ₀‖ ‖θ₁‖)
    passthrough   θ = θ₁,  or  scale · θ₁

``slerp`` takes the angle of a whole tensor; nearly parallel weights (a cosine beyond ±0.9995) are interpolated on the
straight line, where the arc's formula is 0 / 0. ``passthrough`` is for stacking layers of several models by ``slices``;
a ``scale`` of 0 on the matrices that a layer writes by leaves that layer without effect.

Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; conventions of mergekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, sin

import torch
from torch import Tensor

from rankwise.merging.methods.entries import as_rows, blocks, weighted_sum, widened
from rankwise.merging.registry import Parameter, register

__all__ = ["passthrough", "slerp"]

_STRAIGHT = 0.9995
_ZERO = 1e-8  # a norm below it is that of no direction


@register("slerp", title="SLERP", paper="Shoemake 1985", parameters={"t": Parameter(default=None)}, most=1)
def slerp(base: Tensor, experts: Sequence[Tensor], *, dtype: torch.dtype, t: float) -> Tensor:
    """From the base (``t = 0``) to the expert (``t = 1``) at constant angular speed.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import slerp
    >>> middle = slerp(torch.tensor([1.0, 0.0]), [torch.tensor([0.0, 1.0])], dtype=torch.float32, t=0.5)
    >>> torch.allclose(middle, torch.full((2,), 0.5**0.5))  # on the circle
    True
    """
    (expert,) = experts
    cosine = _cosine(base, expert)
    if abs(cosine) > _STRAIGHT:
        return weighted_sum([base, expert], [1 - t, t], dtype=dtype)
    angle = acos(cosine)
    return weighted_sum([base, expert], [sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)], dtype=dtype)


@register(
    "passthrough", title="Passthrough", paper="mergekit", needs_base=False, most=1,
    parameters={"scale": Parameter(default=1.0, per_model=True)},
)  # fmt: skip
def passthrough(
    base: Tensor | None, experts: Sequence[Tensor], *, dtype: torch.dtype, scale: Sequence[float]
) -> Tensor:
    """The only model's tensor, times ``scale``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import passthrough
    >>> passthrough(None, [torch.tensor([1.0, 2.0])], dtype=torch.float32, scale=[0.5]).tolist()
    [0.5, 1.0]
    """
    (expert,) = experts
    if scale[0] != 1 or expert.dtype != dtype:
        return weighted_sum([expert], scale, dtype=dtype)
    for part in blocks(*as_rows(expert).shape):
        widened(as_rows(expert), part)  # finite
    return expert


def _cosine(one: Tensor, other: Tensor) -> float:
    a, b = as_rows(one), as_rows(other)
    products = torch.zeros(3, dtype=torch.float64)
    for part in blocks(*a.shape):
        x, y = widened(a, part), widened(b, part)
        products += torch.stack([(x * x).sum(), (y * y).sum(), (x * y).sum()]).cpu()
    x, y = (float(p) ** 0.5 if float(p) ** 0.5 > _ZERO else 1.0 for p in products[:2])
    return max(-1.0, min(1.0, float(products[2]) / (x * y)))
