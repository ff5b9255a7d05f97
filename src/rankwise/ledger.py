"""What a run costs: parameters, bytes, floating-point operations, seconds and peak memory, in one type."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import nn


@dataclass(kw_only=True)
class Cost:
    """The price of one run.

    Attributes
    ----------
    trainable_parameters : int
        Parameters with gradients, shared ones counted once, without the task head.
    head_parameters : int
        Trainable parameters of the task head (the same for every method).
    total_parameters : int
        Parameters of the base model.
    adapter_bytes : int
        Size of the adapter's weight file on disk, head included.
    flops : float
        Floating-point operations of training as `transformers` estimates them (``6 · parameters · tokens``).
    seconds : float
        Wall-clock time of training, evaluation apart.
    setup_seconds : float
        Time before training that a method needs of its own (a data-driven initialisation).
    peak_memory_bytes : int
        Highest memory during training above what was in use before: device memory on an accelerator, resident memory
        of the process (sampled every 10 ms) on a CPU.
    """

    trainable_parameters: int = 0
    head_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    setup_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def trainable_share(self) -> float:
        """Trainable parameters over the base model's."""
        return self.trainable_parameters / max(self.total_parameters, 1)

    def as_dict(self) -> dict[str, float]:
        """All fields and ``trainable_share``, for JSON."""
        return {**asdict(self), "trainable_share": self.trainable_share}


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Parameters of a model, each tensor counted once however many modules refer to it."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@contextmanager
def measure(cost: Cost) -> Iterator[Cost]:
    """Add the block's wall-clock time to ``cost.seconds`` and note its peak memory."""
    on_gpu = torch.cuda.is_available()
    _release()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    sampler = _ResidentPeak()
    start = time.perf_counter()
    with sampler:
        yield cost
    cost.seconds += time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else sampler.peak
    cost.peak_memory_bytes = max(cost.peak_memory_bytes, peak - before)


def _release() -> None:
    """Give freed memory back to the system, so that an earlier run's does not hide this one's (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _ResidentPeak:
    """Highest resident memory of this process while active."""

    def __init__(self) -> None:
        self.peak = psutil.Process().memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _ResidentPeak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.01):
            self.peak = max(self.peak, process.memory_info().rss)
