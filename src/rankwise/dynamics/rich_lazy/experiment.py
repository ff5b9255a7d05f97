"""Recurrent networks that start from one matrix cut to several ranks, trained as one batch and measured on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.dynamics.rich_lazy.measures import Snapshot
from rankwise.dynamics.rich_lazy.networks import RateRNN, drawn, states
from rankwise.dynamics.rich_lazy.starts import NORMS, STRUCTURES, effective_rank, low_rank_init, structured_init
from rankwise.dynamics.rich_lazy.tasks import Task, task
from rankwise.nearest import unknown

__all__ = ["RichLazyExperiment"]

Row = dict[str, Any]
OnStep = Callable[[int, int, float], None]  # step, of how many, loss
TARGETS = ("none", "labels")
TRIALS, PROBES = 2**29, 2**30  # added to a seed, apart from what its weights are drawn from
AHEAD = 50  # steps whose trials are drawn at once
MEASURES = ("weight_change", "relative_weight_change", "representation_alignment", "kernel_alignment",
            "sign_similarity", "kernel_target_alignment")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RichLazyExperiment:
    """How lazily networks learn whose recurrent weights start at different ranks.

    All networks of a seed share inputs, readout, trials, and one Gaussian matrix g·N(0, 1/N), of which each keeps its
    rank; all train as one batch. Input, recurrent and readout weights are trained; there are no biases.

    Parameters
    ----------
    task : {"decision", "match", "context", "smnist"}
    ranks : sequence of int
        Each from 1 to ``units``.
    seeds : int or sequence of int
        How many, or which. Default 6.
    units : int
        N. Default 300.
    gain : float
        g. Default 1.25. Above √2 a full-rank ReLU network starts chaotic, and its low-rank cut need not.
    norm : {"fro", "op", "radius"}
        What all ranks have in common, see `low_rank_init`.
    structure : {"gaussian", "dale", "types", "chains"}
        What is cut to its ranks instead of the Gaussian matrix, at its norm, see `structured_init`.
    aligned : bool
        Start at the leading directions of what a first training (from full rank) changed, not of the random matrix, at
        the same norm: a low rank that points where the task does.
    output_scale : float
        The readout starts this much larger; large values make learning lazy. Default 1.
    steps, batch_size, learning_rate, momentum
        Of stochastic gradient descent: 10,000 steps of 32 trials, 0.003 and 0.9.
    points : int
        How often it is measured, from the first step to the last, ever more rarely.
    probes, rows : int
        Trials that are measured, 320, and those of them that enter the tangent kernel, 32.
    target : {"none", "labels"}
        Whether the kernel's alignment with the labels is measured as well.

    Raises
    ------
    ValueError
        Ranks beyond N, an unknown task or norm, numbers out of range.

    Examples
    --------
    >>> from rankwise.dynamics import RichLazyExperiment
    >>> rows = RichLazyExperiment(task="match", ranks=(1, 20), seeds=2, units=20, steps=20, probes=32, rows=8).run()
    >>> rows[0]["step"], round(rows[0]["kernel_alignment"], 6), len({(r["seed"], r["rank"]) for r in rows})
    (0, 1.0, 4)
    """

    task: str = "decision"
    ranks: Sequence[int] = (1, 30, 100, 300)
    seeds: int | Sequence[int] = 6
    units: int = 300
    gain: float = 1.25
    norm: Literal["fro", "op", "radius"] = "fro"
    structure: Literal["gaussian", "dale", "types", "chains"] = "gaussian"
    aligned: bool = False
    output_scale: float = 1.0
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 0.003
    momentum: float = 0.9
    points: int = 6
    probes: int = 320
    rows: int = 32
    target: Literal["none", "labels"] = "labels"

    def __post_init__(self) -> None:
        task(self.task)
        named = (("norm", NORMS), ("structure", STRUCTURES), ("target", TARGETS))
        for name, accepted in named:
            if getattr(self, name) not in accepted:
                raise unknown(name, getattr(self, name), accepted)
        if self.structure != "gaussian" and self.aligned:
            raise ValueError(f"aligned starts have no structure of their own: leave structure={self.structure!r} out")
        _check_whole(self)
        if self.probes < 2:
            raise ValueError("probes=1: of a single trial alignments are 1 by themselves; at least 2")
        for name in ("gain", "learning_rate", "output_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: above 0")
        if not 0 <= self.momentum < 1 or self.rows > self.probes:
            raise ValueError(f"momentum={self.momentum}, rows={self.rows}: in [0, 1), and of the {self.probes} probes")
        if not all(1 <= r <= self.units for r in self.ranks) or not 0 < len(set(self.ranks)) == len(self.ranks):
            raise ValueError(f"ranks {tuple(self.ranks)}: from 1 to the {self.units} units, each once")
        seeds = self._seeds()
        if not 0 < len(set(seeds)) == len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds={self.seeds}: a count from 1, or different numbers from 0")

    def run(self, on_step: OnStep = lambda *_: None) -> list[Row]:
        """A row for every network and point: ``pandas.DataFrame(rows)`` is a table.

        Each row has ``seed, rank, task, gain, norm, structure, aligned, output_scale, step, loss, accuracy``, the
        measures of `Laziness`, ``effective_rank`` (the start's participation ratio) and ``shown_rank`` (its
        Σ|λ| / (|λ₁| N)). A network whose activity grew without bound, or that is silent, has NaN from there on, and
        says so under ``note``.
        """
        of = task(self.task)
        starts = self._starts(of)
        nets = Ensemble(of, starts, self)
        return nets.trained(on_step)

    def _seeds(self) -> list[int]:
        return [int(s) for s in (self.seeds if isinstance(self.seeds, Iterable) else range(self.seeds))]

    def _starts(self, of: Task) -> list[tuple[Row, Tensor, Tensor, Tensor]]:
        """For every seed and rank what it is, U, V and W."""
        first = {s: drawn(of, self.units, seed=s) for s in self._seeds()}
        bases = {s: self.gain * structured_init(W, self.structure, seed=s) for s, (_, _, W) in first.items()}
        if self.aligned:
            alone = [({"seed": s}, U, self.output_scale * V, bases[s]) for s, (U, V, _) in first.items()]
            moved = Ensemble(of, alone, self)
            moved.train(self.steps, lambda *_: None)
            bases = {s: W - bases[s] for s, W in zip(first, moved.W.detach(), strict=True)}
        found = []
        for s, (U, V, W0) in first.items():
            for rank in map(int, self.ranks):
                W = low_rank_init(bases[s], rank, norm=self.norm)
                if self.aligned:
                    W = W * (torch.linalg.matrix_norm(W0) * self.gain / torch.linalg.matrix_norm(W))
                told = {"seed": s, "rank": rank, "effective_rank": float(effective_rank(W)),
                        "shown_rank": float(effective_rank(W, kind="abs-eig"))}  # fmt: skip
                found.append((told, U, self.output_scale * V, W))
        return found


class Ensemble:
    """Networks of one task side by side: weights ``(E, …)``, one optimiser; networks of one seed see the same trials.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics import RichLazyExperiment
    >>> from rankwise.dynamics.rich_lazy.experiment import Ensemble
    >>> from rankwise.dynamics.rich_lazy.networks import drawn
    >>> from rankwise.dynamics.rich_lazy.tasks import task
    >>> U, V, W = drawn(task("match"), 10, seed=0)
    >>> how = RichLazyExperiment(task="match", units=10, ranks=(10,), steps=5, probes=8, rows=4)
    >>> nets = Ensemble(task("match"), [({"seed": 0, "rank": 10}, U, V, W)], how)
    >>> nets.train(5, lambda *_: None)
    >>> nets.W.shape
    torch.Size([1, 10, 10])
    """

    def __init__(self, of: Task, starts: Sequence[tuple[Row, Tensor, Tensor, Tensor]], how: RichLazyExperiment) -> None:
        self.task, self.how = of, how
        self.told = [told for told, *_ in starts]
        us, vs, ws = ([s[1] for s in starts], [s[2] for s in starts], [s[3] for s in starts])
        self.U, self.V, self.W = (torch.stack(w).requires_grad_() for w in (us, vs, ws))
        self.optimizer = torch.optim.SGD([self.U, self.V, self.W], lr=how.learning_rate, momentum=how.momentum)
        seeds = list(dict.fromkeys(told["seed"] for told in self.told))
        self.generators = [torch.Generator().manual_seed(TRIALS + s) for s in seeds]
        self.place = torch.tensor([seeds.index(told["seed"]) for told in self.told])
        probes = [of.probe(how.probes, torch.Generator().manual_seed(PROBES + s)) for s in seeds]
        self.x, self.y = torch.stack([x for x, _ in probes]), torch.stack([y for _, y in probes])
        self.step, self.ahead = 0, (torch.empty(0), torch.empty(0))

    def trained(self, on_step: OnStep) -> list[Row]:
        """Trained to the end, with a row for every network and point."""
        rows, starts = [], self._snapshots()
        for point in points(self.how.steps, self.how.points):
            self.train(point, on_step)
            rows += self._measured(starts, starts if point == 0 else self._snapshots())
        return rows

    def train(self, until: int, on_step: OnStep) -> None:
        """Up to that step."""
        while self.step < until:
            x, y = self._batch()
            loss = self.losses(x[self.place], y[self.place])
            self.optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            self.optimizer.step()
            self.step += 1
            if self.step % AHEAD == 0:
                on_step(self.step, self.how.steps, float(loss.detach().nanmean()))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy ``(E,)``, over all steps, or that of the last alone."""
        h = states(x, self.U, self.W)
        h, y = (h[:, :, -1:], y[:, :, -1:]) if self.task.last else (h, y)
        E, n, T, N = h.shape
        logits = (h.reshape(E, n * T, N) @ self.V.mT).reshape(E * n * T, -1)
        return F.cross_entropy(logits, y.reshape(-1), reduction="none").reshape(E, -1).mean(1)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """``(seeds, n, …)`` trials of the next step."""
        at, n = self.step % AHEAD, self.how.batch_size
        if at == 0 or not len(self.ahead[0]):
            draws = [self.task.draw(AHEAD * n, g) for g in self.generators]
            self.ahead = torch.stack([x for x, _ in draws]), torch.stack([y for _, y in draws])
        x, y = self.ahead
        return x[:, at * n : (at + 1) * n], y[:, at * n : (at + 1) * n]

    def net(self, i: int) -> RateRNN:
        """One of them, as a module."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # nothing is drawn from whoever measures
            net = RateRNN(self.task.inputs, self.how.units, self.task.outputs)
            for layer, weights in ((net.input, self.U), (net.recurrent, self.W), (net.readout, self.V)):
                layer.weight.copy_(weights[i])
        return net

    def _snapshots(self) -> list[Snapshot | str]:
        last = self.task.last
        found: list[Snapshot | str] = []
        for i, place in enumerate(self.place.tolist()):
            try:
                found.append(Snapshot.of(
                    self.net(i), self.x[place], params="recurrent", rows=self.how.rows,
                    output_fn=(lambda net, x: net(x)[:, -1]) if last else None,
                    representation_fn=_last_activity,
                ))  # fmt: skip
            except ValueError as error:  # grown without bound
                found.append(str(error))
        return found

    @torch.no_grad()
    def _measured(self, starts: list[Snapshot | str], ends: list[Snapshot | str]) -> list[Row]:
        h = states(self.x[self.place], self.U, self.W)[:, :, -1]
        right = ((h @ self.V.mT).argmax(-1) == self.y[self.place][:, :, -1]).double().mean(1).tolist()
        loss = self.losses(self.x[self.place], self.y[self.place]).tolist()
        rows = []
        for told, place, begin, end, value, share in zip(
            self.told, self.place.tolist(), starts, ends, loss, right, strict=True
        ):
            how = {name: getattr(self.how, name) for name in ("gain", "norm", "structure", "aligned", "output_scale")}
            row = {**told, "task": self.task.name, **how, "step": self.step, "loss": value, "accuracy": share,
                   "note": ""}  # fmt: skip
            rows.append(row | self._compared(begin, end, place))
        return rows

    def _compared(self, begin: Snapshot | str, end: Snapshot | str, place: int) -> Row:
        y = self.y[place][: self.how.rows]
        y = y[:, -1] if self.task.last else y
        nothing: Row = dict.fromkeys(MEASURES, math.nan)
        if isinstance(begin, str) or isinstance(end, str):
            return nothing | {"note": f"at step {self.step}: {begin if isinstance(begin, str) else end}"}
        try:
            found = begin.until(end, targets=y if self.how.target == "labels" else None).as_dict()
        except ValueError as error:  # silent
            return nothing | {"note": f"at step {self.step}: {error}"}
        return {name: found[name] for name in MEASURES}


def _check_whole(how: RichLazyExperiment) -> None:
    for name in ("units", "steps", "batch_size", "points", "probes", "rows"):
        if not _whole(value := getattr(how, name)) or value < 1:
            raise ValueError(f"{name}={value}: a whole number from 1 on")
    for name, value in (("ranks", how.ranks), ("seeds", how.seeds)):
        if not all(map(_whole, value if isinstance(value, Iterable) else [value])):
            raise ValueError(f"{name}={value}: whole numbers are accepted")


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _last_activity(net: Any, x: Any) -> Tensor:
    return net.hidden(x)[:, -1]


def points(steps: int, n: int) -> list[int]:
    """0 and at most n - 1 steps up to the last, by equal factors."""
    first = min(steps, 50)
    shares = [i / max(1, n - 2) for i in range(n - 1)] if n > 2 else [1.0][: n - 1]
    return sorted({0, *(round(first * (steps / first) ** s) for s in shares)})
