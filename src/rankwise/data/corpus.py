"""Labelled texts, cut into fixed splits that keep every source document on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rankwise.nearest import unknown


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts with labels.

    Attributes
    ----------
    name : str
        Where it comes from, as the user wrote it.
    texts : list of str
    labels : list of int or float
        Class indices, or numbers when ``label_names`` is empty (regression); empty for unlabelled text.
    groups : list of str
        Source document of each text: texts of one group never straddle a split.
    label_names : list of str
    """

    name: str
    texts: list[str]
    labels: list[float]
    groups: list[str]
    label_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, keep: Callable[[int], bool]) -> Corpus:
        """The rows whose index passes ``keep``."""
        rows = [i for i in range(len(self)) if keep(i)]
        return replace(
            self,
            texts=[self.texts[i] for i in rows],
            labels=[self.labels[i] for i in rows] if self.labels else [],
            groups=[self.groups[i] for i in rows],
        )

    def head(self, limit: int | None) -> Corpus:
        """``limit`` rows in an order fixed by the text's hash (not the first ones, which may be of one document)."""
        if limit is None or limit >= len(self):
            return self
        order = sorted(range(len(self)), key=lambda i: _unit(f"{self.name}|{i}|{self.texts[i]}"))
        kept = set(order[:limit])
        return self.where(lambda i: i in kept)

    def split(self, *, validation: float = 0.15, test: float = 0.15) -> Splits:
        """Train, validation and test rows, decided by a hash of each row's group: the same on every machine."""
        place = [_unit(g) for g in self.groups]
        return Splits(
            self.where(lambda i: place[i] >= validation + test),
            self.where(lambda i: test <= place[i] < validation + test),
            self.where(lambda i: place[i] < test),
        )


class Splits(NamedTuple):
    """The three parts of a corpus."""

    train: Corpus
    validation: Corpus
    test: Corpus


def load(
    spec: str,
    *,
    task: str = "polarity",
    text_column: str = "text",
    label_column: str | None = "label",
) -> Corpus:
    """A corpus by name or path.

    Parameters
    ----------
    spec : str
        ``sentiment:movies`` (or ``tweets``, ``amazon``, ``nyt``), or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``
        file.
    task : {"polarity", "rating", "classification", "regression", "causal-lm"}
        ``rating`` and ``regression`` give numbers, the others classes; ``causal-lm`` ignores labels.
    text_column, label_column : str
        Columns of a user file.
    """
    from rankwise.data.files import read_file
    from rankwise.data.sentiment import sentiment

    if spec.startswith("sentiment:"):
        return sentiment(spec.partition(":")[2], task="rating" if task in ("rating", "regression") else "polarity")
    path = Path(spec).expanduser()
    if not path.is_file():
        if path.suffix:
            raise ValueError(f"no such data file: {path}")
        raise unknown("data", spec, [f"sentiment:{d}" for d in ("movies", "tweets", "amazon", "nyt")])
    return read_file(
        path,
        text_column=text_column,
        label_column=None if task == "causal-lm" else label_column,
        regression=task in ("rating", "regression"),
    )


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
