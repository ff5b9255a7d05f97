"""A task that was learned: its factors, and what they change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.tuning.codyra import CodyraModel, KeptRank

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class LearnedTask:
    """A task that was learned.

    Attributes
    ----------
    name : str
    classes : tuple of str
        Empty where the objective has none.
    number : int
        How many were learned before it, those that were taken out included: decides its draws.
    losses : list of float
        Of each step.
    ranks : dict of KeptRank
        What is left of each adapted weight, by layer name.
    factors : dict
        ``A: (rank, in)`` and ``B diag(g): (out, rank)``, float32, by layer name.

    Examples
    --------
    >>> from rankwise.continual import LearnedTask
    >>> from rankwise.tuning import KeptRank
    >>> ranks = {"a": KeptRank(3, 16, 0.3), "b": KeptRank(5, 16, 0.4)}
    >>> task = LearnedTask(name="birds", classes=("wren",), number=0, losses=[0.1], ranks=ranks, factors={})
    >>> task.rank, round(task.norm, 3)
    (4.0, 0.5)
    """

    name: str
    classes: tuple[str, ...]
    number: int
    losses: list[float]
    ranks: dict[str, KeptRank]
    factors: Factors

    @property
    def rank(self) -> float:
        """Mean over the adapted weights."""
        return sum(kept.rank for kept in self.ranks.values()) / len(self.ranks)

    @property
    def norm(self) -> float:
        """``‖ΔW‖_F`` over all weights together."""
        return sum(kept.norm**2 for kept in self.ranks.values()) ** 0.5


@torch.no_grad()
def factors_of(tuner: CodyraModel) -> Factors:
    """``A`` and ``B diag(g)`` of every weight, without closed gates."""
    out: Factors = {}
    for name, layer in tuner.adapted_layers().items():
        A, gates, B = (f.detach().float().cpu() for f in layer.factors("default"))
        used = gates != 0
        out[name] = A[used].contiguous(), (B * gates)[:, used].contiguous()
    return out


def delta_of(task: LearnedTask, name: str, layer: nn.Module) -> Tensor:
    """``ΔW`` of a layer in its weight's orientation, float32; zero where the task did not touch it."""
    if name not in task.factors:
        return torch.zeros(())
    A, B = task.factors[name]
    return (B @ A).mT if isinstance(layer, Conv1D) else B @ A
