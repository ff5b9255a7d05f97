"""How many directions a denoiser keeps at a point: the numerical rank of its Jacobian.

    rank = min{r : √(Σ_{i≤r} s_i²) > energy · √(Σ_i s_i²)},   s: singular values of J = ∂x̂/∂x

At the denoiser of a mixture of low-rank Gaussians J has the rank of the subspaces that are active there. J of n rows
and columns is not built: k products Jω span nearly its leading range, with basis Q; k products Jᵀq give QᵀJ, and with
it the leading s_i. The share of an energy needs the whole of it too: what Q holds is known exactly, so that only the
rest, ‖(I - QQᵀ)J‖_F², is estimated (Hutchinson), where even a large error matters little. k doubles until the rank
lies well below it or J is complete. One pass understates the leading s_i where they fall smoothly: unless the rest is
too small to change the count, Q is widened by J times the right singular vectors of QᵀJ, as a power iteration has it.

Products Jω are of forward differentiation, which fused attention does not have: attention is taken in its plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankwise.dynamics.rich_lazy.modes import measuring
from rankwise.spectral import singular_values, truncated_svd

__all__ = ["intrinsic_dimension", "leading_directions"]

EXACT = 96  # inputs up to which all of J is taken at once
PROBES = 8  # of what the basis leaves
OVER = 8  # directions beyond those that are asked for
SEEDS = (-(2**63), 2**64 - 1)  # of torch


def intrinsic_dimension(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    sigma: float | Tensor | np.ndarray | list[float],
    *,
    energy: float = 0.99,
    start: int = 16,
    batch_size: int = 256,
    seed: int = 0,
    **condition: Any,
) -> Tensor:
    """Directions of the input that a denoiser keeps at noisy points.

    Parameters
    ----------
    denoiser : callable
        ``denoiser(x, sigma, **condition)`` of a batch: the clean estimate x̂, one tensor of the shape of x, whose rows
        do not depend on each other. A module is evaluated in ``eval`` mode, its modes are put back; a function is
        called as it is. Gradients must reach the input: not so under ``torch.no_grad``.
    x : Tensor
        ``(B, …)``, the noisy points. Products are taken in their dtype; those of bfloat16 and float16 go on in float32.
    sigma : float, Tensor, array or list
        Their noise, as the denoiser takes it: a number or a tensor without dimensions, passed on as it is; or one a
        point, ``(B,)`` or ``(B, 1, …)``. Of an array or list, floats get the dtype of x, whole numbers stay whole.
    energy : float
        Share of ``√Σs²``, between 0 and 1; at 0.99, 98.01% of the squares.
    start : int
        Directions of the first try.
    batch_size : int
        Copies of a point that the denoiser is given at once.
    seed : int
        Of the directions.
    **condition :
        Further arguments of the denoiser, such as labels ``(B,)``. Tensors of B rows are taken by row, also within
        mappings, lists and tuples; numpy's arrays become tensors, as of sigma. All else is passed as it is.

    Returns
    -------
    Tensor
        ``(B,)``, int64; 0 where the Jacobian is zero.

    Raises
    ------
    ValueError
        No points, an energy outside (0, 1), numbers that are not whole, noise for another number of points, outputs of
        another type or shape, a denoiser through which no gradient reaches the points, NaN in a Jacobian.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import intrinsic_dimension
    >>> scaling = torch.tensor([1.0, 0.1, 0.01])
    >>> intrinsic_dimension(lambda x, sigma: scaling * x, torch.randn(2, 3), 0.5)
    tensor([1, 1])
    """
    if isinstance(energy, bool) or not isinstance(energy, Real) or not 0 < energy < 1:
        raise ValueError(f"energy={energy!r}: a share between 0 and 1 is accepted")
    start, generator = _whole("start", start, 1), _generator(seed)
    with _differentiable(denoiser):
        jacobians = _jacobians(denoiser, x, sigma, condition, batch_size)
        return torch.tensor([_rank(J, float(energy), start, generator) for J in jacobians])


def leading_directions(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    sigma: float | Tensor | np.ndarray | list[float],
    *,
    k: int = 1,
    passes: int = 4,
    batch_size: int = 256,
    seed: int = 0,
    **condition: Any,
) -> tuple[Tensor, Tensor]:
    """Directions of the input that a denoiser keeps most: edits along them stay in what it has learned.

    The leading singular values and right singular vectors of the Jacobian, ``x + α v`` is the edited point. The paper
    edits at seven tenths of the noise's time.

    Parameters
    ----------
    denoiser, x, sigma
        As of `intrinsic_dimension`.
    k : int
        How many directions, at most the entries of a point.
    passes : int
        Over the Jacobian, to and fro, of a subspace iteration; more are needed where singular values are close.
    batch_size : int
        As of `intrinsic_dimension`.
    seed : int
        Of the first directions.
    **condition :
        As of `intrinsic_dimension`.

    Returns
    -------
    values : Tensor
        ``(B, k)``, the largest first; float32 for points of bfloat16 or float16, else of the dtype of x.
    directions : Tensor
        ``(B, k, …)``, of the shape and dtype of a point each, orthonormal to its precision; the sign is free, and taken
        so that the largest entry is positive.

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
    passes, generator = _whole("passes", passes, 1), _generator(seed)
    with _differentiable(denoiser):
        jacobians = _jacobians(denoiser, x, sigma, condition, batch_size)
        k = _whole("k", k, 1, jacobians[0].n)
        found = [_leading(J, k, passes, generator) for J in jacobians]
        directions = torch.stack([V for _, V in found]).to(x.dtype).unflatten(-1, x.shape[1:])
        return torch.stack([S for S, _ in found]), directions


