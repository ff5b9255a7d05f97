"""Speed of search among peers: a network as arrays against one of `GRank` objects, and a long log against a scan."""

from __future__ import annotations

import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.events import OnEvent
from rankwise.ranking import Click, GRank, simulate
from rankwise.ranking.peers.gossip import Attack, Gossip
from rankwise.ranking.peers.log import Log, MemoryLog, SqliteLog
from rankwise.ranking.peers.shown import Clicks, Worth, swapped
from rankwise.ranking.peers.simulation import TOLD
from rankwise.ranking.peers.world import Ints, World, make_world, stream

RECIPE = Recipe(
    name="speed",
    part="peers",
    about="search among peers: speed ratios, and a million clicks on one node",
    smoke={"NODES": 8, "SEARCHES": 10, "LONG": 20, "CLICKS": 5_000, "ASKED": 5},
    control=False,
)

NODES, SEARCHES, LONG = 100, 20, 10_000  # nodes; rounds of the comparison, and of the long run
CLICKS, PEERS, TERMS, ITEMS, ASKED = 1_000_000, 1_000, 2_000, 20_000, 200
ANSWER, BATCH = 100, 1_000  # clicks of one node that come together; clicks that are merged at once
LIMITS = {"network": 60.0, "search": 5e-3, "insertion": 50_000.0}


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    return side_by_side(
        {"network": network, "node": node},
        on_event,
        recipe="peers_speed",
        title="Search among peers: speed",
        command="rankwise bench speed --part peers",
        setting=f"one thread, one process; networks of {NODES} nodes; {CLICKS:,} clicks of {PEERS:,} nodes on "
        f"{ITEMS:,} items after {TERMS:,} queries (Zipf), which come as answers of {ANSWER} clicks of one node, "
        f"{BATCH // ANSWER} answers merged at once, or in any order",
    )


# --- a network


