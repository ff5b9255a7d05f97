"""Speed of measuring and training recurrent networks: kernels without Jacobians, ranks and seeds as one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side, timed
from rankwise.dynamics import RateRNN, RichLazyExperiment, tangent_kernel
from rankwise.dynamics.rich_lazy.experiment import Ensemble
from rankwise.dynamics.rich_lazy.tasks import task
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="speed",
    part="laziness",
    about="tangent kernels without Jacobians, and recurrent networks of many ranks and seeds as one batch",
    smoke={"UNITS": 12, "TRIALS": 4, "SIZES": (8,), "STEPS": 3, "SEEDS": 2, "TIMES": 1},
    control=False,
    remark="The loop of backward passes fills a Jacobian made before, a row at a time; the released code grows it row "
    "by row, which copies it as often.",
)

UNITS, TRIALS = 300, 32  # of the kernel: 768 rows, as published
SIZES, STEPS, SEEDS, TIMES = (100, 300), 100, 6, 3
MEMORY, LITTLE = 2**24, 2**18  # bytes that ours may hold of gradients; what makes it small, and slow
FASTER, SMALLER, BATCHED = 20.0, 50.0, 3.0


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time both; all draws are fixed."""
    return side_by_side(
        {"kernel": kernel} | {f"{n} units": (lambda n=n: ensembles(n)) for n in SIZES},
        on_event,
        recipe="laziness_speed",
        title="Rich or lazy: kernels and ensembles, speed ratios",
        command="rankwise bench speed --part laziness",
        setting=f"{torch.get_num_threads()} threads, one process; medians of {TIMES} alternating runs; kernel of the "
        f"recurrent matrix, {UNITS} units, {TRIALS} trials of 8 steps and 3 outputs; memory: the most that tensors "
        f"made on the way hold at once; training: {SEEDS} seeds of four ranks, {STEPS} steps of 32 trials",
    )


def kernel() -> Measured:
    """Against a backward pass for every row of J."""
    torch.manual_seed(0)
    net = RateRNN(3, UNITS, 3)
    x, _ = task("decision").draw(TRIALS, torch.Generator().manual_seed(0))
    kept: dict[str, Tensor] = {}

    def ours(memory: int = MEMORY) -> None:
        kept["ours"] = tangent_kernel(net, x, params="recurrent", memory=memory)

    def loop() -> None:
        flat = net(x).reshape(-1)
        J = torch.empty(len(flat), UNITS * UNITS)
        for i, value in enumerate(flat):
            J[i] = torch.autograd.grad(value, net.recurrent.weight, retain_graph=True)[0].reshape(-1)
        kept["loop"] = J @ J.T

    a, b = alternate(ours, loop, times=TIMES)
    gap = float((kept["ours"] - kept["loop"]).norm() / kept["loop"].norm())
    kept.clear()
    small, _ = alternate(lambda: ours(LITTLE), lambda: None, times=1)
    held = []
    for call in (ours, loop, lambda: ours(LITTLE)):
        with Held() as counted:
            call()
        held.append(counted.most)
        kept.clear()
    rows = [
        ["tangent kernel", f"{a:.2f}s", "a loop of backward passes", f"{b:.2f}s", f"{b / a:.0f}x"],
        ["its memory", f"{held[0] / 1e6:.1f}MB", "the same", f"{held[1] / 1e6:.0f}MB", f"{held[1] / held[0]:.0f}x"],
        [f"given {LITTLE >> 10} kB for gradients", f"{small:.2f}s", "the same", f"{b:.2f}s", f"{b / small:.1f}x"],
        [
            "its memory then",
            f"{held[2] / 1e6:.1f}MB",
            "the same",
            f"{held[1] / 1e6:.0f}MB",
            f"{held[1] / held[2]:.0f}x",
        ],
    ]
    return rows, [
        Claim(text=f"kernels at least {FASTER:g}x faster than a loop of backward passes, equal to 1e-4",
              held=b / a >= FASTER and gap < 1e-4, found=f"{b / a:.1f}x, apart by {gap:.1e}"),
        Claim(text=f"and in at least {SMALLER:g}x less memory", held=held[1] >= SMALLER * held[0],
              found=f"{held[1] / held[0]:.0f}x; {held[1] / held[2]:.0f}x where it is {b / small:.1f}x faster"),
    ]  # fmt: skip


def ensembles(units: int) -> Measured:
    """All ranks and seeds at once, against modules one after another."""
    of = task("decision")
    ranks = sorted({max(1, units * share // 100) for share in (1, 10, 33, 100)})
    how = RichLazyExperiment(units=units, ranks=ranks, seeds=SEEDS, steps=STEPS, probes=32)
    starts, last = how._starts(of), {}

    def ours() -> None:
        nets = Ensemble(of, starts, how)
        nets.train(STEPS, lambda *_: None)
        last["ours"] = nets.W.detach()

    def singles() -> None:
        last["singles"] = torch.stack([_alone(of, start, how) for start in starts])

    a, b = alternate(ours, singles, times=TIMES)
    limit, _ = timed(lambda: _products(starts, how.batch_size, of.steps), TIMES)
    gap = float((last["ours"] - last["singles"]).abs().max())
    what = f"{len(starts)} networks of {units} units"
    claim = Claim(text=f"{what}: at least {BATCHED:g}x faster at once than one after another, weights equal to 1e-3",
                  held=b / a >= BATCHED and gap < 1e-3,
                  found=f"{b / a:.1f}x, apart by {gap:.1e}; {b / limit:.1f}x if products were all")  # fmt: skip
    rows = [
        [what, f"{a:.2f}s", "one after another", f"{b:.2f}s", f"{b / a:.1f}x"],
        ["products with recurrent matrices alone", f"{limit:.2f}s", "the same", f"{b:.2f}s", f"{b / limit:.1f}x"],
    ]
    return rows, [claim]


def _products(starts: list[tuple[Any, Tensor, Tensor, Tensor]], trials: int, steps: int) -> None:
    """What no way of training can do without: of every step in time one product forwards, two backwards."""
    W = torch.stack([start[3] for start in starts])
    h = torch.rand(len(W), trials, W.shape[-1])
    for _ in range(STEPS * (steps - 1)):
        torch.bmm(h, W.mT)
        torch.bmm(h, W)
        torch.bmm(h.mT, h)


def _alone(of: Any, start: tuple[Any, Tensor, Tensor, Tensor], how: RichLazyExperiment) -> Tensor:
    """One network as a module with torch's optimiser; the same trials."""
    batches = Ensemble(of, [start], how)
    net = batches.net(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=how.learning_rate, momentum=how.momentum)
    for _ in range(STEPS):
        x, y = (part[0] for part in batches._batch())
        batches.step += 1
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.recurrent.weight.detach()


class Held(TorchDispatchMode):
    """Counts bytes of tensors that operations make within the block, while they are alive: the most at once.

    Examples
    --------
    >>> import torch
    >>> from rankwise.bench.speed.rich_lazy import Held
    >>> with Held() as counted:
    ...     for _ in range(3):
    ...         x = torch.ones(1000) + 1
    >>> 8000 <= counted.most <= 12000  # two at once, and what was bound before
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count."""
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        self.alive = {at: kept for at, kept in self.alive.items() if not kept[0].expired()}
        for t in made if isinstance(made, tuple | list) else (made,):
            if isinstance(t, Tensor) and (at := t.untyped_storage().data_ptr()) not in given:
                self.alive[at] = (StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes())
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made
