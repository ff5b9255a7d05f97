"""G-Rank: a search that learns from clicks which peers tell each other; there is no server and no training.

Gold & Pouwelse, G-Rank: Unsupervised Continuous Learn-to-Rank for Edge Devices in a P2P Network, 2023. Node i keeps
a log of clicks (node, query, item), its own and those that it asked other nodes for. For nodes i and j,

    κ_t = queries among the K most frequent of both,  κ_m = (query, item) that both clicked,  κ_u = items that either
    clicked;  S_i(j) = (κ_t + κ_m²) / κ_u, over the largest, and 1 for i itself
    R_i(k | Q) = Σ_j C_jk (S_i(j) + F),  C_jk = clicks of j on item k after query Q

* F is the isolation constant: at 0 only nodes with something in common count, at 1 strangers count half as much as i.
* A query that was seen shows items by R (then by id), then what the library offers. One that was not shows matches in
  the library (title, artist, tags), then items clicked after queries that share a word (one of at most 10,000 queries),
  then what most nodes clicked: names come before clicks, so that nobody can bomb a query that is new.
* With probability `swap` two of the shown places change hands, so that what stands low can be found.

What people get wrong: κ_m is squared once (it is a number of pairs, not "the square of the cardinality" squared again).
S(i, i) takes part in the maximum; a node with clicks of its own need not be the largest.

Where we differ from the released code (``released=True`` for the first three): it has (κ_m + κ_t²) / κ_u, counts as
κ_m items whatever the query they followed, and drops F before it sorts. It also looks into everybody's library, lets
half of all nodes never receive anything, and clicks the lowest id whatever is shown.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.data.items import Item, by_id
from rankwise.ranking.peers.clicks import Click, as_query, fault, words_of
from rankwise.ranking.peers.log import Log, MemoryLog
from rankwise.ranking.peers.tallies import Tallies

__all__ = ["Found", "GRank", "relevance", "similarities"]

Array = NDArray[np.float64]
COMMON = 10_000  # a word of more queries than these relates none of them


class Found(NamedTuple):
    """One place of a list.

    Attributes
    ----------
    item : str
        Its id.
    score : float
        R of clicks; of "popular" the number of nodes; 0 for matches in the library.
    why : str
        "clicks", "library", "related" (clicks after queries that share a word) or "popular".

    Examples
    --------
    >>> from rankwise.data.items import Item
    >>> from rankwise.ranking import GRank
    >>> GRank("ann", [Item(id="x", title="Slow Water")]).search("water")
    [Found(item='x', score=0.0, why='library')]
    """

    item: str
    score: float
    why: str


class GRank:
    """One node's search: a log of clicks, what it says of other nodes, and lists in that light.

    The same log gives the same list, in whatever order it came.

    Parameters
    ----------
    node : str
        This node's id.
    library : iterable of Item
        What this node has; peers' clicks may name other items, which are shown by their id.
    k : int
        How many of a node's most frequent queries are compared.
    isolation : float
        F in [0, 1].
    swap : float
        How often two places are swapped, in [0, 1]: 0.5 in the paper, 0 for measuring.
    length : int
        Places of a list.
    cap : int, optional
        Clicks of one node on one item after one query count at most so often. None, as published, counts all.
    secret : str
        Shared by the peers of a network: queries are then kept and passed on as keyed hashes (see `as_query`). A
        library's matches are unaffected.
    released : bool
        Similarity and score of the released code; it has no isolation constant.
    seed : int
        Of the swaps, together with the query and the log's length.
    log : Log, optional
        Where clicks are kept: `SqliteLog` for a file. In memory by default.

    Attributes
    ----------
    lies : Counter
        By node: how often a click was offered that is not the one known by its name, since this object is there.

    Raises
    ------
    ValueError
        For options out of range, and items without an id of their own.

    Examples
    --------
    >>> from rankwise.data.items import Item
    >>> from rankwise.ranking import Click, GRank
    >>> ann = GRank("ann", [Item(id="x", title="Slow Water"), Item(id="y", title="Water Wheel")], swap=0)
    >>> [found.item for found in ann.search("water")]
    ['x', 'y']
    >>> click = ann.record("water", "y")
    >>> ann.merge([Click("bob", 0, "water", "y"), Click("bob", 1, "wheel", "y")])
    2
    >>> ann.search("water")[0]
    Found(item='y', score=2.0, why='clicks')
    """

    def __init__(
        self,
        node: str,
        library: Iterable[Item] = (),
        *,
        k: int = 10,
        isolation: float = 0.0,
        swap: float = 0.1,
        length: int = 10,
        cap: int | None = None,
        secret: str = "",
        released: bool = False,
        seed: int = 0,
        log: Log | None = None,
    ) -> None:
        check_options(
            node=node, k=k, isolation=isolation, swap=swap, length=length, cap=cap, released=released, seed=seed
        )
        self.node, self.library = node, by_id(library)
        self.k, self.isolation, self.swap, self.length, self.cap = k, isolation, swap, length, cap
        self.secret, self.released, self.seed = secret, released, seed
        self.log = MemoryLog() if log is None else log
        self._tallies = Tallies(node, k=k, cap=cap)
        self._next: dict[str, int] = {}
        self._ahead: dict[str, set[int]] = {}
        self._clicks = 0
        self.lies: Counter[str] = Counter()
        self._matches = _index(self.library.values())
        for batch in _batches(self.log):
            if wrong := next((c for c in batch if fault(c)), None):
                raise ValueError(f"the log is damaged: it holds {wrong!r:.120}")
            self._count(batch)

    def __len__(self) -> int:
        """Clicks in the log."""
        return self._clicks

    @property
    def state(self) -> tuple[Click, ...]:
        """All clicks, by node and counter: what two nodes that know the same have in common."""
        return tuple(self.log)

    def nodes(self) -> list[str]:
        """The nodes of which a click is known, this one first."""
        return list(self._tallies.nodes)

    def progress(self, node: str) -> int:
        """The first of a node's clicks that is missing here: from there on it is asked for more."""
        return self._next.get(node, 0)

    def knows(self, node: str) -> bool:
        """Whether a click of the node is in the log."""
        return node in self._next or node == self.node

    def draft(self, query: str, item: str) -> Click:
        """This node's next click, not yet written down: for who wants to sign it.

        Raises
        ------
        ValueError
            For a query without a word, and an item that is neither in the library nor in the log.
        """
        if item not in self.library and item not in self._tallies.items:
            raise ValueError(f"the item {item[:40]!r} is neither in the library nor in the log")
        return Click(self.node, self.progress(self.node), as_query(query, secret=self.secret), item)

    def record(self, query: str, item: str) -> Click:
        """Write down that somebody here clicked on an item after a query; errors are those of `draft`."""
        click = self.draft(query, item)
        self.merge([click])
        return click

    def merge(self, clicks: Iterable[Click]) -> int:
        """Take in what others clicked; what is known already changes nothing. Returns how many were new.

        Two clicks that claim the same (node, counter) are a node's lie: the lesser by (query, item) stays, whichever
        came first, so that all who have seen both keep the same.

        Raises
        ------
        ValueError
            For a field that is empty, too long or unprintable, a query that is not as `as_query` writes it, or a
            counter out of range. Nothing is taken in then.
        """
        offered: dict[str, dict[int, Click]] = {}
        for click in clicks:
            if wrong := fault(click):
                raise ValueError(f"a click's {wrong} is {getattr(click, wrong)!r:.60}; see Click for what it may be")
            of_node = offered.setdefault(click.node, {})
            of_node[click.counter] = min(click, of_node.get(click.counter, click))
        new, better, worse = [], [], []
        for node, of_node in offered.items():
            at, ahead = self.progress(node), self._ahead.get(node, ())
            known = [c for c in of_node if c < at or c in ahead]
            held = self.log.held(node, known) if known else {}
            for counter, click in of_node.items():
                old = held.get(counter)
                if old is None:
                    new.append(click)
                    continue
                if click != old:
                    self.lies[node] += 1
                if click < old:
                    better.append(click)
                    worse.append(old)
        if new or better:
            self.log.put([*new, *better])
            self._count(new)
            self._tallies.add(better)
            self._tallies.add(worse, times=-1)
        return len(new)

    def similarity(self, node: str) -> float:
        """S of this node and another: in [0, 1], 1 for itself, 0 for one of which nothing is known."""
        at = self._tallies.nodes.get(node)
        return 0.0 if at is None else float(self.similarities()[at])

    def similarities(self) -> Array:
        """S for `nodes`, in their order."""
        counts = self._tallies
        if not self.released:
            return similarities(counts.terms, counts.pairs, counts.union)
        items, queries = counts.released()
        return similarities(items * (queries > 0), np.where(queries > 0, counts.terms, 0), counts.union, own=None)

    def search(self, query: str) -> list[Found]:
        """The list for a query, best first.

        Raises
        ------
        ValueError
            For a query without a word, or of more than 200 bytes.
        """
        counts = self._tallies
        asked = as_query(query, secret=self.secret)
        at = counts.queries.get(asked)
        clicked = [] if at is None else self._by_clicks([at], "clicks")
        matching = [Found(id, 0.0, "library") for id in self._matching(query)]
        if clicked:
            found = _first([*clicked, *matching], self.length)
            return self._swapped(found, asked) if len(counts.nodes) > 1 else found
        if len(matching) >= self.length:
            return matching[: self.length]
        shared = [counts.by_word.get(w, ()) for w in asked.split()]
        near = set().union(*(s for s in shared if len(s) <= COMMON))
        related = self._by_clicks(near, "related") if near else []
        return _first([*matching, *related, *self._best(self._tallies.fans, "popular")], self.length)

    def close(self) -> None:
        """Close the log."""
        self.log.close()

    def _by_clicks(self, queries: Iterable[int], why: str) -> list[Found]:
        items, nodes = self._tallies.clicks(queries)
        return self._best(relevance(items, nodes, self.similarities(), self.isolation), why)

    def _best(self, scores: Array, why: str) -> list[Found]:
        """Items with a score, by score and id: twice as many as are shown, for half may be shown already."""
        most, names = 2 * self.length, self._tallies.names
        at, least = np.flatnonzero(scores), 0.0
        if len(at) > most:
            least = np.partition(scores[at], -most)[-most]
        best = sorted((-scores[i], names[i]) for i in at[scores[at] > least])
        equal = (names[i] for i in at[scores[at] == least].tolist())
        last = heapq.nsmallest(most - len(best), equal)  # a million can be equal: not one place for each
        return [Found(name, -float(minus), why) for minus, name in (*best, *((-least, name) for name in last))]

    def _matching(self, query: str) -> list[str]:
        """Items of the library in which all words stand: all in the title, then with the artist, then with the tags."""
        first, *others = sorted((self._matches.get(w, {}) for w in words_of(query)), key=len)
        places: tuple[list[str], ...] = ([], [], [])
        for id, at in first.items():  # by id
            if all(id in hits for hits in others):
                places[max(at, *(hits[id] for hits in others)) if others else at].append(id)
                if len(places[0]) == self.length:
                    break
        return [id for place in places for id in place][: self.length]

    def _swapped(self, found: list[Found], asked: str) -> list[Found]:
        draw = random.Random(f"{self.seed} {len(self)} {asked}")
        if len(found) > 1 and draw.random() < self.swap:
            a, b = draw.sample(range(len(found)), 2)
            found[a], found[b] = found[b], found[a]
        return found

    def _count(self, new: list[Click]) -> None:
        self._tallies.add(new)
        self._clicks += len(new)
        for click in new:
            ahead = self._ahead.setdefault(click.node, set())
            ahead.add(click.counter)
        for node in {c.node for c in new}:
            ahead, at = self._ahead[node], self._next.get(node, 0)
            while at in ahead:
                ahead.remove(at)
                at += 1
            self._next[node] = at


