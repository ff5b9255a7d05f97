"""A click log as padded lists: one row of a matrix a list as it was shown, one column a position.

A list is what somebody saw at once. Where one query was shown many times, each showing is a list of its own. Positions
of a list are 1, 2, …, without gaps. What lies beyond ``list_size`` is cut and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ClickLists", "lists_of", "query_of_groups"]

Array = NDArray[np.float64]
MOST_GRADE = 100  # gains are 2^y - 1, in float32


@dataclass(frozen=True, kw_only=True)
class ClickLists:
    """``L`` lists of at most ``n`` places.

    Attributes
    ----------
    query : ndarray
        ``(L,)``, whose list it is, ascending.
    rows : ndarray
        ``(L, n)``, the row of the features at each position, 0 where nothing stands.
    entries : ndarray
        ``(L, n)``, the row of the log at each position, 0 where nothing stands.
    mask : ndarray
        ``(L, n)``, where something stands: a run from the first position on.
    clicks : ndarray
        ``(L, n)``, 0 or 1 (of a judged list: grades), 0 where nothing stands.
    cut : int
        How many rows lay beyond ``n``.

    Examples
    --------
    >>> from rankwise.ranking import lists_of
    >>> lists = lists_of([0, 1, 1], query=["a", "a", "b"], position=[2, 1, 1])
    >>> lists.clicks
    array([[1., 0.],
           [1., 0.]])
    >>> lists.rows
    array([[1, 0],
           [2, 0]])
    """

    query: NDArray[Any]
    rows: NDArray[np.int64]
    entries: NDArray[np.int64]
    mask: NDArray[np.bool_]
    clicks: Array
    cut: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clicked(self) -> NDArray[np.bool_]:
        """``(L,)``: lists with a click."""
        return np.asarray(self.clicks.any(1))

    def take(self, which: NDArray[Any]) -> ClickLists:
        """Some of the lists, by number or by a mask."""
        return ClickLists(
            query=self.query[which], rows=self.rows[which], entries=self.entries[which], mask=self.mask[which],
            clicks=self.clicks[which], cut=self.cut,
        )  # fmt: skip


def lists_of(
    clicks: ArrayLike,
    *,
    query: ArrayLike,
    position: ArrayLike | None = None,
    document: ArrayLike | None = None,
    list_size: int | None = None,
    graded: bool = False,
) -> ClickLists:
    """Rows of a log as lists, in the order of their ids.

    Parameters
    ----------
    clicks : array
        ``(rows,)`` of 0 and 1.
    query : array
        ``(rows,)``, the id of each row's list.
    position : array, optional
        ``(rows,)``, from 1 on; the order of a list's rows by default.
    document : array, optional
        ``(rows,)``, the row of the features that a row is about; its own number by default.
    list_size : int, optional
        Places that are kept; those of the longest list by default.
    graded : bool
        Whether ``clicks`` are grades, from 0 to 100.

    Raises
    ------
    ValueError
        Clicks other than 0 and 1, lengths that differ, positions that are missing, repeated or no whole numbers.

    Examples
    --------
    >>> from rankwise.ranking import lists_of
    >>> lists_of([0, 1, 0, 0], query=[7, 7, 7, 7], list_size=2).cut
    2
    """
    values, ids = _clicks(clicks, graded=graded), _ids(query)
    if ids.shape != values.shape or not len(values):
        raise ValueError(f"query has shape {ids.shape} for {len(values)} clicks: one id for each of at least one row")
    about = np.arange(len(values)) if document is None else _whole(document, "document", len(values), least=0)
    if list_size is not None and (isinstance(list_size, bool) or list_size < 1):
        raise ValueError(f"list_size={list_size}: at least 1")
    names, number, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    place = None if position is None else _whole(position, "position", len(values), least=1)
    order = np.argsort(number, kind="stable") if place is None else np.lexsort((place, number))
    at = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # from 0, within the list
    if place is not None and (wrong := np.flatnonzero(place[order] != at + 1)).size:
        first = number[order[wrong[0]]]
        raise ValueError(_misplaced(names[first], place[order][number[order] == first]))
    n = min(list_size or int(sizes.max()), int(sizes.max()))
    kept = at < n
    where = number[order][kept], at[kept]

    def laid(cells: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros((len(names), n), cells.dtype)
        out[where] = cells[order][kept]
        return out

    return ClickLists(
        query=names, rows=laid(about), entries=laid(np.arange(len(values))), mask=laid(np.ones(len(values), bool)),
        clicks=laid(values), cut=int((~kept).sum()),
    )  # fmt: skip


def query_of_groups(sizes: Sequence[int] | NDArray[np.integer[Any]], rows: int) -> NDArray[np.int64]:
    """The number of each row's list, from LightGBM's group sizes.

    Raises
    ------
    ValueError
        The sizes do not add up to ``rows``, or one is not positive.

    Examples
    --------
    >>> from rankwise.ranking import query_of_groups
    >>> query_of_groups([2, 1], 3)
    array([0, 0, 1])
    """
    found = np.asarray(sizes)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 1).any():
        raise ValueError(f"group sizes are {sizes!r}: a list of whole numbers from 1 on is accepted")
    if found.sum() != rows:
        raise ValueError(f"group sizes add up to {found.sum():,}, and there are {rows:,} rows")
    return np.repeat(np.arange(len(found)), found)


def _ids(query: ArrayLike) -> NDArray[Any]:
    ids = np.asarray(query)
    if ids.dtype.kind in "fO":
        missing = [q is None or q != q for q in ids.ravel().tolist()]
        if any(missing):
            raise ValueError(f"query holds {ids.ravel()[missing.index(True)]} in row {missing.index(True)}: "
                             "every row needs the id of its list")  # fmt: skip
    kinds = {type(q).__name__ for q in ids.ravel()} if ids.dtype.kind == "O" else set()
    if "str" in kinds and len(kinds) > 1:
        raise ValueError(f"query holds {' and '.join(sorted(kinds))}: ids of one kind are accepted")
    return ids


def _numbers(given: ArrayLike, name: str, accepted: str) -> Array:
    values = np.asarray(given)
    if values.dtype.kind == "O":  # of a frame with gaps
        with suppress(TypeError, ValueError):
            values = values.astype(np.float64) if not any(isinstance(v, str) for v in values.ravel()) else values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {values.dtype.name} such as {values.ravel()[:1].tolist()}: {accepted} accepted")
    return values.astype(np.float64)


def _clicks(clicks: ArrayLike, *, graded: bool) -> Array:
    what, accepted = ("grade", "numbers from 0 to 100 are") if graded else ("click", "0 and 1 are")
    values = _numbers(clicks, f"{what}s", accepted)
    if values.ndim != 1:
        raise ValueError(f"clicks have shape {values.shape}: one for each row, (rows,), is accepted")
    wrong = ~((values >= 0) & (values <= MOST_GRADE)) if graded else ~np.isin(values, (0, 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"the {what} of row {row} is {values[row]:g}: {accepted} accepted")
    return values


def _whole(given: ArrayLike, name: str, rows: int, *, least: int) -> NDArray[np.int64]:
    values = np.asarray(given)
    if values.shape != (rows,):
        raise ValueError(f"{name} has shape {values.shape} for {rows} clicks")
    numbers = _numbers(given, name, f"whole numbers from {least} on are")
    wrong = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers >= least))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"the {name} of row {row} is {values[row]}: whole numbers from {least} on are accepted")
    return numbers.astype(np.int64)


def _misplaced(query: Any, places: NDArray[np.int64]) -> str:
    repeated = places[1:][places[1:] == places[:-1]]
    if len(repeated):
        return (
            f"list {query} has position {repeated[0]} twice: where a query was shown several times, "
            "give each showing an id of its own"
        )
    missing = next(k for k in range(1, len(places) + 2) if k not in places)
    return f"list {query} has no position {missing} and has {places[-1]}: every place from 1 on has to be there"
