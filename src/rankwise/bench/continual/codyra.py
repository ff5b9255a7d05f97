"""CoDyRA's claim: ranks chosen while learning keep what a CLIP knew and what it was just taught.

One small CLIP learns five tasks in a row, sixteen pictures a class: pairs of CIFAR-10's classes, scikit-learn's digits,
MNIST, looks (dark, blurry, …). Accuracies are among the captions of each task (as in MTIL); at the end also among those
of all. Beside it: plain LoRA of five ranks, one rank for all weights at equal kept rank, EWC, all weights, all tasks at
once, and a ladder of thresholds. The control of the choice are gates that are kept at random, as many a weight; the
control of the stream is that it makes plain LoRA forget.

Fewer steps a task than the paper's 500 would prune less, since gates shrink by the sum of the thresholds: ``KAPPA`` is
the paper's 0.005 times 500 over the steps. In a smoke run the tasks are pairs of digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.bench.shared.stream_claims import EWC, Stream, evidence_of, runs_of, ways
from rankwise.bench.shared.streams import Domain, Subject, some_of_each
from rankwise.continual import ImageText, Schedule
from rankwise.data import read_images
from rankwise.data.images import Images
from rankwise.data.looks import LOOKS, article
from rankwise.events import OnEvent
from rankwise.models import load, load_image_processor, load_tokenizer

RECIPE = Recipe(
    name="codyra",
    part="pictures",
    about="CoDyRA on a CLIP: pairs of CIFAR-10, digits, MNIST and looks in a row, against LoRA, EWC and all weights",
    spreads=True,
    smoke={
        "TASKS": ("digits 0 1", "digits 2 3"), "STEPS": 4, "KAPPA": 0.625, "TESTED": 10, "SHOTS": 4, "LADDER": (0.0,),
        "RANKS": (1, 16), "seeds": 1,
    },
)  # fmt: skip

MODEL = "clip-cifar10"
TASKS = ("digits", "pair 0", "mnist", "looks", "pair 4")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHOTS, TESTED = 16, 25  # pictures a class
STEPS, BATCH, RATE = 200, 16, 3e-3
KAPPA = 0.0125
LADDER = (0.0, 2.0)  # thresholds over KAPPA
LOOKED = ("backlit", "dark", "overexposed", "blurry", "noisy", "black and white", "faded", "pixelated")
RANKS = (1, 2, 4, 8, 16)  # of plain LoRA


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every run of the recipe shares; it travels with the run to other processes."""

    tasks: tuple[str, ...]
    data: str | None
    shots: int
    tested: int


def measure(out: Path, *, data: Path | None = None, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Learn the stream in every way and by every seed (what is there is read back)."""
    setting = Setting(tasks=TASKS, data=None if data is None else str(data.resolve()), shots=SHOTS, tested=TESTED)
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
        title="CoDyRA: task after task into one CLIP",
        command="rankwise bench codyra --data DATA",
        setting=f"{MODEL}, {len(TASKS)} tasks ({', '.join(TASKS)}), {SHOTS} pictures a class, {STEPS} steps of {BATCH} "
        f"a task, rate {RATE:g}, κ {KAPPA:g}, {seeds} seeds. Accuracy in per cent among the captions of each task, "
        "mean ± standard deviation; learned: on each task when it was taught; mixed: at the end, among all captions; "
        "size: of what a task changes",
    )


def _domains(setting: Setting, seed: int) -> list[Domain]:
    """The tasks' pictures; the seed draws those that are learned from."""
    found = []
    for name in setting.tasks:
        train, test = (_pictures(name, split, setting.data) for split in ("train", "test"))
        classes = tuple(train.label_names)
        if name == "looks":
            draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
            rows = [
                _looking(images, setting.shots if images is train else setting.tested, classes, draw)
                for images, draw in zip((train, test), draws, strict=True)
            ]
        else:
            rows = [
                _prepared(images, some_of_each(images.labels, most, draw))
                for images, most, draw in ((train, setting.shots, seed), (test, setting.tested, 0))
            ]
        found.append(Domain(name=name, classes=classes, train=rows[0], test=rows[1]))
    return found


@lru_cache(maxsize=32)
def _pictures(task: str, split: str, data: str | None) -> Images:
    """The pictures of a task, labelled by captions."""
    what, _, which = task.partition(" ")
    source = what if what in ("digits", "mnist") else "cifar10"
    images = read_images(source, split=split, data=None if data is None or source != "cifar10" else Path(data, source))
    if source == "cifar10":
        kept = {"looks": range(10), "pair": range(2 * int(which or 0), 2 * int(which or 0) + 2)}[what]
        names = [f"a photo of {article(n)}" for n in images.label_names]
    else:
        kept = [int(n) for n in which.split()] if which else range(10)
        names = [f"a photo of the digit {n}" for n in DIGITS]
    assert images.labels is not None
    rows = [i for i, label in enumerate(images.labels) if label in kept]
    place = {label: i for i, label in enumerate(kept)}
    taken = images.taken(rows)
    labels = np.array([place[int(label)] for label in images.labels[rows]], np.int64)
    captions = [f"{article(look)} photo" for look in LOOKED] if what == "looks" else [names[i] for i in kept]
    return Images(name=task, store=taken.store, labels=None if what == "looks" else labels, label_names=captions)


def _prepared(images: Images, rows: Sequence[int]) -> list[dict[str, Any]]:
    processor = load_image_processor(MODEL)
    pixels = processor([images.pil(i) for i in rows], return_tensors="pt")["pixel_values"]
    assert images.labels is not None
    return [{"pixel_values": x, "labels": int(images.labels[i])} for x, i in zip(pixels, rows, strict=True)]


def _looking(images: Images, most: int, classes: Sequence[str], draw: torch.Generator) -> list[dict[str, Any]]:
    """So many pictures in each look."""
    processor = load_image_processor(MODEL)
    order = torch.randperm(len(images), generator=draw)[: most * len(classes)].tolist()
    plain = torch.stack([torch.from_numpy(images[i].copy()) for i in order]).permute(0, 3, 1, 2).float() / 255
    found = []
    for label, look in enumerate(LOOKED):
        changed = LOOKS[look](plain[label * most : (label + 1) * most], draw).clamp(0, 1)
        arrays = (changed * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pixels = processor(list(arrays), return_tensors="pt")["pixel_values"]
        found += [{"pixel_values": x, "labels": label} for x in pixels]
    return found


def _subject(setting: Setting, seed: int) -> Subject:
    tokenizer = load_tokenizer(MODEL)
    return Subject(
        make=lambda: load(MODEL),
        objective=ImageText(tokenizer=tokenizer, template="{}"),
        collate=torch.utils.data.default_collate,
        domains=_domains(setting, seed),
    )
