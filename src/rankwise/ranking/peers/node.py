"""A node that lives in a folder: its key, its log, its place among peers, and a page to search on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ipv8.keyvault.crypto import default_eccrypto
from ipv8.keyvault.keys import PrivateKey
from ipv8.messaging.interfaces.udp.endpoint import UDPEndpoint, UDPv4Address
from ipv8.peer import Peer
from ipv8.peerdiscovery.churn import RandomChurn
from ipv8.peerdiscovery.discovery import RandomWalk
from ipv8.peerdiscovery.network import Network

from rankwise.data.items import Item
from rankwise.files import claimed, fingerprint, whole_file, write_json
from rankwise.ranking.g_rank import GRank
from rankwise.ranking.peers.community import GRankCommunity, GRankSettings
from rankwise.ranking.peers.log import SqliteLog
from rankwise.ranking.peers.page import Page
from rankwise.ranking.peers.quotas import address_of
from rankwise.ranking.peers.wire import node_of
from rankwise.reading import check_regular, read_json

__all__ = ["PeerNode"]

MADE_BY = "peer"  # what its folder says of itself
REMEMBER = 2.0  # seconds after which new addresses are written
PLACES = 50  # that are remembered


class PeerNode:
    """A peer over UDP, with its state in a folder that survives a kill; ``async with`` starts and stops it.

    Parameters
    ----------
    folder : str or Path
        Holds ``key.bin`` (who this node is: keep it to yourself), ``log.sqlite``, and ``peers.json`` (where peers were
        met); made if missing, and used by one process at a time.
    items : iterable of Item
        The library.
    host, port : str, int
        Where peers reach it, IPv4; port 0 for any that is free.
    peers : sequence of (str, int)
        Addresses of peers to begin with. They tell of others. There is no server that would.
    page : int, optional
        Port of the page; 0 for any that is free, None for no page.
    page_host : str
        Where the page is reached: this machine alone by default.
    secret : str
        See `GRank`; nodes of one network share it, and a folder keeps to it.
    options : dict
        Of `GRankSettings` (``interval``, ``push``, ``accepting``, ``max_peers`` …).
    **of_rank
        Of `GRank` (``k``, ``isolation``, ``swap``, ``length``, ``cap``, ``seed``).

    Raises
    ------
    ValueError
        When the folder is something else's, in use, or of another secret; when a port is taken.

    Examples
    --------
    >>> import asyncio, tempfile
    >>> from rankwise.data.items import Item
    >>> from rankwise.ranking import PeerNode
    >>> async def once(folder):
    ...     async with PeerNode(folder, [Item(id="x", title="Slow Water")], host="127.0.0.1", port=0) as node:
    ...         return node.community.search("water")[0].item
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     asyncio.run(once(folder + "/state"))
    'x'
    """

    community: GRankCommunity
    page_at: str | None = None

    def __init__(
        self,
        folder: str | Path,
        items: Iterable[Item],
        *,
        host: str = "0.0.0.0",
        port: int = 8090,
        peers: Sequence[tuple[str, int]] = (),
        page: int | None = None,
        page_host: str = "127.0.0.1",
        secret: str = "",
        options: dict[str, Any] | None = None,
        **of_rank: Any,
    ) -> None:
        self.folder, self.items, self.host, self.port = Path(folder), list(items), host, port
        self.peers, self.page, self.page_host, self.secret = list(peers), page, page_host, secret
        self._met: list[tuple[str, int]] = []
        self.options, self.of_rank = dict(options or {}), of_rank
        known = {"max_peers", *GRankSettings.__annotations__} - {"state"}
        if wrong := set(self.options) - known:
            raise ValueError(f"options={sorted(wrong)}; accepted: {', '.join(sorted(known))}")
        GRank("any", self.items, secret=secret, **of_rank)  # its complaints come before anything is made

    async def __aenter__(self) -> PeerNode:
        """Claim the folder, open the ports, and look for peers."""
        if ":" in self.host:
            raise ValueError(
                f"host='{self.host}' is IPv6; peers are reached by IPv4 (0.0.0.0: by any of this machine's)"
            )
        _check_port(socket.SOCK_DGRAM, self.host, self.port)
        if self.page is not None:
            _check_port(socket.SOCK_STREAM, self.page_host, self.page)
        async with AsyncExitStack() as stack:
            told = {"secret": fingerprint(self.secret)}
            folder = stack.enter_context(claimed(self.folder, made_by=MADE_BY, told=told))
            key = _key(folder / "key.bin")
            log = SqliteLog(folder / "log.sqlite")
            stack.callback(log.close)
            self._met = _met(folder / "peers.json")
            state = GRank(node_of(key.pub()), self.items, secret=self.secret, log=log, **self.of_rank)
            self.endpoint = UDPEndpoint(port=self.port, ip=self.host)
            if not await self.endpoint.open():
                raise ValueError(f"{self.host}:{self.port} cannot be opened for peers; port 0 takes any that is free")
            stack.callback(self.endpoint.close)
            me = Peer(key)
            settings = GRankSettings(my_peer=me, endpoint=self.endpoint, network=Network(), state=state, **self.options)
            self.community = GRankCommunity(settings)
            stack.push_async_callback(self.community.unload)
            if self.address[0] != "0.0.0.0":  # else py-ipv8 tells peers of an address that this node does not listen on
                self.community.my_estimated_lan = UDPv4Address(*self.address)
            stack.callback(self._remember)
            if self.page is not None:
                page = Page(self.community)
                stack.push_async_callback(page.stop)
                self.page_at = await page.start(self.page_host, self.page)
            self._open = stack.pop_all()
        walk, churn = RandomWalk(self.community), RandomChurn(self.community)
        self.community.register_task("walk", self._look, walk, churn, interval=0.5, delay=0)
        self.community.register_task("remember", self._remember, interval=REMEMBER)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave, in the order opposite to the start: nothing is lost, every click was written when it came."""
        await self._open.aclose()

    @property
    def address(self) -> tuple[str, int]:
        """Where peers reach it."""
        host, port = self.endpoint.get_address()[:2]
        return str(host), int(port)

    def _look(self, walk: RandomWalk, churn: RandomChurn) -> None:
        """Greet who was named at the start or met, one at a time, until he answers; then walk on from peer to peer."""
        here = {tuple(at) for p in self.community.get_peers() for at in p.addresses.values()}
        silent = {*self.peers, *self._met} - here  # by address, py-ipv8 goes on finding peers that it dropped
        if silent:
            self.community.walk_to(UDPv4Address(*random.choice(sorted(silent))))
        if len(self.community.get_peers()) < self.community.max_peers:
            walk.take_step()
        churn.take_step()

    def _remember(self) -> None:
        """Where peers were met, those of now first, for the next start and for when all are lost."""
        here = sorted((str(p.address[0]), int(p.address[1])) for p in self.community.get_peers())
        met = list(dict.fromkeys([*here, *self._met]))[:PLACES]
        if {*met} == {*self._met}:
            return
        self._met = met
        try:
            write_json(self.folder / "peers.json", {"peers": met})
        except OSError as error:  # no reason to leave
            self.community.trouble = str(error)


def _met(path: Path) -> list[tuple[str, int]]:
    """What `_remember` wrote; none where it did not."""
    if not path.exists():
        return []
    met = read_json(path).get("peers")
    try:
        return [address_of(host, port) for host, port in met or []]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no list of addresses; delete it, and name peers anew") from error


def _key(path: Path) -> PrivateKey:
    """The key in a file that only its owner may read; made where there is none."""
    if not path.exists():
        with whole_file(path) as draft:
            draft.chmod(0o600)
            draft.write_bytes(default_eccrypto.generate_key("curve25519").key_to_bin())
    check_regular(path)
    try:
        with path.open("rb") as file:
            return default_eccrypto.key_from_private_bin(file.read(1_000))  # a key has 74 bytes
    except Exception as error:
        raise ValueError(f"{path} holds no key of a peer: put back the right file, or begin a new folder") from error


def _check_port(kind: socket.SocketKind, host: str, port: int) -> None:
    """That it can be bound: py-ipv8 would take the next free one without a word."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"{host}:{port} cannot be opened: {error}; port 0 takes any that is free") from error
