"""Texts of one's own, with or without labels, as a `Corpus`. Every complaint names file, line and column."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankwise.data.corpus import Corpus
from rankwise.data.tables import GROUPED, Table, number, read_table
from rankwise.nearest import unknown

Chat = Callable[[list[dict[str, str]]], str]
# what tools write for "there is none"; a class of that name has to be renamed
MISSING = {"nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "None", "null", "NULL"}
MANY_CLASSES, ROWS_A_CLASS = 20, 3  # more classes than that need so many rows each, on average


def read_file(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    regression: bool = False,
    classes: Sequence[str] | None = None,
    chat: Chat | None = None,
) -> Corpus:
    """A file of texts (csv, tsv, jsonl, a json list or parquet; compressed or not) as a `Corpus`.

    Parameters
    ----------
    path : path
        Its suffix says what it is.
    text_column, label_column : str
        Columns (keys, for json); ``label_column=None`` for unlabelled text. A column named ``group``, where there is
        one, names each row's source document; otherwise equal texts share one.
    regression : bool
        Read labels as numbers instead of classes.
    classes : sequence of str, optional
        The classes there are, in order, where they are known already (of a test file, from the training file). By
        default those in the file, in the order of numbers where all are numbers, else of the alphabet.
    chat : callable, optional
        Makes one text of a list of messages (``role`` and ``content``), for rows that have ``messages`` and no text.

    Raises
    ------
    ValueError
        Not UTF-8, no such column, an empty text or label, a label that is no number or stands for a missing one, one
        class only, more classes than the rows can teach, or no row.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data import read_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "ratings.tsv")
    ...     _ = path.write_text("text\\tstars\\na fine film\\t4.5\\ndull\\t1\\n")
    ...     read_file(path, label_column="stars", regression=True).labels
    [4.5, 1.0]
    """
    table = read_table(Path(path))
    texts, groups, labels, chats = [], [], [], 0
    for n, row in table.rows:
        texts.append(_text(table, n, row, text_column, chat))
        chats += text_column not in row
        groups.append((table.text(n, row, "group") if "group" in row else "") or texts[-1].casefold())
        if label_column is not None:
            labels.append((n, _label(table, n, row, label_column, regression=regression)))
    if not texts:
        raise ValueError(f"{path} has no rows")
    if 0 < chats < len(texts):
        raise ValueError(f"{path}: {chats} of {len(texts)} rows are chats; all or none is needed")
    corpus = Corpus(name=str(path), texts=texts, labels=[], groups=groups, chat=chats > 0)
    if label_column is None:
        return corpus
    if regression:
        return _with_numbers(corpus, table, label_column, labels)
    return _with_classes(corpus, table, label_column, labels, classes)


Labels = list[tuple[int, str]]  # each with the number of its row


def _with_numbers(corpus: Corpus, table: Table, column: str, labels: Labels) -> Corpus:
    commas = any("," in label for _, label in labels)
    noted = corpus.noting(*[f"{table.path}: commas in '{column}' are decimal points"] * commas)
    return noted.labelled(_numbers(table, column, labels))


def _with_classes(corpus: Corpus, table: Table, column: str, labels: Labels, classes: Sequence[str] | None) -> Corpus:
    """By the classes that are known already; else by those in the file, with notes on what is odd about them."""
    if classes is None:
        written = [label for _, label in labels]
        names = _classes(table.path, column, written)
        corpus = corpus.noting(*_notes(table.path, column, written))
    else:
        names = list(classes)
    index = {name: i for i, name in enumerate(names)}
    for n, label in labels:
        if label not in index:
            raise ValueError(f"{table.at(n)}, column '{column}': {unknown('class', label, names)}")
    return corpus.labelled([index[label] for _, label in labels], names)


def _text(table: Table, n: int, row: dict[str, Any], column: str, chat: Chat | None) -> str:
    if column not in row and isinstance(row.get("messages"), list):
        column = "messages"
        text = _chat(f"{table.at(n)}: column '{column}'", row[column], chat).strip()
    else:
        text = table.text(n, row, column)
    if not text:
        raise ValueError(f"{table.at(n)}: column '{column}' is empty")
    return text


def _chat(where: str, messages: list[Any], chat: Chat | None) -> str:
    if chat is None:
        raise ValueError(f"{where} holds a chat, which only causal-lm reads; name a column of text")
    for m in messages:
        if not isinstance(m, dict) or not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str):
            raise ValueError(f"{where}: every message needs a role and a content, both text; found {str(m)[:80]}")
    try:
        return chat(messages) if messages else ""
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _label(table: Table, n: int, row: dict[str, Any], column: str, *, regression: bool) -> str:
    label = table.text(n, row, column)
    if not label:
        raise ValueError(f"{table.at(n)}: column '{column}' is empty")
    if label in MISSING and not regression:
        raise ValueError(
            f"{table.at(n)}: column '{column}' is '{label}', which stands for a missing value; drop the row, or rename "
            "the class"
        )
    return label


def _numbers(table: Table, column: str, labels: list[tuple[int, str]]) -> list[float]:
    """Labels as numbers; decimal commas where they cannot be anything else."""
    pointed = [(n, label) for n, label in labels if "." in label]
    open_ = table.decimal_comma and bool(pointed) and not any("," in label for _, label in labels)
    if open_ and all(GROUPED.fullmatch(label) for _, label in pointed):
        n, label = pointed[0]
        raise ValueError(
            f"{table.at(n)}: column '{column}' holds '{label}', which may be {label.replace('.', '')} or {label}; "
            "write thousands without a mark, or decimals with a comma"
        )
    with_point = pointed[0][1] if pointed else None
    found = []
    for n, label in labels:
        try:
            if table.decimal_comma and "," in label and with_point:
                raise ValueError(f"has a decimal comma in '{label}' and a point in '{with_point}'; write one of them")
            found.append(number(label, decimal_comma=table.decimal_comma))
        except ValueError as error:
            raise ValueError(f"{table.at(n)}: column '{column}' {error}") from error
    return found


def _classes(path: Path, column: str, labels: list[str]) -> list[str]:
    """The classes in order: by number where all are numbers."""
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"{path}: column '{column}' has one class only ('{names[0]}'); at least two are needed")
    if len(names) > MANY_CLASSES and len(labels) < ROWS_A_CLASS * len(names):
        raise ValueError(
            f"{path}: column '{column}' has {len(names)} classes in {len(labels)} rows, fewer than {ROWS_A_CLASS} rows "
            "a class; numbers are for the task regression, and another column may hold the classes"
        )
    try:
        values = {name: number(name) for name in names}
    except ValueError:
        return names
    names.sort(key=lambda name: values[name])
    for one, other in itertools.pairwise(names):
        if values[one] == values[other]:
            raise ValueError(f"{path}: column '{column}' writes one number as '{one}' and as '{other}'; write it once")
    return names


def _notes(path: Path, column: str, labels: list[str]) -> list[str]:
    """What is odd about the classes of a training file."""
    counts = Counter(labels)
    once = sorted(name for name, count in counts.items() if count == 1)
    shown = ", ".join(once[:5]) + (", …" if len(once) > 5 else "")
    notes = [f"{path}: {len(once)} of {len(counts)} classes have one row only: {shown}"] if once else []
    folded: dict[str, list[str]] = {}
    for name in sorted(counts):
        folded.setdefault(name.casefold(), []).append(name)
    alike = [names for names in folded.values() if len(names) > 1]
    return notes + [f"{path}: column '{column}': {' and '.join(names)} are different classes" for names in alike]
