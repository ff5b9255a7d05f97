"""Teachers: any modules that give logits of pictures in [0, 1]; or snapshots of a small network on its way.

HeLlO asks several weak ones, checkpoints of one training, and takes the mean of their logits: not of their answers'
probabilities, and not one strong one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.models.passes import evaluating
from rankwise.vision.distilled.losses import hard
from rankwise.vision.distilled.networks import network
from rankwise.vision.distilled.views import Views


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """What a module says of pictures, shown on its device in its own precision, or what it says is the logits."""
    own = next((p for p in model.parameters() if p.is_floating_point()), pixels)
    said = model(pixels.to(own.device, own.dtype))
    return getattr(said, "logits", said).float()


class Mean(nn.Module):
    """The mean of several teachers' logits, in evaluation mode for as long as they are asked.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from rankwise.vision.distilled.teachers import Mean
    >>> one, two = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())
    >>> Mean([one, two])(torch.tensor([[-2.0, 4.0]])).tolist()
    [[-1.0, 4.0]]
    """

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """``(n, classes)``."""
        with evaluating(self.teachers):
            return torch.stack([logits_of(t, pixels).to(pixels.device) for t in self.teachers]).mean(0)


def check_teachers(given: Any) -> None:
    """``ValueError`` for what is neither a number of snapshots nor modules."""
    if isinstance(given, bool) or not isinstance(given, int | list | tuple | nn.ModuleList):
        raise ValueError(f"teachers={given!r:.80}: a list of modules, or a number of snapshots, is accepted")
    if isinstance(given, int):
        if given < 1:
            raise ValueError(f"teachers={given}: at least 1 snapshot")
        return
    if not len(given):
        raise ValueError("no teachers: at least one, or a number of snapshots")
    if strange := [t for t in given if not isinstance(t, nn.Module)]:
        raise ValueError(f"teachers hold a {type(strange[0]).__name__}: modules that give logits are accepted")


@torch.no_grad()
def check_answers(teachers: Sequence[nn.Module], picture: Tensor, count: int) -> None:
    """``ValueError`` where a teacher does not give a finite logit of every class, of ``picture (1, 3, s, s)``."""
    for k, teacher in enumerate(teachers):
        try:
            said = Mean([teacher])(picture)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"teacher {k} cannot take a picture of shape {tuple(picture.shape)}: {error}") from error
        if said.shape != (1, count) or not bool(said.isfinite().all()):
            raise ValueError(f"teacher {k} gives logits of shape {tuple(said.shape)}, or not finite ones, "
                             f"and a finite one for each of {count} classes is needed")  # fmt: skip


def snapshots(
    pixels: Tensor, classes: Tensor, count: int, *, number: int = 3, epochs: int = 6, name: str = "resnet",
    width: int = 16, batch_size: int = 64, lr: float = 3e-3, views: Views | None = None, seed: int = 0,
) -> list[nn.Module]:  # fmt: skip
    """A small network trained on real pictures, as it was at ``number`` points of its way, evenly spaced, the end last.

    Parameters
    ----------
    pixels, classes : Tensor
        ``(n, 3, s, s)``, uint8, and ``(n,)``.
    count : int
        How many classes there are.
    number, epochs : int
        Points; passes over the pictures, of a step a point at least.
    name, width : str, int
        Of the network.
    batch_size, lr, views, seed : int, float, Views, int
        Of training; by default crops and mirrors without mixing.
    """
    views = views or Views(cutmix=0.0)
    mean, std = colours(pixels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(name, count, width=width, mean=mean, std=std).to(pixels.device).train()
    steps = max(number, epochs * max(1, len(pixels) // batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    due = {round(steps * (k + 1) / number) for k in range(number)}
    found, done = [], 0
    while done < steps:
        rng = np.random.default_rng([seed, done])
        for rows in torch.from_numpy(rng.permutation(len(pixels))).split(batch_size):
            if done == steps or (len(rows) < batch_size and len(pixels) >= batch_size):
                break
            view = views(pixels[rows].float() / 255, rng)
            hard(model(view.pixels), classes[rows], view.other, view.share).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            done += 1
            if done in due:
                found.append(copy.deepcopy(model).eval().requires_grad_(False))
    return found


def colours(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of uint8 pictures' colours, in [0, 1]."""
    channels = pixels.transpose(0, 1).flatten(1).double() / 255
    return channels.mean(1).tolist(), channels.std(1).clamp(min=1e-3).tolist()


def accuracy(model: nn.Module, pixels: Tensor, classes: Tensor, *, batch_size: int = 500) -> float:
    """Share of uint8 pictures named right."""
    right = predicted(model, pixels, batch_size=batch_size) == classes.cpu()
    return int(right.sum()) / max(1, len(pixels))


@torch.no_grad()
def predicted(model: nn.Module, pixels: Tensor, *, batch_size: int = 500) -> Tensor:
    """The class that a model says of each uint8 picture."""
    mode, device = model.training, next(model.parameters()).device
    model.eval()
    said = [logits_of(model, part.to(device).float() / 255).argmax(1).cpu() for part in pixels.split(batch_size)]
    model.train(mode)
    return torch.cat(said)
