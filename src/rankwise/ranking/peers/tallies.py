"""What a log of clicks says about nodes and items, counted once and kept up to date."""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking.peers.clicks import Click

Array = NDArray[np.float64]


class Tallies:
    """Counts over a log, seen from one node (which has place 0); a click is added in constant time.

    Parameters
    ----------
    own : str
        The node that looks.
    k : int
        How many of a node's most frequent queries are compared.
    cap : int, optional
        Clicks of one node on one item after one query count at most so often; None counts all.

    Examples
    --------
    >>> from rankwise.ranking import Click
    >>> from rankwise.ranking.peers.tallies import Tallies
    >>> tallies = Tallies("ann", k=10, cap=None)
    >>> tallies.add([Click("ann", 0, "blues", "x"), Click("bob", 0, "blues", "x"), Click("bob", 1, "rock", "y")])
    >>> tallies.terms.tolist(), tallies.pairs.tolist(), tallies.union.tolist()
    ([1.0, 1.0], [1.0, 1.0], [1.0, 2.0])
    """

    def __init__(self, own: str, *, k: int, cap: int | None) -> None:
        self.k, self.cap = k, cap
        self.nodes: dict[str, int] = {}
        self.queries: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.names: list[str] = []  # of items, by place
        self.by_word: dict[str, set[int]] = defaultdict(set)
        self._words: list[str] = []  # by query
        self._of_query: list[tuple[array[int], array[int]]] = []  # (items, nodes), an entry a counted click
        self._asked: list[dict[int, int]] = []  # by node: times of each query
        self._chose: list[dict[tuple[int, int], int]] = []  # by node: times of each (query, item)
        self._clicked: list[dict[int, int]] = []  # by node: times of each item
        self._top: list[set[int]] = []  # by node: its k most frequent queries, the more often, then by name
        self._last: list[int] = []  # by node: the last of these
        self._terms: list[int] = []
        self._pairs: list[int] = []
        self._shared_items: list[int] = []
        self._fans = array("i")  # by item: nodes that clicked it
        self._place(own)

    @property
    def terms(self) -> Array:
        """κ_t: queries among both nodes' k most frequent, by node."""
        return np.asarray(self._terms, float)

    @property
    def pairs(self) -> Array:
        """κ_m: (query, item) that both clicked, by node."""
        return np.asarray(self._pairs, float)

    @property
    def union(self) -> Array:
        """κ_u: items that either clicked, by node."""
        sizes = np.asarray([len(c) for c in self._clicked], float)
        return len(self._clicked[0]) + sizes - np.asarray(self._shared_items, float)

    @property
    def fans(self) -> Array:
        """How many nodes clicked each item."""
        return np.frombuffer(self._fans, np.int32).astype(float)

    def clicks(self, queries: Iterable[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Items and nodes of the clicks after some queries, an entry a click."""
        both = zip(*(self._of_query[q] for q in queries), strict=True)
        items, nodes = (np.frombuffer(b"".join(parts), np.int32) for parts in both)
        return items, nodes

    def released(self) -> tuple[Array, Array]:
        """κ_m as the released code has it (items that both clicked after queries that both made), and those queries."""
        own = self._chose[0]
        asked = {q for q, _ in own}
        items, queries = [], []
        for theirs in self._chose:
            shared = asked & {q for q, _ in theirs}
            mine, their = ({i for q, i in chose if q in shared} for chose in (own, theirs))
            items.append(len(mine & their))
            queries.append(len(shared))
        return np.asarray(items, float), np.asarray(queries, float)

    def add(self, clicks: Iterable[Click], *, times: int = 1) -> None:
        """Count clicks; ``times=-1`` takes them back."""
        for node, _, query, item, _ in clicks:
            n = self.nodes.get(node)
            n = self._place(node) if n is None else n
            q = self.queries.get(query)
            q = self._query(query) if q is None else q
            i = self.items.get(item)
            if i is None:
                i = self.items[item] = len(self.items)
                self.names.append(item)
                self._fans.append(0)
            self._count_query(n, q, times)
            self._count_pair(n, q, i, times)
            self._count_item(n, i, times)

    def _count_query(self, n: int, q: int, times: int) -> None:
        asked, top = self._asked[n], self._top[n]
        asked[q] = asked.get(q, 0) + times

        def place(q: int) -> tuple[int, str]:
            return -asked[q], self._words[q]

        same = times > 0 and q in top
        if times < 0:
            if q not in top:
                return
            top.clear()
            top.update(heapq.nsmallest(self.k, (q for q, count in asked.items() if count), key=place))
        elif q not in top:
            if len(top) == self.k:
                if place(q) > place(self._last[n]):
                    return
                top.remove(self._last[n])
            top.add(q)
        elif q != self._last[n]:
            return
        self._last[n] = max(top, key=place, default=-1)
        if not same:
            for other in range(len(self._top)) if n == 0 else (n,):
                self._terms[other] = len(self._top[0] & self._top[other])

    def _count_pair(self, n: int, q: int, i: int, times: int) -> None:
        before, after = _counted(self._chose, self._pairs, n, (q, i), times)
        if self.cap is None or max(before, after) <= self.cap:
            self._enter(q, i, n, times)

    def _count_item(self, n: int, i: int, times: int) -> None:
        before, after = _counted(self._clicked, self._shared_items, n, i, times)
        if bool(before) != bool(after):
            self._fans[i] += times

    def _enter(self, q: int, i: int, n: int, times: int) -> None:
        items, nodes = self._of_query[q]
        if times > 0:
            items.append(i)
            nodes.append(n)
            return
        at = int(np.flatnonzero((np.frombuffer(items, np.int32) == i) & (np.frombuffer(nodes, np.int32) == n))[0])
        items[at], nodes[at] = items[-1], nodes[-1]  # their order says nothing
        items.pop()
        nodes.pop()

    def _place(self, node: str) -> int:
        n = self.nodes[node] = len(self.nodes)
        for table in (self._asked, self._chose, self._clicked):
            table.append({})
        for counts in (self._terms, self._pairs, self._shared_items):
            counts.append(0)
        self._top.append(set())
        self._last.append(-1)
        return n

    def _query(self, query: str) -> int:
        q = self.queries[query] = len(self.queries)
        self._words.append(query)
        self._of_query.append((array("i"), array("i")))
        for word in query.split():
            self.by_word[word].add(q)
        return q


def _counted(tables: list[dict[Any, int]], shared: list[int], n: int, key: Hashable, times: int) -> tuple[int, int]:
    """Count in the table of a node, and what each shares with node 0; how often it stood there before, and after."""
    own = tables[n]
    before = own.get(key, 0)
    after = before + times
    if after:
        own[key] = after
    else:
        del own[key]
    if bool(before) != bool(after):
        if n:
            shared[n] += times * (key in tables[0])
        else:
            for other, theirs in enumerate(tables):
                shared[other] += times * (other == 0 or key in theirs)
    return before, after
