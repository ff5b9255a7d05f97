"""Data of rankers: judged documents by query, and click logs.

Judged documents are svmlight lines with a query's id and perhaps a document's name, or ULTRA's three files::

    2 qid:7 1:0.5 3:0.1 # GX001
    settings.json, train/train.feature (name i:x …), train.init_list (query rows …), train.labels (query grades …)

A click log is a table with columns ``query, doc, position, click``, perhaps ``session`` or ``timestamp`` (a query
that was shown several times needs one), and the features: in a judged file beside it, or in all further columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.data.tables import Table, number, read_table
from rankwise.nearest import unknown
from rankwise.reading import byte_lines, decoded, read_json

Array = NDArray[np.float64]
NEEDED = ("query", "doc", "position", "click")
SHOWINGS = ("session", "timestamp")
PARTS = ("train", "valid", "test")  # of a folder of ULTRA's
MOST_CELLS = 500_000_000  # of a matrix of features: 4 GB


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Documents of queries.

    Attributes
    ----------
    features : ndarray
        ``(m, d)``; column i is svmlight's feature i, so that files that number from 1 have a first column of zeros.
    relevance : ndarray
        ``(m,)`` grades.
    query, document : ndarray
        ``(m,)`` names; a document without one has its number within the query, from 1.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data.clicks import read_judged
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "docs.svm")
    ...     _ = path.write_text("2 qid:7 1:0.5 # GX001\\n0 qid:7 2:1\\n")
    ...     docs = read_judged(path)
    >>> docs.features.tolist(), docs.document.tolist()
    ([[0.0, 0.5, 0.0], [0.0, 0.0, 1.0]], ['GX001', '2'])
    """

    features: Array
    relevance: Array
    query: NDArray[Any]
    document: NDArray[Any]

    def with_features(self, d: int) -> Judged:
        """The same with ``d`` columns, zeros added.

        Raises
        ------
        ValueError
            There are more.
        """
        have = self.features.shape[1]
        if have > d:
            raise ValueError(f"there are {have} features, numbered from 0, and {d} are known")
        wide = np.pad(self.features, ((0, 0), (0, d - have)))
        return Judged(features=wide, relevance=self.relevance, query=self.query, document=self.document)


@dataclass(frozen=True, kw_only=True)
class ClickLog:
    """What was shown and clicked; arrays are ``(rows,)`` but for the features.

    Attributes
    ----------
    features : ndarray
        ``(m, d)``.
    document : ndarray
        Which row of the features was shown.
    clicks, position : ndarray
        0 or 1; from 1 on.
    showing : ndarray
        A number a list that somebody saw.
    query : ndarray
        The query's name.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data.clicks import ClickLog
    >>> log = ClickLog(features=np.eye(2), document=np.arange(2), clicks=np.array([1, 0]), position=np.array([1, 2]),
    ...                showing=np.zeros(2, int), query=np.array(["q", "q"]))
    >>> float(log.clicks.mean())
    0.5
    """

    features: Array
    document: NDArray[np.int64]
    clicks: NDArray[np.int64]
    position: NDArray[np.int64]
    showing: NDArray[np.int64]
    query: NDArray[Any]


def read_judged(path: str | Path) -> Judged:
    """A file of svmlight lines with ``qid``; without, LightGBM's group sizes in ``FILE.query`` beside it.

    A folder is one of ULTRA's, of which all parts are read, or one part of it.

    Raises
    ------
    ValueError
        A line that is none, a feature twice, a query or document that comes twice, group sizes that do not add up.
    """
    path = Path(path)
    if path.is_dir():
        return _ultra(path)
    names: list[str] = []
    cells: list[tuple[list[int], list[float]]] = []
    grades, queries = [], []
    for where, line in _lines(path):
        line, _, comment = line.partition("#")
        grade, query, columns, values = _svmlight(line.split(), where)
        grades.append(grade)
        queries.append(query)
        cells.append((columns, values))
        names.append(_document(comment))
    if not grades:
        raise ValueError(f"{path} has no documents")
    query = _queries(path, queries)
    return Judged(
        features=_dense(path, cells), relevance=np.array(grades), query=query, document=_named(path, query, names)
    )


