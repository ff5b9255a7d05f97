"""Perceptual distance of two pictures by a small network: LPIPS (Zhang et al. 2018, eq. 1), all channels weighed alike.

Features of every block are of unit length in each place; their squared difference is the mean over places and blocks.
The network is the bundled ViT, which sees 32 x 32 pixels: a picture is seen through windows of that size, as it is and
at half of its size, so that both texture and larger forms count. Values compare only with each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rankwise.models import load, load_image_processor

NETWORK, WINDOW = "vit-cifar10", 32


@torch.no_grad()
def perceptual_distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """From 0, for the same picture, to 4; RGB of one shape ``(height, width, 3)``, sides a multiple of 64 pixels."""
    sides = one.shape[:2]
    if one.shape != other.shape or any(n % (2 * WINDOW) for n in sides):
        raise ValueError(f"pictures of {one.shape} and {other.shape}: one shape is needed, of sides of 64, 128, ...")
    differences = []
    for scale in (1, 2):
        a, b = (_features(F.avg_pool2d(_pixels(p), scale)) for p in (one, other))
        differences.append(torch.stack([(x - y).square().sum(-1).mean() for x, y in zip(a, b, strict=True)]).mean())
    return float(torch.stack(differences).mean())


def _pixels(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def _features(pixels: Tensor) -> list[Tensor]:
    """Of each block, unit features ``(windows, places, width)``."""
    network, mean, std = _network()
    windows = F.unfold((pixels - mean) / std, WINDOW, stride=WINDOW)[0].T.reshape(-1, 3, WINDOW, WINDOW)
    states = network(pixel_values=windows, output_hidden_states=True).hidden_states[1:]
    return [F.normalize(h[:, 1:], dim=-1) for h in states]  # the first place is of no part of the picture


@lru_cache(maxsize=1)
def _network() -> tuple[Any, Tensor, Tensor]:
    processor: Any = load_image_processor(NETWORK)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (processor.image_mean, processor.image_std))
    return load(NETWORK, task="image-classification").eval(), mean, std