def network() -> Measured:
    """A short run of both, whose lists must be equal, and one long run of ours."""
    lists: list[NDArray[np.int32] | None] = []
    ours, theirs = alternate(
        lambda: lists.append(simulate(nodes=NODES, searches=SEARCHES, keep=True).lists),
        lambda: lists.append(looped(nodes=NODES, searches=SEARCHES)),
    )
    a, b = lists[-2], lists[-1]
    assert a is not None
    assert b is not None
    begin = time.perf_counter()
    simulate(nodes=NODES, searches=LONG, every=max(1, LONG // 100))
    seconds = time.perf_counter() - begin
    return [
        [f"{NODES} nodes, {SEARCHES} searches each", f"{ours:.2f}s", "GRank objects", f"{theirs:.1f}s",
         f"{theirs / ours:.0f}x"],
        [f"{NODES} nodes, {LONG:,} searches each", f"{seconds:.1f}s", "limit", f"{LIMITS['network']:.0f}s",
         f"{LIMITS['network'] / seconds:.1f}x"],
    ], [
        Claim(
            text="a simulated network shows the very lists of GRank objects",
            held=np.array_equal(a, b),
            found=f"{(a == b).all(-1).mean():.2%} of {a.shape[0] * a.shape[1]:,} lists are equal",
        ),
        Claim(
            text=f"{NODES} nodes search {LONG:,} times each within {LIMITS['network']:.0f} seconds",
            held=seconds <= LIMITS["network"],
            found=f"{seconds:.1f}s for {NODES * LONG:,} searches; {theirs / ours:.0f}x GRank objects at {SEARCHES}",
        ),
    ]  # fmt: skip


def looped(
    *,
    nodes: int,
    searches: int,
    seed: int = 0,
    click: str = "interest",
    gossip: str = "pull",
    isolation: float = 0.0,
    swap: float = 0.1,
    released: bool = False,
    cap: int | None = None,
    attack: str = "none",
    attackers: int = 0,
    items: int = 253,
    terms: int = 39,
    length: int = 10,
) -> NDArray[np.int32]:
    """The lists ``(searches, nodes, length)`` of `simulate` by `GRank` objects, with the same draws."""
    world = make_world(nodes=nodes, attackers=attackers, items=items, terms=terms, tastes=4, owned=0.1, seed=seed)
    peers = Peers(world, isolation=isolation, released=released, cap=cap, length=length)
    meetings = Gossip(gossip, nodes=nodes, attackers=attackers, offline=0, accepting=1.0, asked=True, seed=seed)
    spam, clicks, worth = Attack(attack, world, seed), Clicks(click, world, length), Worth(world, length)
    queries, swaps, chosen = (stream(seed, what) for what in ("queries", "swaps", "clicks"))
    until, kept = world.asks.cumsum(1)[world.taste], []
    for t in range(searches):
        if attackers and t == searches // 2:
            peers.write(*spam.burst(worth.ranks(peers.honest)))
        asked = (until <= queries.random(nodes)[:, None]).sum(1)
        shown = swapped(peers.shown(asked), swap, swaps.random((nodes, 3)))
        places = clicks.places(world.taste, asked, shown, chosen.random(nodes))
        peers.write(np.arange(nodes), asked, shown[np.arange(nodes), places])
        peers.tell(*meetings.round(joined=t >= searches // 4, attacking=t >= searches // 2, cut=False))
        kept.append(np.where(shown >= 0, world.columns[asked[:, None], shown], -1).astype(np.int32))
    return np.stack(kept)


class Peers:
    """A world's nodes as `GRank` objects, with the log of each."""

    def __init__(self, world: World, *, length: int, **options: Any) -> None:
        self.world, self.length = world, length
        self.honest = np.zeros(world.columns.shape, np.int64)
        self._column = [{world.library[i].id: c for c, i in enumerate(row) if i >= 0} for row in world.columns.tolist()]
        self._logs: list[list[Click]] = [[] for _ in world.first]
        self._peers = [
            GRank(f"node{i:03d}", [world.library[j] for j in np.flatnonzero(world.owns[i])], swap=0, length=length,
                  **options)
            for i in range(len(world.taste))
        ]  # fmt: skip
        for i, order in enumerate(world.order):
            self.write(np.full(len(order), i), order, world.first[i, order])
        for peer, friend in zip(self._peers, world.friend, strict=True):
            peer.merge(self._logs[friend][: -(-len(world.terms) // TOLD)])

    def write(self, nodes: Ints, terms: Ints, columns: Ints) -> None:
        """Click by click."""
        for i, q, c in zip(nodes.tolist(), terms.tolist(), columns.tolist(), strict=True):
            item = self.world.library[self.world.columns[q, c]].id
            self._logs[i].append(Click(f"node{i:03d}", len(self._logs[i]), self.world.terms[q], item))
            if i < len(self._peers):
                self.honest[q, c] += 1
                self._peers[i].merge(self._logs[i][-1:])

    def shown(self, terms: Ints) -> Ints:
        """Columns of the items that each node finds."""
        columns = np.full((len(terms), self.length), -1)
        for i, (peer, q) in enumerate(zip(self._peers, terms.tolist(), strict=True)):
            found = peer.search(self.world.terms[q])
            columns[i, : len(found)] = [self._column[q][f.item] for f in found]
        return columns

    def tell(self, receivers: Ints, senders: Ints) -> None:
        """What the receiver lacks of the sender's own clicks."""
        for i, j in zip(receivers.tolist(), senders.tolist(), strict=True):
            self._peers[i].merge(self._logs[j][self._peers[i].progress(f"node{j:03d}") :])


# --- one node with a long log


def node() -> Measured:
    """Insertion in memory and in a file; searches against a scan of the log."""
    mixed = clicks()
    log = sorted(mixed, key=lambda c: (c.counter // ANSWER, c.node))
    with TemporaryDirectory() as folder:
        seconds, peer = _merged(log, MemoryLog())
        kept, written = _merged(log, SqliteLog(Path(folder) / "log.sqlite"))
        written.close()
        slower, written = _merged(mixed, SqliteLog(Path(folder) / "mixed.sqlite"))
        written.close()
    asked = random.Random(0).choices([c.query for c in log], k=ASKED)
    fast, slow = _times(peer, log, asked)
    rates = {"in memory": len(log) / seconds, "SQLite": len(log) / kept, "SQLite, in any order": len(log) / slower}
    shown = [{f.item: f.score for f in peer.search(q) if f.why == "clicks"} for q in asked[:5]]
    same = shown == [_scanned(peer, log, q) for q in asked[:5]]
    return [
        *[
            [f"clicks a second, {where}", f"{rate:,.0f}", "limit", f"{LIMITS['insertion']:,.0f}",
             f"{rate / LIMITS['insertion']:.1f}x"]
            for where, rate in rates.items()
        ],
        [f"search, {len(log):,} clicks", f"{1e3 * fast[0]:.2f}ms (99%: {1e3 * fast[1]:.1f}ms)", "a scan of the log",
         f"{1e3 * slow:.0f}ms", f"{slow / fast[0]:.0f}x"],
    ], [
        Claim(
            text=f"at least {LIMITS['insertion']:,.0f} clicks a second are taken in, in memory and in SQLite",
            held=min(rates["in memory"], rates["SQLite"]) >= LIMITS["insertion"],
            found=", ".join(f"{rate:,.0f} {where}" for where, rate in rates.items()),
        ),
        Claim(
            text=f"99% of searches among {len(log):,} clicks within {1e3 * LIMITS['search']:.0f} ms, scores those of a "
            "scan",
            held=fast[1] <= LIMITS["search"] and same,
            found=f"median {1e3 * fast[0]:.2f} ms, 99% within {1e3 * fast[1]:.1f} ms of {ASKED}; a scan "
            f"{1e3 * slow:.0f} ms ({slow / fast[0]:.0f}x); scores {'equal' if same else 'differ'}",
        ),
    ]  # fmt: skip


def clicks() -> list[Click]:
    """Clicks of many nodes, queries by Zipf's law, each on one of ten items of its own."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, TERMS + 1)
    asked = rng.choice(TERMS, size=CLICKS, p=weight / weight.sum()).tolist()
    item = rng.integers(10, size=CLICKS).tolist()
    nodes = rng.integers(PEERS, size=CLICKS).tolist()
    counter = [0] * PEERS
    log = []
    for n, q, i in zip(nodes, asked, item, strict=True):
        log.append(Click(f"node{n:04d}", counter[n], f"term{q:05d}", f"item{(7919 * q + i) % ITEMS:06d}"))
        counter[n] += 1
    return log


def _merged(log: list[Click], into: Log) -> tuple[float, GRank]:
    peer, begin = GRank("node0000", swap=0, log=into), time.perf_counter()
    for start in range(0, len(log), BATCH):
        peer.merge(log[start : start + BATCH])
    return time.perf_counter() - begin, peer


def _times(peer: GRank, log: list[Click], asked: list[str]) -> tuple[tuple[float, float], float]:
    seconds = []
    for query in asked:
        begin = time.perf_counter()
        peer.search(query)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for query in asked[:5]:
        _scanned(peer, log, query)
    scan = (time.perf_counter() - begin) / len(asked[:5])
    return (float(np.median(seconds)), float(np.quantile(seconds, 0.99))), scan


def _scanned(peer: GRank, log: list[Click], query: str) -> dict[str, float]:
    """Items and scores of the first places, by going through all clicks; similarities are those of the node."""
    weight = dict(zip(peer.nodes(), (np.ceil(peer.similarities() * 2**32) / 2**32).tolist(), strict=True))
    scores: dict[str, float] = {}
    for click in log:
        if click.query == query:
            scores[click.item] = scores.get(click.item, 0.0) + weight[click.node]
    best = sorted((-s, item) for item, s in scores.items() if s)[: peer.length]
    return {item: -s for s, item in best}
