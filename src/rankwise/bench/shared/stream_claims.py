"""What a stream learned in many ways says: the runs, kept one by one, a table, and CoDyRA's claims with verdicts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.bench.shared.evidence import Claim, Evidence, greater, plus_minus, within
from rankwise.bench.shared.streams import Subject, Way, learned, scores_of
from rankwise.continual import Schedule
from rankwise.events import OnEvent, counting, environment
from rankwise.files import write_json
from rankwise.parallel import fan_out
from rankwise.reading import read_json

XTAIL = "(X-TAIL, CLIP ViT-B/16)"  # where the paper's figures are from
OURS, PLAIN, EVEN, CHANCE, ALL = "CoDyRA", "LoRA r=16", "one rank for all", "gates by chance", "all weights"
SHOWN = ("transfer", "average", "last", "forgetting", "learned", "mixed")
HEADER = ["way", *[f.capitalize() for f in SHOWN], "rank", "size", "drift"]
EWC = 1e5  # weight of its penalty
FULL = 0.1  # learning rate of all weights over that of adapters

Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What all runs of a recipe share; it travels with a run to other processes.

    Attributes
    ----------
    subject : callable
        Of a module's top level: makes the model and the tasks of a seed from ``setting``.
    setting : object
        Picklable; its ``tasks`` are their names.
    schedule : Schedule
    """

    subject: Callable[[Any, int], Subject]
    setting: Any
    schedule: Schedule


def evidence_of(
    found: dict[str, list[Run]], *, tasks: Sequence[str], ladder: Sequence[float], ranks: Sequence[int], title: str,
    command: str, setting: str,
) -> Evidence:  # fmt: skip
    """The claims judged by all runs, by way and seed."""
    before = plus_minus(mean_before(r) for r in found[OURS])
    return Evidence(
        recipe="codyra",
        title=title,
        command=f"{command} --seeds {len(found[OURS])}",
        setting=f"{setting}. The untouched model is at {before} on all but the first",
        header=HEADER,
        rows=rows_of_table(found),
        claims=claims_of(found, ladder, ranks),
        environment=environment("fp32", 1),
        extra=extras(found, tasks),
    )


def ways(*, kappa: float, ladder: Sequence[float], ranks: Sequence[int], ewc: float) -> dict[str, Way]:
    """Every way that depends on no other, by name; ``ladder`` are thresholds over ``kappa``."""
    return {
        OURS: Way(kind="codyra", kappa=kappa),
        **{f"κ x {k:g}": Way(kind="codyra", kappa=k * kappa) for k in ladder},
        "closed for good": Way(kind="codyra", kappa=kappa, freeze=True),
        "as released": Way(kind="codyra", kappa=kappa, released=True),
        **{f"LoRA r={r}": Way(kind="lora", r=r) for r in ranks},
        ALL: Way(kind="full", rate=FULL),
        "EWC": Way(kind="ewc", rate=FULL, weight=ewc),
        "all tasks at once": Way(kind="joint"),
    }


def runs_of(
    out: Path, stream: Stream, wanted: dict[str, Way], seeds: int, note: OnEvent
) -> dict[str, list[Run]]:  # fmt: skip
    """All runs by way and seed, then those that need to know what CoDyRA chose."""
    found = _many(out, stream, {name: [(way, ())] * seeds for name, way in wanted.items()}, note)
    chosen = found[OURS]
    even = [(Way(kind="codyra", r=max(1, round(mean_rank(r)))), ()) for r in chosen]
    chance = [(Way(kind="random"), r["ranks"]) for r in chosen]
    return found | _many(out, stream, {EVEN: even, CHANCE: chance}, note)


def _many(out: Path, stream: Stream, wanted: dict[str, list[tuple[Way, Any]]], note: OnEvent) -> dict[str, list[Run]]:
    items = [
        (out, stream, name, way, seed, counts)
        for name, each in wanted.items()
        for seed, (way, counts) in enumerate(each)
    ]
    done = iter(fan_out(_one, items, on_done=counting(note, "codyra", len(items))))
    return {name: [next(done) for _ in each] for name, each in wanted.items()}


