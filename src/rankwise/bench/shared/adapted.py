"""What recipes that are jobs of `rankwise.jobs.adapt` keep of their trials, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from rankwise.bench.shared.measured import Runs
from rankwise.jobs.adapt import Job
from rankwise.jobs.items import metrics

UNTRAINED = "untrained"


def runs_of(job: Job, *, leave: Collection[str] = ()) -> Runs:
    """A job's methods by name (finished trials are read back), each with what the items of its trials got.

    A method has its title, rank, learning rate, cost and grid; a trial its method, seed, rate, validation curve, ranks
    and mass by layer, and its items by corpus, without the columns named in ``leave``: none where it diverged. A method
    that diverged at every rate has neither rate nor cost, and so many trials without items. Of a model that answers as
    it comes the items stand under ``untrained``.
    """
    none = {"learning_rate": None, "validation_curve": [], "ranks": {}, "mass": {}, "status": "diverged"}

    def kept(trial: Mapping[str, Any] | None = None) -> Runs:
        return {c: {k: v for k, v in items.items() if k not in leave} for c, items in job.items(trial).items()}

    results = job.run()
    found: Runs = {}
    for entry in results["methods"]:
        lost = [{"method": entry["name"], "seed": seed, **none} for seed in range(job.config.seeds)]
        trials = [
            {k: t[k] for k in ("method", "seed", "learning_rate", "validation_curve", "ranks", "mass")}
            | {"items": kept(t) if t["status"] == "done" else None}
            for t in entry["trials"] or lost
        ]
        known = {k: entry.get(k) for k in ("title", "rank", "learning_rate", "cost", "grid")}
        found[entry["name"]] = {**known, "trials": trials}
    if "zero_shot" in results:
        found[UNTRAINED] = kept()
    return found


def by_seed(run: Mapping[str, Any], corpus: str, metric: str = "score") -> np.ndarray:
    """A metric of a method on a corpus, a number a seed; NaN for one that diverged."""
    return np.array([metrics(t["items"][corpus])[metric] if t["items"] else np.nan for t in run["trials"]])


def tested(runs: Iterable[Mapping[str, Any]]) -> str:
    """How many items of each corpus were scored, for a setting: ``500 of text:a, 446 of text:b``."""
    kept = next((t["items"] for run in runs for t in run["trials"] if t["items"]), {})
    return ", ".join(f"{len(next(iter(items.values())))} of {corpus}" for corpus, items in kept.items()) or "none"


def cost(run: Mapping[str, Any]) -> Mapping[str, float]:
    """What a method cost; NaN where it diverged at every rate."""
    return run["cost"] or defaultdict(lambda: math.nan)


def rate(run: Mapping[str, Any]) -> str:
    """The learning rate that was chosen, for a table."""
    return "-" if run["learning_rate"] is None else f"{run['learning_rate']:g}"
