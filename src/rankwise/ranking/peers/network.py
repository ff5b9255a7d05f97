"""What all nodes of a simulated network know, as arrays.

No node passes on what others clicked, so what i knows of j is what j had clicked when they last met: a copy of j's own
counts at that time. Similarities are counts of common bits, scores a product of counts with weights; both are those of
`GRank` to the last digit, since weights are multiples of 2⁻³² whose sums are exact.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking.g_rank import similarities, weights_of
from rankwise.ranking.peers.world import Array, Ints, World, stream


class Network:
    """Counts of clicks by node, term and column (of `World`): each node's own, and what searchers know of all.

    Every node has clicked after every term: `GRank`'s rules for a query that is new are never needed.

    Parameters
    ----------
    world : World
        What there is; the first nodes search, those behind only click.
    most : int
        The most clicks that one node can make.
    k, isolation, cap : int, float, int or None
        As in `GRank`.
    similarity : {"paper", "released", "equal", "shuffled"}
        "equal" is 1 throughout; with "shuffled" each node takes every other node for one that it is not.
    seed : int
        Of that shuffle.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking.peers.network import Network
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> network = Network(world, most=10, k=10, isolation=0.0, cap=None, similarity="paper", seed=0)
    >>> network.click(np.array([0]), np.array([1]), np.array([0]))
    >>> network.scores(np.array([1, 1]))[:, 0]
    array([1., 0.])
    """

    def __init__(
        self, world: World, *, most: int, k: int, isolation: float, cap: int | None, similarity: str, seed: int
    ) -> None:
        everyone, terms = world.first.shape
        searchers, width = len(world.taste), world.columns.shape[1]
        self.world, self.k, self.isolation, self.cap, self.similarity = world, k, isolation, cap, similarity
        self.own = np.zeros((everyone, terms, width), np.min_scalar_type(most))
        self.clicked = np.zeros((everyone, len(world.library)), bool)
        self.seen = np.zeros((searchers, terms, everyone, width), self.own.dtype)
        bits = self._bits(np.arange(1))
        self._own_bits = np.zeros((len(bits), everyone), np.uint64)
        self._seen_bits = np.zeros((len(bits), searchers, everyone), np.uint64)
        self._searchers = np.arange(searchers)
        self._taken_for = _derangements(searchers, everyone, seed) if similarity == "shuffled" else None

    def click(self, nodes: Ints, terms: Ints, columns: Ints) -> None:
        """Each of these nodes clicks once; a node may come several times."""
        np.add.at(self.own, (nodes, terms, columns), 1)
        self.clicked[nodes, self.world.columns[terms, columns]] = True
        changed = np.unique(nodes)
        self._own_bits[:, changed] = self._bits(changed)
        searching = changed[changed < len(self._searchers)]
        self.tell(searching, searching)

    def tell(self, receivers: Ints, senders: Ints) -> None:
        """Each receiver learns all that its sender has clicked."""
        self.seen[receivers, :, senders] = self.own[senders]
        self._seen_bits[:, receivers, senders] = self._own_bits[:, senders]

    def similarities(self) -> Array:
        """S ``(searchers, everyone)``."""
        if self.similarity == "equal":
            return np.ones(self.seen.shape[:1] + self.seen.shape[2:3])
        terms, pairs, items = self._common()
        sizes = [np.bitwise_count(b[-self._item_words :]).sum(0, np.uint16) for b in (self._own_bits, self._seen_bits)]
        union = sizes[0][: len(self._searchers), None] + sizes[1] - items
        if self.similarity == "released":
            return similarities(items, terms, union, own=None)  # of who was met, every query is shared
        scaled = similarities(terms, pairs, union, own=None)
        scaled[self._searchers, self._searchers] = 1.0
        if self._taken_for is not None:
            return np.take_along_axis(scaled, self._taken_for, 1)
        return scaled

    def scores(self, terms: Ints) -> Array:
        """R ``(searchers, columns)`` after one term each."""
        counts = self.seen[self._searchers, terms]
        if self.cap is not None:
            counts = np.minimum(counts, self.cap)
        weights = weights_of(self.similarities(), self.isolation)
        return (weights[:, None] @ counts.astype(float))[:, 0]

    def _common(self) -> tuple[Array, Array, Array]:
        both = np.bitwise_count(self._seen_bits & self._own_bits[:, : len(self._searchers), None])
        at = np.cumsum([0, self._term_words, self._pair_words, self._item_words])
        parts = [both[a:b].sum(0, np.uint16).astype(float) for a, b in pairwise(at)]
        return parts[0], parts[1], parts[2]

    def _bits(self, nodes: Ints) -> NDArray[np.uint64]:
        """Of each node the most frequent terms, the pairs and the items that it clicked ``(words, nodes)``."""
        own = self.own[nodes]
        asked, number = own.sum(2, dtype=np.int64), own.shape[1]
        top = np.zeros(asked.shape, bool)
        order = (number * asked - np.arange(number)).argsort(1)[:, ::-1]  # the more often, then by name
        np.put_along_axis(top, order[:, : self.k], True, 1)
        parts = [_packed(x) for x in (top & (asked > 0), (own > 0).reshape(len(nodes), -1), self.clicked[nodes])]
        self._term_words, self._pair_words, self._item_words = map(len, parts)
        return np.concatenate(parts)


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Rows of bits as ``(words, rows)``."""
    words = -(-bits.shape[1] // 64)
    padded = np.zeros((len(bits), 64 * words), bool)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, 1).view(np.uint64).reshape(len(bits), words).T


def _derangements(searchers: int, everyone: int, seed: int) -> Ints:
    """For each searcher, whom it takes each node for: itself for itself, another for every other."""
    rng, taken = stream(seed, "shuffled"), np.empty((searchers, everyone), np.int64)
    for i in range(searchers):
        others = rng.permutation(np.delete(np.arange(everyone), i))
        taken[i, others] = np.roll(others, 1)
        taken[i, i] = i
    return taken
