"""Labels that are kept instead of made: every view's soft label of every epoch, or a share of them, used again.

What published pipelines keep for a few pictures grows with epochs, pictures and classes; pruning (Xiao & He, NeurIPS
2024, arXiv 2410.15919) keeps whole batches of labels, drawn at random, and draws from them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.vision.distilled.views import View, Views

KEY = 8  # bytes that say which view a kept batch of labels is of


def label_bytes(pictures: int, classes: int, *, epochs: int = 300, width: int = 2) -> int:
    """What a soft label of every picture in every epoch takes, ``width`` bytes a number.

    Examples
    --------
    >>> from rankwise.vision.distilled.rivals import label_bytes
    >>> round(label_bytes(1000, 1000) / 2**20), round(label_bytes(200 * 1000, 1000) / 2**30)  # ImageNet, 1 and 200
    (572, 112)
    """
    return epochs * pictures * classes * width


def rows_of(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Which pictures go together in an epoch; the last batch may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return torch.from_numpy(order).split(batch_size)


def shown(images: Tensor, rows: Tensor, views: Views, key: tuple[int, int, int]) -> View:
    """The view that seed, epoch and step decide, of uint8 pictures."""
    return views(images[rows].float() / 255, np.random.default_rng([*key, 1]))


class StoredLabels:
    """Soft labels of every view that a student will be shown, in float16.

    Parameters
    ----------
    labels : callable
        Views ``(n, 3, s, s)`` to logits.
    images : Tensor
        ``(pictures, 3, s, s)``, uint8.
    views : Views
        How they are shown.
    epochs, batch_size, seed : int
        As of the student that will be trained.
    """

    def __init__(
        self,
        labels: Callable[[Tensor], Tensor],
        images: Tensor,
        *,
        views: Views,
        epochs: int,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self.views, self.batch_size, self.seed, self.epochs = views, batch_size, seed, epochs
        self.kept: dict[tuple[int, int], Tensor] = {}
        for epoch in range(epochs):
            for step, rows in enumerate(rows_of(len(images), batch_size, seed, epoch)):
                view = shown(images, rows, views, (seed, epoch, step))
                with torch.no_grad():
                    self.kept[epoch, step] = labels(view.pixels).half().cpu()
        self.steps = self.kept.keys()  # also of what is pruned: how many steps an epoch has

    @property
    def nbytes(self) -> int:
        """Of the labels that are kept, and of which views they are where some are missing."""
        numbers = sum(held.numel() * held.element_size() for held in self.kept.values())
        return numbers + (KEY * len(self.kept) if len(self.kept) < len(self.steps) else 0)

    def pruned(self, most: int, *, seed: int = 0) -> StoredLabels:
        """As many whole batches, drawn at random, as fit into ``most`` bytes; all where they do.

        Raises
        ------
        ValueError
            Not even one fits.
        """
        if self.nbytes <= most:
            return self
        keys, room, kept = list(self.kept), most, {}
        for at in np.random.default_rng([seed, 2]).permutation(len(keys)):
            held = self.kept[keys[at]]
            room -= held.numel() * held.element_size() + KEY
            if room < 0:
                break
            kept[keys[at]] = held
        if not kept:
            raise ValueError(f"{most} bytes hold no batch of labels: at least {held.numel() * 2 + KEY} are needed")
        found = object.__new__(StoredLabels)
        found.__dict__ |= self.__dict__ | {"kept": kept}
        return found

    def key(self, epoch: int, step: int) -> tuple[int, int]:
        """Which kept batch a student sees at a step: that one, or, where it was pruned, any that was not."""
        if len(self.kept) == len(self.steps):
            return epoch, step
        keys = sorted(self.kept)
        return keys[int(np.random.default_rng([self.seed, epoch, step, 3]).integers(len(keys)))]

    def epoch(self, images: Tensor, epoch: int) -> Iterator[tuple[Tensor, View, Tensor]]:
        """Rows, views and labels of an epoch."""
        for step in range(len(rows_of(len(images), self.batch_size, self.seed, epoch))):
            key = self.key(epoch, step)
            rows = rows_of(len(images), self.batch_size, self.seed, key[0])[key[1]]
            yield rows, shown(images, rows, self.views, (self.seed, *key)), self.kept[key].float()

    def check(self, images: Tensor, **asked: Any) -> None:
        """``ValueError`` where a student would be shown other views than labels were stored for."""
        for name, value in asked.items():
            if value != (own := getattr(self, name)):
                raise ValueError(f"labels were stored for {name}={own}, and the student is given {value}")
        if len({k for k in self.steps if not k[0]}) != len(rows_of(len(images), self.batch_size, self.seed, 0)):
            raise ValueError(f"labels were stored for other pictures than these {len(images)}")
