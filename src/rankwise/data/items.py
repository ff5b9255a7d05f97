"""A library of things to be found: what each is called, by whom, and under which words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankwise.nearest import unknown
from rankwise.reading import read_text

COLUMNS = ("id", "title", "artist", "tags")
LONGEST = 200  # bytes in UTF-8 of an id
MOST = 64_000_000  # bytes of a library


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that can be found.

    Attributes
    ----------
    id : str
        Its name among peers.
    title, artist : str
        What it is called, and who made it.
    tags : tuple of str
        Words under which it is filed.

    Examples
    --------
    >>> from rankwise.data.items import Item
    >>> Item(id="song-7", title="Slow Water", tags=("blues",)).artist
    ''
    """

    id: str
    title: str = ""
    artist: str = ""
    tags: tuple[str, ...] = ()


def read_items(path: str | Path) -> list[Item]:
    """A library from a csv file with a header: ``id``, and any of ``title``, ``artist``, ``tags`` (split at ``;``).

    Other columns are passed over.

    Parameters
    ----------
    path : str or Path
        UTF-8, comma, semicolon or tab between columns; at most 64 MB.

    Returns
    -------
    list of Item
        In the file's order.

    Raises
    ------
    ValueError
        Without a column ``id``, with an empty, repeated or unprintable id, or without rows.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from rankwise.data.items import read_items
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "items.csv"
    ...     _ = path.write_text("id,title,tags\\nsong-7,Slow Water,blues;live\\n")
    ...     read_items(path)[0].tags
    ('blues', 'live')
    """
    text = read_text(Path(path), most=MOST).removeprefix("\ufeff")
    table = re.sub(r"\A(sep=.\r?\n)?(\s*\n)?", "", text, count=1, flags=re.IGNORECASE)  # Excel's own line, empty ones
    skipped = text.count("\n") - table.count("\n")
    header = table.partition("\n")[0]
    if not header.strip():
        raise ValueError(f"{path} is empty; a library has columns {', '.join(COLUMNS)}")
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    items: dict[str, Item] = {}
    try:
        names = [n.strip().lower() for n in rows.fieldnames or []]
        if "id" not in names:
            raise ValueError(f"{path}: {unknown('column', 'id', names)}; a library has columns {', '.join(COLUMNS)}")
        rows.fieldnames = names
        for row in rows:
            where = f"{path}, line {rows.line_num + skipped}"
            if None not in row and not any(map(str.strip, filter(None, row.values()))):
                continue  # spreadsheets write rows that somebody emptied
            item = _item(row, where)
            if item.id in items:
                raise ValueError(f"{where}: the id {item.id!r} is there twice")
            items[item.id] = item
    except csv.Error as error:
        why = f"{error}; is a quotation mark left open?" if "end of data" in str(error) else str(error)
        raise ValueError(f"{path}, line {rows.line_num + skipped}: {why}") from error
    if not items:
        raise ValueError(f"{path} holds no item below its header")
    return list(items.values())


def by_id(items: Iterable[Item]) -> dict[str, Item]:
    """Items by their id; one that is there twice, or that has none, is an error."""
    found: dict[str, Item] = {}
    for item in items:
        if item.id in found:
            raise ValueError(f"the id {item.id!r} is there twice")
        found[_checked(item.id, "an item")] = item
    return found


def _item(row: dict[str, str], where: str) -> Item:
    if None in row or None in row.values():
        raise ValueError(f"{where}: as many columns as the header has are wanted; quote what holds the separator")
    cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
    tags = tuple(t.strip() for t in cell["tags"].split(";") if t.strip())
    return Item(id=_checked(cell["id"], where), title=cell["title"], artist=cell["artist"], tags=tags)


def _checked(id: str, where: str) -> str:
    if not id or not id.isprintable() or len(id.encode(errors="surrogatepass")) > LONGEST:
        raise ValueError(f"{where}: the id {id[:40]!r}; printable characters, 1 to {LONGEST} bytes (UTF-8), are wanted")
    return id
