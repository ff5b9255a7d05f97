"""A CLIP, an encoder of convolutions and pictures of classes that can be told apart: tiny ones."""

import pytest
import torch

import small_models
from seeing import Convolutions, coloured


@pytest.fixture
def images():
    return coloured()


@pytest.fixture(scope="session")
def clip():
    return small_models.clip(layers=1, image_size=16)


@pytest.fixture(scope="session")
def convolutions():
    torch.manual_seed(0)
    return Convolutions().eval()


@pytest.fixture
def head():
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