def _one(item: tuple[Path, Stream, str, Way, int, Any]) -> Run:
    """One run, or what is kept of it."""
    out, stream, name, way, seed, counts = item
    path = out / f"{name.replace(' ', '-')}-{seed}.json"
    if path.is_file():
        return read_json(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short schedules in a smoke run, and gates that are all closed, are meant
        found = learned(stream.subject(stream.setting, seed), way, stream.schedule, seed, counts=counts)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def mean_rank(run: Run) -> float:
    """Over tasks and weights."""
    return float(np.mean([np.mean([*r.values()]) for r in run["ranks"]]))


def mean_before(run: Run) -> float:
    """Accuracy of the untouched model on every task but the first."""
    return float(np.mean(run["before"][1:]))


def rows_of_table(found: dict[str, list[Run]]) -> list[list[str]]:
    """A row a way under `HEADER`."""
    out = []
    for name, runs in found.items():
        scores = [scores_of(r) for r in runs]
        cells = [plus_minus(s[key] for s in scores) if key in scores[0] else "-" for key in SHOWN]
        ends = [plus_minus((s[key] for s in scores), 1, 2) for key in ("size", "drift")]
        out.append([name, *cells, f"{np.mean([mean_rank(r) for r in runs]):.1f}", *ends])
    return out


def extras(found: dict[str, list[Run]], tasks: Sequence[str]) -> dict[str, Any]:
    """Mean tables, drifts and ranks, for pictures."""
    chosen = found[OURS]
    return {
        "tasks": list(tasks),
        "tables": {n: np.mean([r["table"] for r in runs], 0).tolist() for n, runs in found.items()},
        "before": np.mean([r["before"] for r in chosen], 0).tolist(),
        "drift": {n: np.mean([r["drift"] for r in runs], 0).tolist() for n, runs in found.items()},
        "ranks": {
            task: {n: float(np.mean([r["ranks"][i][n] for r in chosen])) for n in chosen[0]["ranks"][i]}
            for i, task in enumerate(tasks)
        },
    }


def claims_of(found: dict[str, list[Run]], ladder: Sequence[float], ranks: Sequence[int]) -> list[Claim]:
    """CoDyRA's, each with its verdict."""
    scores = {name: [scores_of(r) for r in runs] for name, runs in found.items()}
    chosen = found[OURS]

    def of(name: str, key: str) -> list[float]:
        return [s[key] for s in scores[name]]

    def beats(key: str, other: str, text: str, **options: Any) -> Claim:
        return greater(text, of(OURS, key), of(other, key), **options)

    kept, smallest = np.mean([mean_rank(r) for r in chosen]), f"LoRA r={min(ranks)}"
    rungs = {1.0: OURS} | {k: f"κ x {k:g}" for k in ladder}
    drifts = [(k, float(np.mean(of(rungs[k], "drift")))) for k in sorted(rungs)]
    ends = plus_minus(of(OURS, "drift"), 1, 2), plus_minus(of(smallest, "drift"), 1, 2)
    zeros, before = [0.0] * len(chosen), [mean_before(r) for r in chosen]
    text = f"control: the stream makes {PLAIN} forget by more than 2 points"
    return [
        greater(text, of(PLAIN, "forgetting"), zeros, least=0.02, control=True),
        beats("last", CHANCE, "control: gates kept by chance, as many a weight, end lower (Last)", control=True),
        beats("last", PLAIN, f"it ends higher than {PLAIN} (Last)", paper=f"79.2 against 59.4 % {XTAIL}"),
        greater(
            f"it forgets less than {PLAIN}",
            of(PLAIN, "forgetting"),
            of(OURS, "forgetting"),
            paper=f"1.87 against 14.86 points {XTAIL}",
        ),
        beats(
            "transfer",
            PLAIN,
            f"tasks to come are answered better than with {PLAIN} (Transfer)",
            paper=f"63.2 against 61.8 % {XTAIL}",
        ),
        within(
            "and at most 1 point below the untouched model",
            of(OURS, "transfer"),
            before,
            most=0.01,
            paper="70.1 against 69.4 % (MTIL, 5 pictures a class)",
        ),
        within(
            f"tasks are learned within 1 point of {PLAIN}",
            of(OURS, "learned"),
            of(PLAIN, "learned"),
            most=0.01,
        ),
        beats("last", EVEN, "it ends higher than one rank for all weights at equal kept rank"),
        beats("last", "EWC", "than EWC", paper="43.8 against 42.4 (TRACE, LLaMA-2-7B-Chat, overall performance)"),
        beats("last", ALL, "than training all weights"),
        Claim(
            text=f"the weights drift less than with {smallest}",
            held=bool(np.mean(of(OURS, "drift")) < np.mean(of(smallest, "drift"))),
            found=f"{ends[0]} against {ends[1]}",
            paper=f"a task's change 3.22 against 4.21 {XTAIL}",
        ),
        Claim(
            text="about half of the sixteen directions are kept (6 to 10)",
            held=bool(6 <= kept <= 10),
            found=f"{kept:.1f}",
            paper=f"8.3 {XTAIL}",
        ),
        Claim(
            text="a higher threshold drifts less, at every rung",
            held=all(a[1] > b[1] for a, b in pairwise(drifts)),
            found=", ".join(f"{d:.2f} at {k:g}" for k, d in drifts),
        ),
    ]
