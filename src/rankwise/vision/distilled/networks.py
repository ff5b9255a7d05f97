"""Small networks that see pictures in [0, 1]: students, and teachers on small pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NETWORKS = ("convnet", "resnet")


class Standard(nn.Module):
    """Colours less their mean, over their deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """The same shape."""
        return (pixels - self.mean) / self.std


class Residual(nn.Module):
    """Two convolutions beside what they change."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        same = stride == 1 and inside == out
        self.short = nn.Identity() if same else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rectified."""
        return torch.relu(self.second(self.first(x)) + self.short(x))


def network(
    name: str, classes: int, *, width: int = 32, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
) -> nn.Sequential:
    """An untrained network that gives logits; draw its weights under a seed.

    Parameters
    ----------
    name : {"convnet", "resnet"}
        Three convolutions with instance norms and pooling, the usual student of distillation; or a residual network of
        three stages with batch norms.
    classes : int
        Outputs.
    width : int
        Channels of the first stage.
    mean, std : sequence of float
        Of the pictures' colours.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.networks import network
    >>> network("resnet", 10, width=8)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    start = Standard(mean, std)
    if name == "convnet":
        parts: list[nn.Module] = []
        for inside in (3, width, width):
            parts += [nn.Conv2d(inside, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(inplace=True)]
            parts.append(nn.AvgPool2d(2, ceil_mode=True))
        return nn.Sequential(start, *parts, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes))
    if name == "resnet":
        stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        stages = [Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)]
        return nn.Sequential(
            start, *stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)
        )
    from rankwise.nearest import unknown

    raise unknown("student", name, NETWORKS)
