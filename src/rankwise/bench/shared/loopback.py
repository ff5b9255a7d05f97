"""The simulated network once more, with real peers: each a py-ipv8 community with a key, a file and a UDP port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.ranking import GRankCommunity, PeerNode
from rankwise.ranking.peers.gossip import Gossip
from rankwise.ranking.peers.shown import Clicks
from rankwise.ranking.peers.simulation import TOLD, drawn
from rankwise.ranking.peers.world import World, make_world, stream

PATIENCE = 60.0  # seconds for anything to arrive on loopback


def on_loopback(
    folder: Path, *, nodes: int, searches: int, seed: int, click: str = "interest", length: int = 10
) -> NDArray[np.int32]:
    """The lists ``(searches, nodes, length)`` that real peers show where `simulate` with ``swap=0`` is told the same.

    Queries, clicks and who asks whom are the simulation's draws; each round ends when every answer has come, over UDP.
    """
    return asyncio.run(_play(folder, nodes=nodes, searches=searches, seed=seed, click=click, length=length))


async def _play(folder: Path, *, nodes: int, searches: int, seed: int, click: str, length: int) -> NDArray[np.int32]:
    world = make_world(nodes=nodes, attackers=0, items=253, terms=39, tastes=4, owned=0.1, seed=seed)
    async with AsyncExitStack() as stack:
        peers = await _meet(stack, folder, world, length)
        await _begin(peers, world)
        gossip = Gossip("pull", nodes=nodes, attackers=0, offline=0, accepting=1.0, asked=True, seed=seed)
        clicks, queries, chosen = Clicks(click, world, length), stream(seed, "queries"), stream(seed, "clicks")
        until, lists = world.asks.cumsum(1), np.full((searches, nodes, length), -1, np.int32)
        for t in range(searches):
            term = drawn(until[world.taste], queries.random(nodes))
            shown = np.stack([_columns(p, world, q, length) for p, q in zip(peers, term, strict=True)])
            place = clicks.places(world.taste, term, shown, chosen.random(nodes))
            lists[t] = np.where(shown >= 0, world.columns[term[:, None], shown], -1)
            for peer, q, item in zip(peers, term, lists[t, np.arange(nodes), place], strict=True):
                peer.click(world.terms[q], world.library[item].id)
            receivers, senders = gossip.round(joined=False, attacking=False, cut=False)
            await _ask(peers, receivers, senders)
        return lists


async def _meet(stack: AsyncExitStack, folder: Path, world: World, length: int) -> list[GRankCommunity]:
    """All nodes, each knowing the addresses of those before it, until each knows every other."""
    there: list[PeerNode] = []
    for n, owns in enumerate(world.owns):
        items = [world.library[i] for i in np.flatnonzero(owns)]
        node = PeerNode(
            folder / f"{n:03d}", items, host="127.0.0.1", port=0, peers=[p.address for p in there],
            options={"interval": 0, "max_peers": len(world.owns)}, swap=0, length=length,
        )  # fmt: skip
        there.append(await stack.enter_async_context(node))
    peers = [node.community for node in there]
    await _until(lambda: all(len(p.get_peers()) == len(peers) - 1 for p in peers))
    return peers


async def _begin(peers: Sequence[GRankCommunity], world: World) -> None:
    """As the simulation begins: a click after each term, and a friend that told of the first tenth."""
    terms = world.order.shape[1]
    for t in range(terms):
        for n, peer in enumerate(peers):
            q = world.order[n, t]
            peer.click(world.terms[q], world.library[world.columns[q, world.first[n, q]]].id)
        if t + 1 == -(-terms // TOLD):
            await _ask(peers, np.arange(len(peers)), world.friend)


async def _ask(peers: Sequence[GRankCommunity], receivers: NDArray, senders: NDArray) -> None:
    """Each receiver asks its sender until it has all that the sender clicked so far."""
    pairs = [(peers[r], peers[s]) for r, s in zip(receivers, senders, strict=True)]
    wanted = [(r, s, s.state.progress(s.state.node)) for r, s in pairs]

    def missing() -> bool:
        left = [(r, s) for r, s, n in wanted if r.state.progress(s.state.node) < n]
        for receiver, sender in left:
            receiver.pull(receiver.network.get_verified_by_public_key_bin(sender.my_peer.public_key.key_to_bin()))
        return bool(left)

    await _until(lambda: not missing())


def _columns(peer: GRankCommunity, world: World, q: int, length: int) -> NDArray[np.int64]:
    """What a peer shows after a term, as columns of the world."""
    column = {world.library[i].id: c for c, i in enumerate(world.columns[q]) if i >= 0}
    found = [column[f.item] for f in peer.state.search(world.terms[q])]
    return np.array(found + [-1] * (length - len(found)))


async def _until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not true():
        if loop.time() > end:
            raise TimeoutError(f"peers on loopback did not come to it within {seconds:.0f} s")
        await asyncio.sleep(0.001)
