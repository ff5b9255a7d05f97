"""Which split a file or folder holds, by its name, as the hub's own loader understands names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = tuple(_WORDS)
_CALLED = {word: split for split, words in _WORDS.items() for word in words}
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")


def canonical(name: str) -> str:
    """``validation`` for ``val``, and so on; other names as they are."""
    return _CALLED.get(name.lower(), name)


def is_split(name: str) -> bool:
    """Whether a folder of this name is likely a split, not a class."""
    return name.lower() in _CALLED


def split_of(path: Path) -> str:
    """Which split a parquet file holds, by its name."""
    if match := _SHARD.fullmatch(path.stem):
        return canonical(match[1])
    return canonical(path.parent.name if path.stem.isdigit() else path.stem)


def shards(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Parquet files by split, each in order: ``train-00000-of-00002``, ``train/0000`` or ``train``.

    Raises
    ------
    ValueError
        A shard is missing, or one split lies in two folders.
    """
    found: dict[str, list[tuple[Path, int]]] = {}
    for path in sorted(files):
        match = _SHARD.fullmatch(path.stem)
        found.setdefault(split_of(path), []).append((path, int(match[3]) if match else 0))
    for split, parts in found.items():
        if len(folders := sorted({str(p.parent.relative_to(root)) for p, _ in parts})) > 1:
            raise ValueError(f"{root}: split '{split}' lies in {' and in '.join(folders)}; name one of these folders")
        counts = {count for _, count in parts}
        if counts != {0} and counts != {len(parts)}:
            raise ValueError(f"{root}: split '{split}' has {len(parts)} of {max(counts)} shards; fetch the others")
    return {split: [p for p, _ in parts] for split, parts in found.items()}


def chosen(splits: Mapping[str, T], split: str | None, where: object) -> T:
    """The split that was asked for, or the only one.

    Raises
    ------
    ValueError
        None was asked for and there are several, or another was.
    """
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    there = ", ".join(sorted(splits))
    if split is None:
        raise ValueError(f"{where} has the splits {there}; name one: split='train'")
    if canonical(split) not in splits:
        hint = "; read_images(…, split='train').split() takes one out of train" if "train" in splits else ""
        raise ValueError(f"{where} has no split '{split}', it has {there}{hint}")
    return splits[canonical(split)]
