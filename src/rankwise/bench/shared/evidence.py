"""What a recipe returns: claims with their numbers and verdicts, tables and figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankwise.files import write_json

Verdict = Literal["held", "not held", "cannot tell"]
CERTAIN = 0.05  # the largest p-value of a difference that is taken for one; five pairs can give 0.031
SEEN = 2.8  # standard errors: a difference so large is found in four of five repetitions, at 5 % (two-sided)


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
    paper : str
        What the paper reports for the claim, in its own setting; empty where it has no figure for it.
    """

    text: str
    held: bool
    found: str
    control: bool = False
    paper: str = ""

    def __post_init__(self) -> None:
        self.held = bool(self.held)  # comparisons of arrays give numpy's


@dataclass(kw_only=True)
class Evidence:
    """The outcome of a recipe.

    ``seconds`` are those of all its ``calls``: runs that an earlier one had finished are read back.
    """

    recipe: str
    title: str
    command: str
    setting: str
    header: list[str]
    rows: list[list[str]]
    claims: list[Claim]
    seconds: float = 0.0
    calls: int = 1
    environment: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON, in one step; each claim with its verdict."""
        told = asdict(self)
        for claim, verdict in zip(told["claims"], verdicts(self.claims), strict=True):
            claim["verdict"] = verdict
        write_json(path, told)


def verdicts(claims: Sequence[Claim]) -> list[Verdict]:
    """``held`` or ``not held``; ``cannot tell`` for every claim beside a control that did not hold.

    A recipe whose control fails would have found the same whatever the method does, or nothing: what it found then
    neither confirms nor refutes the paper.
    """
    tells = all(c.held for c in claims if c.control)
    return [("held" if c.held else "not held") if tells or c.control else "cannot tell" for c in claims]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Mean difference of two samples paired by seed, its standard error, and an exact sign-flip p-value (one-sided)."""

    mean: float
    error: float
    p_value: float
    unit: str = "points"
    scale: float = 100

    @property
    def smallest(self) -> float:
        """The smallest true difference that so many pairs would have shown (power 0.8, 5 %, two-sided)."""
        return SEEN * self.error

    def clear(self, level: float = CERTAIN) -> bool:
        """Whether the first sample is taken for the greater one; a difference that is no number is not."""
        return self.mean > 0 and self.p_value <= level

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "no difference: a run diverged"
        shown = f"{self.scale * self.mean:+.2f}±{self.scale * self.error:.2f} {self.unit}, p={self.p_value:.2g}"
        return shown if math.isnan(self.error) else f"{shown}, sees {self.scale * self.smallest:.2f}"


def paired(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, unit: str = "points", scale: float = 100
) -> Paired:
    """``a - b`` by seed. The p-value is the share of all sign flips whose mean is at least the one seen.

    Where a seed has no number nothing has one, and no claim on it holds.
    """
    d = np.subtract(a, b)
    flips = [1 - 2 * np.isin(range(len(d)), c) for k in range(len(d) + 1) for c in combinations(range(len(d)), k)]
    p = math.nan if np.isnan(d).any() else float(np.mean([np.mean(f * d) >= np.mean(d) - 1e-12 for f in flips]))
    error = float(np.std(d, ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan
    return Paired(mean=float(np.mean(d)), error=error, p_value=p, unit=unit, scale=scale)


def greater(
    text: str, a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, least: float = 0.0,
    control: bool = False, paper: str = "", **options: Any,
) -> Claim:  # fmt: skip
    """A claim that ``a`` is greater than ``b`` by more than ``least``, in the mean over seeds.

    It needs p ≤ 0.05, which five seeds can give.
    """
    found, held = paired(a, b, **options), paired(np.subtract(a, least), b).clear()
    return Claim(text=f"{text} (p ≤ {CERTAIN:g})", held=held, found=str(found), control=control, paper=paper)


def within(
    text: str, a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, most: float, paper: str = ""
) -> Claim:
    """A claim that ``a`` is less than ``b`` by no more than ``most``, in the mean over seeds."""
    found = paired(a, b)
    return Claim(text=f"{text} (in the mean)", held=found.mean >= -most, found=str(found), paper=paper)


def plus_minus(values: Iterable[float], scale: float = 100, digits: int = 1) -> str:
    """``mean±standard deviation`` of the numbers there are, and how many diverged."""
    every = [float(v) for v in values]
    values = [v for v in every if math.isfinite(v)]
    lost = f"{len(every) - len(values)} of {len(every)} diverged"
    if not values:
        return lost
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    shown = f"{scale * statistics.fmean(values):.{digits}f}±{scale * spread:.{digits}f}"
    return shown if len(values) == len(every) else f"{shown} ({lost})"
