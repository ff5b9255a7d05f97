"""The best denoiser of a mixture of low-rank Gaussians, as a module whose weights are its subspaces.

A clean row x₀ = U_k a with a ~ N(0, diag(v_k)) and k ~ π is seen as x_t = s x₀ + γ ε. Then

    E[x₀ | x_t] = Σ_k w_k U_k diag(g_k) U_kᵀ x_t,         g_kj = s v_kj / (s² v_kj + γ²)
    w_k ∝ π_k c_k exp(Σ_j φ_kj (u_kjᵀ x_t)²),             φ_kj = s² v_kj / (2γ² (s² v_kj + γ²))
                                                          c_k = Π_j (γ² / (s² v_kj + γ²))^½

(the paper's formula has v = 1 and equal dimensions, where c_k cancels: with unequal ones, leaving it out gives rows to
the larger subspace). φ grows without bound as γ falls: weights are taken through log-sum-exp.

The theory replaces the soft weights, so that training becomes subspace clustering: ``expected`` takes the mean over ε,
(u_kjᵀx_t)² → s² (u_kjᵀx₀)² + γ², and ``hard`` the one subspace that holds most of the clean row. Both know the clean
row, and then the noise enters the loss as a square whose mean is taken in closed form,

    E‖x̂ - x₀‖² = ‖s A x₀ - x₀‖² + γ² ‖A‖_F²,   A = Σ_k w_k U_k diag(g_k) U_kᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankwise.nearest import unknown

if TYPE_CHECKING:
    from rankwise.dynamics.subspaces import SubspaceClustering

__all__ = ["MoLRGDenoiser"]

WEIGHTS = ("soft", "expected", "hard")
SCHEDULES = ("ve", "vp")
LOSS_WEIGHTS = ("uniform", "edm")
LOG_SIGMA = (-1.2, 1.2)  # mean and deviation of ln σ in training, as EDM has them
SIGMA_DATA = 0.5


class MoLRGDenoiser(nn.Module):
    """The optimal denoiser of a mixture of low-rank Gaussians; its subspaces are learned, or given.

    Parameters
    ----------
    features : int
        D, columns of a row.
    n_clusters : int
        K.
    dim : int or sequence of int
        d, or one a cluster, from 1 to D.
    weights : {"soft", "expected", "hard"}
        How subspaces are weighted: as is optimal; or by the clean row, as the theory has it in training (see `loss`).
    orthogonal : bool
        Bases are orthonormal all together; Σ d_k is at most D.
    variance : float
        v, of every coefficient; the scale of the data.
    prior : sequence of float, optional
        π; equal by default.
    seed : int
        Of the start.

    Notes
    -----
    The parameter is any basis; what counts is its orthonormal factor (QR), taken at each call. Any device; float32, or
    what ``.to`` makes of it.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import MoLRGDenoiser, low_rank_mixture
    >>> data = low_rank_mixture(48, 3, n_clusters=2, samples=100, seed=0)
    >>> denoiser = MoLRGDenoiser.from_bases(data.bases)
    >>> noisy = data.X + 0.3 * torch.randn_like(data.X)
    >>> clean = denoiser(noisy, 0.3)
    >>> bool((clean - data.X).square().mean() < 0.2 * (noisy - data.X).square().mean())
    True
    """

    variances: Tensor
    log_prior: Tensor

    def __init__(
        self,
        features: int,
        n_clusters: int = 1,
        dim: int | Sequence[int] = 1,
        *,
        weights: str = "soft",
        orthogonal: bool = False,
        variance: float = 1.0,
        prior: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        dims = list(dim) if isinstance(dim, Sequence) else [dim] * n_clusters
        share = torch.full((n_clusters,), 1 / max(n_clusters, 1)) if prior is None else torch.as_tensor(prior).float()
        _check(features, n_clusters, dims, weights, orthogonal, variance, share)
        dims = [int(d) for d in dims]
        self.dims, self.weights, self.orthogonal = dims, weights, orthogonal
        used = torch.arange(max(dims)) < torch.tensor(dims)[:, None]
        generator = torch.Generator().manual_seed(int(seed))
        self.raw = nn.Parameter(torch.randn(n_clusters, features, max(dims), generator=generator))
        self.register_buffer("variances", variance * used.float())  # zero where a subspace has no such direction
        self.register_buffer("log_prior", share.log().log_softmax(0))

    @classmethod
    def from_bases(
        cls,
        bases: Sequence[Tensor],
        *,
        variances: Sequence[Tensor] | None = None,
        prior: Sequence[float] | None = None,
        weights: str = "soft",
    ) -> MoLRGDenoiser:
        """Of known subspaces.

        Parameters
        ----------
        bases : sequence of Tensor
            ``(D, d_k)`` with independent columns; orthonormal ones where ``variances`` are given.
        variances : sequence of Tensor, optional
            ``(d_k,)``, of the coefficients along the columns; 1 by default.
        prior : sequence of float, optional
            π; equal by default.
        weights : {"soft", "expected", "hard"}
            As of the class.
        """
        bases = [torch.as_tensor(U) for U in bases]
        if not bases or any(U.dim() != 2 or len(U) != len(bases[0]) for U in bases):
            raise ValueError(f"bases of shapes {[tuple(U.shape) for U in bases]}: (D, d_k), at least one, is accepted")
        if variances is not None:
            variances = [torch.as_tensor(v) for v in variances]
            if [v.shape for v in variances] != [U.shape[1:] for U in bases] or not all(
                (v > 0).all() for v in variances
            ):
                raise ValueError("variances: one for each column of each basis, above 0, is accepted")
        first = bases[0]
        made = cls(first.shape[0], len(bases), [U.shape[1] for U in bases], weights=weights, prior=prior)
        made = made.to(first)
        with torch.no_grad():
            if prior is not None:  # in the bases' own precision
                made.log_prior.copy_(
                    torch.as_tensor(prior, dtype=first.dtype, device=first.device).log().log_softmax(0)
                )
            for k, U in enumerate(bases):
                made.raw[k, :, : U.shape[1]] = U
                if variances is not None:
                    made.variances[k, : U.shape[1]] = variances[k]
        return made

    @classmethod
    def from_clustering(cls, model: SubspaceClustering) -> MoLRGDenoiser:
        """Of a fitted `SubspaceClustering` by ``em`` through the origin; float64.

        Raises
        ------
        ValueError
            Another method, clusters with means, a cluster of no dimensions.
        """
        mixture = getattr(model, "mixture_", None)
        if mixture is None or model.affine or 0 in mixture.dims:
            raise ValueError("a fit by method='em' with affine=False and dimensions of at least 1 is needed")
        signal = [(v - mixture.noise).clamp(min=1e-12) for v in mixture.variances]
        return cls.from_bases(mixture.bases, variances=signal, prior=mixture.weights.tolist())

    @property
    def bases(self) -> list[Tensor]:
        """Orthonormal ``(D, d_k)``."""
        return [U[:, :d] for U, d in zip(orthonormal(self.raw, self.dims, self.orthogonal), self.dims, strict=True)]

    def forward(self, x: Tensor, sigma: float | Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
        """The clean row, estimated.

        Parameters
        ----------
        x : Tensor
            ``(n, D)``, noisy.
        sigma : float or Tensor
            γ, the noise's deviation; one, or ``(n,)``. Positive.
        scale : float or Tensor
            s, what the clean row was multiplied by.

        Returns
        -------
        Tensor
            ``(n, D)``. With ``weights="hard"`` the projection onto the subspace that holds most of x itself.
        """
        self._check_rows(x, sigma=sigma, scale=scale)
        if self.weights == "expected" and len(self.dims) > 1:
            raise ValueError("weights='expected' need the clean row, which only a loss has: use 'soft' to denoise")
        U = orthonormal(self.raw, self.dims, self.orthogonal)
        clean = x if self.weights == "hard" else None
        return denoised(x, U, self.variances, self.log_prior, sigma, scale, self.weights, clean)

    def responsibilities(self, x: Tensor, sigma: float | Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
        """w, ``(n, K)``: how probable each subspace is, given the noisy rows."""
        self._check_rows(x, sigma=sigma, scale=scale)
        U = orthonormal(self.raw, self.dims, self.orthogonal)
        return log_weights(x, U, self.variances, self.log_prior, sigma, scale).exp()

    def loss(
        self, clean: Tensor, sigma: float | Tensor, *, scale: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """``‖x̂ - x₀‖²`` of each row ``(n,)``: its mean over the noise, or, with several soft weights, for one draw."""
        self._check_rows(clean, sigma=sigma, scale=scale)
        U = orthonormal(self.raw, self.dims, self.orthogonal)
        return loss_of(clean, U, self.variances, self.log_prior, sigma, scale, self.weights, generator)

    def _check_rows(self, x: Tensor, **levels: float | Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.raw.shape[1]:
            raise ValueError(f"rows of shape {tuple(x.shape)}: (n, {self.raw.shape[1]}) is accepted")
        if x.dtype != self.raw.dtype:
            raise ValueError(f"rows are {x.dtype}, the denoiser is {self.raw.dtype}: bring one to the other with .to")
        for name, value in levels.items():
            value = torch.as_tensor(value)
            if value.shape not in ((), x.shape[:1]) or not bool((value > 0).all()):
                shown = f"={value.item()}" if value.dim() == 0 else f" of shape {tuple(value.shape)}"
                raise ValueError(
                    f"{name}{shown}: one number above 0, or one for each of the {len(x)} rows, is accepted"
                )

    def fit(
        self,
        X: Tensor,
        *,
        steps: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 0.1,
        schedule: str = "ve",
        loss_weight: str = "uniform",
        log_sigma: tuple[float, float] = LOG_SIGMA,
        restarts: int = 8,
        seed: int = 0,
    ) -> MoLRGDenoiser:
        """Train the subspaces by gradient steps over noise levels.

        Parameters
        ----------
        X : Tensor
            ``(n, D)``, clean rows, as they are: nothing is flipped, rotated or scaled.
        steps, batch_size : int
            Of Adam, whose rate falls to zero along a cosine; rows of a step, drawn with replacement.
        learning_rate : float
            At its start.
        schedule : {"ve", "vp"}
            s = 1 and γ = σ, or both divided by √(1 + σ²).
        loss_weight : {"uniform", "edm"}
            λ: 1, or EDM's (σ² + ¼) / (σ/2)².
        log_sigma : (float, float)
            Mean and deviation of ln σ, which is normal.
        restarts : int
            Starts, the present subspaces and random ones, trained as one; that of the least loss stays. One is
            enough for one cluster; several have local optima.
        seed : int
            Of all draws.

        Raises
        ------
        ValueError
            Rows of another width, not finite, none; options out of range.
        """
        X = _rows(X, self.raw)
        _check_training(
            schedule, loss_weight, learning_rate, log_sigma, steps=steps, batch_size=batch_size, restarts=restarts
        )
        g = torch.Generator().manual_seed(int(seed))
        more = torch.randn(restarts - 1, *self.raw.shape, generator=g).to(self.raw)
        raw, last = trained(
            torch.cat([self.raw.detach()[None], more]), X.expand(restarts, -1, -1), self.variances, self.log_prior,
            self.dims, weights=self.weights, orthogonal=self.orthogonal, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, schedule=schedule, loss_weight=loss_weight, log_sigma=log_sigma, generator=g,
        )  # fmt: skip
        with torch.no_grad():
            self.raw.copy_(raw[int(last.argmin())])
        return self


def orthonormal(raw: Tensor, dims: Sequence[int], joint: bool = False) -> Tensor:
    """Bases ``(..., K, D, d)`` of the columns of ``raw``, each its own or all together; unused columns are zero."""
    used = (torch.arange(raw.shape[-1]) < torch.tensor(dims)[:, None]).to(raw)
    full = raw if raw.dtype == torch.float64 else raw.float()  # no QR of half precision
    if not joint:
        return torch.linalg.qr(full).Q.to(raw) * used[:, None, :]
    Q = torch.linalg.qr(torch.cat([full[..., k, :, :d] for k, d in enumerate(dims)], -1)).Q.to(raw)
    parts = Q.split(list(dims), -1)
    return torch.stack([nn.functional.pad(p, (0, raw.shape[-1] - p.shape[-1])) for p in parts], -3)


def log_weights(
    x: Tensor, U: Tensor, variances: Tensor, log_prior: Tensor, sigma: float | Tensor, scale: float | Tensor = 1.0,
    weights: str = "soft", clean: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``log w_k``, ``(..., n, K)``, of rows ``x: (..., n, D)`` and bases ``U: (..., K, D, d)``.

    ``sigma`` and ``scale`` are numbers or ``(..., n)``; ``clean``, for the two kinds of weights that know it, as x.
    """
    if weights == "hard":
        held = _projections(x if clean is None else clean, U).square().sum(-1)
        return torch.full_like(held, -torch.inf).scatter(-1, held.argmax(-1, keepdim=True), 0.0)
    g2, s2 = _each(sigma, x).square(), _each(scale, x).square()
    signal = s2 * variances
    phi = signal / (2 * g2 * (signal + g2))
    if weights == "expected":
        assert clean is not None
        squares = s2 * _projections(clean, U).square() + g2
    else:
        squares = _projections(x, U).square()
    logits = (phi * squares).sum(-1) - 0.5 * (signal / g2).log1p().sum(-1) + log_prior
    return logits.log_softmax(-1)


