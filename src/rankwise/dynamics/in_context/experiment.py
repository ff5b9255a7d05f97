"""Training as published, of many seeds as one stack of networks, and what each of them could do when.

    θ ← (1 - wd) θ - η ∇ℓ

Plain descent on fresh sequences at every step. The decay is not multiplied by the learning rate, so that in
`torch.optim.SGD` it is ``weight_decay=wd / η``. The loss of a stack is the sum of its members' losses, whose gradients
have nothing to do with each other: each member learns what it would alone.
"""

from __future__ import annotations

import json
import math
import numbers
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.dynamics.in_context.measures import progress
from rankwise.dynamics.in_context.network import FIRST, HIDDEN, AttentionOnlyNet, plant_previous_token
from rankwise.dynamics.in_context.sizes import seeds_of, whole
from rankwise.dynamics.in_context.task import InContextBatch, InContextTask, Sampler, settings
from rankwise.dynamics.in_context.theory import MinimalInductionHead, finite
from rankwise.events import OnEvent
from rankwise.files import check_file, whole_file
from rankwise.nearest import unknown
from rankwise.reading import parse_json, tensor_file

__all__ = ["InContextExperiment", "InContextResult"]

Model = Literal["network", "three numbers", "two numbers"]
MEASURES = ("cla", "ila1", "tila2", "tla2")
SAVED = 30  # seconds from one state on disk to the next


@dataclass(frozen=True, kw_only=True)
class InContextResult:
    """What every seed could do at every measured step.

    Attributes
    ----------
    frame : DataFrame
        A row a seed and step: ``seed``, ``step``; ``loss`` and ``accuracy`` on fresh sequences as in training; accuracy
        on the sets of `InContextTask.eval_sets`, ``iwl``, ``ic`` and ``ic2``; on ``ic``: ``cla``, ``ila1``, ``tila2``,
        ``tla2`` and ``strength``, as `progress` tells them.
    task : InContextTask
        What was drawn.
    model : nn.Module, optional
        The trained stack, a network a seed in the order of the frame; none where rows were read back.

    Examples
    --------
    >>> from rankwise.dynamics import InContextExperiment, InContextTask
    >>> task = InContextTask(classes=32, labels=8, dim=15, pairs=4, n_max=6, batch_size=16)
    >>> result = InContextExperiment(task, steps=10, every=5, eval_size=50).run(seeds=2)
    >>> result.frame.step.tolist(), result.crossing("ic", 0.9).tolist()
    ([0, 5, 10, 0, 5, 10], [nan, nan])
    """

    frame: pd.DataFrame
    task: InContextTask
    model: nn.Module | None = None

    def crossing(self, column: str, level: float) -> pd.Series:
        """By seed, the first measured step at which ``column`` is at least ``level``; NaN where none is.

        A level at which `loss` is to have fallen is given with the column ``-loss``, as ``-level``.
        """
        name = self._known(column.removeprefix("-"))
        values = -self.frame[name] if column != name else self.frame[name]
        there = self.frame[values >= level].groupby("seed").step.min()
        return there.reindex(self.frame.seed.unique()).astype(float)

    def final(self, column: str, *, points: int = 1) -> pd.Series:
        """By seed, the mean of a column's last ``points`` values."""
        self._known(column)
        whole("points", points, 1)
        by_seed = {seed: rows[column].tail(points).mean() for seed, rows in self.frame.groupby("seed", sort=False)}
        return pd.Series(by_seed, name=column).rename_axis("seed")

    def _known(self, column: str) -> str:
        told = set(self.frame) - {"seed", "step"}
        if column not in told:
            raise unknown("column", column, told)
        return column

    def order(self) -> pd.DataFrame:
        """By seed, the step at which each measure has come half of its way from first to highest: a column a measure.

        NaN where a measure rose by less than 0.1.
        """
        by_seed = {}
        for seed, rows in self.frame.groupby("seed", sort=False):
            found = {}
            for name in (*MEASURES, "ic"):
                v = rows[name].to_numpy()
                risen = np.flatnonzero(v >= (v[0] + v.max()) / 2)
                found[name] = float(rows.step.to_numpy()[risen[0]]) if v.max() - v[0] >= 0.1 else math.nan
            by_seed[seed] = found
        return pd.DataFrame.from_dict(by_seed, orient="index").rename_axis("seed")


@dataclass(frozen=True, kw_only=True)
class _State:
    """Where a run is: step, parameters, what it would draw next, and rows so far."""

    step: int
    rows: list[dict[str, float]]