# ------------------------------------------------------------------------------------------------------- what is given


def _whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """The number, numpy's too, or a refusal by name."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if whole is None or whole < least or (most is not None and whole > most):
        accepted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r}: a whole number {accepted} is accepted")
    return whole


def _generator(seed: object) -> torch.Generator:
    return torch.Generator().manual_seed(_whole("seed", seed, *SEEDS))


@contextmanager
def _differentiable(denoiser: Callable[..., Tensor]) -> Iterator[None]:
    """Within the block: a module in evaluation mode, derivatives whatever the caller's mode, attention unfused."""
    settled = measuring(denoiser) if isinstance(denoiser, nn.Module) else nullcontext()
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with settled, torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _jacobians(
    denoiser: Callable[..., Tensor], x: Tensor, sigma: Any, condition: dict[str, Any], batch_size: int
) -> list[_Jacobian]:
    """At every point."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"points are {x.dtype if hasattr(x, 'dtype') else type(x).__name__}: a tensor of floats is needed"
        )
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"points of shape {tuple(x.shape)}: a batch (B, …) with entries is accepted; give x[None]")
    batch_size, x = _whole("batch_size", batch_size, 1), _plain(x).detach()
    sigma = _level(sigma, x)
    told = _each(condition, lambda v: _tensor(v, x))
    return [_Jacobian(denoiser, x, b, sigma, told, batch_size) for b in range(len(x))]


def _level(sigma: Any, x: Tensor) -> Any:
    """The noise: a number, or a tensor of no dimensions or of one row a point."""
    if isinstance(sigma, list | tuple):
        sigma = np.asarray([v.tolist() if isinstance(v, Tensor) else v for v in sigma])
    if isinstance(sigma, np.generic):
        return sigma.item()
    if isinstance(sigma, Tensor | np.ndarray):
        sigma = _tensor(sigma, x)
        if sigma.dim() and len(sigma) != len(x):
            raise ValueError(
                f"sigma has {len(sigma)} entries for {len(x)} points: one number, or one a point, is needed"
            )
    return sigma


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same, nested alike, with its tensors and arrays changed."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        return {k: _each(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        parts = [_each(v, change) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensor(value: Tensor | np.ndarray, x: Tensor) -> Tensor:
    """A tensor that derivatives can be taken with; an array's floats as those of x, since numpy's are of float64."""
    if isinstance(value, Tensor):
        return _plain(value)
    if value.dtype.kind not in "biufc":
        raise ValueError(f"noise or a condition is an array of {value.dtype}: numbers are needed")
    made = torch.from_numpy(value.copy()).to(x.device)
    return made.to(x.dtype) if made.is_floating_point() else made


def _plain(value: Tensor) -> Tensor:
    """Tensors of inference mode cannot be saved for a backward pass, their copies can."""
    return value.clone() if value.is_inference() else value


# ------------------------------------------------------------------------------------------------------------ products


class _Jacobian:
    """Products with J at one point, many at once: the point stands in a batch, each copy has a direction."""

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        x: Tensor,
        at: int,
        sigma: Any,
        condition: dict[str, Any],
        batch_size: int,
    ) -> None:
        self.x, self.n, self.at, self.points = x[at], x[at].numel(), at, len(x)
        self.dtype = torch.promote_types(x.dtype, torch.float32)  # of linear algebra, which halves do not have
        self.denoiser, self.sigma, self.condition, self.batch_size = denoiser, sigma, condition, batch_size

    def forward(self, directions: Tensor) -> Tensor:
        """``(k, n)`` → the rows ``J ω``."""
        return torch.cat([self._forward(part) for part in directions.split(self.batch_size)])

    def backward(self, directions: Tensor) -> Tensor:
        """``(k, n)`` → the rows ``Jᵀ q``."""
        return torch.cat([self._backward(part) for part in directions.split(self.batch_size)])

    def _forward(self, directions: Tensor) -> Tensor:
        points = self._copies(len(directions))
        out = torch.func.jvp(self._call, (points,), (directions.to(points.dtype).reshape(points.shape),))[1]
        return out.detach().reshape(len(directions), -1).to(self.dtype)

    def _backward(self, directions: Tensor) -> Tensor:
        points = self._copies(len(directions)).requires_grad_()
        out = self._call(points)
        told = directions.to(out.dtype).reshape(out.shape)
        slopes = torch.autograd.grad(out, points, told, allow_unused=True)[0] if out.requires_grad else None
        if slopes is None and not torch.equal(out, self._call(2 * points.detach() + 1)):  # else it is constant
            raise ValueError(
                "no gradient reaches the points through the denoiser, though it depends on them: it runs under "
                "torch.no_grad or torch.inference_mode, or detaches them; give one that does not"
            )
        return torch.zeros_like(directions) if slopes is None else slopes.reshape(len(directions), -1).to(self.dtype)

    def _copies(self, count: int) -> Tensor:
        return self.x.expand(count, *self.x.shape).clone(memory_format=torch.contiguous_format)

    def _call(self, x: Tensor) -> Tensor:
        def rows(v: Tensor) -> Tensor:
            b = self.at
            return v[b : b + 1].expand(len(x), *v.shape[1:]).clone() if v.shape[:1] == (self.points,) else v

        out = self.denoiser(x, _each(self.sigma, rows), **_each(self.condition, rows))
        if not isinstance(out, Tensor):
            raise ValueError(
                f"the denoiser returns a {type(out).__name__}: a tensor is needed; wrap it in a function that returns "
                "the clean estimate x̂"
            )
        if out.shape != x.shape:
            raise ValueError(f"the denoiser makes {tuple(out.shape)} of {tuple(x.shape)}: equal shapes are needed")
        return out

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Random directions."""
        return torch.randn(count, self.n, generator=generator).to(self.x.device, self.dtype)

    def every(self) -> Tensor:
        """All directions of the input."""
        return torch.eye(self.n, dtype=self.dtype, device=self.x.device)


