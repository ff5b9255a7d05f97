"""A network trained from a distilled data set alone, by RDED's schedule.

AdamW, half a period of a cosine: the rate ends at half of where it began. Labels are made for the very view that the
student is shown, after mixing. What is left is the last epoch's student: the best epoch on test pictures, which the
released code takes, was chosen on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nearest import unknown
from rankwise.vision.distilled.losses import LOSSES, distance, hard
from rankwise.vision.distilled.rivals import StoredLabels, rows_of, shown
from rankwise.vision.distilled.teachers import logits_of
from rankwise.vision.distilled.views import View, Views

__all__ = ["train_student"]

Labels = Callable[[Tensor], Tensor] | StoredLabels | None


def rate(epoch: int, epochs: int) -> float:
    """Share of the first learning rate: half a period of a cosine.

    Examples
    --------
    >>> from rankwise.vision.distilled.students import rate
    >>> rate(0, 300), round(rate(300, 300), 6)
    (1.0, 0.5)
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


def batch_of(count: int, classes: int) -> int:
    """RDED's batch sizes: 10, 50 and 100 at 1, 10 and 50 pictures a class, or all pictures.

    Examples
    --------
    >>> from rankwise.vision.distilled.students import batch_of
    >>> [batch_of(10 * ipc, 10) for ipc in (1, 10, 50)]
    [10, 50, 100]
    """
    ipc = count / classes
    return min(count, 10 if ipc <= 1 else 50 if ipc <= 10 else 100)


def train_student(
    student: nn.Module,
    data: Any,
    *,
    labels: Labels | str = "own",
    epochs: int = 300,
    batch_size: int | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    weight: float = 0.1,
    loss: str = "mse",
    views: Views | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
) -> nn.Module:
    """Train a network, in place, from few pictures and their labels.

    Parameters
    ----------
    student : nn.Module
        Pictures ``(n, 3, s, s)`` in [0, 1] to logits, or to an output that has ``logits``.
    data : DistilledDataset
        Or anything with ``images`` (uint8) and ``classes``. Nothing else is looked at.
    labels : callable, StoredLabels or None
        What a view's soft labels come from; ``None``: the classes alone. By default the data's own.
    epochs, batch_size : int
        Passes over the pictures, 300 by default; 10, 50 or 100 pictures a step at 1, 10 or more pictures a class.
    lr, weight_decay : float
        Of AdamW, 1e-3 and 0.01.
    weight : float
        Of the cross-entropy on the classes, beside the distance to soft labels. Default 0.1.
    loss : {"mse", "centred", "kl"}
        The distance to soft labels: of logits, of logits less their mean over the classes, of answers at temperature 4.
    views : Views
        How pictures are shown; by default the data's own, or without shuffled tiles.
    seed : int
        Of order and views.
    on_epoch : callable
        Told the epoch, how many, and its mean loss.

    Returns
    -------
    nn.Module
        The student, in evaluation mode.

    Raises
    ------
    ValueError
        A value out of range, or stored labels of other views.
    FloatingPointError
        The loss became NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision import train_student
    >>> from rankwise.vision.distilled.networks import network
    >>> from rankwise.vision.distilled.pictures import Pictures
    >>> few = Pictures(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> student = train_student(network("convnet", 2, width=4), few, epochs=2)
    """
    images, classes = data.images, data.classes
    check_training(epochs=epochs, batch_size=batch_size, lr=lr, weight=weight, loss=loss, seed=seed)
    if isinstance(labels, str):
        labels = getattr(data, "labels", None)
    seen: Views = views or getattr(data, "views", None) or Views()
    batch_size = min(batch_size or batch_of(len(images), int(classes.max()) + 1), len(images))
    if isinstance(labels, StoredLabels):
        labels.check(images, views=seen, epochs=epochs, batch_size=batch_size, seed=seed)
    device = next(student.parameters()).device
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)
    student.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(epoch, epochs)
        total = 0.0
        for rows, view, soft in _epoch(images, labels, seen, batch_size, seed, epoch):
            said, truth = logits_of(student, view.pixels.to(device)), classes[rows].to(device)
            value = hard(said, truth, view.other, view.share)
            if soft is not None:
                value = distance(said, soft.to(device), loss) + weight * value
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += float(value.detach()) * len(rows) / len(images)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss became {total} in epoch {epoch + 1}: lower the learning rate")
        on_epoch(epoch + 1, epochs, total)
    return student.eval()


def _epoch(
    images: Tensor, labels: Any, views: Views, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, View, Tensor | None]]:
    """Rows, views and soft labels of an epoch; a label is made for the pixels that the student gets."""
    if isinstance(labels, StoredLabels):
        yield from labels.epoch(images, epoch)
        return
    for step, rows in enumerate(rows_of(len(images), batch_size, seed, epoch)):
        view = shown(images, rows, views, (seed, epoch, step))
        with torch.no_grad():
            soft = None if labels is None else labels(view.pixels)
        yield rows, view, soft


def check_training(
    *, epochs: int, batch_size: int | None, lr: float, weight: float, loss: str, seed: int
) -> None:  # fmt: skip
    """``ValueError`` for a value out of range."""
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if not 0 < lr < math.inf or not 0 <= weight < math.inf:
        raise ValueError(f"lr={lr}, weight={weight}: a rate above 0 and a weight of at least 0 are accepted")
