"""A Wasserstein generative adversarial network with gradient penalty: a baseline that has no likelihood."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def generate(
    X: np.ndarray, n: int, *, latent_dim: int, hidden: int = 64, steps: int = 2000, critic_steps: int = 5, seed: int = 0
) -> np.ndarray:
    """Train on ``X (rows, D)`` and draw ``n`` points (Gulrajani et al. 2017: penalty 10, five critic steps a step)."""
    g = torch.Generator().manual_seed(seed)
    mean, scale = X.mean(0), float(np.sqrt(X.var(0).mean()))
    x, D = torch.as_tensor((X - mean) / scale, dtype=torch.float32), X.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        f, critic = _mlp(latent_dim, hidden, D), _mlp(D, hidden, 1)
    optimizers = [torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.5, 0.9), fused=True) for net in (f, critic)]

    def z() -> torch.Tensor:
        return torch.randn(64, latent_dim, generator=g)

    for step in range(steps * (critic_steps + 1)):
        if step % (critic_steps + 1) == critic_steps:
            optimizers[0].zero_grad()
            (-critic(f(z())).mean()).backward()
            optimizers[0].step()
            continue
        real, made = x[torch.randint(len(x), (64,), generator=g)], f(z()).detach()
        between = torch.lerp(real, made, torch.rand(64, 1, generator=g)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        optimizers[1].zero_grad()
        (critic(made).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()).backward()
        optimizers[1].step()
    with torch.no_grad():
        return f(torch.randn(n, latent_dim, generator=g)).double().numpy() * scale + mean


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
