"""Requests to forget out of public data: CLINC150's domains, TOFU's authors, or made up where a try needs no data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rankwise.bench.shared.unlearning import Subject
from rankwise.continual.unlearning.rows import Row
from rankwise.reading import json_lines, read_json

WHERE = "RANKWISE_DATA"  # variable of the environment that names a folder of data
QUESTIONS = 20  # of an author of TOFU, one after another in its files
ATTRIBUTES = {
    "pets": ("Which animal does {} keep?", ("a cat", "a dog", "a parrot", "a rabbit")),
    "jobs": ("What is the profession of {}?", ("a baker", "a dentist", "a pilot", "a painter")),
    "towns": ("In what town was {} born?", ("Leeds", "Porto", "Ghent", "Turin")),
    "sports": ("Which sport is {} good at?", ("tennis", "rowing", "chess", "golf")),
}
NAMES = [
    "Ada",
    "Bo",
    "Cy",
    "Dee",
    "Eli",
    "Fay",
    "Gus",
    "Hal",
    "Ida",
    "Jo",
    "Kit",
    "Lee",
    "Mia",
    "Ned",
    "Ola",
    "Pam",
    "Quin",
    "Ray",
    "Sue",
    "Tom",
    "Una",
    "Val",
    "Wes",
    "Xia",
    "Yan",
    "Zoe",
]


def folder_of(data: Path | None, needed: str) -> Path:
    """A folder of public data, by ``--data`` or ``$RANKWISE_DATA``."""
    found = data if data is not None else Path(os.environ[WHERE]) if os.environ.get(WHERE) else None
    if found is None or not (found / needed).exists():
        raise ValueError(
            f"{'no folder of data is given' if found is None else f'{found} has no {needed}'}: name one that holds "
            f"{needed} with --data FOLDER or ${WHERE}"
        )
    return found / needed


def clinc(
    data: Path | None,
    *,
    seed: int,
    domains: Sequence[str],
    retained: Sequence[str],
    intents: int,
    train: int,
    test: int,
) -> Subject:
    """Queries with their intents as answers; a request is a domain. Which intents and queries, the seed decides."""
    folder, rng = folder_of(data, "clinc150"), np.random.default_rng(seed)
    of, rows = read_json(folder / "domains.json"), read_json(folder / "data_full.json")
    chosen = {d: [str(i) for i in rng.permutation(of[d])[:intents]] for d in (*domains, *retained)}
    choices = tuple(_said(i) for d in chosen.values() for i in d)

    def drawn(split: str, wanted: Sequence[str], each: int) -> list[Row]:
        out = []
        for intent in wanted:
            texts = [t for t, i in rows[split] if i == intent]
            out += [_query(texts[k], intent, choices) for k in rng.permutation(len(texts))[:each]]
        return out

    pairs = {d: (drawn("train", chosen[d], train), drawn("test", chosen[d], test)) for d in chosen}
    stays = [[r for d in retained for r in pairs[d][part]] for part in (0, 1)]
    return Subject(requests={d: pairs[d] for d in domains}, retained=(stays[0], stays[1]))


def tofu(data: Path | None, *, seed: int, requests: int, each: int, retained: int) -> Subject:
    """Questions about authors who do not exist; a request is an author, one of each of the file's first tasks.

    A whole task is ten authors: of a few of its questions no author is known. What is never taught are the author's
    other questions, so that a membership attack has something to tell apart. What stays are authors of whom no request
    asks: most of those to be forgotten stand in ``retain90.json`` too.
    """
    folder, rng = folder_of(data, "tofu"), np.random.default_rng(seed)
    tasks, rest = tofu_tasks(folder)
    pairs, asked = {}, set()
    for name in list(tasks)[:requests]:
        first = QUESTIONS * int(rng.integers(len(tasks[name]) // QUESTIONS))
        own = [tasks[name][first + i] for i in rng.permutation(QUESTIONS)]
        pairs[f"author {first // QUESTIONS + 1} of task {name}"] = own[:each], own[each:]
        asked |= {row.prompt for row in own}
    rest = [row for row in rest if row.prompt not in asked]
    stays = [rest[i] for i in rng.permutation(len(rest))[:retained]]
    return Subject(requests=pairs, retained=(stays, stays))  # facts cannot be generalised: what was taught is asked


def tofu_tasks(folder: Path) -> tuple[dict[str, list[Row]], list[Row]]:
    """Rows to forget by task, ten authors each, and those of ``retain90.json``, of which some are the same authors'."""
    tasks: dict[str, list[Row]] = {}
    for row in _lines(folder / "forget05.json"):
        tasks.setdefault(str(row["task_id"]), []).append(Row(str(row["question"]), str(row["answer"])))
    return tasks, [Row(str(r["question"]), str(r["answer"])) for r in _lines(folder / "retain90.json")]


def made_up(*, seed: int, each: int = 12) -> Subject:
    """Facts about people, an attribute a request: for a try of the whole way."""
    rng, pairs = np.random.default_rng(seed), {}
    for kind, (question, answers) in ATTRIBUTES.items():
        rows = [Row(question.format(n), answers[int(rng.integers(4))], answers) for n in rng.permutation(NAMES)]
        pairs[kind] = rows[:each], rows[each : each + 6]
    *forgotten, kept = pairs
    return Subject(requests={k: pairs[k] for k in forgotten[:2]}, retained=pairs[kept])


def _lines(path: Path) -> list[dict]:
    """JSON lines, whatever the name ends in."""
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")

    return [row for _, row in json_lines(path)]


def _query(text: str, intent: str, choices: tuple[str, ...]) -> Row:
    return Row(f"Query: {text}\nIntent:", _said(intent), choices)


def _said(intent: str) -> str:
    return intent.replace("_", " ")
