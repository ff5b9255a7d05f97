"""How far learning moved the weights, and what that may cost: the paper's bound on forgetting, measured.

For weights W, a change ΔW of rank ρ = B A and an earlier task's loss ℓ whose gradient has Lipschitz constant L on the
way from W to W + ΔW:

    F = ℓ(W + ΔW) - ℓ(W) ≤ ‖∇ℓ(W)‖_F ‖ΔW‖_F + (L/2) ‖ΔW‖_F²,      ‖ΔW‖_F ≤ √ρ ‖B‖₂ ‖A‖₂

(Proposition 1 of arXiv 2412.01004). L is measured as the largest slope of the gradient between W and points on the
way, so that the bound holds up to their spacing. It is a bound on what can happen, no prediction: real changes seldom
point along the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.tuning.codyra import factored_norm

__all__ = ["ForgettingBound", "TaskDrift", "drift_of", "forgetting_bound"]


class TaskDrift(NamedTuple):
    """Of one task, over all its weights.

    Attributes
    ----------
    name : str
    rank : float
        Mean over weights.
    norm : float
        ``‖ΔW‖_F`` of the task.
    bound : float
        ``√(Σ ρ ‖B‖₂² ‖A‖₂²)``, never less.
    drift : float
        ``‖W_t - W_0‖_F`` after it.

    Examples
    --------
    >>> from rankwise.continual import TaskDrift
    >>> TaskDrift("birds", 8.0, 0.3, 0.5, 0.3).norm
    0.3
    """

    name: str
    rank: float
    norm: float
    bound: float
    drift: float


class ForgettingBound(NamedTuple):
    """Both sides of the bound.

    Attributes
    ----------
    forgetting : float
        What the loss rose by; negative where it fell.
    gradient, norm : float
        ``‖∇ℓ‖_F`` before, and ``‖ΔW‖_F``.
    smoothness : float
        L, measured.
    bound : float
        ``‖∇ℓ‖_F ‖ΔW‖_F + (L/2) ‖ΔW‖_F²``.

    Examples
    --------
    >>> from rankwise.continual import ForgettingBound
    >>> ForgettingBound(0.1, 1.0, 0.2, 2.0, 0.24).bound
    0.24
    """

    forgetting: float
    gradient: float
    norm: float
    smoothness: float
    bound: float


def drift_of(tasks: Sequence[Mapping[str, tuple[Tensor, Tensor]]], names: Sequence[str]) -> list[TaskDrift]:
    """Size, bound and drift after each of a sequence of tasks.

    Parameters
    ----------
    tasks : sequence of mappings
        ``A: (rank, in)`` and ``B: (out, rank)`` by layer.
    names : sequence of str
        Of the tasks.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import drift_of
    >>> there, back = (torch.eye(2), torch.eye(2)), (torch.eye(2), -torch.eye(2))
    >>> [round(task.drift, 3) for task in drift_of([{"w": there}, {"w": back}], ["there", "back"])]
    [1.414, 0.0]
    """
    out, so_far = [], {}
    for name, factors in zip(names, tasks, strict=True):
        size, most = 0.0, 0.0
        for layer, (A, B) in factors.items():
            size += factored_norm(A, B) ** 2
            if len(A):
                most += len(A) * float(torch.linalg.matrix_norm(A, 2) * torch.linalg.matrix_norm(B, 2)) ** 2
            before = so_far.get(layer, (A[:0], B[:, :0]))
            so_far[layer] = torch.cat([before[0], A]), torch.cat([before[1], B], 1)
        total = sum(factored_norm(A, B) ** 2 for A, B in so_far.values())
        rank = sum(len(A) for A, _ in factors.values()) / len(factors)
        out.append(TaskDrift(name, rank, size**0.5, most**0.5, total**0.5))
    return out


def forgetting_bound(
    loss: Callable[[], Tensor],
    weights: Mapping[str, nn.Parameter],
    deltas: Mapping[str, Tensor],
    *,
    points: int = 4,
) -> ForgettingBound:
    """What a change of weights does to a loss, and the bound on it; the weights are afterwards as before.

    Parameters
    ----------
    loss : callable
        The loss at the weights as they are.
    weights : mapping of parameters
        Before the change.
    deltas : mapping of Tensor
        The change of each, of the same shape.
    points : int
        Equal parts of the way, at whose ends the gradient is measured. Default 4.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import forgetting_bound
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> forgetting_bound(lambda: w.square().sum(), {"w": w}, {"w": torch.tensor([1.0])})  # 4 - 1 = 2 · 1 + (2/2) · 1
    ForgettingBound(forgetting=3.0, gradient=2.0, norm=1.0, smoothness=2.0, bound=3.0)
    """
    if points < 1:
        raise ValueError(f"points={points}: at least 1")
    first = {name: w.detach().clone() for name, w in weights.items()}
    asked = {name: w.requires_grad for name, w in weights.items()}
    size = _norm(deltas.values())
    try:
        for w in weights.values():
            w.requires_grad_(True)
        values, gradients = [], []
        for i in range(points + 1):
            with torch.no_grad():
                for name, w in weights.items():
                    w.copy_(first[name] + deltas[name] * (i / points))
            value = loss()
            gradients.append(torch.autograd.grad(value, [*weights.values()], allow_unused=True, materialize_grads=True))
            values.append(value.item())
    finally:
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(first[name])
                w.requires_grad_(asked[name])
    slopes = [
        _norm([a - b for a, b in zip(g, gradients[0], strict=True)]) / (size * i / points)
        for i, g in enumerate(gradients)
        if i and size
    ]
    gradient, steepest = _norm(gradients[0]), max(slopes, default=0.0)
    return ForgettingBound(values[-1] - values[0], gradient, size, steepest, gradient * size + steepest / 2 * size**2)


def _norm(tensors) -> float:
    return float(sum(t.detach().double().square().sum() for t in tensors) ** 0.5)
