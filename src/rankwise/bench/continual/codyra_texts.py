"""CoDyRA's claim on texts: MiniLM learns the polarity of four domains in a row by the names of its classes.

The classes are the same in every domain, so that nothing is masked and each domain can help or hurt the others. The
ways are those of the pictures' recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.stream_claims import EWC, Stream, evidence_of, runs_of, ways
from rankwise.bench.shared.streams import Domain, Subject, some_of_each
from rankwise.continual import Schedule, SentenceText
from rankwise.data import Corpus, sentiment
from rankwise.events import OnEvent
from rankwise.models import load, load_tokenizer

RECIPE = Recipe(
    name="codyra",
    part="texts",
    about="CoDyRA on MiniLM: the polarity of movies, tweets, Amazon reviews and NYT sentences in a row",
    spreads=True,
    remark="Polarity is one task in every domain: plain LoRA hardly forgets here, and there is little to protect. The "
    "pictures' stream is the one that hurts.",
    smoke={
        "TASKS": ("movies", "tweets"), "STEPS": 2, "KAPPA": 1.25, "TESTED": 6, "SHOTS": 8, "LADDER": (0.0,),
        "RANKS": (16,), "seeds": 1,
    },
)  # fmt: skip

MODEL = "minilm"
TASKS = ("movies", "tweets", "amazon", "nyt")
NAMES = ("this is bad", "this is good")
SHOTS, TESTED = 64, 100  # texts a class
STEPS, BATCH, RATE, TOKENS = 100, 16, 5e-4, 32
KAPPA = 0.025  # the paper's 0.005 at 500 steps
LADDER = (0.0, 2.0)
RANKS = (1, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every run of the recipe shares; it travels with the run to other processes."""

    tasks: tuple[str, ...]
    shots: int
    tested: int
    tokens: int


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Learn the stream in every way and by every seed (what is there is read back)."""
    setting = Setting(tasks=TASKS, shots=SHOTS, tested=TESTED, tokens=TOKENS)
    schedule = Schedule(steps=STEPS, batch_size=BATCH, learning_rate=RATE)
    stream = Stream(subject=_subject, setting=setting, schedule=schedule)
    wanted = ways(kappa=KAPPA, ladder=LADDER, ranks=RANKS, ewc=EWC)
    return runs_of(out, stream, wanted, seeds, on_event or (lambda *_: None))


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The ways compared."""
    return evidence_of(
        found,
        tasks=TASKS,
        ladder=LADDER,
        ranks=RANKS,
        title="CoDyRA: domain after domain into one sentence encoder",
        command="rankwise bench codyra --part texts",
        setting=f"{MODEL}, polarity in {len(TASKS)} domains ({', '.join(TASKS)}) by the sentences '{NAMES[0]}' and "
        f"'{NAMES[1]}', {SHOTS} texts a class, {STEPS} steps of {BATCH} a domain, rate {RATE:g}, κ {KAPPA:g}, {seeds} "
        "seeds. Accuracy in per cent, mean ± standard deviation; learned: on each domain when it was taught",
    )


def _subject(setting: Setting, seed: int) -> Subject:
    tokenizer = load_tokenizer(MODEL)
    domains = []
    for name in setting.tasks:
        train, _, test = sentiment(name, task="polarity").split()
        rows = [
            _encoded(part, some_of_each(part.labels, most, draw), tokenizer, setting.tokens)
            for part, most, draw in ((train, setting.shots, seed), (test, setting.tested, 0))
        ]
        domains.append(Domain(name=name, classes=NAMES, train=rows[0], test=rows[1]))

    def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
        labels = torch.tensor([r["labels"] for r in rows])
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    return Subject(
        make=lambda: load(MODEL, task="base", dropout=0.0),
        objective=SentenceText(tokenizer=tokenizer),
        collate=padded,
        domains=domains,
    )


def _encoded(corpus: Corpus, rows: list[int], tokenizer: Any, tokens: int) -> list[dict[str, Any]]:
    ids = tokenizer([corpus.texts[i] for i in rows], truncation=True, max_length=tokens)["input_ids"]
    return [{"input_ids": i, "labels": int(corpus.labels[row])} for i, row in zip(ids, rows, strict=True)]
