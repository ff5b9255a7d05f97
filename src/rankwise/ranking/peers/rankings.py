"""What a simulated network's lists can be ordered by: G-Rank, and what it is compared with."""

from __future__ import annotations

import numpy as np

from rankwise.ranking.peers.network import Network
from rankwise.ranking.peers.shown import listed
from rankwise.ranking.peers.world import Ints

RANKERS = ("g-rank", "local", "global", "tastes", "oracle", "random")


class Ranking:
    """Lists by one ranker, and the counts of clicks that a server would have.

    Parameters
    ----------
    ranker : {"g-rank", "local", "global", "tastes", "oracle", "random"}
        See `simulate`.
    network : Network
        Which is told of every click too.
    length : int
        Places of a list.
    rng : Generator
        For "random".

    Attributes
    ----------
    honest : int array of shape (terms, columns)
        Clicks of all searchers.
    tastes : int array of shape (tastes, terms, columns)
        The same by taste.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking.peers.network import Network
    >>> from rankwise.ranking.peers.rankings import Ranking
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> network = Network(world, most=10, k=10, isolation=0.0, cap=None, similarity="paper", seed=0)
    >>> ranking = Ranking("global", network, 2, np.random.default_rng(0))
    >>> ranking.click(np.array([0]), np.array([1]), np.array([2]))
    >>> ranking.lists(np.array([1, 1]))
    array([[2, 0],
           [2, 0]])
    """

    def __init__(self, ranker: str, network: Network, length: int, rng: np.random.Generator) -> None:
        world = network.world
        self.ranker, self.network, self.length, self._rng = ranker, network, length, rng
        self._nodes = np.arange(len(world.taste))
        own = network.own[: len(world.taste)].astype(np.int64)
        self.honest = own.sum(0)
        self._everybodys = network.own.sum(0, dtype=np.int64)
        self.tastes = np.stack([own[world.taste == c].sum(0) for c in range(len(world.asks))])
        here = world.columns >= 0
        self._all = np.where(here, 1.0, np.inf)
        self._owned = np.where(here & world.owns[: len(self._nodes)][:, world.columns], 1.0, np.inf)

    def click(self, nodes: Ints, terms: Ints, columns: Ints) -> None:
        """Take note of clicks."""
        self.network.click(nodes, terms, columns)
        np.add.at(self._everybodys, (terms, columns), 1)
        if nodes[0] < len(self._nodes):
            np.add.at(self.honest, (terms, columns), 1)
            np.add.at(self.tastes, (self.network.world.taste[nodes], terms, columns), 1)

    def lists(self, terms: Ints) -> Ints:
        """Columns that each node is shown after its term."""
        if self.ranker == "g-rank":
            return listed(self.network.scores(terms), self._owned[self._nodes, terms], self.length)
        if self.ranker == "local":
            own = self.network.own[self._nodes, terms].astype(float)
            return listed(own, self._owned[self._nodes, terms], self.length)
        every = self._all[terms]
        if self.ranker == "random":
            return listed(np.zeros(every.shape), every * self._rng.random(every.shape), self.length)
        if self.ranker == "global":
            return listed(self._everybodys[terms].astype(float), every, self.length)
        by_taste = self.tastes if self.ranker == "tastes" else self.network.world.grades
        return listed(by_taste[self.network.world.taste, terms].astype(float), every, self.length)
