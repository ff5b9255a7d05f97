"""Summaries of documents for several readers: what each wrote himself, and what each was given by some systems.

Two forms of a file are read. One document a line, as the authors of PerSEval publish it::

    {"doc_id": "N1", "doc_text": "…", "doc_summ": "a title", "m_summary_dict": {"ann": {"user": "…", "T5": "…"}}}

or a table (csv, tsv, parquet, …), a row a document and reader, with columns ``doc_id``, ``uid``, ``user`` (what the
reader wrote), perhaps ``doc_text`` and ``doc_summ``, and one column a system.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.data.tables import kind_of, read_table
from rankwise.nearest import unknown
from rankwise.reading import MOST_TEXT, parse_json, read_text

Texts = dict[str, dict[str, str]]
ABOUT = ("doc_id", "doc_text", "doc_summ", "uid", "user")


@dataclass(kw_only=True)
class Summaries:
    """Documents, readers and systems.

    Attributes
    ----------
    documents : dict
        Title and text of each document, by its name; empty where none is known.
    users : dict of dict
        By document, what each reader wrote.
    systems : dict of dict of dict
        By system and document, what each reader was given.

    Examples
    --------
    >>> from rankwise.data.summaries import Summaries
    >>> row = {"doc_id": "N1", "uid": "ann", "user": "states sue", "T5": "a legal fight"}
    >>> Summaries.of_rows([row]).systems  # or a pandas DataFrame with these columns
    {'T5': {'N1': {'ann': 'a legal fight'}}}
    """

    documents: dict[str, str] = field(default_factory=dict)
    users: Texts = field(default_factory=dict)
    systems: dict[str, Texts] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Any) -> Summaries:
        """Of rows (mappings, or a pandas DataFrame) with the columns of a table.

        Raises
        ------
        ValueError
            A column is absent, a document and reader stand twice, a cell is no text, there is no system or no row.
        """
        found = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        return cls()._with_rows(((f"row {n}", row) for n, row in enumerate(found, 1)), "the table")

    def only(self, systems: Collection[str]) -> Summaries:
        """The same with some systems alone.

        Raises
        ------
        ValueError
            One that is not there, or twice.
        """
        for name in systems:
            if name not in self.systems:
                raise unknown("system", name, self.systems)
        if len(set(systems)) < len(systems):
            raise ValueError(f"systems are {', '.join(systems)}; each once")
        return Summaries(documents=self.documents, users=self.users, systems={n: self.systems[n] for n in systems})

    def add(self, where: str, document: str, reader: str, texts: Mapping[str, object]) -> None:
        """What a reader wrote (``user``) and was given (any other key) of a document.

        Raises
        ------
        ValueError
            The document and reader are there already, or something is no text; ``where`` says which.
        """
        if reader in self.users.setdefault(document, {}):
            raise ValueError(f"{where}: document {document} and reader {reader} stand there before; each pair once")
        for name, text in texts.items():
            if not str(name).strip():
                raise ValueError(f"{where}: a column or key has no name; each is a system's: name it, or leave it out")
            if text is None or text != text:  # an empty cell of a table
                text = ""
            if not isinstance(text, str):
                raise ValueError(f"{where}: '{name}' of reader {reader} is {type(text).__name__}, a text is needed")
            own = self.users if name == "user" else self.systems.setdefault(name, {})
            own.setdefault(document, {})[reader] = text
        self.users[document].setdefault(reader, "")

    def _with_rows(self, rows: Iterable[tuple[str, Mapping[str, Any]]], source: str) -> Summaries:
        for where, row in rows:
            for column in ("doc_id", "uid", "user"):
                if column not in row:
                    raise ValueError(f"{where}: {unknown('column', column, map(str, row))}")
            body = _joined(where, row.get("doc_summ"), row.get("doc_text"))
            document, reader = (_name(where, row[c], c) for c in ("doc_id", "uid"))
            if self.documents.setdefault(document, body) != body and body:
                raise ValueError(f"{where}: document {document} has another text than in a row before")
            self.add(where, document, reader, {k: v for k, v in row.items() if k == "user" or k not in ABOUT})
        return self._checked(source)

    def _checked(self, source: str) -> Summaries:
        if not self.users:
            raise ValueError(f"{source} has no summaries")
        if not self.systems:
            raise ValueError(
                f"{source} has no system: beside what readers wrote ('user') somebody's summaries are needed"
            )
        return self


def read_summaries(path: Path) -> Summaries:
    """A file of summaries in either form.

    Raises
    ------
    ValueError
        Another type of file, a document or reader twice, a key or column that is absent, something that is no text, no
        system at all; the line is said.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data.summaries import read_summaries
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "headlines.csv")
    ...     _ = path.write_text("doc_id,uid,user,T5\\nN1,ann,states sue,a legal fight\\n")
    ...     read_summaries(path).users
    {'N1': {'ann': 'states sue'}}
    """
    if kind_of(path) not in (".jsonl", ".json"):
        table = read_table(path)
        return Summaries()._with_rows(((table.at(n), row) for n, row in table.rows), str(path))
    out = Summaries()
    rows = list(_objects(path))
    if rows and all("m_summary_dict" not in row for _, row in rows):
        return out._with_rows(rows, str(path))
    for where, row in rows:
        for key in ("doc_id", "m_summary_dict"):
            if key not in row:
                raise ValueError(f"{where}: {unknown('key', key, row)}")
        document = _name(where, row["doc_id"], "doc_id")
        if document in out.documents:
            raise ValueError(f"{where}: document {document} stands there before; each once")
        out.documents[document] = _joined(where, row.get("doc_summ"), row.get("doc_text"))
        readers = row["m_summary_dict"]
        if not isinstance(readers, dict) or not all(isinstance(texts, dict) for texts in readers.values()):
            raise ValueError(f"{where}: m_summary_dict has to hold an object of texts a reader")
        for reader, texts in readers.items():
            out.add(where, document, reader, texts)
    return out._checked(str(path))


def _objects(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """A document a line, or one JSON value over many lines: a list of documents, or (as the authors' sample) one."""
    text = read_text(path, most=MOST_TEXT)
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if kind_of(path) == ".json" or (len(lines) > 1 and lines[0][1].strip() in ("{", "[")):
        value = parse_json(text, str(path), (dict, list))
        _check_keys(text, str(path))
        for n, row in enumerate(value if isinstance(value, list) else [value], 1):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, document {n}: an object is needed, found {type(row).__name__}")
            yield f"{path}, document {n}", row
        return
    for n, line in lines:
        row = parse_json(line, f"{path}, line {n}")
        _check_keys(line, f"{path}, line {n}")
        yield f"{path}, line {n}", row


def _check_keys(text: str, source: str) -> None:
    """Refuse a key that stands twice in an object, such as a reader: JSON would keep the last."""

    def once(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{source}: '{max(names, key=names.count)}' stands twice in an object; each once")

    json.loads(text, object_pairs_hook=once)


def _name(where: str, value: object, column: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of a frame that has a gap somewhere
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{where}: '{column}' is {value!r}, a name or number is needed")
    return str(value).strip()


def _joined(where: str, *parts: object) -> str:
    """Title and body, parted by a space."""
    for part in parts:
        if part is not None and part == part and not isinstance(part, str):
            raise ValueError(f"{where}: the document's text is {type(part).__name__}, a text is needed")
    return " ".join(part for part in parts if isinstance(part, str) and part.strip())
