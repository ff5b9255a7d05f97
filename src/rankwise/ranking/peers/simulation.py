"""A network of G-Rank nodes, simulated: who searches, what is shown, what is clicked, and who hears of it.

In each round every node searches once with what it knows, clicks one place of what it is shown, and then meets one
other. Clicks are simulated, and so are tastes and libraries (see `make_world` in ``peers.world``). Lists are those of
`GRank`, apart from the draws of its swaps.

Where we differ from the paper's simulation: its code hands over all that the other has ever heard, here nodes tell what
they clicked themselves; who meets whom is drawn from all that are there, as a peer finder offers; one node searches at
a time there, all in a round here; items that were clicked join a library there. Its curves are of raw counts in a log;
here of the lists that were shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwise.nearest import unknown
from rankwise.ranking.peers.gossip import BURST, Attack, Gossip
from rankwise.ranking.peers.meter import Meter
from rankwise.ranking.peers.network import Network
from rankwise.ranking.peers.rankings import RANKERS, Ranking
from rankwise.ranking.peers.shown import Clicks, swapped
from rankwise.ranking.peers.world import Array, Ints, World, make_world, stream

__all__ = ["Simulated", "simulate"]

CHOICES = {
    "ranker": RANKERS,
    "click": ("interest", "position", "first"),
    "gossip": ("pull", "push", "none"),
    "similarity": ("paper", "released", "equal", "shuffled"),
    "attack": ("none", *BURST),
}
TOLD = 10  # of so many first clicks a node has heard one of another's before anything begins


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What was shown in a simulation, a row for every so many rounds.

    Attributes
    ----------
    rounds : int array of shape (rows,)
        Searches of each node until then.
    ndcg : array of shape (rows, nodes)
        Mean nDCG of the lists shown to each node, by the grades of its taste.
    counted, of_taste : array of shape (rows, nodes)
        Mean nDCG had the same searches been answered by all honest clicks of that moment, or by those of the nodes of
        the same taste: what a server could have made of this network's clicks.
    distance : array of shape (rows, nodes)
        Mean `positional_distance` of these lists from the order by all honest clicks of that moment.
    led : array of shape (rows, nodes)
        Share of these lists that what an attacker pushes stood first in.
    holding : array of shape (rows,)
        Median over terms of the share of nodes that have the most clicked item in their library or clicked it.
    reached : array of shape (rows,)
        Share of nodes that heard of clicks of the attack.
    taste : int array of shape (nodes,)
        Of each node.
    hears : bool array of shape (nodes,)
        Whether the node takes in what comes by gossip; those that can be cut off are the last ones.
    terms : int array of shape (searches, nodes)
        What was asked for.
    lists : int array of shape (searches, nodes, length) or None
        The items that were shown, -1 behind the last; with ``keep``.
    world : World
        Library, terms, grades.

    Examples
    --------
    >>> from rankwise.ranking import simulate
    >>> simulate(nodes=4, searches=6, every=2).ndcg.shape
    (3, 4)
    """

    rounds: Ints
    ndcg: Array
    counted: Array
    of_taste: Array
    distance: Array
    led: Array
    holding: Array
    reached: Array
    taste: Ints
    hears: NDArray[np.bool_]
    terms: Ints
    lists: NDArray[np.int32] | None
    world: World

    def late(self, what: str, *, share: float = 0.5) -> Array:
        """``ndcg``, ``counted``, ``of_taste``, ``distance`` or ``led`` of each node over the last share of the rows."""
        values = getattr(self, what)
        return values[len(values) - max(1, round(share * len(values))) :].mean(0)