def read_ultra(folder: str | Path, part: str) -> Judged:
    """One part (``train``, ``valid``, ``test``) of a folder in ULTRA's format, in the order of the initial lists.

    Raises
    ------
    ValueError
        A file that is missing or broken, lists and labels of other lengths, a row that is not there.
    """
    root = Path(folder)
    settings = read_json(root / "settings.json")
    d = settings.get("feature_size")
    if not isinstance(d, int) or isinstance(d, bool) or d < 1:
        raise ValueError(f"{root / 'settings.json'}: feature_size is {d!r}, a whole number from 1 on is needed")
    removed = settings.get("removed_feature_ids", [])
    if not isinstance(removed, list) or not all(type(i) is int and 1 <= i <= d for i in removed):
        raise ValueError(f"{root / 'settings.json'}: removed_feature_ids is {removed!r}, a list of 1 to {d} is needed")
    files = {kind: root / part / f"{part}.{kind}" for kind in ("feature", "init_list", "labels")}
    names, cells = [], []
    for where, line in _lines(files["feature"]):
        name, *pairs = line.split()
        names.append(name)
        columns, values = _pairs([p for p in pairs if not p.startswith(("qid:",))], where)
        cells.append((columns, values))
    features = _dense(files["feature"], cells, least=d + 1)[:, 1:]
    if features.shape[1] > d:
        raise ValueError(f"{files['feature']}: there is a feature {features.shape[1]}, and feature_size is {d}")
    features = np.delete(features, [i - 1 for i in removed], axis=1)
    rows, grades, queries = [], [], []
    labels = {q: values for _, q, values in _by_query(files["labels"])}
    for where, query, listed in _by_query(files["init_list"]):
        given = labels.get(query, [])
        if len(given) != len(listed):
            raise ValueError(f"{where}: query {query} has {len(listed)} documents and {len(given)} labels")
        for row, grade in zip(listed, given, strict=True):
            if row < 0:  # padding
                continue
            if row >= len(names) or row != int(row):
                raise ValueError(f"{where}: row {row:g} is asked for, and there are {len(names)}, from 0 on")
            rows.append(int(row))
            grades.append(grade)
            queries.append(query)
    if not rows:
        raise ValueError(f"{files['init_list']} lists no documents")
    query = np.array(queries)
    return Judged(
        features=features[rows], relevance=np.array(grades, dtype=np.float64), query=query,
        document=_named(files["init_list"], query, [names[row] for row in rows]),
    )  # fmt: skip


def _ultra(path: Path) -> Judged:
    """All parts of a folder, or the one that it is."""
    if not (path / "settings.json").is_file() and (path.parent / "settings.json").is_file():
        return read_ultra(path.parent, path.name)
    parts = [read_ultra(path, part) for part in PARTS if (path / part).is_dir()]
    if not parts:
        raise ValueError(f"{path} holds none of ULTRA's folders {', '.join(PARTS)}")
    features, relevance, query, document = (
        np.concatenate([getattr(part, kind) for part in parts])
        for kind in ("features", "relevance", "query", "document")
    )
    return Judged(features=features, relevance=relevance, query=query,
                  document=_named(path, query, document.tolist()))  # fmt: skip


