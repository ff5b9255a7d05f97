"""Generative networks side by side, and their likelihoods: several noise levels are one batched computation.

    X = f(Z) + σ ε,   Z ~ N(0, I_q),   p_{f,σ}(x) = ∫ φ_σ(x - f(z)) N(z; 0, I) dz

f is a ReLU network R^q → R^D. The likelihood is bounded by K draws from an encoder q(z | x) = N(μ(x), diag s(x)²):

    log p(x) >= E log 1/K Σ_k w_k,    w_k = N(x; f(z_k), σ² I) N(z_k; 0, I) / q(z_k | x)

(one draw: the variational autoencoder), and taken exactly by quadrature where q <= 2.

Source: Chae, Kim, Kim & Lin, "A Likelihood Approach to Nonparametric Estimation of a Singular Distribution Using Deep
Generative Models", JMLR 2023, arXiv 2105.04046, section 2; the bound is Burda, Grosse & Salakhutdinov 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

_DRAWN = 2  # of K: with one the gradient is so noisy that the bound ends 0.1 nats below that of all K
_LOG_2PI = math.log(2 * math.pi)
_START = 0.3  # of σ and s: from wider ones f and encoder may agree to ignore z, from narrower ones z leaves its prior


class StackedMLP(nn.Module):
    """ReLU networks of one shape, ``(members, rows, inputs)`` to ``(members, rows, outputs)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.distributions.singular.networks import StackedMLP
    >>> networks = StackedMLP(members=3, widths=[2, 8, 1])
    >>> networks(torch.randn(3, 5, 2)).shape  # five rows for each of three networks
    torch.Size([3, 5, 1])
    """

    def __init__(self, members: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (a, b) in enumerate(pairwise(widths)):
            gain = math.sqrt((1 if i == len(widths) - 2 else 2) / a)  # He's variance before a ReLU
            self.weights.append((torch.randn(1, a, b) * gain).repeat(members, 1, 1))  # all begin alike
            self.biases.append(torch.zeros(members, 1, b))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._layers(x, list(self.weights), list(self.biases))
        rows = [  # a member at a time: its activations stay in the cache, four times as fast as a batch of them
            self._layers(x[m], [W[m] for W in self.weights], [b[m] for b in self.biases]) for m in range(len(x))
        ]
        return torch.stack(rows)

    def _layers(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        add = torch.addmm if x.ndim == 2 else torch.baddbmm
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            x = add(b, x, W).relu_()
        return add(biases[-1], x, weights[-1])


class Ensemble(nn.Module):
    """Decoders f, encoders and log σ of several fits.

    Parameters
    ----------
    members, latent_dim, dim : int
        How many fits there are, and q and D.
    hidden : sequence of int
        Widths of f; the encoder has them in reverse. Empty: both are linear.

    Examples
    --------
    >>> import torch
    >>> from rankwise.distributions.singular.networks import Ensemble
    >>> networks = Ensemble(members=3, latent_dim=1, dim=4, hidden=[8])
    >>> x, draws = torch.randn(3, 5, 4), torch.randn(3, 16, 5, 1)
    >>> networks.bound(x, draws).shape, networks.quadrature(x).shape
    (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    def __init__(self, members: int, latent_dim: int, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.decoder = StackedMLP(members, [latent_dim, *hidden, dim])
        self.encoder = StackedMLP(members, [dim, *reversed(hidden), 2 * latent_dim])
        self.log_sigma = nn.Parameter(torch.full((members,), math.log(_START)))
        with torch.no_grad():
            self.encoder.biases[-1][..., latent_dim:] = math.log(_START)

    @torch.no_grad()
    def solve(self, x: Tensor, variance: Tensor, floor: float) -> None:
        """Set linear networks to the maximum likelihood of each member's rows ``x (members, n, D)`` plus noise of
        ``variance (members,)``, with the exact posterior as the encoder: probabilistic principal components.

        With eigenvalues λ and eigenvectors U of the covariance, ``W = U_q (Λ_q - σ²)^½`` and σ² the mean of the others
        (Tipping & Bishop 1999); the posterior of z has mean ``Λ_q^{-1} Wᵀ (x - μ)`` and variances ``σ² / λ``.
        """
        q = self.decoder.weights[0].shape[1]
        x, mean = x.double(), x.double().mean(1, keepdim=True)
        covariance = (x - mean).mT @ (x - mean) / x.shape[1] + variance.double()[:, None, None] * torch.eye(
            x.shape[2]
        ).to(x)
        values, U = torch.linalg.eigh(covariance)
        square = values[:, :-q].mean(1).clamp(min=floor**2)
        top, U = values[:, -q:].clamp(min=1e-300), U[:, :, -q:]
        W = U * (top - square[:, None]).clamp(min=0).sqrt()[:, None]
        top = torch.maximum(top, square[:, None])
        backward = W / top[:, None]
        self.decoder.weights[0].copy_(W.mT)
        self.decoder.biases[0].copy_(mean)
        self.encoder.weights[0].copy_(torch.cat([backward, torch.zeros_like(backward)], 2))
        self.encoder.biases[0].copy_(torch.cat([-mean @ backward, (square[:, None] / top).log()[:, None] / 2], 2))
        self.log_sigma.copy_(square.log() / 2)

    def log_weights(self, x: Tensor, draws: Tensor) -> Tensor:
        """``log w``, ``(members, K, n)``, of ``x (members, n, D)`` and standard normal ``draws (members, K, n, q)``."""
        return self._log_weights(x, draws, *self.encoder(x).chunk(2, -1))

    def _log_weights(self, x: Tensor, draws: Tensor, mean: Tensor, log_s: Tensor) -> Tensor:
        z = mean[:, None] + log_s.exp()[:, None] * draws
        return self._log_joint(x, z) + (draws.square().sum(-1) / 2 + log_s.sum(-1)[:, None])

    def bound(self, x: Tensor, draws: Tensor) -> Tensor:
        """``log 1/K Σ_k w_k``, ``(members, n)``; its mean over draws is at most the log-likelihood."""
        return self.log_weights(x, draws).logsumexp(1) - math.log(draws.shape[1])

    def loss(self, x: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A scalar whose gradient estimates, without bias, that of minus the mean bound, summed over members.

        The bound's gradient is ``Σ_k w̄_k ∇ log p(x, z_k)`` for f and σ, and ``Σ_k w̄_k² ∂ log w_k/∂z ∂z_k`` for the
        encoder (w̄ = w / Σ w; Tucker et al. 2019): the expectations of ``∇ log p`` and ``w̄ ∂ log w/∂z ∂z`` over one k
        drawn with probability w̄. All K are weighed without a graph, and only `_DRAWN` are differentiated, chosen
        systematically: in equal steps through the cumulated w̄ from a uniform start.
        """
        mean, log_s = self.encoder(x).chunk(2, -1)
        with torch.no_grad():
            w = self._log_weights(x, draws, mean, log_s).softmax(1)
            members, K, n = w.shape
            start = torch.rand(members, n, 1, generator=generator, dtype=w.dtype, device=w.device)
            count = min(_DRAWN, K)
            at = (start + torch.arange(count).to(w)) / count
            k = torch.searchsorted(w.mT.cumsum(-1), at).clamp_(max=K - 1).mT
            share = w.gather(1, k)
            draw = draws.gather(1, k[..., None].expand(-1, -1, -1, draws.shape[-1]))
        z = mean[:, None] + log_s.exp()[:, None] * draw
        if z.requires_grad:
            z.register_hook(lambda g: g * share[..., None])
        log_encoder = -((z - mean[:, None].detach()) / log_s[:, None].detach().exp()).square().sum(-1) / 2
        return -(self._log_joint(x, z) - log_encoder).mean((1, 2)).sum()

    def _log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """``log N(x; f(z), σ² I) - |z|²/2``: with ``|draws|²/2 + Σ log s``, the 2π of z and draws cancel."""
        (members, K, n, q), D = z.shape, x.shape[-1]
        residual = x[:, None] - self.decoder(z.reshape(members, K * n, q)).view(members, K, n, D)
        log_sigma = self.log_sigma[:, None, None]
        fit = residual.square().sum(-1) * (-2 * log_sigma).exp() / 2 + D * (log_sigma + _LOG_2PI / 2)
        return -fit - z.square().sum(-1) / 2

    def quadrature(self, x: Tensor, nodes: int = 400) -> Tensor:
        """Log-likelihood ``(members, n)`` by the trapezoidal rule with ``nodes`` a latent dimension, on [-6, 6].

        Right while f moves by less than about σ between two nodes.

        Raises
        ------
        ValueError
            More than two latent dimensions.
        """
        q = self.decoder.weights[0].shape[1]
        if q > 2:
            raise ValueError(f"latent_dim is {q}; quadrature is for 1 and 2, use the bound with many draws")
        line = torch.linspace(-6, 6, nodes, dtype=x.dtype, device=x.device)
        z = torch.cartesian_prod(*[line] * q).view(-1, q)
        log_mass = -z.square().sum(-1) / 2 - q * _LOG_2PI / 2 + q * torch.log(line[1] - line[0])
        f = self.decoder(z.expand(len(self.log_sigma), -1, -1))
        D, log_sigma = x.shape[-1], self.log_sigma[:, None]
        parts = []
        for rows in x.split(max(1, (1 << 22) // len(z)), 1):
            squares = torch.cdist(rows, f, compute_mode="donot_use_mm_for_euclid_dist").square()
            parts.append((log_mass - squares * (-2 * log_sigma).exp()[..., None] / 2).logsumexp(-1))
        return torch.cat(parts, 1) - D * (log_sigma + _LOG_2PI / 2)


def sliced_wasserstein(X: Tensor, Y: Tensor, directions: Tensor) -> Tensor:
    """Mean over directions of the one-dimensional W1 between the projections of two samples, exactly.

    ``∫ |F^{-1} - G^{-1}|`` over the merged steps of the two quantile functions: O(n log n) a direction.

    Parameters
    ----------
    X : Tensor
        ``(..., n, D)``.
    Y : Tensor
        ``(..., m, D)``, batch dimensions that broadcast with X's.
    directions : Tensor
        Unit vectors ``(D, L)``.
    """
    n, m = X.shape[-2], Y.shape[-2]
    x, y = (X @ directions).sort(-2).values, (Y @ directions).sort(-2).values
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    widths = torch.as_tensor(np.diff(cuts, prepend=0) / (n * m)).to(x)
    i, j = (torch.as_tensor((cuts - 1) // step, device=x.device) for step in (m, n))
    return ((x[..., i, :] - y[..., j, :]).abs() * widths[:, None]).sum(-2).mean(-1)


def directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors ``(dim, count)``, uniform on the sphere."""
    d = torch.randn(dim, count, generator=generator, device=generator.device)
    return d / d.norm(dim=0)
