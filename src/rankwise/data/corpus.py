"""Labelled texts, cut into fixed splits that keep every source document on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rankwise.files import content_of, fingerprint

BUILT_IN = ("sentiment:", "text:", "speech:")  # how the names of corpora begin that are no files
VALIDATION, TEST = 0.15, 0.15  # shares of the groups


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts with labels.

    Attributes
    ----------
    name : str
        Where it comes from, as the user wrote it.
    texts : list of str
        The rows.
    labels : list of int or float
        Class indices, or numbers when ``label_names`` is empty (regression); empty for unlabelled text.
    groups : list of str
        Source document of each text: texts of one group never straddle a split.
    label_names : list of str
        Names of the classes, by index; empty for numbers and for unlabelled text.
    audio : list of Path
        Recording of each text, for speech; empty otherwise.
    chat : bool
        Whether the texts are chats, written in a model's template.
    notes : list of str
        What the user should know of how it was read.

    Examples
    --------
    >>> from rankwise.data import Corpus
    >>> texts = [f"sentence {i}" for i in range(100)]
    >>> corpus = Corpus(name="mine", texts=texts, labels=[i % 2 for i in range(100)],
    ...                 groups=[f"document {i // 5}" for i in range(100)], label_names=["even", "odd"])
    >>> train, validation, test = corpus.split()
    >>> len(train) + len(validation) + len(test), set(train.groups) & set(test.groups)
    (100, set())
    """

    name: str
    texts: list[str]
    labels: list[float]
    groups: list[str]
    label_names: list[str] = field(default_factory=list)
    audio: list[Path] = field(default_factory=list)
    chat: bool = False
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def labelled(self, labels: list[float], names: list[str] | None = None) -> Corpus:
        """The same rows with these labels, and classes where they are classes."""
        return replace(self, labels=labels, label_names=names or [])

    def noting(self, *notes: str) -> Corpus:
        """The same with further notes."""
        return replace(self, notes=[*self.notes, *notes])

    def fingerprint(self) -> str:
        """What the rows are by content: texts, labels, groups, classes and recordings; not where they lie."""
        recordings = [content_of(p) for p in self.audio]
        return fingerprint([self.texts, self.labels, self.groups, self.label_names, recordings])

    def where(self, keep: Callable[[int], bool]) -> Corpus:
        """The rows whose index passes ``keep``."""
        rows = [i for i in range(len(self)) if keep(i)]
        return replace(
            self,
            texts=[self.texts[i] for i in rows],
            labels=[self.labels[i] for i in rows] if self.labels else [],
            groups=[self.groups[i] for i in rows],
            audio=[self.audio[i] for i in rows] if self.audio else [],
        )

    def head(self, limit: int | None) -> Corpus:
        """``limit`` rows in an order fixed by the text's hash (not the first ones, which may be of one document)."""
        if limit is None or limit >= len(self):
            return self
        order = sorted(range(len(self)), key=lambda i: _unit(f"{self.name}|{i}|{self.texts[i]}"))
        kept = set(order[:limit])
        return self.where(lambda i: i in kept)

    def split(self) -> Splits:
        """Train, validation and test rows, decided by a hash of each row's group: the same on every machine."""
        sides = [side(g) for g in self.groups]
        return Splits(*(self.where(lambda i, part=part: sides[i] == part) for part in Splits._fields))


class Splits(NamedTuple):
    """The three parts of a corpus.

    Examples
    --------
    >>> from rankwise.data import Corpus
    >>> rows = [f"row {i}" for i in range(100)]
    >>> splits = Corpus(name="mine", texts=rows, labels=[], groups=rows).split()
    >>> sum(map(len, splits)), splits.test.texts == splits[2].texts  # the same rows on every machine
    (100, True)
    """

    train: Corpus
    validation: Corpus
    test: Corpus


def side(group: str, *, validation: float = VALIDATION, test: float = TEST) -> str:
    """``train``, ``validation`` or ``test``: where a source document belongs, by its hash."""
    place = _unit(group)
    return "test" if place < test else "validation" if place < validation + test else "train"


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
