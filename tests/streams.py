"""Batches of pictures, a model, and views that are known, for what adapts while it predicts."""

from dataclasses import dataclass

import torch

from rankwise.continual import Augmentation
from small_models import vit


def batches(n=3, size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(size, 3, 32, 32, generator=g) for _ in range(n)]


def base():
    model = vit(layers=2)
    with torch.no_grad():  # so that predictions are neither even nor certain
        model.classifier.weight.mul_(0.3)
    return model


@dataclass(frozen=True, kw_only=True)
class Shades(Augmentation):
    """Views of which each needs one draw alone: pictures at some brightness."""

    def __call__(self, pixels, views, *, generator):
        return torch.stack([pixels * float(torch.rand(1, generator=generator)) for _ in range(views)])


@dataclass(frozen=True, kw_only=True)
class Same(Augmentation):
    """Views that do not differ."""

    def __call__(self, pixels, views, *, generator):
        return pixels.expand(views, *pixels.shape).clone()
