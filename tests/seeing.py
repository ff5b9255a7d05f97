"""Tiny encoders of pictures, a tokenizer, and pictures of classes that can be told apart."""

import numpy as np
import torch
from torch import nn
from transformers import BatchEncoding

from rankwise.data import Images
from rankwise.vision.distilled.projector import Seeing

PLAIN = Seeing(size=16)


class Words:
    """A tokenizer: a number a word."""

    def __call__(self, texts, **options):
        rows = [[47, *[sum(map(ord, word)) % 47 for word in text.split()], 48] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [49] * (longest - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids != 49).long()})


class Convolutions(nn.Module):
    """Kernels of 3 and 1, a stride of 2, groups, and a linear layer, to 6 features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Linear(32, 6)

    def forward(self, x):
        return self.out(self.body(x))


def coloured(count=24, classes=3, size=16, seed=0):
    """A colour a class, and noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pixels = rng.integers(0, 120, (count, size, size, 3))
    pixels[np.arange(count), :, :, labels % 3] += 100
    return Images.of(pixels.astype(np.uint8), labels=labels, label_names=["red", "green", "blue", "grey"][:classes])
