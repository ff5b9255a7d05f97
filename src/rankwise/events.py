"""What long work tells while it runs, and the machine it ran on."""

from __future__ import annotations

import platform
from collections.abc import Callable

OnEvent = Callable[[str, str, int, int, float], None]  # trial, phase, step, steps, loss


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