def read_click_log(path: str | Path, documents: Judged | None = None) -> ClickLog:
    """A table of clicks, with its features or those of ``documents``.

    Raises
    ------
    ValueError
        A column that is missing, a cell that is none, a document that ``documents`` lacks or that changes its features,
        a query that was shown several times without a session or timestamp.
    """
    table = read_table(Path(path))
    known = None if documents is None else {
        pair: row for row, pair in enumerate(zip(documents.query.tolist(), documents.document.tolist(), strict=True))
    }  # fmt: skip
    own: dict[tuple[str, str], int] = {}
    features: list[list[float]] = []
    columns: list[str] | None = None
    showings: dict[tuple[str, ...], int] = {}
    seen: set[tuple[int, int]] = set()
    rows: list[tuple[int, int, int, int]] = []
    queries: list[str] = []
    for n, row in table.rows:
        query, doc, position, click = (named(table, n, row, c) for c in NEEDED)
        said = (f"{c} {table.text(n, row, c)}" for c in SHOWINGS if c in row)
        showing = showings.setdefault((f"query {query}", *said), len(showings))
        place = _whole(table, n, position, "position")
        if (showing, place) in seen:
            shown = ", ".join(list(showings)[showing])
            raise ValueError(
                f"{table.at(n)}: {shown} has position {place} twice: where it was shown several times, a column "
                "session or timestamp has to tell the showings apart"
            )
        seen.add((showing, place))
        if known is not None:
            if (query, doc) not in known:
                there = _of(known, query)
                kind, given, accepted = (
                    (f"document of query {query}", doc, there)
                    if there
                    else ("query", query, sorted({q for q, _ in known}))
                )
                raise ValueError(f"{table.at(n)}, not among the features: {unknown(kind, given, accepted)}")
            about = known[query, doc]
        else:
            columns = columns or [c for c in row if c not in (*NEEDED, *SHOWINGS)]
            about = _own(table, n, row, columns, own, features, (query, doc))
        rows.append((about, _whole(table, n, click, "click"), place, showing))
        queries.append(query)
    if not rows:
        raise ValueError(f"{path} has no rows")
    about, clicks, place, showing = np.array(rows, dtype=np.int64).T
    _check_places(path, list(showings), showing, place)
    return ClickLog(
        features=np.array(features) if documents is None else documents.features, document=about, clicks=clicks,
        position=place, showing=showing, query=np.array(queries),
    )  # fmt: skip


def _own(
    table: Table, n: int, row: dict[str, Any], columns: list[str], own: dict[tuple[str, str], int],
    features: list[list[float]], pair: tuple[str, str],
) -> int:  # fmt: skip
    if not columns:
        raise ValueError(f"{table.at(n)}: there is no column of features: name a file of features beside the log")
    try:
        values = [table_number(table, n, row, c) for c in columns]
    except ValueError as error:
        raise ValueError(f"{error}; every column beside {', '.join((*NEEDED, *SHOWINGS))} is a feature") from error
    if pair not in own:
        own[pair] = len(features)
        features.append(values)
    elif features[own[pair]] != values:
        changed = next(c for c, old, new in zip(columns, features[own[pair]], values, strict=True) if old != new)
        raise ValueError(f"{table.at(n)}: document {pair[1]} of query {pair[0]} has another '{changed}' than before; "
                         "features are of a document, not of its showing")  # fmt: skip
    return own[pair]


def named(table: Table, n: int, row: dict[str, Any], column: str) -> str:
    """A cell that names something; a whole number that a gap elsewhere made 7.0 is 7.

    Raises
    ------
    ValueError
        No such column, or an empty cell.
    """
    value, text = table.cell(n, row, column), table.text(n, row, column)
    if not text:
        raise ValueError(f"{table.at(n)}: '{column}' is empty")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text


def table_number(table: Table, n: int, row: dict[str, Any], column: str) -> float:
    """A cell that is a finite number.

    Raises
    ------
    ValueError
        No such column, or no such number: place and column are said.
    """
    text = table.text(n, row, column)
    try:
        return number(text, decimal_comma=table.decimal_comma)
    except ValueError as error:
        raise ValueError(f"{table.at(n)}: '{column}' {error}") from error


def _check_places(
    path: str | Path, showings: list[tuple[str, ...]], showing: NDArray[np.int64], place: NDArray[np.int64]
) -> None:
    last = np.zeros(len(showings), np.int64)
    np.maximum.at(last, showing, place)
    if (wrong := np.flatnonzero(last != np.bincount(showing))).size:
        there = set(place[showing == wrong[0]].tolist())
        missing = next(k for k in range(1, max(there)) if k not in there)
        raise ValueError(
            f"{path}: {', '.join(showings[wrong[0]])} has position {max(there)} and no position {missing}: every place "
            "of a list has to be there, and its rows have the same session and timestamp"
        )


