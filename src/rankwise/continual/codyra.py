"""CoDyRA: learn task after task without old data, and end with one model of the original size.

Each task is learned by a fresh adapter whose directions are pruned while it learns (`rankwise.tuning.CodyraConfig`);
then it is folded into the weights, so that after t tasks

    W_t = W_0 + Σ_{i ≤ t} B_i diag(g_i) A_i,   rank_i chosen a weight, a task

Less rank and less size of ``ΔW_t`` is less forgetting: for a loss ℓ of an earlier task with L-Lipschitz gradient,
``F ≤ ‖∇ℓ‖_F ‖ΔW‖_F + (L/2) ‖ΔW‖_F²`` (`rankwise.continual.forgetting_bound` measures both sides).

Source: Lu, Zhao, Xue, Yao, Moore & Gong, "Take Only What You Need: Rank Minimization as an Implicit Forgetting
Regularizer in Continual Learning", arXiv 2412.01004.

The factors of every task stay beside the model, ``rank (in + out)`` numbers a weight: any task can be taken out again.
Weights are summed in float32 from the first ones, which are kept in memory: folding in bfloat16 task by task would lose
small changes, and taking out would not return what was there. What people get wrong: tasks learned *after* one that is
taken out were learned on top of it, and stay as they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import default_collate

from rankwise.continual.accepted import refuse_adapters
from rankwise.continual.drift import ForgettingBound, TaskDrift, drift_of, forgetting_bound
from rankwise.continual.learning.content import content_of_values
from rankwise.continual.learning.saved import read_tasks, write_tasks
from rankwise.continual.learning.tasks import LearnedTask, delta_of, factors_of
from rankwise.continual.objectives import Objective, objective_for
from rankwise.continual.training import Schedule, draw, rows_of, train
from rankwise.files import fingerprint, whole_folder
from rankwise.models.passes import evaluating
from rankwise.nearest import unknown
from rankwise.tuning.codyra import CodyraConfig, CodyraModel, KeptRank, check_schedule

__all__ = ["CodyraLearner", "LearnedTask"]

MADE_BY = "codyra"


class CodyraLearner:
    """Learns tasks in a row into one model, and takes them out again.

    Parameters
    ----------
    model : nn.Module
        Without adapters. Its weights are changed in place: it is what `finish` returns.
    config : CodyraConfig, optional
        Of every task's adapter; the defaults by default.
    tokenizer : PreTrainedTokenizerBase, optional
        Of a CLIP or a sentence encoder, which learn from the names of classes.
    objective : Objective, optional
        By the model's class by default (`rankwise.continual.objective_for`).
    schedule : Schedule, optional
        Steps, batch size and rate of each task.
    collate : callable, optional
        Makes a batch of a list of examples; torch's by default.
    seed : int
        Decides starts, order and dropout, apart for each task.

    Raises
    ------
    ValueError
        A model with adapters, a configuration that trains whole modules, which cannot be taken out.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual import CodyraLearner, Schedule
    >>> from rankwise.models import load, load_tokenizer
    >>> from rankwise.tuning import CodyraConfig
    >>> pictures = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 2} for i in range(8)]
    >>> learner = CodyraLearner(
    ...     load("clip-cifar10"), CodyraConfig(r=4, kappa_steps=2), tokenizer=load_tokenizer("clip-cifar10"),
    ...     schedule=Schedule(steps=4, batch_size=8))
    >>> task = learner.learn(pictures, name="noise", classes=["salt", "pepper"])
    >>> task.ranks["vision_model.encoder.layers.0.mlp.fc1"].of
    4
    >>> learner.accuracy(pictures, ["salt", "pepper"]) in [right / 8 for right in range(9)]
    True
    >>> type(learner.finish()).__name__
    'CLIPModel'
    """

    def __init__(
        self,
        model: nn.Module,
        config: CodyraConfig | None = None,
        *,
        tokenizer: Any = None,
        objective: Objective | None = None,
        schedule: Schedule | None = None,
        collate: Callable[[list], Mapping[str, Tensor]] = default_collate,
        seed: int = 0,
    ) -> None:
        refuse_adapters(model)
        self.config = copy.deepcopy(config or CodyraConfig())
        if self.config.modules_to_save:
            raise ValueError(
                f"modules_to_save={self.config.modules_to_save}: modules that train whole have no rank, and could not "
                "be taken out again; leave them out"
            )
        self.model, self.seed = model, seed
        self.objective = objective or objective_for(model, tokenizer)
        self.schedule = schedule or Schedule()
        self.collate = collate
        self.history: list[LearnedTask] = []
        self.number = 0  # of tasks that were ever learned
        self._adapted: PeftModel | None = None  # while the last task is not folded in
        self._first: dict[str, Tensor] = {}  # W_0 of the adapted weights, in memory of the host

    # --- learning

    def learn(
        self,
        dataset: Sequence[Mapping[str, Any]],
        *,
        name: str,
        classes: Sequence[str] = (),
        checkpoint: str | Path | None = None,
        every: int = 100,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> LearnedTask:
        """Learn a task; its adapter stays active, unfolded, until the next one or `finish`.

        Parameters
        ----------
        dataset : sequence of mappings
            Examples by index, as `datasets.Dataset` and `torch.utils.data.Dataset` give them, with ``labels``.
        name : str
            By which it can be taken out.
        classes : sequence of str
            What the labels index. A name that an earlier task had is that class again.
        checkpoint : path, optional
            A file for the state of the training: the same call, cut short, goes on from it to the same numbers.
        every : int
            Steps between two writings of it.
        on_step : callable
            Told each step and its loss.

        Raises
        ------
        ValueError
            No examples, a name that is taken, a class twice, labels that are no indices of classes.
        FloatingPointError
            A loss that is not finite. The model is then as before the task.
        """
        names = tuple(classes)
        self._check(dataset, name, names)
        check_schedule(self.schedule.steps, self.config)
        self._fold()
        key = (self.seed, self.number)
        tuner = self._adapt(*key)
        told = "" if checkpoint is None else self._told(dataset, name, names, tuner, *key)
        modes = {m: m.training for m in self.model.modules()}
        for module in self.model.modules():  # running statistics could not be taken out again: they stand still
            module.training = getattr(module, "running_mean", None) is None
        seen = len({c for t in self.history for c in t.classes} - set(names))
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        try:
            losses = train(
                parameters, lambda step: self.objective.loss(self.model, self._batch(dataset, step, *key), names, seen),
                self.schedule, *key, around=lambda step: tuner.gate_step(step, self.schedule.steps), on_step=on_step,
                checkpoint=None if checkpoint is None else Path(checkpoint), every=every, told=told,
            )  # fmt: skip
        except BaseException:
            self._unload()
            raise
        finally:
            for module, mode in modes.items():
                module.training = mode
        task = LearnedTask(
            name=name,
            classes=names,
            number=self.number,
            losses=losses,
            ranks=tuner.rank_map(),
            factors=factors_of(tuner),
        )
        if not any(kept.rank for kept in task.ranks.values()):
            warnings.warn(f"every gate of '{name}' is closed: it changes nothing; lower max_kappa", stacklevel=2)
        self.history.append(task)
        self.number += 1
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        return task

    def _check(self, dataset: Sequence, name: str, classes: tuple[str, ...]) -> None:
        if not len(dataset):
            raise ValueError(f"task '{name}' has no examples")
        if name in [t.name for t in self.history]:
            raise ValueError(f"task '{name}' is learned already: give another name, or forget('{name}') first")
        if twice := [c for i, c in enumerate(classes) if c in classes[:i]]:
            raise ValueError(f"task '{name}' has the class '{twice[0]}' twice")
        labels = {int(row["labels"]) for row in map(dataset.__getitem__, range(len(dataset)))} if classes else set()
        if strange := [label for label in sorted(labels) if not 0 <= label < len(classes)]:
            raise ValueError(f"task '{name}' has {len(classes)} classes and the label {strange[0]}")

    def _told(self, dataset: Sequence, name: str, classes: tuple[str, ...], tuner: CodyraModel, *key: int) -> str:
        """All that decides what a training comes to, by content."""
        weights = {n: layer.get_base_layer().weight for n, layer in tuner.adapted_layers().items()}
        with torch.random.fork_rng():  # examples may be drawn
            torch.manual_seed(draw(*key))
            rows = [content_of_values(dataset[i]) for i in range(len(dataset))]
        options = [asdict(self.schedule), _said(self.config)]
        return fingerprint([name, classes, key, options, rows, content_of_values(weights)])

    def _batch(self, dataset: Sequence, step: int, *key: int) -> dict[str, Any]:
        rows = rows_of(step, len(dataset), self.schedule.batch_size, *key)
        return self._moved(self.collate([dataset[i] for i in rows]))

    def _moved(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _adapt(self, *key: int) -> CodyraModel:
        """A fresh adapter around the folded weights."""
        self._trainable = {n for n, p in self.model.named_parameters() if p.requires_grad}
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of a model without a name
            torch.manual_seed(draw(*key))
            given: Any = self.model
            self._adapted = get_peft_model(given, copy.deepcopy(self.config))
        tuner: Any = self._adapted.base_model
        for name, layer in tuner.adapted_layers().items():
            weight: Any = layer.get_base_layer().weight
            if not weight.is_floating_point():
                self._unload()
                raise TypeError(f"{name} is quantised ({weight.dtype}): nothing can be folded into it")
            self._first.setdefault(name, weight.detach().cpu().clone())
        return tuner

    # --- folding

    def finish(self) -> nn.Module:
        """Fold the last task in; the plain model of the original size, for `save_pretrained` or more tasks."""
        self._fold()
        return self.model

    def forget(self, name: str) -> None:
        """Take a task out: the weights are those of the others, as they were learned."""
        if name not in (names := [t.name for t in self.history]):
            raise unknown("task", name, names)
        self.history.pop(names.index(name))
        self._fold()

    def _fold(self) -> None:
        """No adapter, and ``W_0 + Σ ΔW`` of the history in the weights."""
        self._unload()
        self._put(self.history)

    def _unload(self) -> None:
        if self._adapted is not None:
            tuner: Any = self._adapted.base_model
            tuner.unload()
            self._adapted = None
            for name, p in self.model.named_parameters():
                p.requires_grad_(name in self._trainable)

    @torch.no_grad()
    def _put(self, tasks: Iterable[LearnedTask]) -> None:
        tasks, layers = [*tasks], dict(self.model.named_modules())
        for name, first in self._first.items():
            layer: Any = layers[name]
            total = first.to(layer.weight.device, torch.promote_types(first.dtype, torch.float32), copy=True)
            for task in tasks:
                total += delta_of(task, name, layer).to(total)
            layer.weight.copy_(total)

    # --- what came of it

    def rank_map(self) -> dict[str, dict[str, KeptRank]]:
        """By task, then by layer: open gates, all gates, ``‖ΔW‖_F``."""
        return {task.name: task.ranks for task in self.history}

    def drift(self) -> list[TaskDrift]:
        """After each task: its size and the bound on it, and how far the weights are from the first ones."""
        return drift_of([task.factors for task in self.history], [task.name for task in self.history])

    @torch.no_grad()
    def accuracy(
        self,
        dataset: Sequence[Mapping[str, Any]],
        classes: Sequence[str] = (),
        *,
        among: Sequence[str] | None = None,
        batch_size: int = 256,
    ) -> float:
        """Share of right answers of the model as it is, in [0, 1].

        Parameters
        ----------
        dataset, classes
            As for `learn`.
        among : sequence of str, optional
            All classes to choose from; ``classes`` by default.
        batch_size : int
            Examples at once.
        """
        if not len(dataset):
            raise ValueError("no examples to judge by")
        wanted = tuple(among) if among is not None else tuple(classes)
        right: list[Tensor] = []
        with evaluating(self.model):
            for start in range(0, len(dataset), batch_size):
                rows = range(start, min(start + batch_size, len(dataset)))
                batch = self._moved(self.collate([dataset[i] for i in rows]))
                right.append(self.objective.right(self.model, batch, tuple(classes), wanted).flatten().cpu())
        return float(torch.cat(right).double().mean())

    def forgetting_bound(
        self, dataset: Sequence[Mapping[str, Any]], classes: Sequence[str] = (), *, points: int = 4
    ) -> ForgettingBound:
        """What the last task did to the loss of an earlier one, and the paper's bound on it; folds the last task in.

        Parameters
        ----------
        dataset, classes
            Examples of an earlier task, taken as one batch.
        points : int
            Places between the weights before and after, at which the gradient's slope is measured.
        """
        self._fold()
        last, layers = self.history[-1], dict(self.model.named_modules())
        weights: Any = {name: layers[name].weight for name in last.factors}
        deltas = {name: delta_of(last, name, layers[name]).to(weights[name]) for name in last.factors}
        batch = self._moved(self.collate([dataset[i] for i in range(len(dataset))]))
        with evaluating(self.model), _at(self, self.history[:-1]):
            return forgetting_bound(
                lambda: self.objective.loss(self.model, batch, tuple(classes), 0), weights, deltas, points=points
            )

    # --- on disk

    def save(self, folder: str | Path) -> None:
        """Write the tasks' factors and what they are; the model itself is `finish`'s to save.

        Raises
        ------
        ValueError
            The folder holds something else.
        """
        with whole_folder(Path(folder), made_by=MADE_BY) as draft:
            self.write_into(draft)

    def write_into(self, folder: str | Path) -> None:
        """As `save`, file by file into a folder of the caller's: only what is new, and the list of tasks last."""
        first = content_of_values(self._first) if self._first else ""
        write_tasks(Path(folder), self.history, number=self.number, first=first)

    def resume(self, folder: str | Path) -> None:
        """Put the tasks that `save` wrote into this learner, whose model is the one that they began with.

        Raises
        ------
        ValueError
            The learner has tasks, the folder has none, or they began with other weights.
        """
        if self.history:
            raise ValueError("this learner has tasks: resume into a new one")
        number, told_first, history = read_tasks(Path(folder))
        layers: dict[str, Any] = dict(self.model.named_modules())
        wanted = {n for task in history for n in task.factors}
        if lost := sorted(wanted - layers.keys()):
            raise ValueError(f"{folder}: the model has no layer {lost[0]}")
        first: Any = {n: layers[n].weight.detach().cpu().clone() for n in wanted}
        if history and content_of_values(first) != told_first:
            raise ValueError(f"{folder}: these tasks began with another model, or with other weights")
        self._first, self.history, self.number = first, history, number
        self._fold()


@contextmanager
def _at(learner: CodyraLearner, tasks: list[LearnedTask]):
    """The weights that these tasks make, for a while."""
    learner._put(tasks)
    try:
        yield
    finally:
        learner._put(learner.history)


def _said(config: CodyraConfig) -> dict[str, Any]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
