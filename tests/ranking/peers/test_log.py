"""Logs in files: what is no log is refused, and what is damaged is said."""

import resource
import signal
import sqlite3

import pytest

from rankwise.ranking import Click, GRank
from rankwise.ranking.peers.log import SqliteLog

MADE = [Click("eve", n, "rock", f"s{n}", b"sign") for n in range(300)]


@pytest.fixture
def path(tmp_path):
    log = SqliteLog(tmp_path / "log.sqlite")
    log.put(MADE)
    log.close()
    return tmp_path / "log.sqlite"


def test_another_database_and_another_file_are_refused_and_left_alone(tmp_path):
    other = tmp_path / "books.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE books (title TEXT)")
    (tmp_path / "text").write_text("once upon a time " * 100)
    for name in ("books.sqlite", "text"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=f"{name} is no log of clicks"):
            SqliteLog(tmp_path / name)
        if name == "text":
            assert (tmp_path / name).read_bytes() == before
    with sqlite3.connect(other) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("books",)]


def test_a_log_of_a_later_version_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ValueError, match="no log of clicks of version 1"):
        SqliteLog(path)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist"):
        SqliteLog(tmp_path / "none" / "log.sqlite")


@pytest.mark.parametrize("change", ["item = x'00'", "query = NULL", "query = 'Rock'", "signature = 'x'", "item = ''"])
def test_a_row_that_is_no_click_is_said_when_the_log_is_read(path, change):
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE clicks SET {change} WHERE counter = 5")
    with pytest.raises(ValueError, match="damaged"):
        GRank("ann", log=SqliteLog(path))


def test_a_page_of_the_file_that_is_overwritten_is_said(path):
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 3] = b"\xff" * 4096
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"log\.sqlite is no log of clicks, or is damaged"):
        list(SqliteLog(path))


def test_a_transaction_is_there_whole_or_not_at_all(path):
    log = SqliteLog(path)
    with pytest.raises(ValueError, match="damaged"):
        log.put([Click("bob", 0, "rock", "s1"), Click("bob", 1, object(), "s1")])  # the second cannot be written
    assert log.since("bob", 0, 10) == []
    assert log.since("eve", 298, 10) == MADE[298:]
    assert log.held("eve", [3, 299, 1_000]) == {3: MADE[3], 299: MADE[299]}
    log.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(sqlite3.SQLITE_IOERR_WRITE, OSError), (sqlite3.SQLITE_BUSY, OSError), (sqlite3.SQLITE_CANTOPEN, OSError),
     (sqlite3.SQLITE_FULL, OSError), (sqlite3.SQLITE_CORRUPT, ValueError), (sqlite3.SQLITE_NOTADB, ValueError)],
)  # fmt: skip
def test_only_what_speaks_against_the_file_is_called_damage(path, code, kind):
    log, error = SqliteLog(path), sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    with pytest.raises(kind), log._complaining():
        raise error
    log.close()


def test_a_file_that_may_not_grow_is_no_damaged_one_and_goes_on_when_it_may(path):
    log = SqliteLog(path)
    log.put([Click("bob", 0, "rock", "s1")])
    before, usual = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("log.sqlite-wal").stat().st_size, before[1]))
    try:
        with pytest.raises(OSError, match="cannot be read or written"):
            log.put([Click("bob", 1, "rock", "s1")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, usual)
    log.put([Click("bob", 1, "rock", "s2")])
    assert [c.item for c in log.since("bob", 0, 9)] == ["s1", "s2"]
    log.close()
