"""What decides how a model adapts while it predicts, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rankwise.continual.accepted import check_ranges
from rankwise.continual.augmentation import Augmentation
from rankwise.nearest import unknown

__all__ = ["Settings"]

CHOICES = {
    "optimizer": ("adam", "sgd"),
    "loss": ("ce", "symmetric"),
    "uncertainty": ("released", "probs", "mc_dropout"),
    "homeostasis": ("on", "off", "inverted"),
    "train": ("all", "adapters"),
    "precision": ("fp32", "bf16"),
    "compat": (None, "released"),
}
# what each of the methods reads
OPTIMISING = frozenset({"optimizer", "lr", "momentum", "episodic", "precision", "seed"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model adapts while it predicts; a method reads those that are its own.

    Parameters
    ----------
    optimizer : {"adam", "sgd"}
        Adam with betas (.9, .999), or SGD with Nesterov's momentum.
    lr : float
        Learning rate, of the backbone where adapters have their own.
    lr_vida : float
        Learning rate of the adapters.
    momentum : float
        Of SGD. Default .9.
    alpha, alpha_vida : float
        ``α`` of the teacher's moving average, of the backbone and of the adapters: 1 freezes it, 0 copies the student.
    restore : float
        Probability with which each trained number returns to its start after a step; 0 switches that off.
    n_aug : int
        Views (or passes with dropout) of a batch.
    theta : float
        ``Θ``: from this uncertainty on the wide branch is turned up, below it the narrow one.
    uncertainty : {"released", "probs", "mc_dropout"}
        ``0.1 · mean Var(logits)`` over views, unbiased, without a bound and not the same at another temperature;
        ``Σ_c Var(p_c)`` of probabilities over views, at most 1; or the root mean square distance of
        probabilities from their mean over passes with dropout, which needs no pictures.
    dropout : float, optional
        Probability in those passes; by default each layer's own.
    per_sample : bool
        Whether each picture has an uncertainty, and scales, of its own instead of its batch's. Views are then taken at
        scales of 1.
    homeostasis : {"on", "off", "inverted"}
        Whether scales follow the uncertainty; ``off`` leaves them at 1 and draws no views; ``inverted`` turns the wrong
        branch up, as a control.
    clip : bool
        Whether uncertainty above 1, which makes a scale negative, counts as 1.
    confident : float, optional
        Mean top probability of the teacher from which on a batch's views are left out, and its uncertainty is 0.
    loss : {"ce", "symmetric"}
        Cross-entropy with the teacher's probabilities, or half of it and half the other way round.
    train : {"all", "adapters"}
        Whether the backbone trains too.
    threshold : float
        Of CoTTA: mean top probability of the source model below which views are averaged.
    augmentation : Augmentation
        What views are.
    episodic : bool
        Whether every batch starts from the beginning.
    precision : {"fp32", "bf16"}
        Of what is computed, by autocast.
    chunk : int
        Most rows in one pass over views. Default 256.
    compat : {None, "released"}
        ``released`` leaves the wide branch's scale at 1, as the released code does.
    seed : int
        Of all draws.

    Raises
    ------
    ValueError
        A value outside of what is said above; it is named.

    Examples
    --------
    >>> from rankwise.continual import Settings
    >>> Settings(lr=1e-4, theta=0.05).n_aug
    10
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-4
    lr_vida: float = 1e-5
    momentum: float = 0.9
    alpha: float = 0.999
    alpha_vida: float = 0.999
    restore: float = 0.0
    n_aug: int = 10
    theta: float = 0.05
    uncertainty: Literal["released", "probs", "mc_dropout"] = "released"
    dropout: float | None = None
    per_sample: bool = False
    homeostasis: Literal["on", "off", "inverted"] = "on"
    clip: bool = False
    confident: float | None = None
    loss: Literal["ce", "symmetric"] = "ce"
    train: Literal["all", "adapters"] = "all"
    threshold: float = 0.92
    augmentation: Augmentation = field(default_factory=Augmentation)
    episodic: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    chunk: int = 256
    compat: Literal["released"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise unknown(name, str(getattr(self, name)), [str(a) for a in accepted])
        check_ranges(
            self,
            shares=("alpha", "alpha_vida", "restore", "threshold", "dropout", "confident"),
            amounts=("lr", "lr_vida", "momentum", "theta"),
            least={"n_aug": 2, "chunk": 1, "seed": 0},
        )
        if self.dropout is not None and self.uncertainty != "mc_dropout":
            raise ValueError(f"dropout is of uncertainty='mc_dropout', and it is '{self.uncertainty}'")
        if self.confident is not None and self.per_sample:
            raise ValueError("confident judges a batch, per_sample each picture: leave one of them out")

    def optimizer_of(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over groups of parameters."""
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, betas=(0.9, 0.999))
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.momentum > 0)
