"""The compression job: choose ranks, factorise, measure before and after, write a model that loads by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise import compression
from rankwise import data as corpora
from rankwise.compression.welore import Plan, Progress
from rankwise.files import whole_folder, write_json
from rankwise.jobs.tasks import TextTask, batches
from rankwise.models import load, load_tokenizer

OnPhase = Callable[[str], None]


@dataclass(kw_only=True)
class Compression:
    """What a compression gave.

    Attributes
    ----------
    plan : Plan
    before, after : dict
        ``perplexity`` on the test texts, ``tokens_per_second`` of a forward pass over them, ``decoded_per_second`` of
        greedy decoding.
    bytes_on_disk : int
        Of the written weights.
    seconds : float
        Of choosing ranks and factorising.
    """

    plan: Plan
    before: dict[str, float]
    after: dict[str, float]
    bytes_on_disk: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything but the spectra, for JSON."""
        measured = {"before": self.before, "after": self.after, "bytes_on_disk": self.bytes_on_disk}
        return {**self.plan.as_dict(), **measured, "seconds": self.seconds}


def compress_model(
    model: str,
    out: Path,
    *,
    data: str = "text:nyt",
    calibrate: str | None = None,
    test_limit: int = 40,
    max_length: int = 128,
    progress: Progress = lambda names, what: names,
    on_phase: OnPhase = lambda phase: None,
    **options: Any,
) -> Compression:
    """Compress a language model and write it with its tokenizer and ``compression.json``.

    Parameters
    ----------
    model : str
        Name, folder or hub id.
    out : Path
        Folder, replaced as a whole when everything is done.
    data : str
        Texts whose test split measures perplexity; ``calibrate`` names those whose train split calibrates.
    test_limit, max_length : int
        The most test texts, and tokens of each.
    **options
        Of `rankwise.compression.plan`.
    """
    tokenizer = load_tokenizer(model)
    task = TextTask(kind="causal-lm", tokenizer=tokenizer, max_length=max_length)
    test = task.encode(corpora.load(data, task="causal-lm").split().test.head(test_limit))
    if not test:
        raise ValueError(f"{data} has no test texts to measure perplexity on")
    network = load(model, task="causal-lm").eval()
    loader = None
    if calibrate is not None:
        rows = task.encode(corpora.load(calibrate, task="causal-lm").split().train.head(128))
        loader = [{k: v for k, v in b.items() if k != "labels"} for b in batches(task, rows, 8)]
    start = time.perf_counter()
    plan = compression.plan(network, calibrate=loader, progress=progress, **options)  # what is wrong is said first
    seconds = time.perf_counter() - start
    on_phase("measuring the original")
    before = measured(network, task, test)
    start = time.perf_counter()
    compression.apply(network, plan, progress=progress)
    seconds += time.perf_counter() - start
    on_phase("measuring the compressed model")
    after = measured(network, task, test)
    with whole_folder(out, made_by="compress") as draft:
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        size = sum(f.stat().st_size for f in draft.glob("*.safetensors"))
        result = Compression(plan=plan, before=before, after=after, bytes_on_disk=size, seconds=seconds)
        write_json(draft / "compression.json", result.as_dict())
    return result


@torch.no_grad()
def measured(model: nn.Module, task: TextTask, test: list) -> dict[str, float]:
    """Perplexity, and tokens a second of a forward pass and of greedy decoding."""
    start = time.perf_counter()
    perplexity = task.evaluate(model, test)["perplexity"]
    forward = sum(map(task.length, test)) / (time.perf_counter() - start)
    ids = torch.tensor([test[0]["input_ids"][:8]])
    start = time.perf_counter()
    out = model.generate(  # type: ignore[operator]
        ids, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=task.tokenizer.pad_token_id
    )
    decoded = (out.shape[1] - ids.shape[1]) / (time.perf_counter() - start)
    return {"perplexity": perplexity, "tokens_per_second": forward, "decoded_per_second": decoded}
