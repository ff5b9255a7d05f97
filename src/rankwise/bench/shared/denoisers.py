"""Small denoising networks, many trained as one: preconditioned perceptrons of EDM (Karras and others, 2022).

    x̂ = c_skip x + c_out F(c_in x, ln σ / 4),   c_skip = σ_d² / (σ² + σ_d²),   c_out = σ σ_d / √(σ² + σ_d²),
    c_in = 1 / √(σ² + σ_d²),   loss = (σ² + σ_d²) / (σ σ_d)² ‖x̂ - x₀‖²,   ln σ ~ N(-1.2, 1.2²), in units of σ_d / ½

Rows are taken as they are: nothing is flipped, rotated or scaled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOG_SIGMA = (-1.2, 1.2)


class Perceptrons(nn.Module):
    """B denoisers ``(B, n, D)`` of two hidden layers each, which share nothing; ``spread: (B,)`` is each one's σ_d."""

    spread: Tensor

    def __init__(self, members: int, features: int, hidden: int, spread: Tensor, *, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        sizes = [(features + 1, hidden), (hidden, hidden), (hidden, features)]
        self.matrices = nn.ParameterList(
            nn.Parameter(torch.randn(members, a, b, generator=g) * math.sqrt(2 / a)) for a, b in sizes
        )
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, b)) for _, b in sizes)
        self.register_buffer("spread", spread.float().view(-1, 1, 1))

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Clean rows; ``sigma`` a number, or ``(B, n)``."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype)
        sigma = sigma[..., None] if sigma.dim() else sigma.expand(*x.shape[:2], 1)
        total = (sigma.square() + self.spread.square()).rsqrt()
        h = torch.cat([total * x, (sigma / self.spread / 2).log().expand(*x.shape[:2], 1) / 4], -1)
        for i, (W, b) in enumerate(zip(self.matrices, self.shifts, strict=True)):
            h = torch.baddbmm(b, nn.functional.silu(h) if i else h, W)
        return (self.spread * total).square() * x + sigma * self.spread * total * h

    def member(self, b: int) -> Perceptrons:
        """One of them, as an ensemble of one."""
        one = Perceptrons(1, self.matrices[-1].shape[-1], self.matrices[0].shape[-1], self.spread[b : b + 1].flatten())
        one.load_state_dict({k: v[b : b + 1] for k, v in self.state_dict().items()})
        return one


def train_perceptrons(
    rows: list[Tensor], *, hidden: int, steps: int, batch: int, levels: tuple[float, float] | None = None,
    learning_rate: float = 1e-3, seed: int = 0,
) -> Perceptrons:  # fmt: skip
    """A denoiser for each set of rows ``(n_b, D)``, by Adam, whose rate falls to zero along a cosine.

    Noise in units of σ_d: from the least to the largest of ``levels``, ln σ uniform; EDM's normal by default, of which
    less than 0.1% lies above 25 and below 0.014. Who judges a denoiser gives the levels that it is judged at.
    """
    counts = torch.tensor([len(r) for r in rows])
    data = nn.utils.rnn.pad_sequence([r.float() for r in rows], batch_first=True)
    spread = torch.stack([r.float().square().mean().sqrt() for r in rows])
    net = Perceptrons(len(rows), data.shape[-1], hidden, spread, seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = (torch.rand(len(rows), batch, generator=g) * counts[:, None]).long()
        clean = data.gather(1, at[..., None].expand(-1, -1, data.shape[-1]))
        sigma = _noise((len(rows), batch, 1), levels, g) * net.spread
        weight = (sigma.square() + net.spread.square()) / (sigma * net.spread).square()
        noisy = clean + sigma * torch.randn(clean.shape, generator=g)
        loss = (weight * (net(noisy, sigma[..., 0]) - clean).square()).mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval().requires_grad_(False)


def _noise(shape: tuple[int, ...], levels: tuple[float, float] | None, g: torch.Generator) -> Tensor:
    if levels is None:
        return (LOG_SIGMA[0] + LOG_SIGMA[1] * torch.randn(shape, generator=g)).exp() * 2
    low, high = map(math.log, levels)
    return (low + (high - low) * torch.rand(shape, generator=g)).exp()
