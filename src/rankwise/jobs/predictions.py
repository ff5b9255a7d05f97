"""Files of texts or recordings to predict, and the same rows with what a model said of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.data.tables import kind_of, read_table
from rankwise.files import check_file
from rankwise.jobs.adapt.adapters import read_about
from rankwise.reading import COMPRESSED


def read(adapter: Path, path: Path, *, column: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """A file's rows, and the text of each (for a speech recogniser the recording, relative to the file).

    Parameters
    ----------
    adapter : Path
        Folder of the adapter that will be asked.
    column : str, optional
        Of texts or recordings; by default the one that the adapter was trained on.

    Raises
    ------
    ValueError
        As `rankwise.data.tables.read_table`; also an empty cell, no row, or rows with other columns than the first.
    """
    about = read_about(adapter)
    speech = about is not None and about.task == "asr"
    if column is None and about is not None:
        column = about.audio_column if speech else about.text_column
    table, rows, asked = read_table(path), [], []
    for number, row in table.rows:
        cell = table.text(number, row, column or "text")
        if not cell:
            raise ValueError(f"{table.at(number)}: column '{column}' is empty")
        rows.append(row)
        asked.append(str(path.parent / cell) if speech else cell)
    if not rows:
        raise ValueError(f"{path} has no rows")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows], asked


def check_out(out: Path, *, data: Path | None) -> None:
    """``ValueError`` where predictions cannot be written; ask before the model is loaded."""
    kind = kind_of(out)
    if out.suffix.lower() in COMPRESSED:
        raise ValueError(f"{out}: predictions are not compressed; give a name that ends in {kind}")
    check_file(out, inputs=[data] if data else [])


def joined(rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the answers as further columns.

    A column that the rows have already stays as it is: the model's is then called ``predicted_`` and its name.
    """
    have = rows[0] if rows else {}
    return [
        {**row, **{f"predicted_{k}" if k in have else k: v for k, v in answer.items()}}
        for row, answer in zip(rows, answers, strict=True)
    ]
