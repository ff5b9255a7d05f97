"""One stream of tasks learned in many ways: CoDyRA, plain LoRA, one rank for all, EWC, all weights, all tasks at once.

Every way sees the same examples in the same order, by the learner's own loop, loss and schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rankwise.continual import CodyraLearner, Objective, Schedule, stream_scores
from rankwise.continual.codyra import LearnedTask
from rankwise.continual.training import draw, rows_of, train
from rankwise.models import target_modules
from rankwise.tuning import CodyraConfig
from rankwise.tuning.codyra import CodyraModel


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A task: what labels index, and its examples."""

    name: str
    classes: tuple[str, ...]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What learns: how to make the model, its objective, its batches, its tasks."""

    make: Callable[[], nn.Module]
    objective: Objective
    collate: Callable[[list], Mapping[str, Tensor]]
    domains: list[Domain]


def some_of_each(labels: Any, most: int, seed: int) -> list[int]:
    """At most so many rows of each class."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [int(i) for label in np.unique(labels) for i in order[labels[order] == label][:most]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a stream is learned.

    Attributes
    ----------
    kind : str
        ``codyra``, ``random`` (as many gates as CoDyRA, chosen by chance), ``lora``, ``full``, ``ewc`` or ``joint``.
    r : int
        Rank of an adapter.
    kappa : float
        Of CoDyRA.
    rate : float
        The learning rate over the schedule's.
    weight : float
        Of EWC's penalty.
    released : bool
        CoDyRA as the authors' code has it.
    freeze : bool
        Hold closed gates.
    """

    kind: str
    r: int = 16
    kappa: float = 0.0
    rate: float = 1.0
    weight: float = 0.0
    released: bool = False
    freeze: bool = False


def learned(
    subject: Subject, way: Way, schedule: Schedule, seed: int, *, counts: Sequence[Mapping[str, int]] = ()
) -> dict[str, Any]:
    """Accuracies after each task and what the weights did; ``counts`` are gates by task and layer, for ``random``.

    Accuracies are among the classes of each task; ``mixed`` are those at the end among the classes of all tasks.
    """
    schedule = replace(schedule, learning_rate=schedule.learning_rate * way.rate)
    model: Any = subject.make().eval()
    adapter = CodyraConfig(r=way.r, max_kappa=way.kappa, released=way.released, freeze_zero=way.freeze)
    learner = CodyraLearner(
        model, adapter, objective=subject.objective, schedule=schedule, collate=subject.collate, seed=seed
    )
    names = [*dict.fromkeys(c for d in subject.domains for c in d.classes)]
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in target_modules(model)}
    first = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    before, table, norms, drift, ranks = _row(learner, subject), [], [], [], []
    teach = _Teacher(subject, learner, layers, way, schedule, seed, names)
    for i in range(1 if way.kind == "joint" else len(subject.domains)):
        previous = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        ranks.append(teach(i, counts[i] if counts else {}))
        norms.append(_distance(layers, previous))
        drift.append(_distance(layers, first))
        table.append(_row(learner, subject))
    mixed = [learner.accuracy(d.test, d.classes, among=names) for d in subject.domains]
    return {"before": before, "mixed": mixed, "table": table, "norms": norms, "drift": drift, "ranks": ranks}


def scores_of(found: dict[str, Any]) -> dict[str, float]:
    """What `stream_scores` finds, what was learned when it was taught, mixed accuracy, size and drift of one run."""
    table, n = found["table"], len(found["table"][0])
    own: dict[str, float] = {"last": sum(table[-1]) / n}
    if len(table) == n:
        own = stream_scores(table)._asdict() | {"learned": sum(table[d][d] for d in range(n)) / n}
    size = sum(found["norms"]) / len(found["norms"])
    return own | {"mixed": sum(found["mixed"]) / n, "size": size, "drift": found["drift"][-1]}


class _Teacher:
    """Teaches one task after another in one way; the model has no adapter between tasks."""

    def __init__(
        self, subject: Subject, learner: CodyraLearner, layers: dict[str, Any], way: Way, schedule: Schedule,
        seed: int, names: list[str],
    ) -> None:  # fmt: skip
        self.subject, self.learner, self.layers, self.way = subject, learner, layers, way
        self.schedule, self.seed, self.names = schedule, seed, names
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def __call__(self, at: int, counts: Mapping[str, int]) -> dict[str, int]:
        """Teach task ``at``; the rank of every weight."""
        domain = self.subject.domains[at]
        if self.way.kind in ("codyra", "random"):
            with _closed_by_chance(counts, self.schedule.steps, draw(self.seed, at)):
                task: LearnedTask = self.learner.learn(domain.train, name=domain.name, classes=domain.classes)
            self.learner.finish()
            return {name: kept.rank for name, kept in task.ranks.items()}
        if self.way.kind == "joint":
            domain = _joined(self.subject.domains, self.names)
        model, schedule = self.learner.model, self.schedule
        if self.way.kind == "joint":
            schedule = replace(schedule, steps=schedule.steps * len(self.subject.domains))
        asked = {n: p.requires_grad for n, p in model.named_parameters()}
        adapted: Any = None
        if self.way.kind in ("lora", "joint"):
            torch.manual_seed(draw(self.seed, at))
            targets = list(self.layers)
            given: Any = model
            adapted = get_peft_model(given, LoraConfig(r=self.way.r, lora_alpha=self.way.r, target_modules=targets))
            parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        else:
            for p in model.parameters():
                p.requires_grad_(False)
            parameters = {n: layer.weight.requires_grad_(True) for n, layer in self.layers.items()}
        seen = len({c for d in self.subject.domains[:at] for c in d.classes} - set(domain.classes))

        def loss(step: int) -> Tensor:
            rows = rows_of(step, len(domain.train), schedule.batch_size, self.seed, at)
            batch = self.subject.collate([domain.train[i] for i in rows])
            value = self.subject.objective.loss(model, batch, domain.classes, seen)
            return value + self._penalty(parameters)

        model.train()
        train(parameters, loss, schedule, self.seed, at)
        model.eval()
        if self.way.kind == "ewc":
            self._remember(model, domain, parameters, seen)
        if adapted is not None:
            adapted.merge_and_unload()
        for name, p in model.named_parameters():
            p.requires_grad_(asked[name])
        return {
            name: self.way.r if adapted is not None else min(layer.weight.shape) for name, layer in self.layers.items()
        }

    def _penalty(self, parameters: Mapping[str, nn.Parameter]) -> Tensor | float:
        if not self.fisher:
            return 0.0
        terms = [(self.fisher[n] * (p - self.anchor[n]).square()).sum() for n, p in parameters.items()]
        return 0.5 * self.way.weight * torch.stack(terms).sum()

    def _remember(self, model: Any, domain: Domain, parameters: Mapping[str, nn.Parameter], seen: int) -> None:
        """Add the squared gradients of single examples, of 64 of them, to those of earlier tasks."""
        rows = rows_of(0, len(domain.train), 64, self.seed, len(self.fisher))
        for i in rows:
            batch = self.subject.collate([domain.train[i]])
            value = self.subject.objective.loss(model, batch, domain.classes, seen)
            for (name, _), g in zip(
                parameters.items(), torch.autograd.grad(value, [*parameters.values()], materialize_grads=True,
                                                        allow_unused=True), strict=True,
            ):  # fmt: skip
                self.fisher[name] = self.fisher.get(name, torch.zeros_like(g)) + g.square() / len(rows)
        self.anchor = {n: p.detach().clone() for n, p in parameters.items()}


def _joined(domains: Sequence[Domain], names: list[str]) -> Domain:
    rows = [row | {"labels": names.index(d.classes[int(row["labels"])])} for d in domains for row in d.train]
    return Domain(name="all", classes=tuple(names), train=rows, test=[])


def _row(learner: CodyraLearner, subject: Subject) -> list[float]:
    return [learner.accuracy(d.test, d.classes) for d in subject.domains]


def _distance(layers: Mapping[str, Any], other: Mapping[str, Tensor]) -> float:
    return float(sum((layer.weight - other[n]).detach().double().square().sum() for n, layer in layers.items()) ** 0.5)


@contextmanager
def _closed_by_chance(counts: Mapping[str, int], steps: int, seed: int):
    """Within the block, all but so many gates, drawn at random, close for good half-way through a training."""
    if not counts:
        yield
        return
    plain = CodyraModel.gate_step
    chance, closed = torch.Generator().manual_seed(seed), {}

    @contextmanager
    def by_chance(self: CodyraModel, step: int, total_steps: int, adapter_name: str | None = None):
        yield 0.0
        if step < steps // 2:
            return
        with torch.no_grad():
            for name, gates in self.gates(adapter_name).items():
                if name not in closed:
                    closed[name] = torch.randperm(len(gates), generator=chance)[counts[name] :]
                gates[closed[name]] = 0.0

    CodyraModel.gate_step = by_chance
    try:
        yield
    finally:
        CodyraModel.gate_step = plain
