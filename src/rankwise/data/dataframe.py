"""Tables of one's own as data frames: what `rankwise.data.tables` reads, with types that pandas infers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.data.tables import COMMA_NUMBER, kind_of, read_table
from rankwise.reading import opened

if TYPE_CHECKING:
    import pandas as pd


def frame(path: Path) -> pd.DataFrame:
    """A file (csv, tsv, jsonl, a json list or parquet; compressed or not) as a data frame.

    Raises
    ------
    ValueError
        Another type of file, none there, one that cannot be read, or numbers with decimal commas beside points.
    """
    import pandas as pd

    table, kind = read_table(path), kind_of(path)
    try:
        if kind == ".parquet":
            found = pd.read_parquet(path) if list(table.rows) else pd.DataFrame()
        elif kind in (".csv", ".tsv"):
            for _ in table.rows:  # pandas is lenient where a row has too many cells or a name stands twice
                pass
            with opened(path) as stream:
                found = pd.read_csv(stream, sep=table.separator, encoding="utf-8-sig")
            found.columns = found.columns.str.strip()
            if table.decimal_comma:
                found = pd.DataFrame({name: _decimal_points(path, column) for name, column in found.items()})
        else:
            found = pd.DataFrame([row for _, row in table.rows])
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not len(found):
        raise ValueError(f"{path} has no rows")
    return found


def _decimal_points(path: Path, column: pd.Series) -> pd.Series:
    """A column as numbers where every cell is one with a decimal comma; others as they are."""
    if column.dtype != object:
        return column
    cells = column.dropna().astype(str).str.strip()
    comma = cells.str.fullmatch(COMMA_NUMBER)
    if not comma.any() or not cells[comma].str.contains(",").any():
        return column
    if comma.all():
        return column.astype(str).str.strip().str.replace(",", ".").where(column.notna()).astype(float)
    point = cells.str.fullmatch(r"[+-]?\d*\.\d+")
    if (comma | point).all():
        one, other = cells[comma & cells.str.contains(",")].iloc[0], cells[point].iloc[0]
        raise ValueError(
            f"{path}: column '{column.name}' has a decimal comma in '{one}' and a point in '{other}'; write one of them"
        )
    return column
