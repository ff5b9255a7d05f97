"""What is measured of the lists that a simulated network shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking.peers.network import Network
from rankwise.ranking.peers.rankings import Ranking
from rankwise.ranking.peers.shown import Worth, listed
from rankwise.ranking.peers.world import Array, Ints, World


class Meter:
    """Means of what is shown, over blocks of rounds.

    Parameters
    ----------
    world : World
        Whose grades count.
    length : int
        Places of a list.

    Examples
    --------
    >>> from rankwise.ranking.peers.meter import Meter
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> list(Meter(world, 2).arrays())
    ['rounds', 'ndcg', 'counted', 'of_taste', 'distance', 'led', 'holding', 'reached']
    """

    MEANS = ("ndcg", "counted", "of_taste", "distance", "led")

    def __init__(self, world: World, length: int) -> None:
        self.world, self.worth = world, Worth(world, length)
        self._rows: dict[str, list] = {name: [] for name in ("rounds", *self.MEANS, "holding", "reached")}
        self._block: list[tuple[Array, ...]] = []
        self._all = np.where(world.columns >= 0, 1.0, np.inf)

    def add(self, terms: Ints, shown: Ints, ranking: Ranking, target: Ints | None) -> None:
        """One round's lists."""
        taste, worth, length = self.world.taste, self.worth, shown.shape[1]
        ranks = worth.ranks(ranking.honest)
        counted = ranks.argsort(1)[terms, :length]
        of_taste = listed(ranking.tastes[taste, terms].astype(float), self._all[terms], length)
        led = np.zeros(len(terms)) if target is None else (shown[:, 0] == target[terms]).astype(float)
        goods = [worth.ndcg(taste, terms, columns) for columns in (shown, counted, of_taste)]
        self._block.append((*goods, worth.distance(terms, shown, ranks).astype(float), led))

    def close(self, rounds: int, network: Network, honest: Ints, reached: NDArray[np.bool_]) -> None:
        """End a block."""
        for name, values in zip(self.MEANS, zip(*self._block, strict=True), strict=True):
            self._rows[name].append(np.mean(values, 0))
        self._block = []
        popular = self.world.columns[np.arange(len(honest)), self.worth.ranks(honest).argmin(1)]
        searchers = slice(len(self.world.taste))
        has = self.world.owns[searchers] | network.clicked[searchers]
        self._rows["holding"].append(np.median(has[:, popular].mean(0)))
        self._rows["reached"].append(reached.mean())
        self._rows["rounds"].append(rounds)

    def arrays(self) -> dict[str, NDArray]:
        """All blocks."""
        return {name: np.asarray(values) for name, values in self._rows.items()}
