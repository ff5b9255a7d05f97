"""Columns of a table as numbers: decided from the cells as they are written, kept as JSON, the same for later rows.

    number   value, absent ones the median; decimal points or commas, thousands grouped or not
    date     days since 1970
    words    an indicator a value that enough rows have; all others, and those of later files, share one

Only the rows that models are fitted to decide medians and values: a category that calibration rows have and fitted ones
lack is as new to the model as one of a later file.

What people get wrong: an indicator a value for names and numbers of things, which no later row has; a decimal comma,
which makes fifty categories of a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankwise.distributions.quantiles.cells import (
    FORMATS,
    READINGS,
    Cells,
    days_of,
    evidence_of,
    kind_of,
    numbers_of,
    word_of,
)

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
MOST_VALUES = 50  # with an indicator of their own
KINDS = ("number", "date", "words")


@dataclass(frozen=True, kw_only=True)
class Column:
    """How one column becomes numbers.

    Attributes
    ----------
    name : str
        Its heading in the file.
    kind : {"number", "date", "words"}
        What its cells are, see the module.
    reading : str
        Of numbers ``"point"`` or ``"comma"``, of dates their format.
    fill, centre, scale : float
        Of numbers and dates: what stands for absent ones, and the standardisation.
    values : list of str
        Of words: those with an indicator.
    rare : float
        Of words: the share of fitted rows that had another one.

    Examples
    --------
    >>> from pathlib import Path
    >>> from rankwise.distributions.quantiles.cells import Cells
    >>> from rankwise.distributions.quantiles.columns import Column
    >>> kinds = {"kind": ["flat", "house", "boat"]}
    >>> cells = Cells(path=Path("homes.csv"), unit="line", numbers=[2, 3, 4], columns=kinds, semicolons=False)
    >>> column = Column(name="kind", kind="words", values=["flat", "house"])
    >>> column.numbers(cells).tolist()  # the last column is shared by all other words
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    >>> column.unseen(cells)
    Counter({'boat': 1})
    """

    name: str
    kind: str
    reading: str = ""
    fill: float = 0.0
    centre: float = 0.0
    scale: float = 1.0
    values: list[str] = field(default_factory=list)
    rare: float = 0.0

    @property
    def width(self) -> int:
        """Columns it becomes."""
        return len(self.values) + 1 if self.kind == "words" else 1

    def numbers(self, cells: Cells) -> Array:
        """``(n, width)``.

        Raises
        ------
        ValueError
            A cell that is not of the kind, with its place.
        """
        if self.kind == "words":
            place = {value: k for k, value in enumerate(self.values)}
            out = np.zeros((len(cells), self.width))
            at = [place.get(word_of(c), len(self.values)) for c in cells.columns[self.name]]
            out[np.arange(len(cells)), at] = 1
            return out
        read = numbers_of if self.kind == "number" else days_of
        values = read(cells, self.name, self.reading)
        return ((np.where(np.isnan(values), self.fill, values) - self.centre) / self.scale)[:, None]

    def unseen(self, cells: Cells) -> Counter[str]:
        """Words without an indicator of their own, by how many rows have them."""
        return Counter(word_of(c) for c in cells.columns[self.name]) - Counter(dict.fromkeys(self.values, len(cells)))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How a table becomes a matrix.

    Attributes
    ----------
    columns : list of Column
        Those that are used, in the matrix's order.
    notes : list of str
        What was left out or is doubtful, a sentence each.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from rankwise.distributions.quantiles.cells import Cells
    >>> from rankwise.distributions.quantiles.columns import Columns
    >>> homes = {"area": ["80", "120", None, "100"], "kind": ["flat", "house", "flat", "house"]}
    >>> cells = Cells(path=Path("homes.csv"), unit="line", numbers=[2, 3, 4, 5], columns=homes, semicolons=False)
    >>> columns = Columns.of(cells, ["area", "kind"], np.arange(4))
    >>> [(c.name, c.kind) for c in columns.columns], columns.matrix(cells).shape
    ([('area', 'number'), ('kind', 'words')], (4, 4))
    """

    columns: list[Column]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cells: Cells, names: Sequence[str], rows: Rows) -> Columns:
        """Decide kinds from all cells, medians and words from these rows.

        Raises
        ------
        ValueError
            Cells that may be read in two ways, or numbers among which a few are none: with their place.
        """
        point = evidence_of(cells, names)
        found, notes = [], []
        for name in names:
            kind, reading = kind_of(cells, name, point)
            if kind == "words":
                column = _ofword_of(cells, name, rows)
                distinct = len({word_of(cells.columns[name][i]) for i in rows})
                if not column.values:
                    notes.append(
                        f"column '{name}' is left out: {distinct} different values in {len(rows)} rows, none of them "
                        "in enough to learn from"
                    )
                    continue
            else:
                column = _of_numbers(cells, name, rows, kind, reading)
                if kind == "number" and _counts_rows(numbers_of(cells, name, reading)):
                    notes.append(f"column '{name}' counts the rows; if it is a name and no quantity, leave it out")
            found.append(column)
        if not found:
            raise ValueError(f"{cells.path}: no column is left to predict from; {'; '.join(notes) or 'there is none'}")
        return cls(columns=found, notes=notes)

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return sum(c.width for c in self.columns)

    def matrix(self, cells: Cells) -> Array:
        """``(n, width)``.

        Raises
        ------
        ValueError
            Columns that are absent (all are named), or a cell that is not of its column's kind.
        """
        absent = [c.name for c in self.columns if c.name not in cells.columns]
        if absent:
            raise ValueError(f"{cells.path} lacks columns that the model was fitted on: {', '.join(absent)}")
        return np.concatenate([c.numbers(cells) for c in self.columns], 1)

    def unseen(self, cells: Cells) -> list[str]:
        """A sentence a column in which many more rows than in the fit hold words without an indicator of their own."""
        out = []
        for column in self.columns:
            if column.kind == "words":
                words = column.unseen(cells)
                if sum(words.values()) > (column.rare + 0.1) * len(cells):
                    some = ", ".join(repr(w) for w, _ in words.most_common(3))
                    out.append(
                        f"column '{column.name}': {sum(words.values())} of {len(cells)} rows hold values that were "
                        f"rare or absent in the fit ({some}); they share one indicator"
                    )
        return out

    def as_json(self) -> dict:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict, source: str) -> Columns:
        """What `as_json` gave.

        Raises
        ------
        ValueError
            Anything else.
        """
        try:
            columns = [_checked(Column(**c)) for c in said["columns"]]
            return cls(columns=columns, notes=[str(n) for n in said["notes"]])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{source} does not describe columns: {error}") from error


