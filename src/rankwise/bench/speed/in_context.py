"""Speed of training seeds of the in-context network: a stack, against one after another, with loops and without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.dynamics import AttentionOnlyNet, InContextTask
from rankwise.dynamics.in_context.experiment import descend
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="speed",
    part="in-context",
    about="a stack of seeds of the in-context network, against one after another",
    smoke={"SEEDS": 2, "STEPS": 3, "TIMES": 1},
    control=False,
    remark="The loops are written as circulating generators and networks have them: every sequence is shuffled by "
    "itself, seed after seed, on numpy; two attention layers over all tokens, torch's own optimiser.",
)

SEEDS, STEPS, TIMES = 6, 100, 5
RATE, DECAY = 0.01, 1e-6
SMALL = {"classes": 256, "labels": 16, "dim": 31, "pairs": 4, "n_max": 8, "p_novel": 1.0}
QUICK = {"classes": 128, "labels": 8, "dim": 15, "pairs": 4, "n_max": 6, "p_novel": 1.0, "batch_size": 64}


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time both sizes; seeds are fixed."""
    return side_by_side(
        {"small": lambda: stacks("small", SMALL, 128), "quick": lambda: stacks("quick", QUICK, 64)},
        on_event,
        recipe="in_context_speed",
        title="Seeds of the in-context network at once: speed ratios",
        command="rankwise bench speed --part in-context",
        setting=f"{torch.get_num_threads()} threads, one process; medians of alternating runs; {SEEDS} seeds, {STEPS} "
        "steps: data, both passes and descent",
    )


def stacks(name: str, sizes: dict[str, Any], hidden: int) -> Measured:
    """A stack against its members one after another, and against loops."""
    task = InContextTask(**sizes)
    last: dict[str, list[float]] = {}

    def trained(seeds: list[int]) -> list[float]:
        net, sampler = AttentionOnlyNet(task, seeds=seeds, hidden=hidden), task.sampler(*seeds)
        for _ in range(STEPS):
            descend(net, list(net.parameters()), sampler.draw(task.batch_size), RATE, DECAY)
        batch = sampler.draw(500)
        with torch.no_grad():
            logits = net(batch.inputs)
        return [float(F.cross_entropy(z, y)) for z, y in zip(logits, batch.target, strict=True)]

    def stack() -> None:
        last["stack"] = trained(list(range(SEEDS)))

    def singles() -> None:
        last["singles"] = [trained([seed])[0] for seed in range(SEEDS)]

    def loops() -> None:
        last["loops"] = [looped(task, seed, hidden) for seed in range(SEEDS)]

    a, b = alternate(stack, singles, times=TIMES)
    c, d = alternate(stack, loops, times=TIMES)
    equal = float(np.abs(np.subtract(last["stack"], last["singles"])).max())
    near = float(abs(np.mean(last["stack"]) - np.mean(last["loops"])))
    rows = [
        [f"{SEEDS} seeds, {name}", f"{a:.2f}s", "one after another, ours", f"{b:.2f}s", f"{b / a:.1f}x"],
        [f"{SEEDS} seeds, {name}", f"{c:.2f}s", "one after another, with loops", f"{d:.2f}s", f"{d / c:.1f}x"],
    ]
    return rows, [
        Claim(
            text=f"{name}: a stack at least 4x faster than seeds one after another with loops, mean losses within 0.2",
            held=d / c >= 4 and near < 0.2,
            found=f"{d / c:.1f}x; mean losses differ by {near:.3f}",
        ),
        Claim(
            text=f"{name}: a stack no slower than its members one after another, losses equal to 1e-3",
            held=b / a >= 1 and equal < 1e-3,
            found=f"{b / a:.1f}x; losses differ by at most {equal:.1g}",
        ),
    ]


class Looped(nn.Module):
    """Both attention layers over all tokens, then the classifier on the last one."""

    def __init__(self, task: InContextTask, hidden: int) -> None:
        super().__init__()
        d, spread = task.width, 1 / math.sqrt(task.dim)
        self.heads = nn.ModuleList(_linear(d, d, spread) for _ in range(6))
        widths = (d, hidden, hidden)
        self.layers = nn.ModuleList(_linear(w, hidden, math.sqrt(2 / w)) for w in widths)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in widths)
        self.out = _linear(hidden, task.labels, 1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for i in (0, 3):
            q, k, v = (head(x) for head in self.heads[i : i + 3])
            x = x + (q @ k.mT).masked_fill(later, -torch.inf).softmax(-1) @ v
        h = x[:, -1]
        for layer, bias in zip(self.layers, self.biases, strict=True):
            h = F.relu(layer(h) + bias)
        return self.out(h)


def _linear(inputs: int, outputs: int, spread: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=spread)
    return layer


def looped(task: InContextTask, seed: int, hidden: int) -> float:
    """Train one seed on sequences that are drawn one by one; its loss on fresh ones."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(task.labels, task.dim)) / math.sqrt(task.dim)
    net = Looped(task, hidden)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, weight_decay=DECAY / RATE)
    for _ in range(STEPS):
        inputs, target = drawn_in_loops(task, rng, embeddings, task.batch_size)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), target).backward()
        optimizer.step()
    inputs, target = drawn_in_loops(task, rng, embeddings, 500)
    with torch.no_grad():
        return float(F.cross_entropy(net(inputs), target))


def drawn_in_loops(
    task: InContextTask, rng: np.random.Generator, embeddings: np.ndarray, size: int
) -> tuple[Tensor, Tensor]:
    """Sequences of new classes as `InContextTask` has them, each by itself."""
    N, D, L, P = task.pairs, task.dim, task.labels, task.places
    fresh = L * math.ceil(128 / L)
    means = rng.normal(size=(fresh, D)) / math.sqrt(D)
    inputs, targets = np.zeros((size, task.tokens, task.width), dtype=np.float32), np.zeros(size, dtype=np.int64)
    for s in range(size):
        context = np.repeat(rng.choice(fresh, size=N // task.burstiness), task.burstiness)
        rng.shuffle(context)
        target = rng.choice(context)
        shift = rng.integers(P - task.tokens + 1)
        for i, k in enumerate([*context, target]):
            noise = rng.normal(size=D) / math.sqrt(D)
            inputs[s, 2 * i, P:] = (means[k] + task.noise * noise) / math.sqrt(1 + task.noise**2)
            if i < N:
                inputs[s, 2 * i + 1, P:] = embeddings[k % L]
        inputs[s, :, shift : shift + task.tokens] = np.eye(task.tokens)
        targets[s] = target % L
    return torch.from_numpy(inputs), torch.from_numpy(targets)
