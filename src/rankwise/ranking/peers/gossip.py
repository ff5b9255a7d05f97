"""Who tells whom in a round of a simulated network, and what attackers do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking.peers.world import Ints, World, stream

BURST = {"inflation": 1000, "targeted": 100, "epic": 100}  # clicks of one attacker


class Gossip:
    """Every node meets one other, any that is there, after its search.

    Parameters
    ----------
    kind : {"pull", "push", "none"}
        It asks the other for its clicks, or sends its own. Attackers that push send to two.
    nodes, attackers : int
        Searchers, and those behind them.
    offline : int
        How many of the last searchers can be cut off.
    accepting : float
        Share of searchers that take in what they did not ask for.
    asked : bool
        Whether the others take in what they asked for.
    seed : int
        Of the meetings.

    Attributes
    ----------
    hears : bool array of shape (nodes,)
        Whether a searcher takes in what this gossip brings.

    Examples
    --------
    >>> from rankwise.ranking.peers.gossip import Gossip
    >>> gossip = Gossip("pull", nodes=3, attackers=0, offline=0, accepting=1.0, asked=True, seed=0)
    >>> gossip.round(joined=False, attacking=False, cut=False)[0]
    array([0, 1, 2])
    """

    def __init__(
        self, kind: str, *, nodes: int, attackers: int, offline: int, accepting: float, asked: bool, seed: int
    ) -> None:
        self.kind, self.nodes, self.attackers = kind, nodes, attackers
        order = stream(seed, "accepting").permutation(nodes)
        self.hears = np.full(nodes, kind != "none")
        if kind == "push" or not asked:
            self.hears[order[round(accepting * nodes) :]] = False
        self._cut = np.zeros(nodes + attackers, bool)
        self._cut[nodes - offline : nodes] = True
        self._meetings, self._spam = stream(seed, "meetings"), stream(seed, "spam")

    def round(self, *, joined: bool, attacking: bool, cut: bool) -> tuple[Ints, Ints]:
        """Receivers and senders of a round; attackers are met from when they have joined."""
        here = np.arange(self.nodes)
        there = self.nodes + (self.attackers if joined else 0)
        other = _another(here, there, self._meetings.random(self.nodes))
        receivers, senders = (here, other) if self.kind == "pull" else (other, here)
        if attacking and self.kind == "push":
            spammers = np.repeat(np.arange(self.nodes, there), 2)
            receivers = np.concatenate([receivers, _another(spammers, there, self._spam.random(len(spammers)))])
            senders = np.concatenate([senders, spammers])
        kept = (receivers < self.nodes) & self.hears[np.minimum(receivers, self.nodes - 1)]
        if cut:
            kept &= ~(self._cut[receivers] | self._cut[senders])
        return receivers[kept], senders[kept]


class Attack:
    """Nodes that join after a quarter of the run, wait to be met, and at half of it click many times at once.

    Parameters
    ----------
    kind : {"inflation", "targeted", "epic"}
        Inflation: 1000 clicks on whatever carries the term, after terms at random. Targeted and epic: 100 clicks after
        one term, on the item that stands last in what all honest nodes clicked; all who attack a term push the same.
    world : World
        Attackers stand behind its searchers.
    seed : int
        Of their draws.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking.peers.gossip import Attack
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=1, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> ranks = np.tile(np.arange(world.columns.shape[1]), (3, 1))
    >>> nodes, terms, columns = Attack("targeted", world, seed=0).burst(ranks)
    >>> set(nodes.tolist()), len(nodes)
    ({2}, 100)
    """

    def __init__(self, kind: str, world: World, seed: int) -> None:
        self.kind, self.world, self._rng = kind, world, stream(seed, "attack")
        self.target = np.full(len(world.terms), -1)

    def burst(self, ranks: Ints) -> tuple[Ints, Ints, Ints]:
        """Nodes, terms and columns of all clicks, given the place of each column in the honest order."""
        searchers, everyone = len(self.world.taste), len(self.world.first)
        here, terms, number = self.world.columns >= 0, len(self.world.terms), BURST[self.kind]
        nodes = np.repeat(np.arange(searchers, everyone), number)
        if self.kind == "inflation":
            after = self._rng.integers(terms, size=len(nodes))
            return nodes, after, (self._rng.random(len(nodes)) * here.sum(1)[after]).astype(np.int64)
        chosen = self._rng.integers(terms, size=everyone - searchers)
        last = np.where(here, ranks, -1).argmax(1)
        self.target[chosen] = last[chosen]
        after = np.repeat(chosen, number)
        return nodes, after, last[after]


def _another(here: Ints, there: int, draws: NDArray[np.float64]) -> Ints:
    """One of ``there`` nodes for each, never itself."""
    other = (draws * (there - 1)).astype(np.int64)
    return other + (other >= here)
