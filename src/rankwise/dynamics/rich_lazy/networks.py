"""The recurrent network of the experiments, alone as a module and many at once as stacked weights.

h_t = relu((1 - α) h_{t-1} + α (W h_{t-1} + U x_t)),  h_0 = 0,   outputs V h_t;   no biases anywhere
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankwise.dynamics.rich_lazy.tasks import Task

__all__ = ["RateRNN"]


class RateRNN(nn.Module):
    """A rate network ``(n, steps, inputs) -> (n, steps, outputs)``.

    Parameters
    ----------
    inputs, units, outputs : int
        Sizes.
    alpha : float
        dt / τ, in (0, 1]. Default 1.

    Attributes
    ----------
    input, recurrent, readout : Linear
        U, W and V.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import RateRNN
    >>> net = RateRNN(3, 20, 2)
    >>> net(torch.randn(5, 8, 3)).shape, net.hidden(torch.randn(5, 8, 3)).shape
    (torch.Size([5, 8, 2]), torch.Size([5, 8, 20]))
    """

    def __init__(self, inputs: int, units: int, outputs: int, *, alpha: float = 1.0) -> None:
        super().__init__()
        if min(inputs, units, outputs) < 1 or not 0 < alpha <= 1:
            raise ValueError(f"sizes {inputs}, {units}, {outputs}, alpha={alpha}: sizes from 1, alpha in (0, 1]")
        self.alpha = alpha
        self.input = nn.Linear(inputs, units, bias=False)
        self.recurrent = nn.Linear(units, units, bias=False)
        self.readout = nn.Linear(units, outputs, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        """Activity ``(n, steps, units)``."""
        h = x.new_zeros(len(x), self.recurrent.in_features)
        states = []
        for seen in self.input(x).unbind(1):
            h = torch.relu((1 - self.alpha) * h + self.alpha * (self.recurrent(h) + seen))
            states.append(h)
        return torch.stack(states, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(n, steps, outputs)``."""
        return self.readout(self.hidden(x))


def states(x: Tensor, U: Tensor, W: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Activity ``(E, n, steps, N)`` of E networks, U ``(E, N, inputs)`` and W ``(E, N, N)``, at x."""
    E, n, steps, width = x.shape
    seen = (x.reshape(E, n * steps, width) @ U.mT).reshape(E, n, steps, -1)
    h = torch.relu(alpha * seen[:, :, 0])  # from h = 0
    found = [h]
    for t in range(1, steps):
        moved = torch.baddbmm(seen[:, :, t], h, W.mT)
        h = torch.relu(moved if alpha == 1 else (1 - alpha) * h + alpha * moved)
        found.append(h)
    return torch.stack(found, 2)


def drawn(task: Task, units: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, V as `torch.nn.Linear` starts them, and a Gaussian matrix of variance 1/N, all of one seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(rows: int, columns: int) -> Tensor:
        return (2 * torch.rand(rows, columns, generator=generator) - 1) / columns**0.5

    U, V = uniform(units, task.inputs), uniform(task.outputs, units)
    return U, V, torch.randn(units, units, generator=generator) / units**0.5