def similarities(terms: Array, pairs: Array, union: Array, *, own: int | None = 0) -> Array:
    """S = (κ_t + κ_m²) / κ_u over the largest, by node.

    Parameters
    ----------
    terms, pairs, union : array of shape (..., nodes)
        κ_t, κ_m, κ_u; a row for each node that looks.
    own : int, optional
        The place of the node that looks, whose S is 1. With None it is whatever comes out.

    Returns
    -------
    array of shape (..., nodes)
        In [0, 1]; 0 where nothing was clicked.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import similarities
    >>> similarities(np.array([2.0, 1.0]), np.array([3.0, 1.0]), np.array([2.0, 4.0])).round(3).tolist()
    [1.0, 0.091]
    """
    raw = np.divide(terms + pairs**2, union, out=np.zeros(np.shape(union)), where=union > 0)
    largest = raw.max(-1, keepdims=True, initial=0)
    scaled = np.divide(raw, largest, out=raw, where=largest > 0)
    if own is not None:
        scaled[..., own] = 1.0
    return scaled


def weights_of(similarity: Array, isolation: float) -> Array:
    """S + F, upwards to multiples of 2⁻³²: their sums are exact, so that the order of clicks leaves no trace."""
    return np.ceil((similarity + isolation) * 2**32) / 2**32


