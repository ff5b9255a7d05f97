"""Runs of a recipe that are kept as they end: what an interrupted recipe has done is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankwise.events import OnEvent
from rankwise.files import write_json
from rankwise.parallel import fan_out
from rankwise.reading import read_json

Item = TypeVar("Item")


def kept_runs(
    path: Path, work: Callable[[Item], Any], asked: Mapping[str, Item], on_event: OnEvent | None = None
) -> dict[str, Any]:
    """``{name: work(item)}``; those that the file ``path`` holds are not run again.

    Parameters
    ----------
    path : Path
        A json file, which grows with every run that ends; its folder is made.
    work : callable
        Of a module's top level; what it returns can be written as json.
    asked : mapping of str to object
        What is run, by name; picklable.
    on_event : callable, optional
        Told of every run that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    left = [name for name in asked if name not in found]

    def keep(at: int, result: Any) -> None:
        found[left[at]] = result
        write_json(path, found)
        if on_event is not None:
            on_event(left[at], "done", len(found), len(asked), float("nan"))

    fan_out(work, [asked[name] for name in left], on_done=keep)
    return found


def called(asked: tuple[Callable[..., Any], Mapping[str, Any]]) -> Any:
    """``function(**arguments)``: work of several kinds, each with all that it needs."""
    function, arguments = asked
    return function(**arguments)