def _whole(table: Table, n: int, text: str, column: str) -> int:
    least, accepted = (1, "a whole number from 1 on") if column == "position" else (0, "0 or 1")
    value = {"true": "1", "false": "0"}.get(text.lower(), text)
    if not re.fullmatch(r"\d{1,9}(\.0+)?", value, re.ASCII) or (found := int(float(value))) < least or (
        column == "click" and found > 1
    ):  # fmt: skip
        raise ValueError(f"{table.at(n)}: '{column}' is {text}, {accepted} is accepted")
    return found


def _of(known: dict[tuple[str, str], int], query: str) -> list[str]:
    return [doc for q, doc in known if q == query]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for n, raw in byte_lines(path):
        line = decoded(path, raw, n).strip()
        if line and not line.startswith("#"):
            yield f"{path}, line {n}", line


def _svmlight(words: list[str], where: str) -> tuple[float, str, list[int], list[float]]:
    try:
        grade = number(words[0])
    except ValueError as error:
        raise ValueError(f"{where}: the grade is {words[0]!r}: {error}") from error
    query = ""
    if len(words) > 1 and words[1].startswith("qid:"):
        query = words.pop(1).removeprefix("qid:")
    return grade, query, *_pairs(words[1:], where)


def _pairs(words: list[str], where: str) -> tuple[list[int], list[float]]:
    columns, values = [], []
    for word in words:
        at, _, value = word.partition(":")
        if not re.fullmatch(r"\d{1,9}", at, re.ASCII):
            raise ValueError(f"{where}: {word!r} is no feature: NUMBER:VALUE is accepted")
        columns.append(int(at))
        try:
            values.append(number(value))
        except ValueError as error:
            raise ValueError(f"{where}: feature {at} is {value!r}: {error}") from error
    if len(set(columns)) < len(columns):
        raise ValueError(f"{where}: a feature stands there twice")
    return columns, values


def _dense(path: Path, cells: list[tuple[list[int], list[float]]], *, least: int = 1) -> Array:
    d = max(least, 1 + max((max(columns) for columns, _ in cells if columns), default=0))
    if len(cells) * d > MOST_CELLS:
        raise ValueError(
            f"{path}: {len(cells):,} documents of {d:,} features are too many to hold: {MOST_CELLS:,} cells"
        )
    out = np.zeros((len(cells), d))
    for row, (columns, values) in enumerate(cells):
        out[row, columns] = values
    return out


def _document(comment: str) -> str:
    found = re.search(r"docid\s*=\s*(\S+)", comment)
    return found[1] if found else comment.strip().split(" ")[0]


def _queries(path: Path, queries: list[str]) -> NDArray[Any]:
    if all(queries):
        return np.array(queries)
    if any(queries):
        raise ValueError(f"{path}: some lines have a qid and some have none")
    beside = path.with_name(f"{path.name}.query")
    if not beside.is_file():
        raise ValueError(f"{path} has no qid, and there is no file of group sizes {beside}")
    sizes = []
    for where, line in _lines(beside):
        if not re.fullmatch(r"\d{1,9}", line, re.ASCII) or int(line) < 1:
            raise ValueError(f"{where}: {line!r} is no group size")
        sizes.append(int(line))
    if sum(sizes) != len(queries):
        raise ValueError(f"{beside}: group sizes add up to {sum(sizes):,}, and {path} has {len(queries):,} rows")
    return np.repeat([str(k) for k in range(1, len(sizes) + 1)], sizes)


def _named(path: Path, query: NDArray[Any], names: list[str]) -> NDArray[Any]:
    counts: dict[str, int] = {}
    out, seen = [], set()
    for q, name in zip(query.tolist(), names, strict=True):
        counts[q] = counts.get(q, 0) + 1
        name = name or str(counts[q])
        if (q, name) in seen:
            raise ValueError(f"{path}: document {name} of query {q} stands there twice")
        seen.add((q, name))
        out.append(name)
    return np.array(out)


def _by_query(path: Path) -> Iterator[tuple[str, str, list[float]]]:
    for where, line in _lines(path):
        query, *rest = line.split()
        try:
            yield where, query, [number(x) for x in rest]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
