"""Where clicks are kept: in memory, or in a SQLite file that survives a kill."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rankwise.ranking.peers.clicks import Click
from rankwise.reading import check_regular

FIELDS = ", ".join(Click._fields)
ELSEWHERE = {  # SQLite's codes that say nothing against the file itself
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip


class Log(Protocol):
    """Clicks by (node, counter): what `GRank` wants of the place where it keeps them.

    Examples
    --------
    >>> from rankwise.ranking.peers.log import Log, MemoryLog
    >>> log: Log = MemoryLog()
    >>> list(log)
    []
    """

    def __iter__(self) -> Iterator[Click]:
        """All clicks, by node and counter."""
        ...

    def held(self, node: str, counters: Iterable[int]) -> dict[int, Click]:
        """Those of a node's clicks that are there, by counter."""
        ...

    def put(self, clicks: Iterable[Click]) -> None:
        """Write clicks, in place of those of the same name."""
        ...

    def since(self, node: str, counter: int, most: int) -> list[Click]:
        """A node's clicks from a counter on, in order, at most so many."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class MemoryLog:
    """A log that lasts as long as its object.

    Examples
    --------
    >>> from rankwise.ranking import Click
    >>> from rankwise.ranking.peers.log import MemoryLog
    >>> log = MemoryLog()
    >>> log.put([Click("ann", 0, "blues", "x")])
    >>> log.since("ann", 0, 10)[0].item
    'x'
    """

    def __init__(self) -> None:
        self._clicks: dict[str, dict[int, Click]] = defaultdict(dict)

    def __iter__(self) -> Iterator[Click]:
        """All clicks, by node and counter."""
        return (of_node[c] for _, of_node in sorted(self._clicks.items()) for c in sorted(of_node))

    def held(self, node: str, counters: Iterable[int]) -> dict[int, Click]:
        """Those of a node's clicks that are there, by counter."""
        of_node = self._clicks.get(node, {})
        return {c: of_node[c] for c in counters if c in of_node}

    def put(self, clicks: Iterable[Click]) -> None:
        """Write clicks, in place of those of the same name."""
        for click in clicks:
            self._clicks[click.node][click.counter] = click

    def since(self, node: str, counter: int, most: int) -> list[Click]:
        """A node's clicks from a counter on, in order, at most so many."""
        of_node = self._clicks.get(node, {})
        return [of_node[c] for c in sorted(c for c in of_node if c >= counter)[:most]]

    def close(self) -> None:
        """Nothing is open."""


class SqliteLog:
    """A log in a file: each `put` is one transaction, so that after a kill it is there whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file, made if it is missing. One process writes at a time.

    Raises
    ------
    ValueError
        When the file is no such log.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from rankwise.ranking import Click
    >>> from rankwise.ranking.peers.log import SqliteLog
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = SqliteLog(pathlib.Path(folder) / "log.sqlite")
    ...     log.put([Click("ann", 0, "blues", "x")])
    ...     log.close()
    ...     again = SqliteLog(pathlib.Path(folder) / "log.sqlite")
    ...     print(next(iter(again)).item)
    ...     again.close()
    x
    """

    VERSION = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: the folder {self.path.parent} does not exist")
        if self.path.exists():
            check_regular(self.path)
        with self._complaining():
            self._db = sqlite3.connect(self.path, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA wal_autocheckpoint = 16384")  # clicks of many nodes fall on many pages: 64 MB of them
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if version != self.VERSION and (version or tables):
            raise ValueError(f"{self.path} is no log of clicks of version {self.VERSION}")
        with self._db:
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS clicks (node TEXT, counter INTEGER, query TEXT, item TEXT, signature BLOB, "
                "PRIMARY KEY (node, counter)) WITHOUT ROWID"
            )
            self._db.execute(f"PRAGMA user_version = {self.VERSION}")

    def __iter__(self) -> Iterator[Click]:
        """All clicks, by node and counter."""
        with self._complaining():
            for row in self._db.execute(f"SELECT {FIELDS} FROM clicks ORDER BY node, counter"):
                yield self._click(row)

    def held(self, node: str, counters: Iterable[int]) -> dict[int, Click]:
        """Those of a node's clicks that are there, by counter."""
        asked = set(counters)
        if not asked:
            return {}
        where = "node = ? AND counter BETWEEN ? AND ?"
        return {c.counter: c for c in self._select(where, node, min(asked), max(asked)) if c.counter in asked}

    def put(self, clicks: Iterable[Click]) -> None:
        """Write clicks in one transaction, in place of those of the same name."""
        with self._complaining(), self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO clicks ({FIELDS}) VALUES (?, ?, ?, ?, ?)", clicks)

    def since(self, node: str, counter: int, most: int) -> list[Click]:
        """A node's clicks from a counter on, in order, at most so many."""
        return self._select("node = ? AND counter >= ? ORDER BY counter LIMIT ?", node, counter, most)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _select(self, where: str, *values: object) -> list[Click]:
        with self._complaining():
            return [self._click(row) for row in self._db.execute(f"SELECT {FIELDS} FROM clicks WHERE {where}", values)]

    def _click(self, row: tuple) -> Click:
        if tuple(map(type, row)) != (str, int, str, str, bytes):
            raise ValueError(f"{self.path} is damaged: a click's fields are {row!r:.80}")
        return Click(*row)

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """SQLite's complaints in this library's words: against the disk or another process, or against the file."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in ELSEWHERE:
                raise OSError(f"{self.path} cannot be read or written: {error}") from error
            raise ValueError(f"{self.path} is no log of clicks, or is damaged: {error}") from error
