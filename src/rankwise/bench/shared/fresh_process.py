"""Peak memory of training SmolLM2-135M, a fresh process a way to train.

``python -m rankwise.bench.shared.fresh_process WAY STEPS BLOCKS`` trains a few steps and prints a line of JSON:
``baseline`` (resident bytes of the interpreter and its libraries), ``peak`` (highest resident bytes), ``state`` (the
optimiser's own count), ``seconds`` a step. Peak less baseline is what training holds: weights, gradients, moments,
activations.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from rankwise.ledger import Cost, measure
from rankwise.models import load, load_tokenizer
from rankwise.optim import GaLoreAdamW, OwLore, galore_groups

RANK, BATCH, LENGTH = 36, 2, 64


def _galore(model: nn.Module, in_backward: bool) -> torch.optim.Optimizer:
    optimizer = GaLoreAdamW(galore_groups(model, rank=RANK), 1e-4)
    if in_backward:
        optimizer.step_in_backward(model=model)
    return optimizer


def _galore_torch(model: nn.Module) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW as Reference

    settings = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    return Reference(galore_groups(model, **settings), lr=1e-4, no_deprecation_warning=True)  # pyright: ignore[reportArgumentType]  (groups are its own use)


def _lora(model: nn.Module) -> torch.optim.Optimizer:
    from peft import LoraConfig, get_peft_model

    get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"))
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)


WAYS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 1e-4),
    "galore-torch": _galore_torch,
    "galore": lambda model: _galore(model, False),
    "galore-in-backward": lambda model: _galore(model, True),
    "lisa": lambda model: OwLore(model, 1e-4, rank=0, mode="uniform"),
    "owlore": lambda model: OwLore(model, 1e-4, rank=RANK),
    "lora": _lora,
}


def in_fresh_process(way: str, *, steps: int, blocks: int) -> dict[str, float]:
    """What ``python -m rankwise.bench.shared.fresh_process way steps blocks`` prints."""
    return said_by("rankwise.bench.shared.fresh_process", f"memory of {way}", way, steps, blocks)


def said_by(module: str, what: str, *arguments: object) -> dict[str, float]:
    """The last line, of JSON, that ``python -m module arguments`` prints.

    Raises
    ------
    ChildProcessError
        It ends with an error; ``what`` could not be measured, and its last words are told.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{what} could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def train(way: str, *, steps: int, blocks: int) -> dict[str, float]:
    """Train a few steps (two at least) of the first blocks in this process, with gradient checkpointing."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (libraries belong to the baseline)

    from rankwise.data import documents

    if way == "galore-torch":
        import galore_torch  # noqa: F401
    if way == "lora":
        import peft  # noqa: F401
    tokenizer = load_tokenizer("smollm2")
    texts = documents("nyt").split().train.texts[: BATCH * steps]
    ids = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")["input_ids"]
    whole, seconds = Cost(), []
    import psutil

    with measure(whole):
        baseline = psutil.Process().memory_info().rss
        model = load("smollm2").train()
        del model.model.layers[blocks:]
        model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = WAYS[way](model)
        for batch in ids.split(BATCH):
            start = time.perf_counter()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
    state = sum(v.nbytes for s in optimizer.state.values() for v in _tensors(s))
    peak = baseline + whole.peak_memory_bytes
    return {"baseline": baseline, "peak": peak, "state": state, "seconds": statistics.median(seconds[1:])}


def _tensors(state: dict) -> list[torch.Tensor]:
    """All tensors of a parameter's state, those inside galore-torch's projector too."""
    inner = [vars(v) for v in state.values() if not isinstance(v, torch.Tensor | int | float)]
    return [v for d in [state, *inner] for v in d.values() if isinstance(v, torch.Tensor)]


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], steps=int(sys.argv[2]), blocks=int(sys.argv[3]))))
