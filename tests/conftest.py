"""Shared test settings: one thread a worker, no hub, the same random numbers for every test."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
settings.register_profile("rankwise", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("rankwise")


def pytest_configure(config):
    """Workers' warnings are made again by several threads of the process that collects them, each importing a class.

    lifelines' imports go in a circle, of which two threads make a deadlock: they are done before.
    """
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        import lifelines  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
