"""A world to simulate searchers in: tagged items, terms, people of several tastes, and what each of them likes.

Everything here is made up, from a seed. An item carries three of the terms and has one taste for its home, whose people
like it two grades better than others do; how good it is for all varies too. People ask for terms by Zipf's law, each
taste in an order of its own. Grades go from 0 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwise.data.items import Item

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
TAGS = 3  # of an item
BEST = 4  # grade


@dataclass(frozen=True, kw_only=True)
class World:
    """What there is; items that carry a term stand in the term's columns, by id, the last column of all being empty.

    Attributes
    ----------
    library : tuple of Item
        All there is.
    terms : tuple of str
        What is asked for.
    columns : int array of shape (terms, columns)
        The item in each column; -1 where none stands.
    grades : array of shape (tastes, terms, columns)
        How much the people of a taste like what stands there; 0 where none stands.
    asks : array of shape (tastes, terms)
        How likely a person of the taste asks for a term.
    taste : int array of shape (nodes,)
        Of each node.
    owns : bool array of shape (nodes, items)
        Each node's library, attackers' behind.
    first : int array of shape (nodes, terms)
        The column that each clicked before anything began, after each term.
    order : int array of shape (nodes, terms)
        Terms in the order of these clicks.
    friend : int array of shape (nodes,)
        Who told each of its first clicks; attackers have none.

    Examples
    --------
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> world.library[0].id, world.terms
    ('item0000', ('term000', 'term001', 'term002'))
    """

    library: tuple[Item, ...]
    terms: tuple[str, ...]
    columns: Ints
    grades: Array
    asks: Array
    taste: Ints
    owns: NDArray[np.bool_]
    first: Ints
    order: Ints
    friend: Ints


def stream(seed: int, what: str) -> np.random.Generator:
    """Draws for one purpose, which no draw for another can shift."""
    return np.random.default_rng([seed, *what.encode()])


def make_world(*, nodes: int, attackers: int, items: int, terms: int, tastes: int, owned: float, seed: int) -> World:
    """A world: ``owned`` is the share of all items in each library, before what was clicked first joins it."""
    tags = _tags(items, terms, stream(seed, "tags"))
    columns = _columns(tags, terms)
    everyone = nodes + attackers
    first = (stream(seed, "first").random((everyone, terms)) * (columns >= 0).sum(1)).astype(np.int64)
    owns = stream(seed, "owned").random((everyone, items)).argsort(1).argsort(1) < round(owned * items)
    owns[np.arange(everyone)[:, None], columns[np.arange(terms), first]] = True
    names = tuple(f"term{q:03d}" for q in range(terms))
    before = np.maximum(np.arange(nodes), 1)
    friend = (stream(seed, "friends").random(nodes) * before).astype(np.int64)
    friend[0] = 1 + int(stream(seed, "first friend").random() * (nodes - 1))
    return World(
        library=tuple(Item(id=f"item{i:04d}", tags=tuple(names[q] for q in tags[i])) for i in range(items)),
        terms=names,
        columns=columns,
        grades=_grades(columns, items, tastes, stream(seed, "grades")),
        asks=_asks(tastes, terms, stream(seed, "asks")),
        taste=stream(seed, "tastes").permutation(np.arange(nodes) % tastes),
        owns=owns,
        first=first,
        order=stream(seed, "order").random((everyone, terms)).argsort(1),
        friend=friend,
    )


def _tags(items: int, terms: int, rng: np.random.Generator) -> Ints:
    """Three terms an item, one of them in turn, so that every term has some."""
    at, drawn = np.arange(items), rng.random((items, terms))
    drawn[at, at % terms] = -1
    return drawn.argsort(1)[:, :TAGS]


def _columns(tags: Ints, terms: int) -> Ints:
    carry = [np.flatnonzero((tags == q).any(1)) for q in range(terms)]
    columns = np.full((terms, max(map(len, carry)) + 1), -1)
    for q, found in enumerate(carry):
        columns[q, : len(found)] = found
    return columns


def _grades(columns: Ints, items: int, tastes: int, rng: np.random.Generator) -> Array:
    good, home = rng.normal(0.5, 1.0, items), rng.integers(tastes, size=items)
    liked = good + 2 * (home == np.arange(tastes)[:, None]) + rng.normal(0, 0.5, (tastes, items))
    grades = np.where(columns >= 0, np.clip(np.rint(liked), 0, BEST)[:, columns], 0)
    nothing = grades.max(-1) == 0
    grades[nothing, 0] = 1  # everybody likes something of everything, so that nDCG is defined
    return grades


def _asks(tastes: int, terms: int, rng: np.random.Generator) -> Array:
    rank = rng.random((tastes, terms)).argsort(1)
    return 1 / (1 + rank) / (1 / np.arange(1, terms + 1)).sum()
