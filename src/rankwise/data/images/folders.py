"""Folders of picture files: a folder a class, with or without a folder a split above, or no classes at all."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rankwise.data.images.collection import SHOWN, Encoded, Images, complain
from rankwise.data.images.decoding import SUFFIXES, changed
from rankwise.data.images.layout import canonical, chosen, is_split
from rankwise.data.tables import number
from rankwise.files import MARKER
from rankwise.nearest import unknown


def read_folder(
    root: Path, *, split: str | None = None, labelled: bool | None = None, class_names: Sequence[str] = ()
) -> Images:
    """Picture files below a folder.

    ``root/CLASS/…/picture``, ``root/SPLIT/CLASS/…/picture``, ``root/SPLIT/picture`` or ``root/picture``. Classes are in
    the order of numbers where all are numbers, else of the alphabet, and the same in every split. Names that begin
    with a dot and folders that rankwise wrote are passed over; what is no picture by its name is told in ``notes``.

    Parameters
    ----------
    root : Path
        The folder.
    split : str, optional
        Which split, where there are several.
    labelled : bool, optional
        ``False``: folders are no classes. By default they are where all pictures lie in some.
    class_names : sequence of str
        The classes there are, in order, where they are known (of test pictures, from the training pictures).

    Raises
    ------
    ValueError
        No pictures, bad pictures (the first are named), links that lead out of the folder, pictures beside class
        folders, one class only, or a class without pictures.
    """
    files, others = _scan(root)
    notes = [f"{root}: not read, no pictures by their names: {_some(others)}"] if others else []
    if not files:
        raise ValueError(f"{root} has no pictures" + (f"; it has {_some(others)}" if others else ""))
    splits = _splits(root, files)
    names = _classes(root, splits, labelled, list(class_names))
    wanted = splits[""] if "" in splits else chosen(splits, split, root)
    labels = np.array([names.index(top) for top, _ in wanted]) if names else None
    paths = [path for _, path in wanted]
    if labels is not None:
        absent = [name for i, name in enumerate(names) if i not in set(labels.tolist())]
        notes += [f"{root}: no pictures of {_some(absent)} among these"] if absent else []
        notes += _doubts(root, names)
    shown = [str(path) for path in paths]
    images = Images(
        name=str(root),
        store=Encoded(paths, shown),
        labels=labels,
        label_names=names,
        keys=[str(path.relative_to(root)) for path in paths],
        notes=[*notes, *checked(str(root), paths, shown)],
    )
    return images.part(split) if "" in splits else images


def checked(where: str, sources: Iterable[Path | bytes], names: Sequence[str]) -> list[str]:
    """Notes on what decoding changes; every header is read.

    Raises
    ------
    ValueError
        Some are no pictures; the first five are named.
    """
    bad, told = [], Counter[str]()
    for source, name in zip(sources, names, strict=True):
        try:
            told.update(changed(source))
        except ValueError as error:
            bad.append(f"{name} {error}")
    complain(where, bad, len(names))
    notes = [f"{where}: {count} picture{'s' if count > 1 else ''} {what}" for what, count in told.items()]
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        notes.append(f"{where}: Pillow is told to fill up files that are cut short (LOAD_TRUNCATED_IMAGES)")
    return notes


def _scan(root: Path) -> tuple[list[Path], list[str]]:
    """Pictures below a folder, and what else lies there."""
    home = Path(os.path.realpath(root))
    files, others, out, odd = [], [], [], []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not _passed_over(Path(place, f)))
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(place, f)))]:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(home)):
                out.append(str(path.relative_to(root)))
            elif path.suffix.lower() in SUFFIXES:
                (files if path.is_file() and _is_text(name) else odd).append(path)
            else:
                others.append(str(path.relative_to(root)))
    if odd:
        names = _some(ascii(str(p.relative_to(root))) for p in odd)
        raise ValueError(f"{root}: links to nothing, no regular files or names that are no text: {names}")
    if out:
        raise ValueError(f"{root}: links to folders or out of it: {_some(out)}; put the files themselves there")
    return sorted(files, key=lambda p: p.relative_to(root).parts), sorted(others)


def _passed_over(folder: Path) -> bool:
    """Whether a folder is hidden, an archive's, or what a command made, which may lie among the pictures it read."""
    return folder.name.startswith((".", "__MACOSX")) or (folder / MARKER).is_file()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return True


def _splits(root: Path, files: list[Path]) -> dict[str, list[tuple[str, Path]]]:
    """Pictures by split (``""`` where there are none), each with the topmost folder below, empty where it has none."""
    places = [(path.relative_to(root).parts, path) for path in files]
    tops = {parts[0] if len(parts) > 1 else "" for parts, _ in places}
    named = sorted(t for t in tops if is_split(t))
    if not named or (len(named) == 1 and len(tops) > 1):  # "train" may be a class, beside others
        return {"": [(parts[0] if len(parts) > 1 else "", path) for parts, path in places]}
    if rest := sorted(t or "pictures" for t in tops if t not in named):
        raise ValueError(f"{root} has {' and '.join(named)} beside {_some(rest)}: splits or classes? Name one folder")
    if len({canonical(n) for n in named}) < len(named):
        raise ValueError(f"{root} has {' and '.join(named)}, two names of one split; name one of its folders")
    found: dict[str, list[tuple[str, Path]]] = {canonical(n): [] for n in named}
    for parts, path in places:
        found[canonical(parts[0])].append((parts[1] if len(parts) > 2 else "", path))
    return found


def _classes(
    root: Path, splits: dict[str, list[tuple[str, Path]]], labelled: bool | None, given: list[str]
) -> list[str]:
    """Names of the classes in order; none where folders are no classes."""
    tops = {top for parts in splits.values() for top, _ in parts}
    if labelled is False or tops == {""}:
        if labelled or given:
            raise ValueError(f"{root} has no folders of classes")
        return []
    if "" in tops:
        raise ValueError(
            f"{root} has pictures beside the folders {_some(sorted(tops - {''}))}; labelled=False reads all of them, "
            "without classes"
        )
    if given:
        for top in sorted(tops - set(given)):
            raise unknown("class", top, given)
        return given
    bases = [root] if "" in splits else [p for p in root.iterdir() if p.is_dir() and is_split(p.name)]
    all_ = {p.name for base in bases for p in base.iterdir() if p.is_dir() and not _passed_over(p)}
    if empty := sorted(all_ - tops):
        raise ValueError(f"{root} has no pictures of the class{'es' if len(empty) > 1 else ''} {_some(empty)}")
    if len(tops) == 1:
        only = next(iter(tops))
        raise ValueError(
            f"{root} has one folder of pictures only, '{only}'; name that one, or labelled=False reads it without a "
            "class"
        )
    return _ordered(sorted(tops))


def _ordered(names: list[str]) -> list[str]:
    try:
        return sorted(names, key=number)
    except ValueError:
        return names


def _doubts(root: Path, names: list[str]) -> list[str]:
    """What is odd about the classes' names."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFKC", name).strip().casefold(), []).append(name)
    twins = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    notes = [f"{root}: {same} are different classes" for same in twins]
    by_number = [f"{root}: classes in the order of numbers, {_some(names)}; as text they would stand otherwise"]
    return notes + (by_number if names != sorted(names) and _ordered(sorted(names)) == names else [])


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
