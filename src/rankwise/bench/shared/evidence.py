"""What a recipe returns: claims with their numbers and verdicts, tables and figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from rankwise.files import write_json


@dataclass(kw_only=True)
class Claim:
    """One claim and what was found.

    Attributes
    ----------
    text : str
        The claim, with the figure that decides.
    held : bool
    found : str
        The numbers.
    control : bool
        A control: it holds when the thing that should fail does fail.
    """

    text: str
    held: bool
    found: str
    control: bool = False

    def __post_init__(self) -> None:
        self.held = bool(self.held)  # comparisons of arrays give numpy's


@dataclass(kw_only=True)
class Evidence:
    """The outcome of a recipe."""

    recipe: str
    title: str
    command: str
    setting: str
    header: list[str]
    rows: list[list[str]]
    claims: list[Claim]
    seconds: float = 0.0
    environment: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, in one step."""
        write_json(path, asdict(self))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Mean difference of two samples paired by seed, its standard error, and an exact sign-flip p-value (one-sided)."""

    mean: float
    error: float
    p_value: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f}±{100 * self.error:.2f} points, p={self.p_value:.2g}"


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired:
    """``a - b`` by seed. The p-value is the share of all sign flips whose mean is at least the one seen."""
    d = np.subtract(a, b)
    flips = [1 - 2 * np.isin(range(len(d)), c) for k in range(len(d) + 1) for c in combinations(range(len(d)), k)]
    p = float(np.mean([np.mean(f * d) >= np.mean(d) - 1e-12 for f in flips]))
    error = float(np.std(d, ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan
    return Paired(mean=float(np.mean(d)), error=error, p_value=p)


def plus_minus(values: Iterable[float], scale: float = 100, digits: int = 1) -> str:
    """``mean±standard deviation``."""
    values = [float(v) for v in values]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.fmean(values):.{digits}f}±{scale * spread:.{digits}f}"
