"""Rows of data as the examples of a task: pictures for a model that sees, texts for one that reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rankwise.data import load as load_texts
from rankwise.data import read_images
from rankwise.jobs.learning.config import PICTURES, StreamConfig, TaskConfig
from rankwise.jobs.tasks import TextTask, check_lengths
from rankwise.models import load, load_image_processor, load_tokenizer, resolve
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from rankwise.data import Corpus, Images

SEES = ("image-classification", "zero-shot-image")


@dataclass(frozen=True, kw_only=True)
class StreamTask:
    """A task's examples.

    Attributes
    ----------
    name : str
    classes : tuple of str
        What labels index; empty where labels are tokens.
    train, test : list of dict
        Examples.
    fingerprint : str
        Of both by content.
    notes : list of str
        What the user should know of how they were read.
    """

    name: str
    classes: tuple[str, ...]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    fingerprint: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model and what turns rows into its examples.

    Attributes
    ----------
    model, tokenizer, processor : object
        As far as there are.
    kind : str
        Its task in `rankwise.models.load`.
    name : str
        As the user wrote it.
    notes : list of str
        What the user should know of how it was read.
    """

    name: str
    kind: str
    model: Any
    tokenizer: Any
    processor: Any
    notes: list[str]


def learner_of(name: str) -> Learner:
    """A pretrained model with its tokenizer or image processor; a text encoder without a head."""
    import transformers

    from rankwise.models.loading import placed, pretrained

    config = pretrained(transformers.AutoConfig, resolve(name))
    made_for = str(next(iter(config.architectures or ()), ""))
    if config.model_type == "clip":
        kind = "zero-shot-image"
    elif "ForImageClassification" in made_for:
        kind = "image-classification"
    elif made_for.endswith(("ForCausalLM", "LMHeadModel")):
        kind = "causal-lm"
    elif config.model_type == "whisper" or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is a {config.model_type} model: a CLIP, an image classifier, a text encoder or a "
                         "causal language model is needed")  # fmt: skip
    else:
        kind = "base"
    model: Any = placed(load(name, task=kind))  # pyright: ignore[reportArgumentType]  (one of its literals)
    return Learner(
        name=name,
        kind=kind,
        model=model.eval(),
        tokenizer=None if kind == "image-classification" else load_tokenizer(name),
        processor=load_image_processor(name) if kind in SEES else None,
        notes=[f"{name} is a {made_for}: it learns, and is saved, as a text encoder without that head"]
        if kind == "base" and "For" in made_for
        else [],
    )


def tasks_of(config: StreamConfig, learner: Learner, data: Path | None) -> list[StreamTask]:
    """Every task's examples, read before the first is learned."""
    return [(_pictures if learner.kind in SEES else _texts)(task, config, learner, data) for task in config.tasks]


def _pictures(task: TaskConfig, config: StreamConfig, learner: Learner, data: Path | None) -> StreamTask:
    if task.data.startswith("sentiment:") or (Path(task.data).is_file() and not task.data.endswith(".parquet")):
        raise ValueError(f"task '{task.name}': {learner.name} sees pictures, and {task.data} is texts")
    parts: dict[str, tuple[Any, list[str]]] = {}
    for split in ("train", "test"):
        images = read_images(task.data, split=split, data=data if task.data == "cifar10" else None)
        if images.labels is None:
            raise ValueError(f"task '{task.name}': the pictures of {task.data} have no labels")
        parts[split] = _chosen(images, images.labels, images.label_names, task, part=f"the {split} part of ")
    (train, names), (test, _) = parts["train"], parts["test"]
    if learner.kind == "image-classification" and len(names) == 1:
        raise ValueError(f"task '{task.name}': a classifier learns nothing from one class alone, '{names[0]}'")
    train = train.taken(_shots(train.labels, task.shots or config.shots, config.seed))
    return StreamTask(
        name=task.name,
        classes=_called(names, task),
        train=_seen(train, learner.processor),
        test=_seen(test.head(config.test_limit), learner.processor),
        fingerprint=train.fingerprint() + test.fingerprint(),
        notes=[f"{task.name}: {note}" for note in dict.fromkeys([*train.notes, *test.notes])],
    )


