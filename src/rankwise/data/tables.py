"""Rows of the tables that people have: csv, tsv, jsonl, json lists and parquet, compressed or not.

A csv file may be separated by commas, semicolons, tabs or bars: the header tells. Every complaint names the file, the
line (the row, where a file has none) and the column.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.files import whole_file
from rankwise.nearest import unknown
from rankwise.reading import COMPRESSED, MOST_LINE, UNFOLDS_TO, check_regular, decoded, json_lines, opened, read_json

Row = tuple[int, dict[str, Any]]
READERS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SEPARATORS = ",;\t|"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMMA_NUMBER = re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)  # thousands, or three decimals


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of rows, read as it is asked for.

    Attributes
    ----------
    path : Path
        The file, for messages.
    unit : {"line", "row"}
        What the number of a row counts: lines of the file, or rows.
    rows : iterator of (int, dict)
        Number and cells, by column; an absent cell is ``None``.
    separator : str
        What separates the cells, where the file has such a thing; else empty.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data.tables import read_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "prices.csv")
    ...     _ = path.write_text("item;price\\ntea;1,50\\n")
    ...     table = read_table(path)
    ...     table.separator, table.decimal_comma, list(table.rows)
    (';', True, [(2, {'item': 'tea', 'price': '1,50'})])
    """

    path: Path
    unit: str
    rows: Iterator[Row]
    separator: str = ""

    @property
    def decimal_comma(self) -> bool:
        """Whether a comma in a number is the decimal mark: in a file whose cells it does not separate."""
        return self.separator not in ("", ",")

    def at(self, number: int) -> str:
        """The place of a row, for messages."""
        return f"{self.path}, {self.unit} {number}"

    def cell(self, number: int, row: dict[str, Any], column: str) -> Any:
        """One cell.

        Raises
        ------
        ValueError
            No such column; the nearest is offered.
        """
        if column not in row:
            raise ValueError(f"{self.at(number)}: {unknown('column', column, map(str, row))}")
        return row[column]

    def text(self, number: int, row: dict[str, Any], column: str) -> str:
        """One cell as stripped text; empty where it is absent or a missing number.

        Raises
        ------
        ValueError
            No such column, or a cell that is no text or number.
        """
        value = self.cell(number, row, column)
        if isinstance(value, list | dict | bytes):
            raise ValueError(
                f"{self.at(number)}: column '{column}' holds {type(value).__name__}, text or a number is needed"
            )
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return "" if missing else str(value).strip()


def kind_of(path: Path) -> str:
    """The reader's suffix of a file: lower case, without that of a compression.

    Raises
    ------
    ValueError
        A type that is not read.
    """
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    kind = {".ndjson": ".jsonl"}.get(Path(name).suffix, Path(name).suffix)
    if kind not in READERS:
        raise unknown("file type", kind or path.name, READERS)
    if kind == ".parquet" and not path.name.lower().endswith(kind):
        raise ValueError(f"{path}: parquet is compressed inside; decompress the file itself first")
    return kind


def read_table(path: Path) -> Table:
    """A file's rows.

    Raises
    ------
    ValueError
        Another type of file, none there; while reading: broken, not UTF-8, a column named twice, too many cells.
    """
    kind = kind_of(path)
    if kind == ".jsonl":
        return Table(path=path, unit="line", rows=json_lines(path))
    if kind == ".json":
        return Table(path=path, unit="row", rows=_json_list(path))
    if kind == ".parquet":
        return Table(path=path, unit="row", rows=_parquet(path))
    separator = "\t" if kind == ".tsv" else _separator(path)
    return Table(path=path, unit="line", rows=_separated(path, separator), separator=separator)


def rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Row numbers and stripped cells of a file that has these columns; an absent value is empty."""
    table = read_table(path)
    for number, row in table.rows:
        for column in columns:
            table.cell(number, row, column)
        yield number, {k: table.text(number, row, k) for k in row}


def write_rows(path: Path, written: Iterable[dict[str, Any]]) -> None:
    """Rows as a csv, tsv, jsonl, json or parquet file, by its name, in one step; the first row names the columns.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data.tables import rows, write_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_rows(Path(folder, "out.jsonl"), [{"text": "a fine film", "score": 0.5}])
    ...     list(rows(Path(folder, "out.jsonl"), ["text"]))
    [(1, {'text': 'a fine film', 'score': '0.5'})]
    """
    kind, rows = kind_of(path), list(written)
    with whole_file(path) as draft:
        if kind == ".parquet":
            arrow().parquet.write_table(arrow().Table.from_pylist(rows), draft)
            return
        with draft.open("w", encoding="utf-8", newline="") as stream:
            if kind in (".csv", ".tsv"):
                out = csv.DictWriter(stream, list(rows[0]) if rows else [], delimiter="\t" if kind == ".tsv" else ",")
                out.writeheader()
                out.writerows(rows)
            elif kind == ".jsonl":
                stream.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            else:
                json.dump(rows, stream, ensure_ascii=False, indent=1)


def number(text: str, *, decimal_comma: bool = False) -> float:
    """A finite number as it is written in data.

    Raises
    ------
    ValueError
        Anything else: ``nan``, ``inf``, one beyond float32, digits grouped by ``_`` or by thousands.

    Examples
    --------
    >>> from rankwise.data.tables import number
    >>> number("1.5e3"), number("1,5", decimal_comma=True)
    (1500.0, 1.5)
    """
    pattern = COMMA_NUMBER if decimal_comma and "," in text else _NUMBER
    value = float(text.replace(",", ".")) if pattern.fullmatch(text) else math.nan
    if not abs(value) < 3e38:
        hint = "; write a decimal point" if math.isnan(value) and COMMA_NUMBER.fullmatch(text) else ""
        raise ValueError(f"is not a finite number: '{text[:80]}'{hint}")
    return value


def _json_list(path: Path) -> Iterator[Row]:
    for index, row in enumerate(read_json(path, list), 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {index}: an object is needed, found {type(row).__name__}")
        yield index, row


def _parquet(path: Path) -> Iterator[Row]:
    check_regular(path)
    try:
        opened = arrow().parquet.ParquetFile(path)
        check_header(path, opened.schema_arrow.names)
        index, size, (least, times) = 0, 0, UNFOLDS_TO
        for batch in opened.iter_batches():
            size += batch.nbytes
            if size > max(least, times * path.stat().st_size):
                raise ValueError(f"{path} unfolds to more than {size:,} bytes: not read")
            for row in batch.to_pylist():
                index += 1
                yield index, row
    except (OSError, arrow().ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error


def arrow() -> Any:
    """The module pyarrow, with its parquet; an error that says how to get it where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet needs: pip install 'rankwise[data]'") from error
    return pyarrow


@contextmanager
def _text(path: Path) -> Iterator[io.TextIOWrapper]:
    """A file's decoded text; another encoding is an error that says where."""
    try:
        with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError:
        with opened(path) as raw:
            for index, line in enumerate(raw, 1):
                decoded(path, line, first=index)
        raise


def _separator(path: Path) -> str:
    """What separates the header's cells: whatever makes most of them, a comma where that is open."""
    with _text(path) as stream:
        header = next((line for line in _lines(path, stream) if line.strip()), "")
    return max(SEPARATORS, key=lambda s: len(_next(csv.reader([header], delimiter=s)) or ()))


def _lines(path: Path, stream: io.TextIOWrapper) -> Iterator[str]:
    """Lines of bounded length."""
    for number in itertools.count(1):
        if len(line := stream.readline(MOST_LINE)) == MOST_LINE:
            raise ValueError(f"{path}, line {number} has {MOST_LINE:,} characters or more: not read")
        if not line:
            return
        yield line


def _separated(path: Path, separator: str) -> Iterator[Row]:
    header: list[str] = []
    with _text(path) as stream:
        reader = csv.reader(_lines(path, stream), delimiter=separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = _next(reader)
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: {error}; a cell that begins with a quote ends with one, quotes in it doubled"
                ) from error
            if cells is None:
                return
            if cells and not header:
                header = [c.strip() for c in cells]
                check_header(path, header)
            elif len(cells) > len(header):
                raise ValueError(f"{path}, line {line}: {len(cells)} cells, more than the {len(header)} columns")
            elif cells:
                yield line, dict(itertools.zip_longest(header, cells))


def _next(reader: Any) -> list[str] | None:
    """The next record; a cell may be as long as a line of JSON (the csv module's own bound is far lower)."""
    before = csv.field_size_limit(MOST_LINE)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def check_header(path: Path, names: list[str]) -> None:
    """``ValueError`` where two columns have one name."""
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: column '{twice[0]}' stands {names.count(twice[0])} times in the header; rename it")
