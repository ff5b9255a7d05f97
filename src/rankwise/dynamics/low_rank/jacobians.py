"""How many directions a denoiser keeps at a point: the numerical rank of its Jacobian.

    rank = min{r : √(Σ_{i≤r} s_i²) > energy · √(Σ_i s_i²)},   s: singular values of J = ∂x̂/∂x

At the denoiser of a mixture of low-rank Gaussians J has the rank of the subspaces that are active there. J of n rows
and columns is not built: k products Jω span nearly its leading range, with basis Q; k products Jᵀq give QᵀJ, and with
it the leading s_i. The share of an energy needs the whole of it too: what Q holds is known exactly, so that only the
rest, ‖(I - QQᵀ)J‖_F², is estimated (Hutchinson), where even a large error matters little. k doubles until the rank is
decided or J is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rankwise.spectral import singular_values, truncated_svd

__all__ = ["intrinsic_dimension", "leading_directions"]

EXACT = 96  # inputs up to which all of J is taken at once
PROBES = 8  # of what the basis leaves
OVER = 8  # directions beyond those that are asked for


def intrinsic_dimension(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    sigma: float | Tensor,
    *,
    energy: float = 0.99,
    start: int = 16,
    seed: int = 0,
    **condition: Any,
) -> Tensor:
    """Directions of the input that a denoiser keeps at noisy points.

    Parameters
    ----------
    denoiser : callable
        ``denoiser(x, sigma, **condition)`` of a batch; its outputs have the shape of x, and rows do not depend on each
        other. A module is best in ``eval`` mode.
    x : Tensor
        ``(B, …)``, the noisy points.
    sigma : float or Tensor
        Their noise, as the denoiser takes it: a number, or ``(B,)``.
    energy : float
        Share of ``√Σs²``, between 0 and 1; at 0.99, 98.01% of the squares.
    start : int
        Directions of the first try.
    seed : int
        Of the directions.
    **condition :
        Further arguments of the denoiser, such as labels ``(B,)``; tensors of B rows are taken by row.

    Returns
    -------
    Tensor
        ``(B,)``, int64; 0 where the Jacobian is zero.

    Raises
    ------
    ValueError
        No points, an energy outside (0, 1), outputs of another shape, NaN in a Jacobian.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import intrinsic_dimension
    >>> scaling = torch.tensor([1.0, 0.1, 0.01])
    >>> intrinsic_dimension(lambda x, sigma: scaling * x, torch.randn(2, 3), 0.5)
    tensor([1, 1])
    """
    if not 0 < energy < 1:
        raise ValueError(f"energy={energy}: a share between 0 and 1 is accepted")
    if start < 1:
        raise ValueError(f"start={start}: at least 1 direction is needed")
    generator = torch.Generator().manual_seed(int(seed))
    return torch.tensor([_rank(J, energy, start, generator) for J in _jacobians(denoiser, x, sigma, condition)])


def leading_directions(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    sigma: float | Tensor,
    *,
    k: int = 1,
    passes: int = 4,
    seed: int = 0,
    **condition: Any,
) -> tuple[Tensor, Tensor]:
    """Directions of the input that a denoiser keeps most: edits along them stay in what it has learned.

    The leading singular values and right singular vectors of the Jacobian, ``x + α v`` is the edited point. The paper
    edits at seven tenths of the noise's time.

    Parameters
    ----------
    denoiser, x, sigma, **condition
        As of `intrinsic_dimension`.
    k : int
        How many directions, at most the entries of a point.
    passes : int
        Over the Jacobian, to and fro, of a subspace iteration; more are needed where singular values are close.
    seed : int
        Of the first directions.

    Returns
    -------
    values : Tensor
        ``(B, k)``, the largest first.
    directions : Tensor
        ``(B, k, …)``, of the shape of a point each, orthonormal; the sign is free, and taken so that the largest entry
        is positive.

    Raises
    ------
    ValueError
        As of `intrinsic_dimension`; k or passes out of range.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import leading_directions
    >>> scaling = torch.tensor([0.1, 1.0, 0.01])
    >>> values, directions = leading_directions(lambda x, sigma: scaling * x, torch.zeros(1, 3), 0.5)
    >>> values.round(decimals=4).tolist(), directions.round(decimals=4).abs().tolist()
    ([[1.0]], [[[0.0, 1.0, 0.0]]])
    """
    generator = torch.Generator().manual_seed(int(seed))
    jacobians = _jacobians(denoiser, x, sigma, condition)
    n = jacobians[0].n
    if not (isinstance(k, int) and isinstance(passes, int)) or not 1 <= k <= n or passes < 1:
        raise ValueError(f"k={k}, passes={passes}: whole numbers, 1 to the {n} entries of a point, and at least 1 pass")
    found = [_leading(J, k, passes, generator) for J in jacobians]
    return torch.stack([S for S, _ in found]), torch.stack([V for _, V in found]).unflatten(-1, x.shape[1:])


def _jacobians(
    denoiser: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, condition: dict[str, Any]
) -> list[_Jacobian]:
    """At every point."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"points are {x.dtype if hasattr(x, 'dtype') else type(x).__name__}: a tensor of floats is needed"
        )
    if isinstance(sigma, Tensor) and sigma.dim() and len(sigma) != len(x):
        raise ValueError(f"sigma has {len(sigma)} entries for {len(x)} points: one number, or one a point, is needed")
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"points of shape {tuple(x.shape)}: a batch (B, …) with entries is accepted; give x[None]")
    found = []
    for b in range(len(x)):
        level = sigma[b] if isinstance(sigma, Tensor) and sigma.dim() else sigma
        told = {
            k: v[b : b + 1] if isinstance(v, Tensor) and v.shape[:1] == x.shape[:1] else v for k, v in condition.items()
        }
        found.append(_Jacobian(denoiser, x[b], level, told))
    return found


