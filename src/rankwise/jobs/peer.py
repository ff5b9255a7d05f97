"""What ``rankwise peer`` does: a node is there until it is told to leave."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankwise.data.items import read_items
from rankwise.jobs.early import check_peer
from rankwise.ranking import PeerNode


def stay(
    library: Path,
    out: Path,
    *,
    port: int = 8090,
    page: int | None = 8091,
    host: str = "0.0.0.0",
    page_host: str = "127.0.0.1",
    peers: Sequence[str] = (),
    secret: str = "",
    push: bool = False,
    on_start: Callable[[dict[str, Any]], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Run a node until SIGINT or SIGTERM.

    Parameters
    ----------
    library : Path
        A csv file (see `rankwise.data.items.read_items`).
    out : Path
        The node's folder.
    port, page, host, page_host
        See `PeerNode`.
    peers : sequence of str
        ``address:port`` each.
    secret : str
        See `PeerNode`.
    push : bool
        Also send new clicks unasked.
    on_start : callable
        Is told ``node``, ``address``, ``page``, ``clicks`` and ``items`` when peers can come.
    **options
        Of `GRank`: ``isolation``, ``swap``, ``cap``.

    Returns
    -------
    dict
        ``node``, ``clicks``, ``nodes`` and ``refused`` at the end.
    """
    known = check_peer(library, out, port=port, page=page, peers=peers, **options)
    node = PeerNode(
        out, read_items(library), host=host, port=port, page=page, page_host=page_host, peers=known, secret=secret,
        options={"push": push}, **options,
    )  # fmt: skip
    return asyncio.run(_until_told(node, on_start))


async def _until_told(node: PeerNode, on_start: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with node:
        state = node.community.state
        address = ":".join(map(str, node.address))
        on_start({
            "node": state.node, "address": address, "page": node.page_at, "clicks": len(state), "items": len(node.items)
        })  # fmt: skip
        await told.wait()
        refused = dict(node.community.refused)
        return {"node": state.node, "clicks": len(state), "nodes": len(state.nodes()), "refused": refused}
