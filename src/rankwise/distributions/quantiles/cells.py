"""Cells of a table as they are written, and the numbers and dates that they are: decided by column, refused if open.

Nothing is inferred cell by cell: a code is text in a file of digits alone, and a column's numbers are all read with
decimal points or all with commas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankwise.data.files import MISSING
from rankwise.data.tables import read_table
from rankwise.nearest import unknown

Array = NDArray[np.float64]
_LARGEST = 3e38  # of float32, in which some models work
_POINT = r"\d+\.?\d*|\.\d+|[1-9]\d{0,2}(,\d{3})+(\.\d+)?"
_COMMA = r"\d+,?\d*|,\d+|[1-9]\d{0,2}([.' \u00a0\u202f’]\d{3})+(,\d+)?"
READINGS = {"point": re.compile(rf"[+-]?({_POINT})([eE][+-]?\d+)?", re.ASCII),
             "comma": re.compile(rf"[+-]?({_COMMA})([eE][+-]?\d+)?", re.ASCII)}  # fmt: skip
_DAYS = ("%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y",
         "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%b %Y", "%B %Y")  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
FORMATS = ("ISO8601", *(d + t for d in _DAYS for t in _TIMES))


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A file's cells by column, text as it is written; absent ones are None.

    Attributes
    ----------
    path : Path
        The file, for messages.
    unit : {"line", "row"}
        What ``numbers`` count.
    numbers : list of int
        Line or row of each.
    columns : dict of str to list
        The cells, a list a column, in the file's order.
    semicolons : bool
        Cells are separated by something else than commas.

    Examples
    --------
    >>> from pathlib import Path
    >>> from rankwise.distributions.quantiles.cells import Cells, numbers_of
    >>> columns = {"price": ["1,50", None, "12,00"]}
    >>> cells = Cells(path=Path("prices.csv"), unit="line", numbers=[2, 3, 5], columns=columns, semicolons=True)
    >>> len(cells), cells.at(2)
    (3, 'prices.csv, line 5')
    >>> numbers_of(cells, "price", "comma").tolist()
    [1.5, nan, 12.0]
    """

    path: Path
    unit: str
    numbers: list[int]
    columns: dict[str, list]
    semicolons: bool

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{self.path}, {self.unit} {self.numbers[row]}"


def read_cells(path: Path) -> Cells:
    """A csv, tsv, jsonl, json or parquet file.

    Raises
    ------
    ValueError
        What `rankwise.data.tables` refuses, no rows, or a cell that is a list or an object.
    """
    table, numbers, columns = read_table(path), [], {}
    for number, row in table.rows:
        for name in row:
            if name not in columns:
                columns[name] = [None] * len(numbers)
        for name, column in columns.items():
            column.append(_cell(row.get(name), f"{table.at(number)}, column '{name}'"))
        numbers.append(number)
    if not numbers:
        raise ValueError(f"{path} has no rows")
    return Cells(path=path, unit=table.unit, numbers=numbers, columns=columns, semicolons=table.decimal_comma)


def numbers_of(cells: Cells, name: str, reading: str) -> Array:
    """A column's numbers, ``(n,)``; NaN where absent.

    Raises
    ------
    ValueError
        A cell that is no finite number, with its place.
    """
    out = np.empty(len(cells))
    for i, cell in enumerate(cells.columns[name]):
        value = _number(cell, reading)
        if value is None or math.isinf(value):
            raise ValueError(f"{cells.at(i)}: column '{name}' holds {str(cell)[:80]!r}, not a finite number")
        out[i] = value
    return out


def days_of(cells: Cells, name: str, reading: str) -> Array:
    """A column's dates as days since 1970, ``(n,)``; NaN where absent.

    Raises
    ------
    ValueError
        A cell that is no date in this format, with its place.
    """
    column = cells.columns[name]
    days = _days(column, reading)
    for i in np.flatnonzero(np.isnan(days)).tolist():
        if column[i] is not None:
            shown = "2020-12-31" if reading == "ISO8601" else date(2020, 12, 31).strftime(reading)
            raise ValueError(f"{cells.at(i)}: column '{name}' holds {str(column[i])[:80]!r}, not a date as {shown}")
    return days


def target_of(cells: Cells, name: str, reading: str | None = None) -> tuple[Array, str]:
    """The column to predict, and how it is read.

    Raises
    ------
    ValueError
        No such column, a cell that is absent or no number, or one that may be read in two ways.
    """
    if name not in cells.columns:
        raise unknown("column", name, cells.columns)
    if reading is None:
        reading = _reading(cells, name, evidence_of(cells, [name, *cells.columns])) or "point"
    values = numbers_of(cells, name, reading)
    if np.isnan(values).any():
        raise ValueError(f"{cells.at(int(np.isnan(values).argmax()))}: column '{name}' is empty; a number is needed")
    return values, reading


# --- pieces


def _cell(value: Any, where: str) -> Any:
    """A cell as None, bool, number, date or stripped text."""
    if isinstance(value, str):
        text = value.strip()
        return None if not text or text in MISSING else text
    if isinstance(value, Decimal):
        value = float(value)
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | int | float | date):
        return value
    raise ValueError(f"{where} holds {type(value).__name__}; text, a number or a date is needed")


