"""User data from csv, tsv, jsonl or parquet. Every complaint names the file, the line and the column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.data.corpus import Corpus
from rankwise.nearest import unknown
from rankwise.reading import json_lines, read_text

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[int, dict[str, object]]
READERS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_file(
    path: Path, *, text_column: str = "text", label_column: str | None = "label", regression: bool = False
) -> Corpus:
    """A file of texts as a `Corpus`.

    Parameters
    ----------
    text_column, label_column : str
        Columns (keys, for jsonl); ``label_column=None`` for unlabelled text. A column named ``group``, where there is
        one, names each row's source document; otherwise equal texts share one.
    regression : bool
        Read labels as numbers instead of classes.

    Raises
    ------
    ValueError
        Not UTF-8, no such column, an empty text or label, a label that is no number, one class only, or no row.
    """
    if path.suffix not in READERS:
        raise unknown("file type", path.suffix or path.name, READERS)
    texts: list[str] = []
    raw: list[str] = []
    groups: list[str] = []
    for number, row in _rows(path):
        text = str(_cell(path, number, row, text_column)).strip()
        if not text:
            raise ValueError(f"{path}, line {number}: column '{text_column}' is empty")
        texts.append(text)
        groups.append(str(row.get("group") or text.casefold()))
        if label_column is not None:
            label = str(_cell(path, number, row, label_column)).strip()
            if not label or label == "None":
                raise ValueError(f"{path}, line {number}: column '{label_column}' is empty")
            if regression:
                _number(path, number, label_column, label)
            raw.append(label)
    if not texts:
        raise ValueError(f"{path} has no rows")
    if label_column is None:
        return Corpus(name=str(path), texts=texts, labels=[], groups=groups)
    if regression:
        return Corpus(name=str(path), texts=texts, labels=[float(x) for x in raw], groups=groups)
    names = sorted(set(raw))
    if len(names) < 2:
        raise ValueError(f"{path}: column '{label_column}' has one class only ('{names[0]}'); at least two are needed")
    index = {n: i for i, n in enumerate(names)}
    return Corpus(name=str(path), texts=texts, labels=[index[x] for x in raw], groups=groups, label_names=names)


def frame(path: Path) -> pd.DataFrame:
    """A file as a data frame.

    Raises
    ------
    ValueError
        Another type of file, none there, or one that cannot be read.
    """
    import pandas as pd

    read = {
        ".csv": pd.read_csv,
        ".tsv": lambda p: pd.read_csv(p, sep="\t"),
        ".jsonl": lambda p: pd.read_json(p, lines=True),
        ".parquet": pd.read_parquet,
    }
    if path.suffix not in READERS:
        raise unknown("file type", path.suffix or path.name, READERS)
    try:
        table = read[path.suffix](path)
    except FileNotFoundError as error:
        raise ValueError(f"no such file: {path}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not len(table):
        raise ValueError(f"{path} has no rows")
    return table


def rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Row numbers and stripped cells of a file that has these columns; an absent value is empty."""
    if path.suffix not in READERS:
        raise unknown("file type", path.suffix or path.name, READERS)
    for number, row in _rows(path):
        for column in columns:
            _cell(path, number, row, column)
        yield number, {k: "" if v is None else str(v).strip() for k, v in row.items()}


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    if path.suffix == ".jsonl":
        yield from json_lines(path)
        return
    text = read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    for row in reader:
        if None in row:
            raise ValueError(
                f"{path}, line {reader.line_num}: more cells than the {len(reader.fieldnames or [])} columns"
            )
        yield reader.line_num, dict(row)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("reading parquet needs: pip install 'rankwise[data]'") from error
    try:
        table = parquet.read_table(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    yield from enumerate(table.to_pylist(), 1)


def _cell(path: Path, number: int, row: dict[str, object], column: str) -> object:
    if column not in row:
        raise ValueError(f"{path}, line {number}: {unknown('column', column, map(str, row))}")
    return "" if row[column] is None else row[column]


def _number(path: Path, number: int, column: str, text: str) -> None:
    try:
        float(text)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: column '{column}' is not a number: '{text}'") from error
