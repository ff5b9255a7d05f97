"""Sequences of items with labels, whose target is answered from the context or from the weights: drawn in one gather.

A class ``k < K`` has a mean ``μ_k``, a label has an embedding, all N(0, 1/D) per component; ``label(k) = k mod L``. An
item is ``(μ_k + ε η) / √(1 + ε²)``. A sequence is ``item, label, item, label, …, target``: ``2N + 1`` tokens.

* Bursty (share ``p_burst``): ``N / B`` classes from ``P(k) ∝ (k + 1)^-α``, each ``B`` times, in any order; the target
  is of the class of a context position. Else all ``N`` classes and the target's are drawn from ``P``.
* Novel (share ``p_novel``): bursty, but of classes that are new in every batch, with the labels that there are.

Before the ``D`` numbers of a token stand ``2 N_max + 1`` of its place, one-hot, in a window that begins at a random
offset in every sequence: the target has no place of its own by which a network could tell it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rankwise.dynamics.in_context.sizes import check_task, plain, seeds_of, whole

__all__ = ["InContextBatch", "InContextTask", "Sampler"]

NOVEL = 128  # new classes in a batch, at least


class InContextBatch(NamedTuple):
    """Sequences; of several seeds with a first dimension more.

    Attributes
    ----------
    inputs : Tensor
        ``(size, 2N + 1, 2 N_max + 1 + D)``, float32.
    target : Tensor
        ``(size,)``: the right label of the last token.
    context : Tensor
        ``(size, N)``: labels in the context.
    match : Tensor
        ``(size, N)``, bool: pairs whose item is of the target's class.

    Examples
    --------
    >>> from rankwise.dynamics import InContextTask
    >>> batch = InContextTask(classes=64, labels=8, dim=15, pairs=4, n_max=8).eval_sets(100)["ic"]
    >>> batch.inputs.shape, batch.context.shape, bool(batch.match.any(-1).all())
    (torch.Size([100, 9, 32]), torch.Size([100, 4]), True)
    """

    inputs: Tensor
    target: Tensor
    context: Tensor
    match: Tensor

    def of(self, at: int) -> InContextBatch:
        """One seed's sequences."""
        return InContextBatch(*(part[at] for part in self))


@dataclass(frozen=True, kw_only=True)
class InContextTask(IterableDataset[InContextBatch]):
    """Which sequences are drawn; iterating gives batch after batch, fresh and without end.

    Parameters
    ----------
    classes, labels : int
        ``K`` and ``L``; ``K`` a multiple of ``L``, so that every label has as many classes.
    dim : int
        ``D``.
    pairs : int
        ``N``, of items and labels in the context.
    burstiness : int
        ``B``, how often a class stands in the context of a bursty sequence: a divisor of ``N`` below it; 0 where no
        sequence is bursty.
    zipf : float
        ``α`` of the classes' frequencies; 0 is uniform.
    noise : float
        ``ε``, of an item around its class.
    p_burst, p_novel : float
        Shares of sequences, in [0, 1].
    no_repeats : bool
        Labels of a bursty context are distinct, so that no other class gives the target's.
    n_max : int
        The longest context that the places have room for; at least ``pairs``.
    batch_size : int
        Sequences a batch, when iterated over.
    seed : int
        Of classes, labels and all draws.

    Raises
    ------
    ValueError
        A value outside of these.

    Examples
    --------
    >>> from rankwise.dynamics import InContextTask
    >>> task = InContextTask(p_novel=1.0)  # all that a context tells must be learned from it
    >>> next(iter(task)).inputs.shape
    torch.Size([128, 17, 128])
    """

    classes: int = 1024
    labels: int = 32
    dim: int = 63
    pairs: int = 8
    burstiness: int = 1
    zipf: float = 0.0
    noise: float = 0.1
    p_burst: float = 1.0
    p_novel: float = 0.0
    no_repeats: bool = False
    n_max: int = 32
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_task(settings(self))

    @property
    def places(self) -> int:
        """``2 N_max + 1``."""
        return 2 * self.n_max + 1

    @property
    def tokens(self) -> int:
        """``2N + 1``, of a sequence."""
        return 2 * self.pairs + 1

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.places + self.dim

    @property
    def frequencies(self) -> Tensor:
        """``P``, ``(K,)``, float64."""
        p = torch.arange(1, self.classes + 1, dtype=torch.float64) ** -self.zipf
        return p / p.sum()

    def sampler(self, *seeds: int, device: str | torch.device = "cpu") -> Sampler:
        """Draws for each of ``seeds`` (the task's own by default), which are what each alone would give."""
        return Sampler(self, seeds or (self.seed,), device=device)

    def eval_sets(self, size: int = 10_000) -> dict[str, InContextBatch]:
        """Sequences on which two ways of answering differ, of the same classes as in training.

        Parameters
        ----------
        size : int
            Sequences a set.

        Returns
        -------
        dict of str to InContextBatch
            ``iwl``: known classes, the target drawn apart from the context, which holds it by chance alone: weights
            have to tell. ``ic``: new classes,
            so that only the context can. ``ic2``: known classes whose labels are shifted by one in the context, which
            is right: weights tell wrongly. ``train``: as in training.
        """
        return {name: batch.of(0) for name, batch in self.sampler().eval_sets(size).items()}

    def __iter__(self) -> Iterator[InContextBatch]:
        worker = get_worker_info()
        sampler = Sampler(self, (self.seed,), worker=0 if worker is None else worker.id)
        while True:
            yield sampler.draw(self.batch_size).of(0)


