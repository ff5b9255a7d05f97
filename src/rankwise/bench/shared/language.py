"""What the recipes on SmolLM2 share: the two jobs, their settings, and scores by seed."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from rankwise.bench.shared.adapted import by_seed, cost, rate, runs_of
from rankwise.bench.shared.evidence import plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.events import OnEvent
from rankwise.files import whole_folder
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.models import load, load_tokenizer
from rankwise.report.tables import count, size

TEXT, LABEL = "text:nyt", "sentiment:movies"
BLOCKS = 30  # of SmolLM2
RATES = {"full": [3e-5, 1e-4], "lora": [4e-4, 1e-3]}
LOW_MEMORY_RATES = [1e-4, 4e-4]


def settings(data: str, methods: list[str], *, seeds: int, steps: int, tested: int, model: str) -> AdaptConfig:
    """Language modelling on editorials, or sentiment as text-to-label; the same tokens for every method.

    ``tested`` texts at most are scored.
    """
    label = data == LABEL
    return AdaptConfig(
        task="text-to-label" if label else "causal-lm",
        model=model,
        data=data,
        methods=methods,
        budget="1%",
        seeds=seeds,
        steps=steps,
        batch_size=8 if label else 4,
        max_length=40 if label else 64,
        eval_limit=tested,
        precision="bf16",
        baseline=False,
        label_prompt="\nSentiment:" if label else AdaptConfig.model_fields["label_prompt"].default,
        interval=max(1, steps // 3) if any(m.startswith(("owlore", "lisa")) for m in methods) else None,
        update_gap=max(1, steps // 2) if any(m.startswith(("owlore", "galore")) for m in methods) else None,
        learning_rates={m: RATES.get(m, LOW_MEMORY_RATES) for m in methods},
        checkpoint_steps=10_000,
    )


def first_blocks(folder: Path, blocks: int) -> str:
    """SmolLM2 by name, or a folder with its first blocks alone, written once."""
    if blocks < BLOCKS and not folder.is_dir():
        model = load("smollm2")
        del model.model.layers[blocks:]
        model.config.num_hidden_layers = blocks
        keep(model, folder)
    return str(folder) if blocks < BLOCKS else "smollm2"


def keep(model: PreTrainedModel, folder: Path) -> None:
    """Write a model that was made of SmolLM2, with SmolLM2's tokenizer."""
    with whole_folder(folder, made_by="bench") as draft:
        model.save_pretrained(draft)
        load_tokenizer("smollm2").save_pretrained(draft)


def trained(out: Path, config: AdaptConfig, on_event: OnEvent | None) -> Runs:
    """The job's methods with their trials (finished ones are read back), and the untrained model's items."""
    return runs_of(Job(config, out, on_event=on_event))


def row(entry: Runs, corpora: dict[str, str]) -> list[str]:
    """Title, learning rate, trained parameters, peak memory, and metrics with their spread."""
    spent, cells = cost(entry), []
    for corpus, metric in corpora.items():
        values = by_seed(entry, corpus, metric)
        cells.append(plus_minus(values) if metric == "accuracy" else plus_minus(values, 1, 3))
    return [
        entry["title"],
        rate(entry),
        count(spent["trainable_parameters"]),
        size(spent["peak_memory_bytes"]),
        *cells,
    ]
