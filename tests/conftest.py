"""Shared test settings: one thread a worker, no hub, and one small random model that has the shapes of the real ones."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("rankwise", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("rankwise")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