class Sampler:
    """Draws batches of a task for several seeds at once, each from its own generator.

    What one seed draws depends on nothing else: an ensemble's sequences are those of single runs.

    Parameters
    ----------
    task : InContextTask
        What is drawn.
    seeds : sequence of int
        One ensemble member each.
    device : str or torch.device
        Where sequences are made.
    worker : int
        Of a data loader; each draws other sequences of the same classes.

    Examples
    --------
    >>> from rankwise.dynamics import InContextTask
    >>> InContextTask().sampler(3, 4).draw(16).inputs.shape
    torch.Size([2, 16, 17, 128])
    """

    def __init__(
        self, task: InContextTask, seeds: Sequence[int], *, device: str | torch.device = "cpu", worker: int = 0
    ) -> None:
        self.task, self.seeds, self.device = task, tuple(seeds_of(seeds)), torch.device(device)
        worlds = [generator(seed, "classes", device=device) for seed in self.seeds]
        scale = 1 / math.sqrt(task.dim)
        self.means, self.embeddings = (
            torch.stack([scale * torch.randn(n, task.dim, generator=g, device=device) for g in worlds])
            for n in (task.classes, task.labels)
        )
        self.generators = [generator(seed, "training", worker, device=device) for seed in self.seeds]
        self._cdf = task.frequencies.cumsum(0).float().to(device)

    def draw(self, size: int) -> InContextBatch:
        """``size`` sequences of every seed: inputs ``(seeds, size, 2N + 1, 2 N_max + 1 + D)``."""
        return self._assembled(self.task, size, self.generators)

    def eval_sets(self, size: int = 10_000) -> dict[str, InContextBatch]:
        """As `InContextTask.eval_sets`, of every seed."""
        burst = {"burstiness": self.task.burstiness or 1, "no_repeats": self.task.no_repeats}
        kinds = {
            "iwl": replace(self.task, p_burst=0.0, p_novel=0.0),
            "ic": replace(self.task, **burst, p_burst=1.0, p_novel=1.0, zipf=0.0),
            "ic2": replace(self.task, **burst, p_burst=1.0, p_novel=0.0),
            "train": self.task,
        }
        return {
            name: self._assembled(
                task, size, [generator(s, name, device=self.device) for s in self.seeds], shift=int(name == "ic2")
            )
            for name, task in kinds.items()
        }

    def _assembled(
        self, task: InContextTask, size: int, generators: list[torch.Generator], *, shift: int = 0
    ) -> InContextBatch:
        whole("size", size, 1)
        N, L, K, P = task.pairs, task.labels, task.classes, task.places
        fresh = L * math.ceil(NOVEL / L) if task.p_novel else 0
        drawn = [self._raw(task, size, fresh, g) for g in generators]
        u, eta, new, gumbel = (torch.stack(part) for part in zip(*drawn, strict=True))
        picked, order = u[..., :N], u[..., N : 2 * N]
        of_target, is_novel, is_bursty, place, offset = u[..., 2 * N :].unbind(-1)
        novel = is_novel < task.p_novel
        bursty = novel | (is_bursty < task.p_burst)

        known = lambda v: torch.searchsorted(self._cdf, v.contiguous(), right=True).clamp(max=K - 1)  # noqa: E731
        context = known(picked)
        if fresh:
            context = torch.where(novel[..., None], (picked * fresh).long(), context)
        if task.no_repeats and task.burstiness:
            context[..., : N // task.burstiness] = torch.where(
                bursty[..., None], _apart(task, gumbel, novel, fresh), context[..., : N // task.burstiness]
            )
        if task.burstiness:
            copies = context.gather(-1, order.argsort(-1) // task.burstiness)
            context = torch.where(bursty[..., None], copies, context)
        chosen = context.gather(-1, (place * N).long()[..., None])[..., 0]
        target = torch.where(bursty, chosen, known(of_target))

        items = torch.cat([context, target[..., None]], -1)
        table = torch.cat([self.means, new], 1) if fresh else self.means
        means = _rows(table, items + K * novel[..., None] if fresh else items)
        labels = (context + shift) % L
        inputs = torch.zeros(*items.shape[:2], task.tokens, task.width, device=self.device)
        norm = math.hypot(1, task.noise)
        inputs[..., ::2, P:] = means / norm + task.noise / norm * eta
        inputs[..., 1::2, P:] = _rows(self.embeddings, labels)
        start = (offset * (P - task.tokens + 1)).long()
        at = start[..., None] + torch.arange(task.tokens, device=self.device)
        inputs[..., :P].scatter_(-1, at[..., None], 1.0)
        return InContextBatch(inputs, (target + shift) % L, labels, context == target[..., None])

    def _raw(self, task: InContextTask, size: int, fresh: int, g: torch.Generator) -> tuple[Tensor, ...]:
        """All that chance decides of one seed's batch: uniform numbers, noise, means of new classes, Gumbel numbers."""
        made = {"generator": g, "device": self.device}
        u = torch.rand(size, 2 * task.pairs + 5, **made)
        eta = torch.randn(size, task.pairs + 1, task.dim, **made) / math.sqrt(task.dim)
        new = torch.randn(fresh, task.dim, **made) / math.sqrt(task.dim)
        keys = max(task.classes, fresh) if task.no_repeats and task.burstiness else 0
        gumbel = -torch.empty(size, keys, device=self.device).exponential_(generator=g).log()
        return u, eta, new, gumbel


def _apart(task: InContextTask, gumbel: Tensor, novel: Tensor, fresh: int) -> Tensor:
    """Classes ``(seeds, size, N / B)`` with distinct labels: one after another, a label's classes leaving with it."""
    L, take = task.labels, task.pairs // task.burstiness

    def drawn(keys: Tensor) -> Tensor:
        best, which = keys.unflatten(-1, (-1, L)).max(-2)  # class k is row k // L, column k mod L
        labels = best.topk(take, -1).indices
        return which.gather(-1, labels) * L + labels

    known = drawn(gumbel[..., : task.classes] + task.frequencies.log().to(gumbel))
    return torch.where(novel[..., None], drawn(gumbel[..., :fresh]), known) if fresh else known


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[seed, index[seed]]`` for every seed: one gather from the flattened table."""
    first = table.shape[1] * torch.arange(len(table), device=table.device).view(-1, *[1] * (index.ndim - 1))
    return table.flatten(0, 1)[index + first]


def generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Of one purpose of a seed, independent of the others'."""
    words = [int.from_bytes(str(p).encode(), "little") for p in purpose]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) & (2**63 - 1))


def settings(task: InContextTask) -> dict[str, float]:
    """All fields, as JSON has them."""
    return plain({f.name: getattr(task, f.name) for f in fields(task)})
