"""How people click: position-based, user browsing and cascade models, to simulate clicks and to estimate from a log.

A document at rank k is clicked with probability (examined) × (attractive). Examination depends on

    PBM       the position: θ_k
    UBM       the position and the last click before it: γ_{k, d}, d = k - (last clicked rank), or k where none was
    cascade   everything until the first click, nothing after it

Attraction of a grade y (Ai et al., SIGIR 2018): ε + (1 - ε)(2^y - 1)/(2^{y_max} - 1). The examination tables are those
of the authors' simulations; a power ``eta`` makes the bias stronger or, at 0, none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.ranking.lists import ClickLists

__all__ = ["PBM", "UBM", "Cascade", "ClickModel", "attraction"]

Array = NDArray[np.float64]
POSITIONS = (0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06)
BROWSING = (
    (1.0,), (0.98, 1.0), (1.0, 0.62, 0.95), (1.0, 0.77, 0.42, 0.82), (1.0, 0.92, 0.55, 0.31, 0.69),
    (1.0, 0.96, 0.63, 0.4, 0.22, 0.54), (1.0, 0.99, 0.73, 0.46, 0.29, 0.17, 0.47),
    (1.0, 1.0, 0.89, 0.52, 0.35, 0.24, 0.14, 0.43), (1.0, 1.0, 0.95, 0.68, 0.4, 0.29, 0.19, 0.12, 0.41),
    (1.0, 1.0, 1.0, 0.96, 0.52, 0.36, 0.27, 0.18, 0.12, 0.43),
)  # fmt: skip
LEAST = 1e-6  # of what is estimated: probabilities stay away from 0 and 1


def attraction(grades: ArrayLike, *, epsilon: float = 0.1, max_grade: float = 4) -> Array:
    """Probability that an examined document of a grade is clicked.

    Parameters
    ----------
    grades : array
        From 0 to ``max_grade``.
    epsilon : float
        Of grade 0: noise.
    max_grade : float
        The grade of probability 1.

    Raises
    ------
    ValueError
        A grade out of range.

    Examples
    --------
    >>> from rankwise.ranking import attraction
    >>> attraction([0, 1, 2, 3, 4])
    array([0.1 , 0.16, 0.28, 0.52, 1.  ])
    """
    y = np.asarray(grades, dtype=np.float64)
    if not 0 <= epsilon <= 1 or max_grade <= 0:
        raise ValueError(f"epsilon={epsilon}, max_grade={max_grade}: from 0 to 1, and above 0")
    if not ((y >= 0) & (y <= max_grade)).all():
        raise ValueError(f"grades lie between {y.min():g} and {y.max():g}: 0 to max_grade={max_grade:g} is accepted")
    return epsilon + (1 - epsilon) * (2**y - 1) / (2.0**max_grade - 1)


class ClickModel(ABC):
    """What click models share; ``attractive`` is ``(L, n)`` of probabilities, in the order shown.

    Examples
    --------
    >>> from rankwise.ranking import PBM
    >>> PBM([1.0, 0.5]).probabilities([[0.4, 0.4]])
    array([[0.4, 0.2]])
    """

    @abstractmethod
    def examination(self, clicks: ArrayLike) -> Array:
        """Probability ``(L, n)`` that each place was examined, given the clicks before it."""

    @abstractmethod
    def probabilities(self, attractive: ArrayLike) -> Array:
        """Probability ``(L, n)`` of a click at each place, whatever happened before."""

    def simulate(
        self, attractive: ArrayLike, *, seed: int, mask: ArrayLike | None = None, keep_empty: bool = True
    ) -> NDArray[np.int8]:
        """Clicks ``(L, n)`` drawn for every list at once.

        Parameters
        ----------
        attractive : array
            ``(L, n)`` probabilities.
        seed : int
            Decides the draws.
        mask : array, optional
            ``(L, n)``, where something stands; everywhere by default.
        keep_empty : bool
            Whether lists without a click are left so; else they are drawn again until they have one, as the
            authors do: click rates are then conditional on that.

        Raises
        ------
        ValueError
            Probabilities out of range; a list that can get no click where it has to.
        """
        a = self._attractive(attractive).astype(np.float32)  # as the draws are
        a = a if mask is None else a * np.asarray(mask, dtype=bool)
        # a stream of its own: data drawn by a caller from the same seed would be correlated with its clicks
        rng = np.random.default_rng([seed, 1])
        clicks = self._draw(a, rng)
        if keep_empty:
            return clicks
        if not (self.probabilities(a) > 0).any(1).all():
            raise ValueError("a list can get no click, and keep_empty=False draws until it has one")
        while (empty := np.flatnonzero(~clicks.any(1))).size:
            clicks[empty] = self._draw(a[empty], rng)
        return clicks

    def log_likelihood(self, attractive: ArrayLike, clicks: ArrayLike, mask: ArrayLike | None = None) -> float:
        """Mean log-probability of what happened at a place, given the clicks before it."""
        from rankwise.ranking.ranking_metrics import click_log_likelihood

        return click_log_likelihood(self.examination(clicks) * self._attractive(attractive), clicks, mask)

    @abstractmethod
    def _draw(self, a: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int8]:
        """Clicks ``(L, n)``."""

    def _attractive(self, attractive: ArrayLike) -> Array:
        a = np.asarray(attractive, dtype=np.float64)
        if a.ndim != 2 or not ((a >= 0) & (a <= 1)).all():
            raise ValueError(f"attractive has shape {a.shape}: (lists, places) of probabilities is accepted")
        return a


class PBM(ClickModel):
    """Position-based: the chance of being examined depends on the position alone.

    Parameters
    ----------
    positions : sequence of float
        θ_k of each position; beyond, the last holds.
    eta : float
        The power they are taken to.

    Attributes
    ----------
    attraction_ : ndarray
        Of an estimated model: attraction of each row of the features that was shown, NaN where it was not.

    Examples
    --------
    >>> from rankwise.ranking import PBM
    >>> PBM(eta=0).probabilities([[0.1, 1.0]])
    array([[0.1, 1. ]])
    """

    attraction_: Array

    def __init__(self, positions: Sequence[float] | Array = POSITIONS, *, eta: float = 1.0) -> None:
        self.positions = _probabilities(positions, "positions", eta)

    def __repr__(self) -> str:
        return f"PBM({np.round(self.positions, 3).tolist()})"

    def of(self, n: int) -> Array:
        """θ ``(n,)``."""
        return self.positions[np.minimum(np.arange(n), len(self.positions) - 1)]

    def examination(self, clicks: ArrayLike) -> Array:
        """θ, whatever was clicked."""
        shape = np.shape(clicks)
        return np.broadcast_to(self.of(shape[1]), shape)

    def probabilities(self, attractive: ArrayLike) -> Array:
        """θ_k a_k."""
        a = self._attractive(attractive)
        return self.of(a.shape[1]) * a

    def _draw(self, a: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int8]:
        return (rng.random(a.shape, dtype=np.float32) < self.of(a.shape[1]).astype(np.float32) * a).view(np.int8)

    @classmethod
    def estimate(cls, lists: ClickLists, *, iterations: int = 100) -> PBM:
        """By expectation maximisation from lists whose documents were seen at several positions.

        Only products θ a are identified: θ is scaled so that its largest value is 1.

        Examples
        --------
        >>> from rankwise.ranking import PBM, lists_of
        >>> log = dict(query=[0, 0, 1, 1, 2, 2, 3, 3], document=[0, 1, 1, 0, 0, 1, 1, 0])
        >>> PBM.estimate(lists_of([1, 0, 0, 0, 0, 0, 1, 1], **log)).positions.round(1).tolist()
        [1.0, 0.6]
        """
        place = np.broadcast_to(np.arange(lists.mask.shape[1]), lists.mask.shape)
        theta, a = _expectation_maximisation(lists, place, lists.mask.shape[1], iterations)
        model = cls(theta / theta.max())
        model.attraction_ = a * theta.max()
        return model


class UBM(ClickModel):
    """User browsing: the chance depends on the position and on how far the last click is.

    Parameters
    ----------
    table : sequence of sequence of float
        γ of rank k (from 1) and distance 1 to k; beyond its last rank, that rank's: distances at or below the last
        one's, and its last where nothing was clicked yet.
    eta : float
        The power they are taken to.

    Attributes
    ----------
    attraction_ : ndarray
        Of an estimated model: attraction of each row of the features that was shown, NaN where it was not.

    Examples
    --------
    >>> from rankwise.ranking import UBM
    >>> UBM([[1.0], [0.5, 0.8]]).examination([[1, 0], [0, 0]])
    array([[1. , 0.5],
           [1. , 0.8]])
    """

    attraction_: Array

    def __init__(self, table: Sequence[Sequence[float]] = BROWSING, *, eta: float = 1.0) -> None:
        if not table or any(len(row) != k for k, row in enumerate(table, 1)):
            raise ValueError("the table needs one value for rank 1, two for rank 2, and so on")
        self.table = [_probabilities(row, f"rank {k}", eta) for k, row in enumerate(table, 1)]

    def __repr__(self) -> str:
        return f"UBM({len(self.table)} ranks)"

    def of(self, n: int) -> Array:
        """γ ``(n, n + 1)`` by rank and last click, both from 0; the first column: none before."""
        out = np.zeros((n, n + 1))
        for k in range(n):
            row = self.table[min(k, len(self.table) - 1)]
            out[k, 0] = row[-1]
            for last in range(k):
                distance = min(k - last, max(len(row) - 1, 1))
                out[k, last + 1] = row[distance - 1]
        return out

    def examination(self, clicks: ArrayLike) -> Array:
        """γ of each place and the last click before it."""
        c = np.asarray(clicks)
        n = c.shape[1]
        return self.of(n)[np.arange(n), _last_click(c)]

    def probabilities(self, attractive: ArrayLike) -> Array:
        """Summed over where the last click was."""
        a = self._attractive(attractive)
        rows, n = a.shape
        gamma, state, out = self.of(n), np.zeros((rows, n + 1)), np.zeros((rows, n))
        state[:, 0] = 1.0
        for k in range(n):
            clicked = state * gamma[k] * a[:, k, None]
            out[:, k] = clicked.sum(1)
            state -= clicked
            state[:, k + 1] = out[:, k]
        return out

    def _draw(self, a: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int8]:
        gamma, last = self.of(a.shape[1]), np.zeros(len(a), np.int64)
        clicks = np.zeros(a.shape, np.int8)
        for k in range(a.shape[1]):
            clicks[:, k] = rng.random(len(a), dtype=np.float32) < gamma[k, last] * a[:, k]
            last[clicks[:, k] > 0] = k + 1
        return clicks

    @classmethod
    def estimate(cls, lists: ClickLists, *, iterations: int = 100) -> UBM:
        """By expectation maximisation; scaled so that the largest γ is 1. Combinations that never occurred are 1."""
        n = lists.mask.shape[1]
        last = _last_click(lists.clicks)
        rank = np.broadcast_to(np.arange(n), last.shape)
        theta, a = _expectation_maximisation(lists, rank * (n + 1) + last, n * (n + 1), iterations)
        scaled = np.nan_to_num(theta / np.nanmax(theta), nan=1.0).reshape(n, n + 1)
        # distance d at rank k: the last click is k - d (column k - d + 1), none is distance k + 1 (column 0)
        model = cls([[*scaled[k, k:0:-1], scaled[k, 0]] for k in range(n)])
        model.attraction_ = a * np.nanmax(theta)
        return model


class Cascade(ClickModel):
    """From the top down until the first click.

    Examples
    --------
    >>> from rankwise.ranking import Cascade
    >>> Cascade().probabilities([[0.5, 0.5, 1.0]])
    array([[0.5 , 0.25, 0.25]])
    """

    def __repr__(self) -> str:
        return "Cascade()"

    def examination(self, clicks: ArrayLike) -> Array:
        """1 up to the first click, 0 after it."""
        return (_last_click(np.asarray(clicks)) == 0).astype(np.float64)

    def probabilities(self, attractive: ArrayLike) -> Array:
        """a_k Π_{j<k} (1 - a_j)."""
        a = self._attractive(attractive)
        return a * np.c_[np.ones(len(a)), np.cumprod(1 - a, 1)[:, :-1]]

    def _draw(self, a: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int8]:
        found = rng.random(a.shape, dtype=np.float32) < a
        return (found & (found.cumsum(1) == 1)).view(np.int8)


def _last_click(c: NDArray[Any]) -> NDArray[np.int64]:
    """Number (from 1) of the last place before each that was clicked; 0 where none was."""
    at = np.where(c > 0, np.arange(1, c.shape[1] + 1), 0)
    return np.c_[np.zeros((len(c), 1), np.int64), np.maximum.accumulate(at, 1)[:, :-1]]


def _expectation_maximisation(
    lists: ClickLists, cell: NDArray[np.int64], cells: int, iterations: int
) -> tuple[Array, Array]:
    """θ of each cell and a of each document, where P(click) = θ a: means of what was examined, and attractive."""
    shown = lists.mask
    c, where, about = lists.clicks[shown], cell[shown], lists.rows[shown]
    per_cell = np.bincount(where, minlength=cells).astype(float)
    per_document = np.bincount(about).astype(float)
    theta, a = np.full(cells, 0.5), np.full(len(per_document), 0.5)
    for _ in range(iterations):
        t, r = theta[where], a[about]
        unseen = np.maximum(1 - t * r, LEAST)
        examined, attractive = c + (1 - c) * t * (1 - r) / unseen, c + (1 - c) * (1 - t) * r / unseen
        with np.errstate(invalid="ignore"):
            theta = np.bincount(where, examined, cells) / per_cell
            a = np.bincount(about, attractive, len(per_document)) / per_document
    return np.clip(theta, LEAST, 1), np.clip(a, LEAST, 1)


def _probabilities(given: Sequence[float] | Array, name: str, eta: float) -> Array:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} has {values.tolist()}: probabilities, at least one, are accepted")
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta={eta}: a power from 0 on is accepted")
    return values**eta
