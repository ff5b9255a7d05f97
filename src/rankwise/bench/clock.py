"""How long a recipe took in all: calls that were cut short count as well as the one that ended it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from rankwise.files import write_json
from rankwise.reading import read_json

EVERY = 10.0  # seconds: what a kill can take from the count


class Took(NamedTuple):
    """What a recipe took."""

    seconds: float
    calls: int


@contextmanager
def whole_time(folder: Path, asked: Mapping[str, Any] | None = None) -> Iterator[Callable[[], Took]]:
    """Count, in ``folder/took.json``, the seconds of every call that worked in ``folder``; yields what counts so far.

    A call goes on where runs lie in ``folder/runs``: its seconds are added to those of the calls before, unless one of
    them had ended what is ``asked`` again. Then the longer of the two counts, whether the later read all back or
    measured anew.
    """
    path, begin = folder / "took.json", time.perf_counter()
    runs = folder / "runs"
    kept = read_json(path) if path.is_file() and runs.is_dir() and any(runs.iterdir()) else {}
    before = Took(kept.get("seconds", 0.0), kept.get("calls", 0))
    said = {name: str(value) for name, value in sorted((asked or {}).items())}
    ended = kept.get("ended") == said

    def took() -> Took:
        this = time.perf_counter() - begin
        return max(before, Took(this, 1)) if ended else Took(before.seconds + this, before.calls + 1)

    def write(*, whole: bool) -> None:
        write_json(path, took()._asdict() | {"ended": said if whole else None})

    done = Event()

    def tick() -> None:
        while not done.wait(EVERY):
            write(whole=ended)

    writer = Thread(target=tick, daemon=True)
    writer.start()
    whole = False
    try:
        yield took
        whole = True
    finally:
        done.set()
        writer.join()
        write(whole=ended or whole)