class _Jacobian:
    """Products with J at one point, many at once: the point stands in a batch, each copy has a direction."""

    def __init__(self, denoiser: Callable[..., Tensor], x: Tensor, sigma: Any, condition: dict[str, Any]) -> None:
        self.x, self.n = x.detach(), x.numel()
        self.denoiser, self.sigma, self.condition = denoiser, sigma, condition

    def _call(self, x: Tensor) -> Tensor:
        def rows(v: Any) -> Any:
            return v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) and v.dim() and len(v) == 1 else v

        sigma = self.sigma.expand(len(x)) if isinstance(self.sigma, Tensor) else self.sigma
        out = self.denoiser(x, sigma, **{k: rows(v) for k, v in self.condition.items()})
        if out.shape != x.shape:
            raise ValueError(f"the denoiser makes {tuple(out.shape)} of {tuple(x.shape)}: equal shapes are needed")
        return out

    def forward(self, directions: Tensor) -> Tensor:
        """``(k, n)`` → the rows ``J ω``."""
        points = self.x.expand(len(directions), *self.x.shape).contiguous()
        out = torch.func.jvp(self._call, (points,), (directions.view_as(points),))[1]
        return out.detach().reshape(len(directions), -1)

    def backward(self, directions: Tensor) -> Tensor:
        """``(k, n)`` → the rows ``Jᵀ q``."""
        points = self.x.expand(len(directions), *self.x.shape).clone().requires_grad_()
        with torch.enable_grad():
            (out,) = torch.autograd.grad(self._call(points), points, directions.view_as(points))
        return out.reshape(len(directions), -1)


def _rank(J: _Jacobian, energy: float, start: int, generator: torch.Generator) -> int:
    def drawn(k: int) -> Tensor:
        return torch.randn(k, J.n, generator=generator).to(J.x)

    k = start
    while 2 * k < J.n and J.n > EXACT:
        images = J.forward(drawn(k))
        Q = torch.linalg.qr(_finite(images).mT).Q
        S = singular_values(J.backward(Q.mT.contiguous()))
        probes = J.forward(drawn(PROBES))
        rest = float((probes - (probes @ Q) @ Q.mT).square().sum()) / PROBES
        held = S.square().cumsum(0)
        if rest <= (1 - energy**2) * (float(held[-1]) + rest) / 2:  # else the rank lies near k, or beyond
            return _first(held, energy**2 * (float(held[-1]) + rest))
        k *= 2
    S = singular_values(_finite(J.forward(torch.eye(J.n).to(J.x))))
    held = S.square().cumsum(0)
    return _first(held, energy**2 * float(held[-1]))


def _leading(J: _Jacobian, k: int, passes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Singular values ``(k,)`` and right singular vectors ``(k, n)``, by iteration over a slightly wider subspace."""
    width = min(J.n, k + OVER)
    Z = torch.eye(J.n).to(J.x) if width == J.n else torch.randn(width, J.n, generator=generator).to(J.x)
    S = Z.new_zeros(0)
    for _ in range(passes):
        Q = torch.linalg.qr(_finite(J.forward(Z)).mT).Q
        S, Z = truncated_svd(J.backward(Q.mT.contiguous()), width, method="full")[1:3]  # QᵀJ has J's right vectors
    S, V = S[:k], Z[:k]
    top = V.gather(1, V.abs().argmax(1, keepdim=True))
    return S, V * torch.where(top < 0, -1.0, 1.0).to(V)


def _first(held: Tensor, wanted: float) -> int:
    """How many squares it takes to exceed ``wanted``."""
    return int((held <= wanted).sum()) + 1 if float(held[-1]) > 0 else 0


def _finite(images: Tensor) -> Tensor:
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the denoiser's Jacobian has NaN or Inf entries")
    return images