def _rank(J: _Jacobian, energy: float, start: int, generator: torch.Generator) -> int:
    k, apart = start, []  # images of directions that had no part in Q: they tell what it leaves
    while 4 * k < J.n and J.n > EXACT:  # from there on the whole of J costs no more
        images = _finite(J.forward(J.drawn(k, generator)))
        Q = torch.linalg.qr(images.mT).Q
        R = J.backward(Q.mT)
        apart.append(J.forward(J.drawn(PROBES, generator)))
        held, rest = singular_values(R).square().cumsum(0), _left(apart, Q)
        if rest <= (1 - energy**2) * (float(held[-1]) + rest) / 2:  # else the rank lies near k, or beyond
            least, most = _first(held + rest, energy**2 * held[-1]), _first(held, energy**2 * (held[-1] + 2 * rest))
            if least < most:
                Q, R = _widened(J, Q, R)
                held, rest = singular_values(R).square().cumsum(0), _left(apart, Q)
            return _first(held, energy**2 * (held[-1] + rest))
        apart.append(images)
        k *= 2
    S = singular_values(_finite(J.forward(J.every())))
    if not bool(S.any()):
        J.backward(J.every()[:1])  # refuses those that only look constant
    held = S.square().cumsum(0)
    return _first(held, energy**2 * held[-1])


def _widened(J: _Jacobian, Q: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Of a basis ``(n, k)`` and ``R = QᵀJ``, those of 2k columns, by one more pass from the right singular vectors."""
    k = Q.shape[1]
    V = truncated_svd(R, k, method="full").Vh
    new = torch.linalg.qr(torch.cat([Q, _finite(J.forward(V)).mT], 1)).Q[:, k:]
    return torch.cat([Q, new], 1), torch.cat([R, J.backward(new.mT)])


def _left(images: list[Tensor], Q: Tensor) -> float:
    """``‖(I - QQᵀ)J‖_F²``, estimated by the images of random directions."""
    probes = torch.cat(images)
    return float((probes - (probes @ Q) @ Q.mT).square().sum()) / len(probes)


def _leading(J: _Jacobian, k: int, passes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Singular values ``(k,)`` and right singular vectors ``(k, n)``, by iteration over a slightly wider subspace."""
    width = min(J.n, k + OVER)
    Z = J.every() if width == J.n else J.drawn(width, generator)
    S = Z.new_zeros(0)
    for _ in range(passes):
        Q = torch.linalg.qr(_finite(J.forward(Z)).mT).Q
        S, Z = truncated_svd(J.backward(Q.mT), width, method="full")[1:3]  # QᵀJ has J's right vectors
    S, V = S[:k], Z[:k]
    top = V.gather(1, V.abs().argmax(1, keepdim=True))
    return S, V * torch.where(top < 0, -1.0, 1.0).to(V)


def _first(held: Tensor, wanted: Tensor) -> int:
    """How many squares it takes to exceed ``wanted``."""
    return int((held <= wanted).sum()) + 1 if float(held[-1]) > 0 else 0


def _finite(images: Tensor) -> Tensor:
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the denoiser's Jacobian has NaN or Inf entries")
    return images
