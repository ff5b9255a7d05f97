"""One training whose every draw is decided by the seed and the step: cut short, it goes on to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.files import whole_file
from rankwise.nearest import unknown
from rankwise.reading import read_tensors

__all__ = ["Schedule"]

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a task is learned: AdamW whose rate falls by a cosine to zero, without warm-up or weight decay.

    Parameters
    ----------
    steps : int
        Of each task. Default 500.
    batch_size : int
        Examples a step; all where a task has fewer. Default 64.
    learning_rate : float
        At the start. Default 5e-4.
    betas : (float, float)
        Of AdamW. Default (0.9, 0.9999).
    precision : {"fp32", "bf16"}
        Of products and convolutions, by autocast; weights and the optimiser stay as they are. Default "fp32".

    Examples
    --------
    >>> from rankwise.continual import Schedule
    >>> schedule = Schedule(steps=100)
    >>> [round(schedule.rate(step) * 1e4, 2) for step in (0, 50, 99)]
    [5.0, 2.5, 0.0]
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.9999)
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: a positive number is needed")
        if self.precision not in PRECISIONS:
            raise unknown("precision", str(self.precision), PRECISIONS)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def cast(self, device: torch.device) -> AbstractContextManager:
        """Within the block products have the schedule's precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def draw(*key: int) -> int:
    """A seed that depends on these numbers alone."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def rows_of(step: int, number: int, batch_size: int, *key: int) -> list[int]:
    """Which rows of ``number`` a step sees: passes over all in a fresh order each, whole batches."""
    size = min(batch_size, number)
    again, at = divmod(step, number // size)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(draw(*key, again)))
    return order[at * size : (at + 1) * size].tolist()


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    *key: int,
    around: Callable[[int], AbstractContextManager] = lambda step: nullcontext(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    checkpoint: Path | None = None,
    every: int = 100,
    told: str = "",
) -> list[float]:
    """Train parameters on ``loss(step)``; the losses of all steps.

    Parameters
    ----------
    key : int
        With the step, the seed of torch's generator while the step's loss is computed.
    around : callable
        A context for each optimiser's step.
    checkpoint : Path, optional
        File that holds the state every ``every`` steps. One with the same ``told`` is gone on from.

    Raises
    ------
    FloatingPointError
        A loss that is not finite.
    """
    optimizer = torch.optim.AdamW([*parameters.values()], lr=schedule.rate(0), betas=schedule.betas, weight_decay=0.0)
    losses = _resumed(checkpoint, parameters, optimizer, told) if checkpoint is not None else []
    device = next(iter(parameters.values())).device
    devices = sorted({p.device.index or 0 for p in parameters.values() if p.is_cuda})
    with torch.random.fork_rng(devices):
        for step in range(len(losses), schedule.steps):
            torch.manual_seed(draw(*key, step))
            optimizer.param_groups[0]["lr"] = schedule.rate(step)
            with schedule.cast(device):
                value = loss(step)
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()} at step {step}: lower the learning rate")
            optimizer.zero_grad()
            value.backward()
            with around(step):
                optimizer.step()
            losses.append(value.item())
            if checkpoint is not None and (step + 1) % every == 0 and step + 1 < schedule.steps:
                _save(checkpoint, parameters, optimizer, losses, told)
            on_step(step, losses[-1])
    return losses


def _save(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, losses: list[float], told: str
) -> None:
    state = {"losses": torch.tensor(losses, dtype=torch.float64), "told": _bytes(told)}
    for name, p in parameters.items():
        held = {key: value for key, value in optimizer.state.get(p, {}).items() if isinstance(value, Tensor)}
        state |= {f"{name}|{key}": value.detach().cpu() for key, value in {"value": p, **held}.items()}
    with whole_file(path) as draft:
        save_file({key: value.contiguous() for key, value in state.items()}, draft)


def _resumed(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, told: str
) -> list[float]:
    """Put a saved state in; the losses of its steps, none where it is of another training."""
    state = read_tensors(path) if path.is_file() else {}
    if not state or not torch.equal(state["told"], _bytes(told)):
        return []
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state[f"{name}|value"])
            own = {key.rpartition("|")[2]: value for key, value in state.items() if key.startswith(f"{name}|")}
            own.pop("value")
            if own:
                optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in own.items()}
    return state["losses"].tolist()


def _bytes(text: str) -> Tensor:
    return torch.tensor([*text.encode()], dtype=torch.uint8)
