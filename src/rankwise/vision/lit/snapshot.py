"""A training between two rounds as one file, from which it goes on as if it had not been cut short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from rankwise.files import whole_file
from rankwise.reading import read_tensors

if TYPE_CHECKING:
    from rankwise.vision.lit.training import Training

COLUMNS = ("round", "dark", "result", "well")  # of the history


def write(path: Path, training: Training, results: list[Tensor]) -> None:
    """Weights, the optimisers' moments, the generator's state, the last results, what was seen."""
    tensors = {f"result|{i}": part for i, part in enumerate(results)} | {"draws": training.draws.get_state()}
    tensors["history"] = torch.tensor([[row[k] for k in COLUMNS] for row in training.history], dtype=torch.float64)
    tensors["numbers"] = torch.tensor([training.starts, training.rate], dtype=torch.float64)
    for name, module, optimizer in _parts(training):
        tensors |= {f"{name}|{k}": v for k, v in module.state_dict().items()}
        moments = optimizer.state_dict()["state"]
        tensors |= {f"{name}|{i}|{k}": v for i, held in moments.items() for k, v in held.items()}
    with whole_file(path) as draft:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft)


def read(path: Path, training: Training) -> list[Tensor]:
    """Put what `write` kept into a fresh training of the same settings; the last results."""
    tensors = read_tensors(path)
    training.draws.set_state(tensors["draws"])
    training.history = [dict(zip(COLUMNS, row, strict=True)) for row in tensors["history"].tolist()]
    starts, training.rate = tensors["numbers"].tolist()
    training.starts = int(starts)
    for group in training.by_network.param_groups:
        group["lr"] = training.rate
    for name, module, optimizer in _parts(training):
        module.load_state_dict({k: tensors[f"{name}|{k}"] for k in module.state_dict()})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.count("|") == 2 and key.startswith(f"{name}|"):
                moments.setdefault(int(key.split("|")[1]), {})[key.split("|")[2]] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return [tensors[f"result|{i}"] for i in range(sum(key.startswith("result|") for key in tensors))]


def _parts(training: Training) -> list[tuple[str, torch.nn.Module, torch.optim.Optimizer]]:
    return [
        ("network", training.network, training.by_network),
        ("prompts", training.prompts, training.by_prompts),
    ]
