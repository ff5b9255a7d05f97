"""What the recipes on SmolLM2 share: the two jobs, their settings, and scores by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankwise.bench.shared.evidence import plus_minus
from rankwise.events import OnEvent
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.report.tables import count, size

TEXT, LABEL = "text:nyt", "sentiment:movies"
RATES = {"full": [3e-5, 1e-4], "lora": [4e-4, 1e-3]}
LOW_MEMORY_RATES = [1e-4, 4e-4]


def settings(data: str, methods: list[str], *, seeds: int, steps: int, model: str = "smollm2") -> AdaptConfig:
    """Language modelling on editorials, or sentiment as text-to-label; the same tokens for every method."""
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
        eval_limit=200 if label else 60,
        precision="bf16",
        baseline=False,
        label_prompt="\nSentiment:" if label else AdaptConfig.model_fields["label_prompt"].default,
        interval=max(1, steps // 3) if any(m.startswith(("owlore", "lisa")) for m in methods) else None,
        update_gap=max(1, steps // 2) if any(m.startswith(("owlore", "galore")) for m in methods) else None,
        learning_rates={m: RATES.get(m, LOW_MEMORY_RATES) for m in methods},
        checkpoint_steps=10_000,
    )


def trained(out: Path, config: AdaptConfig, on_event: OnEvent | None) -> tuple[dict, dict[str, dict]]:
    """The job's results (finished trials are read back), and its methods by name."""
    results = Job(config, out, on_event=on_event).run()
    return results, {m["name"]: m for m in results["methods"] if m["trials"]}


def by_seed(entry: dict, corpus: str, metric: str) -> np.ndarray:
    """A metric of a method on a corpus, a number a seed."""
    return np.array([t["scores"][corpus][metric] for t in entry["trials"] if t["status"] == "done"])


def row(entry: dict, corpora: dict[str, str]) -> list[str]:
    """Title, learning rate, trained parameters, peak memory, seconds a step, and metrics with their spread."""
    cost = entry["cost"]
    cells = []
    for corpus, metric in corpora.items():
        values = by_seed(entry, corpus, metric)
        cells.append(plus_minus(values) if metric == "accuracy" else plus_minus(values, 1, 3))
    return [
        entry["title"],
        f"{entry['learning_rate']:g}",
        count(cost["trainable_parameters"]),
        size(cost["peak_memory_bytes"]),
        *cells,
    ]
