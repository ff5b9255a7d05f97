"""A student that learns from its own moving average: what ViDA and CoTTA share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.continual.augmentation import uniform
from rankwise.continual.settings import Settings
from rankwise.continual.stream import Inputs, StreamAdapter


class TeacherAdapter(StreamAdapter):
    """Adapts a student to its teacher's answers; the teacher follows it slowly, and some of it returns to the start.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import CoTTA
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> adapter = CoTTA(ViTForImageClassification(config), alpha=1.0)  # a teacher that never moves
    >>> before = adapter.teacher.classifier.weight.clone()
    >>> _ = adapter.predict(torch.rand(4, 3, 8, 8))
    >>> torch.equal(adapter.teacher.classifier.weight, before), torch.equal(adapter.model.classifier.weight, before)
    (True, False)
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        preset: str | Settings = "cifar10c",
        **changes: Any,
    ) -> None:
        self._teacher: dict[str, Tensor] = {}  # its trained parameters, by the student's names
        super().__init__(model, mean=mean, std=std, preset=preset, **changes)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        parameters = dict(self.teacher.named_parameters())
        self._teacher = {name: parameters[name] for name in self.trained}
        self._alpha = {name: self._alpha_of(name) for name in self.trained}

    def _alpha_of(self, name: str) -> float:
        return self.settings.alpha

    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return dict(model.named_parameters())

    @abstractmethod
    def _answers(self, inputs: Inputs) -> Tensor:
        """The teacher's logits for a batch, which are the prediction."""

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return soft_cross_entropy(student, teacher)

    def _step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            said = self._answers(inputs)
        return said, self._loss(self.logits(self.model, inputs), said)

    def _after(self) -> None:
        moving_average(self._teacher, self.trained, self._alpha)
        if self.settings.restore:
            restored(self.trained, self.source, self.settings.restore, lambda like: uniform(like, self.generator))

    def _predicted(self, inputs: Inputs) -> Tensor:
        return self.logits(self.teacher, inputs)

    @torch.no_grad()
    def reset(self) -> None:
        """Student, teacher, optimiser and draws as at the beginning."""
        super().reset()
        for name, parameter in self._teacher.items():
            parameter.copy_(self.source[name])

    def _kept(self) -> dict[str, Tensor]:
        return {f"teacher.{n}": p for n, p in self._teacher.items()}


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """``-Σ_c p_t log p_s``, mean over the batch: the teacher's probabilities are the labels.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.teacher import soft_cross_entropy
    >>> even = torch.zeros(3, 4)
    >>> round(float(soft_cross_entropy(even, even)), 4)  # log 4
    1.3863
    """
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()


@torch.no_grad()
def moving_average(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], alpha: Mapping[str, float]) -> None:
    """``t ← α t + (1 - α) s`` for each name of ``alpha``, in place."""
    for name, a in alpha.items():
        teacher[name].mul_(a).add_(student[name], alpha=1 - a)


@torch.no_grad()
def restored(
    parameters: Mapping[str, Tensor], source: Mapping[str, Tensor], rate: float, draw: Callable[[Tensor], Tensor]
) -> None:
    """Each number returns to ``source`` with probability ``rate``, in place; ``draw(like)`` gives numbers in [0, 1)."""
    for name, parameter in parameters.items():
        parameter.copy_(torch.where(draw(parameter) < rate, source[name], parameter))
