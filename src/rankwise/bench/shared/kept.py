"""Runs of a recipe that are kept as they end: what an interrupted recipe has done is read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from rankwise.bench.shared.measured import plain
from rankwise.events import OnEvent
from rankwise.files import write_json
from rankwise.parallel import fan_out
from rankwise.reading import read_json

Item = TypeVar("Item")


def kept_runs(
    path: Path, work: Callable[[Item], Any], asked: Mapping[str, Item], on_event: OnEvent | None = None
) -> dict[str, Any]:
    """``{name: work(item)}``; those that the file ``path`` holds, of equal items, are not run again.

    Parameters
    ----------
    path : Path
        A json file, which grows with every run that ends; its folder is made.
    work : callable
        Of a module's top level; what it returns can be written as json, arrays as lists.
    asked : mapping of str to object
        What is run, by name; picklable.
    on_event : callable, optional
        Told of every run that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = read_json(path) if path.exists() else {}
    of = {name: _digest(item) for name, item in asked.items()}
    left = [name for name in asked if kept.get(name, {}).get("of") != of[name]]

    def keep(at: int, result: Any) -> None:
        name = left[at]
        kept[name] = {"of": of[name], "result": plain(result)}
        write_json(path, kept)
        if on_event is not None:
            done = sum(kept.get(n, {}).get("of") == digest for n, digest in of.items())
            on_event(name, "done", done, len(asked), float("nan"))

    fan_out(work, [asked[name] for name in left], on_done=keep)
    return {name: plain(kept[name]["result"]) for name in asked}


def _digest(item: Any) -> str:
    """Of what a run is asked: another number of seeds under one name is another run."""
    return hashlib.sha256(json.dumps(item, default=_plain, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """For JSON; files by their name alone, since a folder may be moved."""
    if isinstance(value, Path):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(getattr(value, f.name) for f in fields(value))]
    if callable(value):
        return value.__qualname__
    raise TypeError(f"a run is asked with {type(value).__name__}: numbers, words, files, functions and records of such")


def called(asked: tuple[Callable[..., Any], Mapping[str, Any]]) -> Any:
    """``function(**arguments)``: work of several kinds, each with all that it needs."""
    function, arguments = asked
    return function(**arguments)
