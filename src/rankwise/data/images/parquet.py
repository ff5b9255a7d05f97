"""Pictures in parquet files, as data sets on the hub hold them: a struct of bytes and path, and a label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rankwise.data.images.collection import Encoded, Images, numbered
from rankwise.data.images.folders import checked
from rankwise.data.images.layout import SPLITS, chosen, shards, split_of
from rankwise.data.tables import arrow, check_header
from rankwise.nearest import unknown
from rankwise.reading import check_regular, parse_json

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def read_parquet(
    path: Path,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] = (),
) -> Images:
    """Pictures of a parquet file, or of a folder of them; they are held in memory as they are encoded.

    Parameters
    ----------
    path : Path
        A file, or a folder with files called ``SPLIT-00000-of-00001.parquet``, ``SPLIT/0000.parquet`` or
        ``SPLIT.parquet``.
    split : str, optional
        Which split, where there are several.
    image_column, label_column : str, optional
        By default ``image`` or ``img``, and ``label``, ``labels`` or ``fine_label``; without any of the latter the
        pictures have no labels.
    class_names : sequence of str
        Names of the classes by index; by default those that the file names, else the indices.

    Raises
    ------
    ValueError
        Broken files, a missing shard or column, rows without picture or label, bad pictures, labels beyond the
        classes.
    """
    if path.is_dir():
        found = shards((p for p in path.rglob("*.parquet") if not p.name.startswith(".")), path)
    else:
        check_regular(path)
        found = {split_of(path): [path]}
    whole = len(found) == 1 and not set(found) & set(SPLITS)
    files = next(iter(found.values())) if whole else chosen(found, split, path)
    held, where = _Held(), str(path)
    for file in files:
        _add(held, file, image_column, label_column)
    if not held.sources:
        raise ValueError(f"{where} has no rows")
    labels, names = _labels(held, list(class_names), where)
    images = Images(
        name=str(path),
        store=Encoded(held.sources, held.names),
        labels=labels,
        label_names=names,
        keys=held.keys,
        notes=checked(str(path), held.sources, held.names),
    )
    return images.part(split) if whole else images


@dataclass
class _Held:
    """What has been read of a split so far."""

    sources: list[Path | bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def _add(held: _Held, path: Path, image_column: str | None, label_column: str | None) -> None:
    """The rows of one file."""
    pa = arrow()
    try:
        opened = pa.parquet.ParquetFile(path)
        schema = opened.schema_arrow
        check_header(path, schema.names)
        image = _column(path, schema.names, "image_column", image_column, IMAGE_COLUMNS)
        label = _column(path, schema.names, "label_column", label_column, LABEL_COLUMNS)
        if image is None:
            raise ValueError(
                f"{path}: no column of {schema.names} is called {' or '.join(IMAGE_COLUMNS)}; image_column names it"
            )
        _check_memory(path, opened, image)
        table = opened.read([image] if label is None else [image, label])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    held.classes = held.classes or _class_names(path, schema, label)
    first = len(held.names)
    for row, cell in enumerate(table[image].to_pylist()):
        where = f"{path}, row {row + 1}"
        source, key = _source(where, path, image, cell)
        held.sources.append(source)
        held.names.append(where)
        held.keys.append(key or f"row {first + row + 1}")
    if label is not None:
        held.labels += _cells(path, label, table[label])


def _column(path: Path, there: Sequence[str], option: str, asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is None:
        return next((name for name in usual if name in there), None)
    if asked not in there:
        raise ValueError(f"{path}, {option}: {unknown('column', asked, there)}")
    return asked


def _check_memory(path: Path, opened: Any, column: str) -> None:
    """``ValueError`` where the encoded pictures do not fit into the memory that is free."""
    groups = (opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups))
    needed = sum(
        group.column(c).total_uncompressed_size
        for group in groups
        for c in range(group.num_columns)
        if group.column(c).path_in_schema.split(".")[0] == column
    )
    if 2 * needed > psutil.virtual_memory().available:
        raise ValueError(f"{path}: its pictures need {needed / 1e9:.1f} GB of memory, which is not free")


def _source(where: str, path: Path, column: str, cell: Any) -> tuple[Path | bytes, str]:
    """A picture's bytes or file, and what it is called."""
    if isinstance(cell, str):
        cell = {"path": cell}
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    if cell is None or (isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path") is None):
        raise ValueError(f"{where}: column '{column}' is empty")
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes | None):
        kind = type(cell).__name__
        raise ValueError(f"{where}: column '{column}' holds {kind}; bytes, a path or a struct of both is needed")
    name = cell.get("path")
    if cell.get("bytes") is None and "://" in str(name):
        raise ValueError(f"{where}: {name} is an address; pictures are not fetched one by one")
    if (data := cell.get("bytes")) is not None:
        return data, str(name or "")
    file = path.parent / str(name)
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path.parent)):
        raise ValueError(f"{where}: {name} does not lie beside the parquet file")
    if not file.is_file():
        raise ValueError(f"{where}: no such file: {file}")
    return file, str(name)


def _cells(path: Path, column: str, cells: Any) -> list[int | str]:
    found = cells.to_pylist()
    for row, value in enumerate(found, 1):
        if value is None or value == "":
            raise ValueError(f"{path}, row {row}: column '{column}' is empty")
        if not isinstance(value, int | str) or isinstance(value, bool):
            kind = type(value).__name__
            raise ValueError(f"{path}, row {row}: column '{column}' holds {kind}; a label is an integer or text")
    return found


def _class_names(path: Path, schema: Any, label: str | None) -> list[str]:
    """What the hub's own library wrote into the file about the classes."""
    if label is None or b"huggingface" not in (schema.metadata or {}):
        return []
    text = schema.metadata[b"huggingface"].decode("utf-8", "replace")
    found: Any = parse_json(text, f"{path}, metadata of huggingface")
    for key in ("info", "features", label, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return [str(name) for name in found] if isinstance(found, list) else []


def _labels(held: _Held, given: list[str], where: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Class indices and names."""
    if not held.labels:
        if given:
            raise ValueError(f"{where} has no labels; class_names are of no use")
        return None, []
    if len({type(label) for label in held.labels}) > 1:
        raise ValueError(f"{where}: labels that are texts beside labels that are integers")
    if isinstance(held.labels[0], str):
        names = given or sorted({str(label) for label in held.labels})
        index = {name: i for i, name in enumerate(names)}
        if strange := next((label for label in held.labels if label not in index), None):
            raise ValueError(f"{where}: {unknown('class', str(strange), names)}")
        return np.array([index[str(label)] for label in held.labels], np.int64), names
    try:
        labels = np.array(held.labels, np.int64)
    except OverflowError as error:
        raise ValueError(f"{where}: label {max(map(int, held.labels))} is no class index") from error
    if (labels == -1).all():  # how the hub writes a test set whose labels are kept back
        return None, []
    return labels, given or held.classes or numbered(labels, where)