def simulate(
    *,
    nodes: int = 100,
    searches: int = 100,
    seed: int = 0,
    ranker: str = "g-rank",
    click: str = "interest",
    gossip: str = "pull",
    isolation: float = 0.0,
    swap: float = 0.1,
    similarity: str = "paper",
    k: int = 10,
    length: int = 10,
    cap: int | None = None,
    attack: str = "none",
    attackers: int | None = None,
    offline: int = 0,
    accepting: float = 1.0,
    asked: bool = True,
    items: int = 253,
    terms: int = 39,
    tastes: int = 4,
    owned: float = 0.1,
    every: int = 1,
    keep: bool = False,
) -> Simulated:
    """Let a network of nodes search, click and gossip; the same options give the same lists.

    Each node begins with a share of all items and one click at random after each term, of which it told another some.
    Runs that differ in ranking, clicks, gossip or attack share their world, queries and meetings: compare them by seed.

    Parameters
    ----------
    nodes : int
        Honest ones, from 2.
    searches : int
        Of each node: as many rounds. The paper's 10,000 are 100 of each.
    seed : int
        Of all draws.
    ranker : {"g-rank", "local", "global", "tastes", "oracle", "random"}
        What orders the lists: `GRank`; a node's own clicks alone; everybody's clicks, as a server counts them; those of
        the honest nodes of one's taste, by a server that knows tastes; grades, the best that can be; chance.
    click : {"interest", "position", "first"}
        Which place is clicked: by interest, by interest and position, or the first (the paper's model).
    gossip : {"pull", "push", "none"}
        After its search a node asks another for what it clicked, or tells another.
    isolation, swap : float
        As in `GRank`.
    similarity : {"paper", "released", "equal", "shuffled"}
        With "equal" all clicks that a node heard of count the same: gossip of popularity. "shuffled", a control, gives
        every node another's similarity.
    k, length, cap : int
        As in `GRank`.
    attack : {"none", "inflation", "targeted", "epic"}
        See `Attack` in ``peers.gossip``. Attackers join after a quarter and strike after half of the rounds.
    attackers : int, optional
        By default a tenth of the nodes, and three times their number for "epic".
    offline : int
        So many nodes are cut off after half of the rounds, and go on searching.
    accepting : float
        Share of nodes that take in what they did not ask for.
    asked : bool
        Whether the others take in at least what they asked for. In the released code they do not, and are half.
    items, terms, tastes : int
        Sizes of the world.
    owned : float
        Share of all items in a library.
    every : int
        Rounds of a row of the result.
    keep : bool
        Whether to keep every list.

    Returns
    -------
    Simulated
        What was shown to the honest nodes.

    Raises
    ------
    ValueError
        For options out of range, or that cannot go together.

    Examples
    --------
    >>> from rankwise.ranking import simulate
    >>> ours, chance = (simulate(nodes=20, searches=40, ranker=r).late("ndcg").mean() for r in ("g-rank", "random"))
    >>> bool(ours > chance)
    True
    """
    _check_choices(ranker=ranker, click=click, gossip=gossip, similarity=similarity, attack=attack)
    _check_numbers(nodes=nodes, searches=searches, k=k, length=length, cap=cap, terms=terms, tastes=tastes, every=every)
    _check_shares(isolation=isolation, swap=swap, accepting=accepting, owned=owned)
    _check_together(
        nodes=nodes, items=items, terms=terms, offline=offline, attack=attack, attackers=attackers,
        similarity=similarity, isolation=isolation,
    )  # fmt: skip
    if ranker != "g-rank":
        _check_unused(
            ranker, similarity=(similarity, "paper"), isolation=(isolation, 0), k=(k, 10), cap=(cap, None),
            gossip=(gossip, "pull"), offline=(offline, 0), accepting=(accepting, 1), asked=(asked, True),
        )  # fmt: skip
    if attackers is None:
        attackers = {"none": 0, "epic": 3 * nodes}.get(attack, nodes // 10)
    world = make_world(
        nodes=nodes, attackers=attackers, items=items, terms=terms, tastes=tastes, owned=owned, seed=seed
    )
    network = Network(
        world, most=searches + terms + max(BURST.values()), k=k, isolation=isolation, cap=cap, similarity=similarity,
        seed=seed,
    )  # fmt: skip
    begin(network)
    ranking = Ranking(ranker, network, length, stream(seed, "random"))
    meetings = Gossip(
        gossip, nodes=nodes, attackers=attackers, offline=offline, accepting=accepting, asked=asked, seed=seed
    )
    attacking = Attack(attack, world, seed) if attackers else None
    clicks, meter = Clicks(click, world, length), Meter(world, length)
    queries, swaps, chosen = (stream(seed, what) for what in ("queries", "swaps", "clicks"))
    until, here, kept, reached = world.asks.cumsum(1), np.arange(nodes), [], np.zeros(nodes, bool)
    joins, strikes, cuts = searches // 4, searches // 2, searches // 2
    asked_for = np.empty((searches, nodes), np.int64)
    for t in range(searches):
        if attacking is not None and t == strikes:
            ranking.click(*attacking.burst(meter.worth.ranks(ranking.honest)))
        term = drawn(until[world.taste], queries.random(nodes))
        shown = swapped(ranking.lists(term), swap, swaps.random((nodes, 3)))
        place = clicks.places(world.taste, term, shown, chosen.random(nodes))
        meter.add(term, shown, ranking, attacking.target if attacking is not None else None)
        ranking.click(here, term, shown[here, place])
        if ranker == "g-rank" and gossip != "none":
            receivers, senders = meetings.round(joined=t >= joins, attacking=t >= strikes, cut=t >= cuts)
            network.tell(receivers, senders)
            reached[receivers[(senders >= nodes) & (t >= strikes)]] = True
        if (t + 1) % every == 0 or t + 1 == searches:
            meter.close(t + 1, network, ranking.honest, reached)
        asked_for[t] = term
        if keep:
            kept.append(np.where(shown >= 0, world.columns[term[:, None], shown], -1).astype(np.int32))
    return Simulated(
        **meter.arrays(), taste=world.taste, hears=meetings.hears, terms=asked_for,
        lists=np.stack(kept) if keep else None, world=world,
    )  # fmt: skip


def begin(network: Network) -> None:
    """Every node clicks once after each term; each searcher hears of the first tenth of a friend's clicks."""
    world = network.world
    everyone, terms = world.order.shape
    nodes = np.arange(everyone)
    for t in range(terms):
        term = world.order[:, t]
        network.click(nodes, term, world.first[nodes, term])
        if t + 1 == -(-terms // TOLD):
            network.tell(np.arange(len(world.taste)), world.friend)


def drawn(until: Array, draws: Array) -> Ints:
    """An index for each row of cumulated probabilities."""
    return np.minimum((until <= draws[:, None]).sum(1), until.shape[1] - 1)


def _check_choices(**given: str) -> None:
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise unknown(name, value, CHOICES[name])


def _check_numbers(*, nodes: int, cap: int | None, **given: int) -> None:
    for name, value, least in (
        ("nodes", nodes, 2), ("cap", 1 if cap is None else cap, 1), *((n, v, 1) for n, v in given.items())
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}={value}; a whole number from {least} is wanted")


def _check_shares(**given: float) -> None:
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}; a number from 0 to 1 is wanted")


def _check_together(
    *, nodes: int, items: int, terms: int, offline: int, attack: str, attackers: int | None, similarity: str,
    isolation: float,
) -> None:  # fmt: skip
    if items < terms or terms < 3:
        raise ValueError(f"items={items}, terms={terms}; at least 3 terms, and an item for each, are wanted")
    if not 0 <= offline <= nodes:
        raise ValueError(f"offline={offline}; 0 to all {nodes} nodes is wanted")
    if attackers is not None and (attackers < 0 or (attack == "none" and attackers)):
        raise ValueError(f"attackers={attackers} with attack={attack!r}; 0 or more, and an attack, are wanted")
    if similarity == "released" and isolation:
        raise ValueError(f"isolation={isolation} with similarity='released': the released code drops it")


def _check_unused(ranker: str, **given: tuple[object, object]) -> None:
    for name, (value, default) in given.items():
        if value != default:
            raise ValueError(
                f"{name}={value!r} means nothing with ranker={ranker!r}, which asks no other node: leave it out"
            )
