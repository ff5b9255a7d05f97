"""G-Rank among real peers: a py-ipv8 community that asks other nodes for their clicks, and answers with its own.

After a search a node asks one peer (``pull``, as published), and every few seconds another; it goes on asking while
there is more. A peer tells its own clicks only, each signed by itself; the first one missing here is where it goes on,
which the log itself says, so that no pointer can be lost. ``push`` also sends new clicks unasked, to who accepts such.

What is refused, and counted by reason in `GRankCommunity.refused`: "oversized", "malformed", "unknown" (message),
"forged" (a signature), "unasked" (also replayed: an answer is taken once), "quota" (of an address or a peer), "field"
(see `Click`), "full" (clicks of one node, nodes, or clicks in all), "lies" (of a node that gave one name to two clicks
too often), "stranger" (not introduced yet), "storage" (it could not be written; `GRankCommunity.trouble` says why). A
refusal costs its sender nothing else: a name that lies about itself cannot get another one banned. Where a peer is
reached is learned from introductions alone: an old packet that somebody sends again from elsewhere moves nobody.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ipv8.community import Community, CommunitySettings
from ipv8.keyvault.keys import PrivateKey
from ipv8.lazy_community import PacketDecodingError
from ipv8.messaging.payload_headers import BinMemberAuthenticationPayload
from ipv8.peer import Peer

from rankwise.ranking.g_rank import Found, GRank
from rankwise.ranking.peers.clicks import Click, fault
from rankwise.ranking.peers.quotas import Quota
from rankwise.ranking.peers.wire import LARGEST, UNASKED, Answer, Ask, fitting, is_signed, node_of, signed

if TYPE_CHECKING:
    from ipv8.messaging.interfaces.udp.endpoint import Address

__all__ = ["GRankCommunity", "GRankSettings"]

PATIENCE = 5.0  # seconds an answer is waited for
LIES = 10  # clicks that a node may take back by another of the same name
WALKABLE = 200  # addresses that others told of and that nobody has tried yet


class GRankSettings(CommunitySettings):
    """What a community is made of, beside py-ipv8's ``my_peer``, ``endpoint``, ``network`` and ``max_peers``.

    Attributes
    ----------
    state : GRank
        The node; its id must be `node_of` the key of ``my_peer``.
    interval : float
        Seconds between two questions of its own accord; 0 for none.
    push : bool
        Also send new clicks to one peer, unasked.
    accepting : bool
        Take clicks that nobody asked for. What was asked for is always taken.
    most_clicks, most_nodes : int
        Kept of one other node, and how many other nodes are kept at all.
    most_in_all : int
        Clicks that are kept; a node's own are always written down.
    rate, burst : float
        Packets a second from one address, and clicks a second from one peer, on average and at once.

    Examples
    --------
    >>> from rankwise.ranking import GRankSettings
    >>> GRankSettings().interval
    5.0
    """

    state: GRank
    interval: float = 5.0
    push: bool = False
    accepting: bool = True
    most_clicks: int = 100_000
    most_nodes: int = 10_000
    most_in_all: int = 2_000_000
    rate: float = 200.0
    burst: float = 1_000.0


class GRankCommunity(Community):
    """One node among peers; made by py-ipv8 from `GRankSettings`, or by `PeerNode` with all that it needs.

    Parameters
    ----------
    settings : GRankSettings
        With ``state``.

    Raises
    ------
    ValueError
        When the state belongs to another key.

    Examples
    --------
    >>> from rankwise.ranking import GRankCommunity
    >>> len(GRankCommunity.community_id)
    20
    """

    community_id = bytes.fromhex("72616e6b776973652d672d72616e6b2d30303031")  # "rankwise-g-rank-0001"
    settings_class = GRankSettings

    def __init__(self, settings: GRankSettings) -> None:
        self.state = settings.state
        if self.state.node != (mine := node_of(settings.my_peer.public_key)):
            raise ValueError(f"the state is of node {self.state.node!r}, the key of {mine!r}: GRank(node_of(key))")
        super().__init__(settings)
        self.settings = settings
        self.refused: Counter[str] = Counter()
        self.trouble = ""
        self._asked: dict[bytes, tuple[int, float]] = {}  # by key: the question that is open, and since when
        self._by_address = Quota(rate=settings.rate, burst=settings.burst)
        self._by_peer = Quota(rate=settings.rate, burst=settings.burst)
        self._kinds: dict[int, tuple[Any, Callable[[Peer, Any], None]]] = {
            Ask.msg_id: (Ask, self._on_ask),
            Answer.msg_id: (Answer, self._on_answer),
        }
        if settings.interval > 0:
            self.register_task("gossip", self.pull, interval=settings.interval)
        self.register_task("forget", self._forget, interval=PATIENCE)

    def search(self, query: str) -> list[Found]:
        """The list for a query; then one peer is asked for news, as published."""
        found = self.state.search(query)
        self.pull()
        return found

    def click(self, query: str, item: str) -> Click:
        """Write down a click, signed, and send it on where ``push`` says so."""
        click = signed(self.state.draft(query, item), cast(PrivateKey, self.my_peer.key))
        self.state.merge([click])
        if self.settings.push and (peers := self.get_peers()):
            self._tell(random.choice(peers), UNASKED, max(click.counter - 3, 0))
        return click

    def pull(self, peer: Peer | None = None) -> None:
        """Ask a peer, a random one by default, for the clicks that are missing here; not while a question is open."""
        peers = self.get_peers()
        if peer is None and peers:
            peer = random.choice(peers)
        if peer is None:
            return
        key, now = peer.public_key.key_to_bin(), time.monotonic()
        if now - self._asked.get(key, (UNASKED, -PATIENCE))[1] < PATIENCE:
            return
        identifier = random.getrandbits(63) | 1
        self._asked[key] = (identifier, now)
        self.ez_send(peer, Ask(identifier, self.state.progress(node_of(peer.public_key))))

    def send_ping(self, peer: Peer) -> None:
        """Whether a quiet peer is still there, for py-ipv8's churn; no clicks are told, so gossip stays as it is."""
        self.send_introduction_request(peer)

    def on_packet(self, packet: tuple[Address, bytes], warn_unknown: bool = True) -> None:
        """Everything that comes in: refused and counted, or handled."""
        address, data = packet
        try:
            if reason := self._unwanted(address, data):
                self.refused[reason] += 1
            elif data[22] in self._kinds:
                kind, handle = self._kinds[data[22]]
                handle(*self._opened(kind, address, data))
            else:
                self._of_the_base(address, data)
        except _Refused as refusal:
            self.refused[str(refusal)] += 1
        except (OSError, ValueError) as error:  # the disk is full, or the log is damaged: answers go on, news are lost
            self.refused["storage"] += 1
            self.trouble = str(error)

    def _unwanted(self, address: Address, data: bytes) -> str:
        if len(data) > LARGEST:
            return "oversized"
        if not self._by_address.allows(address[:2]):
            return "quota"
        if len(data) < 23:
            return "malformed"
        known = data[22] in self._kinds or self.decode_map[data[22]] is not None
        return "" if known and data[22] not in self.deprecated_message_names else "unknown"

    def _of_the_base(self, address: Address, data: bytes) -> None:
        """Introductions: py-ipv8's own, whose complaints are counted instead of printed."""
        handler = self.decode_map[data[22]]
        try:
            if handler is not None:
                handler(address, data)
            if peer := self.network.get_verified_by_address(address):
                peer.last_response = time.time()
        except PacketDecodingError as error:
            raise _Refused("forged") from error
        except Exception as error:  # whatever a parser trips over in what a stranger sent
            raise _Refused("malformed") from error

    def _opened(self, kind: type[Ask] | type[Answer], address: Address, data: bytes) -> tuple[Peer, Any]:
        """Who signed a packet, and what is in it."""
        try:
            auth, _ = self.serializer.unpack_serializable(BinMemberAuthenticationPayload, data, offset=23)
            valid, rest = self._verify_signature(auth, data)
            payload, end = self.serializer.unpack_serializable(kind, rest, offset=23) if valid else (None, 0)
        except Exception as error:  # whatever a parser trips over in what a stranger sent
            raise _Refused("malformed") from error
        if payload is None:
            raise _Refused("forged")
        if end != len(rest):
            raise _Refused("malformed")
        peer = self.network.get_verified_by_public_key_bin(auth.public_key_bin)
        if peer is None:
            raise _Refused("stranger")
        if tuple(address) in {tuple(at) for at in peer.addresses.values()}:  # else somebody may send an old one again
            peer.last_response = time.time()
        return peer, payload

    def _on_ask(self, peer: Peer, ask: Ask) -> None:
        self._tell(peer, ask.identifier, ask.counter)

    def _tell(self, peer: Peer, identifier: int, counter: int) -> None:
        mine = self.state.log.since(self.state.node, min(counter, self.state.progress(self.state.node)), 32)
        self.ez_send(peer, Answer(identifier, self.state.progress(self.state.node), fitting(mine)))

    def _on_answer(self, peer: Peer, answer: Answer) -> None:
        key = peer.public_key.key_to_bin()
        asked = answer.identifier != UNASKED
        if asked and self._asked.get(key, (UNASKED, 0.0))[0] != answer.identifier:
            raise _Refused("unasked")
        if not asked and not self.settings.accepting:
            raise _Refused("unasked")
        if asked:
            del self._asked[key]
        if not self._by_peer.allows(key, max(len(answer.clicks), 1)):
            raise _Refused("quota")
        new = self.state.merge(self._checked(peer, answer.clicks))
        if asked and new and self.state.progress(node_of(peer.public_key)) < answer.total:
            self.pull(peer)

    def _checked(self, peer: Peer, offered: Sequence[Any]) -> list[Click]:
        """What a peer says that it clicked, if all of it is well formed, signed and within what is kept of one node."""
        node = node_of(peer.public_key)
        if self.state.lies[node] >= LIES:
            raise _Refused("lies")
        clicks = [Click(node, c.counter, c.query, c.item, c.signature) for c in offered]
        if len(self.state) + len(clicks) > self.settings.most_in_all:
            raise _Refused("full")
        for click in clicks:
            if fault(click):
                raise _Refused("field")
            if not is_signed(click, peer.public_key):
                raise _Refused("forged")
        kept = [c for c in clicks if c.counter < self.settings.most_clicks]
        strange = not self.state.knows(node) and len(self.state.nodes()) > self.settings.most_nodes
        if strange or (clicks and not kept):
            raise _Refused("full")
        return kept

    def _forget(self) -> None:
        """Questions that were not answered, and addresses beyond what a walk can try."""
        now = time.monotonic()
        self._asked = {key: asked for key, asked in self._asked.items() if now - asked[1] < PATIENCE}
        for address in self.get_walkable_addresses()[WALKABLE:]:
            self.network.remove_by_address(address)


class _Refused(Exception):
    """Why a packet is not taken."""
