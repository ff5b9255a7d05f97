"""What long work tells while it runs, and the machine it ran on."""

from __future__ import annotations

import platform
from collections.abc import Callable

OnEvent = Callable[[str, str, int, int, float], None]  # trial, phase, step, steps, loss


def unheard(*_: object) -> None:
    """An `OnEvent` that tells nobody: of runs in other processes, where what is told stays there."""


def counting(note: OnEvent, name: str, total: int) -> Callable[[int, object], None]:
    """Tell ``note`` how many of ``total`` runs are done, whenever one is: the ``on_done`` of `parallel.fan_out`."""
    done = 0

    def told(at: int, result: object) -> None:
        nonlocal done
        done += 1
        note(name, "train", done, total, float("nan"))

    return told


def environment(precision: str, processes: int) -> dict[str, str | int]:
    """Versions and hardware a result depends on."""
    from importlib.metadata import version

    import torch

    packages = {p: version(p) for p in ("rankwise", "torch", "transformers", "peft", "accelerate")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (platform.processor() or platform.machine())
    return {
        **packages,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "processes": processes,
    }