def _number(cell: Any, reading: str) -> float | None:
    """NaN where absent, None where it is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        if not READINGS[reading].fullmatch(cell):
            return None
        if reading == "comma":
            cell = re.sub(r"[.' \u00a0\u202f’]", "", cell).replace(",", ".")
        cell = float(cell.replace(",", ""))
    if isinstance(cell, bool | date):
        return None
    return float(cell) if abs(cell) < _LARGEST else math.inf


def word_of(cell: Any) -> str:
    """A cell as a word: the same whether a file writes 12, 12.0 or "12"; absent ones are the word ""."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def kind_of(cells: Cells, name: str, evidence: set[str]) -> tuple[str, str]:
    """A column's kind, ``"number"``, ``"date"`` or ``"words"``, and how it is read (words: ``""``).

    Codes and columns that are empty or all true or false are words; ``evidence`` is what `evidence_of` found.

    Raises
    ------
    ValueError
        Numbers or dates that may be read in two ways, and a few other cells among many numbers: with their place.
    """
    present = [c for c in cells.columns[name] if c is not None]
    if not present or all(isinstance(c, bool) for c in present):
        return "words", ""
    if all(isinstance(c, date) for c in present):
        return "date", "ISO8601"
    texts = [c for c in present if isinstance(c, str)]
    if len(texts) == len(present) and _code(texts):
        return "words", ""
    if (reading := _reading(cells, name, evidence)) is not None:
        return "number", reading
    if len(texts) == len(present) and (reading := _date_format(cells, name, texts)) is not None:
        return "date", reading
    _refuse_nearly_numbers(cells, name, present)
    return "words", ""


def _code(texts: list[str]) -> bool:
    """Digits of one length of which some begin with 0, such as postal codes."""
    return (
        any(t[0] == "0" and len(t) > 1 for t in texts)
        and len({len(t) for t in texts}) == 1
        and all(t.isascii() and t.isdigit() for t in texts)
    )


def _reading(cells: Cells, name: str, evidence: set[str]) -> str | None:
    """How a column's numbers are written; None where they are none.

    Raises
    ------
    ValueError
        Points or commas that may be decimal or group thousands, and nothing else in the file tells.
    """
    column = cells.columns[name]
    fits = [r for r in READINGS if all(_number(c, r) is not None for c in column)]
    if not fits:
        return None
    marked = next((c for c in column if isinstance(c, str) and re.search(r"[.,]", c)), None)
    if len(fits) == 1 or marked is None:
        return fits[0]
    if len(evidence) == 1:
        return next(iter(evidence))
    if not evidence and "," in marked and cells.semicolons:
        return "comma"
    if not evidence and "." in marked and not cells.semicolons:
        return "point"
    raise ValueError(
        f"{cells.at(column.index(marked))}: column '{name}' holds '{marked}', which may be "
        f"{float(re.sub('[.,]', '', marked)):g} or {float(marked.replace(',', '.')):g}; write thousands without a mark"
        if marked.count(",") + marked.count(".") == 1
        else f"{cells.at(column.index(marked))}: column '{name}' holds '{marked}'; write thousands without a mark"
    )


def evidence_of(cells: Cells, names: Sequence[str]) -> set[str]:
    """The readings that columns of the file have which can be read in one way alone."""
    found = set()
    for name in dict.fromkeys(names):
        column = cells.columns.get(name, [])
        if any(isinstance(c, str) and re.search(r"[.,]", c) for c in column):
            fits = [r for r in READINGS if all(_number(c, r) is not None for c in column)]
            found |= set(fits) if len(fits) == 1 else set()
    return found


def _days(column: list, reading: str) -> Array:
    """Days since 1970; NaN where absent or not in this format."""
    parsed = pd.to_datetime(pd.Series(column, dtype=object), format=reading, errors="coerce", utc=True)
    return np.asarray((parsed - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1), dtype=float)


def _date_format(cells: Cells, name: str, texts: list[str]) -> str | None:
    """The format in which all of a column are dates.

    Raises
    ------
    ValueError
        Day and month may be either.
    """
    if not all(re.search(r"\d", t) for t in texts):
        return None
    some = sorted(set(texts))[:20]
    fits = [f for f in FORMATS if not np.isnan(_days(some, f)).any()]
    fits = [f for f in fits if not np.isnan(_days(texts, f)).any()]
    for other in fits[1:]:
        differs = _days(texts, fits[0]) != _days(texts, other)
        if differs.any():
            text = texts[int(differs.argmax())]
            raise ValueError(
                f"{cells.at(cells.columns[name].index(text))}: column '{name}' holds '{text}', whose day and month may "
                "be either; write 2020-12-31"
            )
    return fits[0] if fits else None


def _refuse_nearly_numbers(cells: Cells, name: str, present: list) -> None:
    """A column of many numbers and a few other cells is no column of words."""
    for reading in READINGS:
        values = [_number(c, reading) for c in present]
        numbers = [v for v in values if v is not None]
        if len(numbers) >= len(present) / 2 and len(set(numbers)) > 20:
            other = present[values.index(None)]
            row = next(i for i, c in enumerate(cells.columns[name]) if c is other)
            raise ValueError(
                f"{cells.at(row)}: column '{name}' holds {str(other)[:80]!r}, and {len(numbers)} of {len(present)} "
                "other cells are numbers; leave an absent one empty"
            )