class InContextExperiment:
    """How learning from the context begins: one setting, any number of seeds in one stack.

    Parameters
    ----------
    task : InContextTask
        Sequences and batch size; its ``seed`` is not used, since each run has its own.
    model : {"network", "three numbers", "two numbers"}
        `AttentionOnlyNet`, or `MinimalInductionHead` with β₂ or without.
    steps : int
        Of training; 150,000 as published, 30,000 for a small task.
    learning_rate, weight_decay : float
        Of plain descent; the decay is a step's, whatever the rate.
    every : int
        Steps from one measurement to the next; the first and the last step are measured too.
    eval_size : int
        Sequences a set, at each measurement.
    freeze : sequence of str
        Parameters that stay at their start, by name; ``first`` is all of the first layer.
    ablate : sequence of str
        Parameters that are 0 and stay so, named likewise; without ``v1`` the first layer copies nothing.
    beta1 : float, optional
        Start with a first layer that looks one token back with this logit; 0 for minimal models.
    device : str or torch.device
        Where it is trained.
    hidden : int
        Width of the classifier.

    Raises
    ------
    ValueError
        A value outside of these; frozen parameters that the model has not, or nothing that is trained.

    Examples
    --------
    >>> from rankwise.dynamics import InContextExperiment, InContextTask
    >>> task = InContextTask(classes=32, labels=8, dim=15, pairs=4, n_max=6, p_novel=1.0, batch_size=16)
    >>> experiment = InContextExperiment(task, steps=4, every=2, eval_size=20, freeze=["first"])
    >>> sorted(experiment.run(seeds=[7, 8]).frame.seed.unique().tolist())
    [7, 8]
    """

    def __init__(
        self,
        task: InContextTask,
        *,
        model: Model = "network",
        steps: int = 150_000,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-6,
        every: int = 500,
        eval_size: int = 1000,
        freeze: Sequence[str] = (),
        ablate: Sequence[str] = (),
        beta1: float | None = None,
        device: str | torch.device = "cpu",
        hidden: int = HIDDEN,
    ) -> None:
        if model not in get_args(Model):
            raise unknown("model", str(model), get_args(Model))
        for name, value, most in (("learning_rate", learning_rate, math.inf), ("weight_decay", weight_decay, 1.0)):
            if not isinstance(value, numbers.Real) or not 0 <= value < most:
                raise ValueError(f"{name}={value!r}: a number of at least 0{' below 1' * (most == 1)} is accepted")
        counts = {"steps": steps, "every": every, "eval_size": eval_size, "hidden": hidden}
        self.steps, self.every, self.eval_size, self.hidden = (whole(name, n, 1) for name, n in counts.items())
        self.task, self.model, self.beta1 = task, model, None if beta1 is None else finite("beta1", beta1)
        self.learning_rate, self.weight_decay = float(learning_rate), float(weight_decay)
        for name, given in {"freeze": freeze, "ablate": ablate}.items():
            if isinstance(given, str):
                raise ValueError(f"{name}={given!r}: a list of names is accepted, [{given!r}]")
        self.device = torch.device(device)
        self.freeze, self.ablate = (
            tuple(p for name in given for p in (FIRST if name == "first" else (name,))) for given in (freeze, ablate)
        )
        own = [name for name, _ in self._built([0]).named_parameters()]
        for name in self.freeze + self.ablate:
            if name not in own:
                raise unknown("parameter", name, own)
        if set(own) == {*self.freeze, *self.ablate}:
            raise ValueError("freeze and ablate leave nothing to train")
        if beta1 is not None and (gone := {"q1", "k1", "beta1"} & set(self.ablate)):
            raise ValueError(f"beta1={beta1!r} with ablate={sorted(gone)}: what is ablated is 0; leave one of them out")

    def run(
        self, seeds: int | Sequence[int] = 6, *, keep: str | Path | None = None, on_event: OnEvent | None = None
    ) -> InContextResult:
        """Train and measure.

        Parameters
        ----------
        seeds : int or sequence of int
            How many, from 0 on, or which.
        keep : path, optional
            A safetensors file of where the run is, written every half minute and at the end. Where it holds a run of
            these settings, that one goes on.
        on_event : callable, optional
            Told steps and the mean loss.

        Raises
        ------
        ValueError
            No seed, the same seed twice, a file of another run, or no place for a file.
        """
        chosen = seeds_of(range(whole("seeds", seeds, 1)) if isinstance(seeds, numbers.Integral) else seeds)
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"seeds={seeds!r}: each is accepted once")
        net, sampler = self._built(chosen), self.task.sampler(*chosen, device=self.device)
        path = None if keep is None else check_file(Path(keep))
        told = json.dumps(self._told(chosen), sort_keys=True)
        state = _State(step=0, rows=[])
        if path is not None and path.is_file():
            state = _read(path, told, net, sampler)
        sets, note, last = sampler.eval_sets(self.eval_size), on_event or (lambda *_: None), time.monotonic()
        if not state.rows:
            state = _State(step=0, rows=list(self._measured(net, sets, chosen, 0)))
        rows = state.rows
        trained = [p for name, p in net.named_parameters() if name not in self.freeze + self.ablate]
        for step in range(state.step + 1, self.steps + 1):
            descend(net, trained, sampler.draw(self.task.batch_size), self.learning_rate, self.weight_decay)
            if step % self.every == 0 or step == self.steps:
                rows += self._measured(net, sets, chosen, step)
                note("seeds", "train", step, self.steps, float(np.mean([r["loss"] for r in rows[-len(chosen) :]])))
                if path is not None and (step == self.steps or time.monotonic() - last > SAVED):
                    _write(path, told, net, sampler, _State(step=step, rows=rows))
                    last = time.monotonic()
        frame = pd.DataFrame(rows).astype({"seed": int, "step": int})
        order = {seed: at for at, seed in enumerate(chosen)}
        frame = frame.sort_values(["seed", "step"], key=lambda c: c.map(order) if c.name == "seed" else c)
        return InContextResult(frame=frame.reset_index(drop=True), task=self.task, model=net)

    def _built(self, seeds: Sequence[int]) -> nn.Module:
        if self.model == "network":
            net = AttentionOnlyNet(self.task, seeds=seeds, hidden=self.hidden)
            net = net if self.beta1 is None else plant_previous_token(net, self.task, self.beta1)
        else:
            beta2 = 0.0 if self.model == "three numbers" else None
            net = MinimalInductionHead(self.beta1 or 0.0, 0.0, beta2, task=self.task, seeds=seeds, hidden=self.hidden)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.mul_(float(name not in self.ablate))
        return net.to(self.device)

    def _told(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All that decides the result, as JSON has it."""
        names = ("model", "steps", "learning_rate", "weight_decay", "every", "eval_size", "beta1", "hidden")
        told = {name: getattr(self, name) for name in names} | {
            "freeze": list(self.freeze),
            "ablate": list(self.ablate),
            "seeds": list(seeds),
        }
        return told | {"task": settings(self.task) | {"seed": 0}, "device": self.device.type}

    def _measured(
        self, net: nn.Module, sets: dict[str, InContextBatch], seeds: Sequence[int], step: int
    ) -> Iterator[dict[str, float]]:
        with torch.no_grad():
            logits = net(sets["train"].inputs)
            loss = _losses(logits, sets["train"].target)
            found = {"loss": loss, "accuracy": _right(logits, sets["train"])}
            found |= {name: _right(net(sets[name].inputs), sets[name]) for name in ("iwl", "ic2")}
        seen = progress(net, sets["ic"])
        found |= {"ic": seen.accuracy, "strength": seen.strength[..., 1, 0]}
        found |= {name: getattr(seen, name) for name in MEASURES}
        for at, seed in enumerate(seeds):
            yield {"seed": seed, "step": step, **{name: float(v[at]) for name, v in found.items()}}


def descend(
    net: nn.Module, trained: Sequence[nn.Parameter], batch: InContextBatch, learning_rate: float, weight_decay: float
) -> None:
    """One step of a stack: ``θ ← (1 - wd) θ - η ∇ℓ`` for ``trained``, of each member's mean loss."""
    gradients = torch.autograd.grad(_losses(net(batch.inputs), batch.target).sum(), trained)
    with torch.no_grad():
        for p, g in zip(trained, gradients, strict=True):
            p.mul_(1 - weight_decay).add_(g, alpha=-learning_rate)


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each member, of logits ``(seeds, size, labels)``."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape).mean(-1)


def _right(logits: Tensor, batch: InContextBatch) -> Tensor:
    return (logits.argmax(-1) == batch.target).float().mean(-1)


def _write(path: Path, told: str, net: nn.Module, sampler: Sampler, state: _State) -> None:
    tensors = {f"weights.{name}": p.detach().contiguous().cpu() for name, p in net.named_parameters()}
    tensors |= {f"draws.{at}": g.get_state() for at, g in enumerate(sampler.generators)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        save_file(tensors, draft, {"told": told, "step": str(state.step), "rows": json.dumps(state.rows)})


def _read(path: Path, told: str, net: nn.Module, sampler: Sampler) -> _State:
    with tensor_file(path) as file:
        said = file.metadata() or {}
        if said.get("told") != told:
            raise ValueError(f"{path} holds a run of other settings: give another file, or remove this one")
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(file.get_tensor(f"weights.{name}"))
        for at, g in enumerate(sampler.generators):
            g.set_state(file.get_tensor(f"draws.{at}"))
    return _State(step=int(said["step"]), rows=parse_json(said["rows"], str(path), list))