def denoised(
    x: Tensor, U: Tensor, variances: Tensor, log_prior: Tensor, sigma: float | Tensor, scale: float | Tensor = 1.0,
    weights: str = "soft", clean: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``Σ_k w_k U_k diag(g_k) U_kᵀ x``, shapes as for `log_weights`."""
    w = log_weights(x, U, variances, log_prior, sigma, scale, weights, clean).exp()
    held = w[..., None] * _gains(variances, sigma, scale, x) * _projections(x, U)
    return torch.einsum("...nkj,...kdj->...nd", held, U)


def loss_of(
    clean: Tensor, U: Tensor, variances: Tensor, log_prior: Tensor, sigma: float | Tensor, scale: float | Tensor,
    weights: str, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """``‖x̂ - x₀‖²``, ``(..., n)``: the mean over ε where the weights do not depend on it, else for one draw."""
    noise, s = _each(sigma, clean)[..., 0], _each(scale, clean)[..., 0]
    if weights == "soft" and U.shape[-3] > 1:
        drawn = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
        x = s * clean + noise * drawn
        return (denoised(x, U, variances, log_prior, sigma, scale) - clean).square().sum(-1)
    w = log_weights(clean, U, variances, log_prior, sigma, scale, weights, clean).exp()
    held = w[..., None] * _gains(variances, sigma, scale, clean)
    kept = torch.einsum("...nkj,...kdj->...nd", held * _projections(clean, U), U)
    overlap = torch.einsum("...kdi,...ldj->...kilj", U, U).square()
    size = torch.einsum("...nki,...kilj,...nlj->...n", held, overlap, held)  # ‖A‖_F²
    return (s * kept - clean).square().sum(-1) + noise[..., 0].square() * size


@torch.enable_grad()
def trained(
    raw: Tensor, X: Tensor, variances: Tensor, log_prior: Tensor, dims: Sequence[int], *, counts: Tensor | None = None,
    weights: str = "soft", orthogonal: bool = False, steps: int = 1000, batch_size: int = 256,
    learning_rate: float = 0.1, schedule: str = "ve", loss_weight: str = "uniform",
    log_sigma: tuple[float, float] = LOG_SIGMA, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Many denoisers at once: ``raw: (B, K, D, d)`` on rows ``X: (B, n, D)``, the first ``counts: (B,)`` of them.

    Returns the trained parameters and each one's mean loss over the last tenth of the steps.
    """
    B, n = X.shape[:2]
    counts = torch.full((B,), n) if counts is None else counts
    raw = raw.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    last = raw.new_zeros(B)
    for step in range(steps):
        rows = (torch.rand(B, batch_size, generator=generator) * counts[:, None]).long()
        clean = X.gather(1, rows.to(X.device)[..., None].expand(-1, -1, X.shape[-1]))
        sigma = (log_sigma[0] + log_sigma[1] * torch.randn(B, batch_size, generator=generator)).exp().to(X)
        weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square() if loss_weight == "edm" else 1.0
        s = (1 + sigma.square()).rsqrt() if schedule == "vp" else torch.ones_like(sigma)
        U = orthonormal(raw, dims, orthogonal)
        each = (weight * loss_of(clean, U, variances, log_prior, s * sigma, s, weights, generator)).mean(-1)
        optimizer.zero_grad()
        each.sum().backward()  # members do not share parameters: each has its own gradient
        optimizer.step()
        rate.step()
        if step >= steps - max(1, steps // 10):
            last += each.detach()
    return raw.detach(), last / max(1, steps // 10)


def _projections(x: Tensor, U: Tensor) -> Tensor:
    return torch.einsum("...nd,...kdj->...nkj", x, U)


def _gains(variances: Tensor, sigma: float | Tensor, scale: float | Tensor, x: Tensor) -> Tensor:
    s = _each(scale, x)
    return s * variances / (s.square() * variances + _each(sigma, x).square())


def _each(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one a row, to be broadcast over clusters and directions."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value[..., None, None] if value.dim() else value.expand(1, 1, 1)


def _rows(X: Any, raw: Tensor) -> Tensor:
    X = torch.as_tensor(X).to(raw)
    if X.dim() != 2 or not len(X) or X.shape[1] != raw.shape[-2]:
        raise ValueError(f"rows of shape {tuple(X.shape)}: (n, {raw.shape[-2]}) with n of at least 1 is accepted")
    if not bool(torch.isfinite(X).all()):
        raise ValueError("rows hold NaN or Inf")
    return X


def _check(
    features: int, K: int, dims: list[int], weights: str, orthogonal: bool, variance: float, prior: Tensor
) -> None:
    if weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    whole = all(isinstance(d, Integral) and not isinstance(d, bool) for d in dims)
    if K < 1 or len(dims) != K or not whole or not all(1 <= d <= features for d in dims):
        raise ValueError(f"dimensions {dims} for {K} clusters: one each, from 1 to {features} features, is accepted")
    if orthogonal and sum(dims) > features:
        raise ValueError(f"orthogonal subspaces of {sum(dims)} dimensions in all need as many features, not {features}")
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance={variance}: a positive number is accepted")
    if prior.shape != (K,) or not bool(((prior > 0) & torch.isfinite(prior)).all()):
        raise ValueError(f"prior {prior.tolist()}: {K} positive numbers are accepted")


def _check_training(
    schedule: str, loss_weight: str, learning_rate: float, log_sigma: tuple[float, float], **least: int
) -> None:
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if loss_weight not in LOSS_WEIGHTS:
        raise unknown("loss_weight", loss_weight, LOSS_WEIGHTS)
    for name, value in least.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value}: a whole number of at least 1 is accepted")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate}: a positive number is accepted")
    if len(log_sigma) != 2 or not math.isfinite(log_sigma[0]) or not 0 <= log_sigma[1] < math.inf:
        raise ValueError(f"log_sigma={log_sigma}: a mean and a deviation of at least 0 are accepted")