def relevance(items: NDArray[np.int32], nodes: NDArray[np.int32], similarity: Array, isolation: float) -> Array:
    """R = Σ_j C_jk (S(j) + F), by item.

    Parameters
    ----------
    items, nodes : int array of shape (clicks,)
        What was clicked after the query, and by whom; places, an entry a click.
    similarity : array of shape (nodes,)
        S.
    isolation : float
        F.

    Returns
    -------
    array of shape (items,)
        Up to the largest item that was clicked.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking import relevance
    >>> clicked, who = np.array([0, 1, 1], np.int32), np.array([0, 1, 1], np.int32)
    >>> relevance(clicked, who, np.array([1.0, 0.25]), 0.5).tolist()
    [1.5, 1.5]
    """
    return np.bincount(items, weights=weights_of(similarity, isolation)[nodes]).astype(float)


def _first(found: Iterable[Found], length: int) -> list[Found]:
    """The first so many, each item once."""
    shown: dict[str, Found] = {}
    for one in found:
        shown.setdefault(one.item, one)
        if len(shown) == length:
            break
    return list(shown.values())


def _index(items: Iterable[Item]) -> dict[str, dict[str, int]]:
    """Word → item → where it stands: 0 in the title, 1 the artist, 2 the tags."""
    index: dict[str, dict[str, int]] = {}
    for item in sorted(items, key=lambda item: item.id):
        for field, text in enumerate((item.title, item.artist, " ".join(item.tags))):
            for word in words_of(text):
                index.setdefault(word, {}).setdefault(item.id, field)
    return index


def _batches(log: Log, size: int = 10_000) -> Iterator[list[Click]]:
    batch: list[Click] = []
    for click in log:
        batch.append(click)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def check_options(
    *,
    node: str = "a",
    k: int = 10,
    isolation: float = 0.0,
    swap: float = 0.0,
    length: int = 10,
    cap: int | None = None,
    released: bool = False,
    seed: int = 0,
) -> None:
    """Of `GRank`: the errors that it raises."""
    if wrong := fault(Click(node, 0, "a", "a")):
        raise ValueError(f"{wrong}={node!r:.60}; printable characters, 1 to 200 bytes, are wanted")
    for name, value in (("isolation", isolation), ("swap", swap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}; a number from 0 to 1 is wanted")
    whole = (("k", k, 1), ("length", length, 1), ("cap", 1 if cap is None else cap, 1), ("seed", seed, 0))
    for name, value, least in whole:
        if value < least:
            raise ValueError(f"{name}={value}; a whole number from {least} is wanted")
    if released and isolation:
        raise ValueError(f"isolation={isolation} with released=True: the released code drops it before it sorts")
