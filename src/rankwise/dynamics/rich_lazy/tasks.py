"""Three tasks of neuroscience and rows of digits, drawn many at once.

The tasks have the statistics of neurogym 0.0.2 at dt = 100 ms and no fixation period: 8 steps, the answer due at the
last, input noise of standard deviation 0.1 while something is shown::

    decision  700 ms two inputs (1 ± c)/2, c in {0, 6.4, 12.8, 25.6, 51.2} %          100 ms which was larger?
    match     100 ms a sample, (1, 0) or (0, 1), 500 ms wait, 100 ms a test           100 ms the same, or not?
    context   200 ms two such pairs, c in {5, 15, 50} %, a cue which counts, 500 wait 100 ms which was larger?
    smnist    28 rows of a digit, one a step; the loss is that of the last step alone

Labels are 0 before the answer is due, then 1 or 2 (the digit). The first input of the tasks says that it is not due
yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rankwise.nearest import unknown

NOISE = 0.1  # σ / √dt, σ = 1 and dt = 100
STEPS = 8
TEST = 1000  # digits that only probe


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: ``draw(n, generator)`` gives inputs ``(n, steps, inputs)`` and labels ``(n, steps)``.

    Attributes
    ----------
    name : str
    inputs, outputs, steps : int
    draw, probe : callable
        For training, and inputs that are only looked at.
    last : bool
        Whether the loss and the outputs of the kernel are those of the last step alone.

    Examples
    --------
    >>> import torch
    >>> from rankwise.dynamics.rich_lazy.tasks import task
    >>> x, y = task("match").draw(5, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([5, 8, 3]), torch.Size([5, 8]))
    """

    name: str
    inputs: int
    outputs: int
    steps: int
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    probe: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    last: bool = False


def task(name: str) -> Task:
    """By name: decision, match, context or smnist."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def decision(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of two noisy inputs is larger."""
    which = torch.randint(1, 3, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 3)
    x[:, :-1, 0] = 1
    x[:, :-1, 1:] = _pair(which, (0.0, 6.4, 12.8, 25.6, 51.2), generator)[:, None]
    x[:, :-1, 1:] += NOISE * torch.randn(n, STEPS - 1, 2, generator=generator)
    return x, _labels(which)


def match(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether sample and test, five steps apart, are the same (1) or not (2)."""
    which = torch.randint(1, 3, (n,), generator=generator)
    sample = torch.randint(0, 2, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 3)
    x[:, :-1, 0] = 1
    for step, shown in ((0, sample), (-2, (sample + which - 1) % 2)):
        x[:, step, 1:] = torch.eye(2)[shown] + NOISE * torch.randn(n, 2, generator=generator)
    return x, _labels(which)


def context(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which is larger, within the pair that the cue names; noise is on every input, as there."""
    which, other = (torch.randint(1, 3, (n,), generator=generator) for _ in range(2))
    cue = torch.randint(0, 2, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 7)
    x[:, :-1, 0] = 1
    for pair in (0, 1):
        answer = torch.where(cue == pair, which, other)
        x[:, :2, 1 + 2 * pair : 3 + 2 * pair] = _pair(answer, (5.0, 15.0, 50.0), generator)[:, None]
    x[:, :2] += NOISE * torch.randn(n, 2, 7, generator=generator)
    x[:, :, 5:] += torch.eye(2)[cue][:, None]
    return x, _labels(which)


def _pair(which: Tensor, percent: tuple[float, ...], generator: torch.Generator) -> Tensor:
    c = torch.tensor(percent)[torch.randint(0, len(percent), which.shape, generator=generator)] / 100
    signed = torch.where(which == 1, c, -c)
    return torch.stack([(1 + signed) / 2, (1 - signed) / 2], -1)


def _labels(which: Tensor) -> Tensor:
    y = torch.zeros(len(which), STEPS, dtype=torch.long)
    y[:, -1] = which
    return y


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    """All digits in a fixed mixed order; the last ones only probe."""
    from rankwise.data.moving import digits

    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images)[order].float() / 255, torch.from_numpy(labels)[order]


def _rows_of(which: Tensor) -> tuple[Tensor, Tensor]:
    images, labels = _digits()
    return images[which], labels[which][:, None].expand(-1, 28)


def train_digits(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits of the training part, with replacement."""
    return _rows_of(torch.randint(len(_digits()[0]) - TEST, (n,), generator=generator))


def test_digits(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits of the other part, each once."""
    if n > TEST:
        raise ValueError(f"{n} digits to probe with: there are {TEST}")
    return _rows_of(len(_digits()[0]) - TEST + torch.randperm(TEST, generator=generator)[:n])


TASKS = {
    "decision": Task(name="decision", inputs=3, outputs=3, steps=STEPS, draw=decision, probe=decision),
    "match": Task(name="match", inputs=3, outputs=3, steps=STEPS, draw=match, probe=match),
    "context": Task(name="context", inputs=7, outputs=3, steps=STEPS, draw=context, probe=context),
    "smnist": Task(
        name="smnist", inputs=28, outputs=10, steps=28, draw=train_digits, probe=test_digits, last=True
    ),
}  # fmt: skip