def _ofword_of(cells: Cells, name: str, rows: Rows) -> Column:
    counts = Counter(word_of(cells.columns[name][i]) for i in rows)
    enough = max(2, min(10, len(rows) // 20))  # so that every fold has some
    values = [value for value, n in counts.most_common(MOST_VALUES) if n >= enough]
    rare = 1 - sum(counts[v] for v in values) / len(rows)
    return Column(name=name, kind="words", values=sorted(values), rare=rare)


def _of_numbers(cells: Cells, name: str, rows: Rows, kind: str, reading: str) -> Column:
    values = (numbers_of if kind == "number" else days_of)(cells, name, reading)[rows]
    seen = values[~np.isnan(values)]
    fill = float(np.median(seen)) if len(seen) else 0.0
    filled = np.where(np.isnan(values), fill, values)
    scale = float(filled.std())
    return Column(
        name=name, kind=kind, reading=reading, fill=fill, centre=float(filled.mean()),
        scale=scale if scale > 1e-12 * max(abs(fill), 1e-300) else 1.0,
    )  # fmt: skip


def _counts_rows(values: Array) -> bool:
    """Each one more than that before it."""
    return len(values) > 2 and bool((np.diff(values) == 1).all())


def _checked(column: Column) -> Column:
    """A column out of a file.

    Raises
    ------
    ValueError
        A field of another type or range.
    """
    if column.kind not in KINDS or not isinstance(column.name, str):
        raise ValueError(f"'{column.name}' of kind '{column.kind}'")
    accepted = {"number": tuple(READINGS), "date": FORMATS, "words": ("",)}[column.kind]
    if column.reading not in accepted:
        raise ValueError(f"'{column.name}' is read as '{column.reading}'")
    numbers = (column.fill, column.centre, column.scale, column.rare)
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers) or not column.scale > 0:
        raise ValueError(f"'{column.name}' has fill, centre, scale and rare {numbers}")
    if len(column.values) > MOST_VALUES or not all(isinstance(v, str) for v in column.values):
        raise ValueError(f"'{column.name}' has {len(column.values)} values")
    return column