def _seen(images: Images, processor: Any) -> list[dict[str, Any]]:
    assert images.labels is not None
    found = []
    for i, label in enumerate(images.labels):
        pixels = processor(images.pil(i), return_tensors="pt")["pixel_values"][0]
        found.append({"pixel_values": pixels, "labels": int(label)})
    return found


def _texts(task: TaskConfig, config: StreamConfig, learner: Learner, data: Path | None) -> StreamTask:
    if task.data in PICTURES or Path(task.data).is_dir():
        raise ValueError(f"task '{task.name}': {learner.name} reads texts, and {task.data} is pictures")
    corpus = load_texts(task.data, task="classification")
    if not corpus.label_names:
        raise ValueError(f"task '{task.name}': the texts of {task.data} have no classes")
    corpus, names = _chosen(corpus, np.asarray(corpus.labels, np.int64), corpus.label_names, task)
    words = _called(names, task)
    train, _, test = corpus.split()
    train = _taken(train, _shots(np.asarray(train.labels), task.shots or config.shots, config.seed))
    test = test.head(config.test_limit)
    answers = learner.kind == "causal-lm"
    kind = "text-to-label" if answers else "classification"
    encoder = TextTask(kind=kind, tokenizer=learner.tokenizer, max_length=config.max_length, label_names=words)
    sides = []
    for part in (train, test):
        rows = encoder.encode(part) if len(part) else []
        if not rows:
            raise ValueError(f"task '{task.name}': {task.data} leaves no texts to {'train' if not sides else 'test'}")
        check_lengths(encoder, learner.model, rows)
        sides.append([{"input_ids": torch.tensor(r["input_ids"]), "labels": int(r["label"])} for r in rows])
    return StreamTask(
        name=task.name,
        classes=() if answers else words,
        train=sides[0],
        test=sides[1],
        fingerprint=train.fingerprint() + test.fingerprint(),
        notes=[f"{task.name}: {note}" for note in corpus.notes],
    )


def collate_of(learner: Learner) -> Any:
    """What makes a batch of examples."""
    if learner.kind in SEES:
        return torch.utils.data.default_collate
    pad = int(learner.tokenizer.pad_token_id)

    def padded(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([r["input_ids"] for r in rows], batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(r["input_ids"]) for r in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        if learner.kind == "causal-lm":  # the answer is the last token
            asked = torch.arange(ids.shape[1]) == lengths[:, None] - 1
            return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~asked, -100)}
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([r["labels"] for r in rows])}

    return padded


def _called(names: Sequence[str], task: TaskConfig) -> tuple[str, ...]:
    """The words for a task's classes, each its own."""
    words = [task.words.get(n, n) for n in names]
    if twice := [w for i, w in enumerate(words) if w in words[:i]]:
        raise ValueError(f"task '{task.name}' has two classes that are called '{twice[0]}': each its own word")
    return tuple(words)


def _chosen(rows: Any, labels: Any, names: Sequence[str], task: TaskConfig, *, part: str = "") -> tuple[Any, list[str]]:
    """The rows of a task's classes, labelled by their place among them, and the classes."""
    wanted = list(names if task.classes is None else task.classes)
    for name in [*wanted, *task.words]:
        if name not in names:
            raise unknown(f"class of task '{task.name}'", name, names)
    place = {list(names).index(n): i for i, n in enumerate(wanted)}
    kept = [i for i, label in enumerate(labels) if int(label) in place]
    if not kept:
        raise ValueError(f"task '{task.name}': {part}{task.data} has no examples of {', '.join(wanted)}")
    there: list[Any] = [place[int(labels[i])] for i in kept]
    if hasattr(rows, "texts"):
        return _taken(rows, kept).labelled(there, wanted), wanted
    taken = rows.taken(kept)
    return replace(taken, labels=np.asarray(there, np.int64), label_names=wanted), wanted


def _taken(corpus: Corpus, rows: Sequence[int]) -> Corpus:
    kept = set(rows)
    return corpus.where(lambda i: i in kept)


def _shots(labels: Any, shots: int | None, seed: int) -> list[int]:
    """Rows of at most ``shots`` examples a class, drawn by the seed, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    kept: list[int] = []
    for label in np.unique(labels):
        kept += [int(i) for i in order if labels[i] == label][:shots]
    return sorted(kept)
