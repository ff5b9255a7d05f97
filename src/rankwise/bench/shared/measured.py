"""What a recipe measured, in one small file from which its claims are judged again without a model.

A recipe with two functions keeps one: ``measure(out, *, seeds, on_event)`` returns its runs by name, as JSON has them
(a run's items, what was predicted or measured of each, and the truth), and ``judge(runs, *, seeds)`` its evidence.
`kept` writes the runs, then judges what was written; `rescored` reads them and judges once more. A number keeps seven
digits in the file, and what the claims are judged by is what is in it.

The file is compressed JSON lines: first what was asked and the claims as they were judged (none yet where judging
failed), then a line a run. What is no finite number is null, and NaN again where it is read in a list.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rankwise.bench.shared.evidence import Evidence, verdicts
from rankwise.files import finite, whole_file
from rankwise.reading import json_lines

ROWS = "rows.jsonl.gz"
DIGITS = 7

Runs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A file's content.

    Attributes
    ----------
    told : mapping
        The recipe's module, the release, whether it was a smoke run, and what ``judge`` takes besides the runs.
    claims : list of mapping
        As they were judged when the runs were made: text, found and verdict.
    runs : mapping
        By name.
    """

    told: dict[str, Any]
    claims: list[dict[str, str]]
    runs: Runs


def kept(module: ModuleType, out: Path, path: Path, *, told: Mapping[str, Any], **options: Any) -> Evidence:
    """Measure, keep the runs in ``path``, and judge them as they are there.

    Parameters
    ----------
    module : module
        A recipe with ``measure`` and ``judge``.
    out, options
        Of ``measure``.
    told : mapping
        What the file says besides; under ``asked`` what ``judge`` takes.
    """
    runs = plain(module.measure(out, **options))
    _write(path, Rows(told={**told}, claims=[], runs=runs))  # what was measured outlives a fault of judging it
    evidence = module.judge(runs, **told["asked"])
    _write(path, Rows(told={**told}, claims=recorded(evidence), runs=runs))
    return evidence


def _write(path: Path, rows: Rows) -> None:
    lines = [rows.told | {"claims": rows.claims}, *({"run": name, "found": run} for name, run in rows.runs.items())]
    text = "".join(json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    with whole_file(path) as draft:
        draft.write_bytes(gzip.compress(text.encode(), mtime=0))


def recorded(evidence: Evidence) -> list[dict[str, str]]:
    """Claims as a file has them."""
    return [
        {"text": c.text, "found": c.found, "verdict": verdict}
        for c, verdict in zip(evidence.claims, verdicts(evidence.claims), strict=True)
    ]


def rows_of(path: Path) -> Rows:
    """What a file holds.

    Raises
    ------
    ValueError
        No such file, or none that a recipe kept: which line is not what it should be.
    """
    lines = [line for _, line in json_lines(path)]
    told = lines[0] if lines else {}
    if not {"recipe", "smoke", "asked", "claims"} <= told.keys():
        raise ValueError(f"{path} is not what a recipe kept: its first line names no recipe and claims")
    if strange := next((i for i, line in enumerate(lines[1:], 2) if line.keys() != {"run", "found"}), None):
        raise ValueError(f"{path}, line {strange}: run and found are needed")
    claims: Any = told.pop("claims")
    return Rows(told=told, claims=claims, runs={str(line["run"]): plain(line["found"]) for line in lines[1:]})


def plain(value: Any) -> Any:
    """As it is read back from JSON: arrays are lists, keys texts, numbers of seven digits.

    What is no finite number is none, and NaN in a list: lists of numbers stay lists of numbers.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [math.nan if v is None else v for v in map(plain, value)]
    return float(f"{value:.{DIGITS}g}") if isinstance(finite(value), float) else finite(value)
