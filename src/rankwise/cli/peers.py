"""Search among peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli.app import Json, app, console, names


@app.command()
def peer(
    library: Annotated[Path, typer.Option(help="What this node has: csv with id, and title, artist, tags (a;b).")],
    out: Annotated[Path, typer.Option(help="The node's folder: its key and its log; goes on where it was.")],
    port: Annotated[int, typer.Option(help="UDP port for peers; 0: any that is free.")] = 8090,
    page: Annotated[int, typer.Option(help="TCP port of the page in the browser; 0: any that is free.")] = 8091,
    peers: Annotated[str, typer.Option(help="Peers to begin with, e.g. 192.0.2.7:8090; they tell of others.")] = "",
    host: Annotated[str, typer.Option(help="IPv4 address that peers reach.")] = "0.0.0.0",
    page_host: Annotated[str, typer.Option(help="Address of the page: this machine alone.")] = "127.0.0.1",
    secret: Annotated[
        str, typer.Option(envvar="RANKWISE_SECRET", help="Word of this network: queries travel as keyed hashes.")
    ] = "",
    isolation: Annotated[float, typer.Option(help="What strangers count, 0 to 1.")] = 0.0,
    swap: Annotated[float, typer.Option(help="How often two places of a list are swapped, 0 to 1.")] = 0.1,
    cap: Annotated[
        int | None, typer.Option(help="Clicks of one node on one item after one query count so often at most.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Also send new clicks unasked.")] = False,
    json_: Json = False,
) -> None:
    """Be a node of a search without a server: a page to search on, and clicks that peers tell each other (G-Rank).

    Your clicks tell peers what interests you: they are sent, signed, to whoever asks. It runs until Ctrl-C.

    Examples:

    * rankwise peer --library items.csv --out nodes/mine
    * rankwise peer --library items.csv --out nodes/mine --peers 192.0.2.7:8090
    """
    from rankwise.jobs.early import check_peer

    options: dict[str, Any] = {"isolation": isolation, "swap": swap, "cap": cap}
    check_peer(library, out, port=port, page=page, peers=names(peers), **options)
    from rankwise.jobs.peer import stay

    def started(told: dict[str, Any]) -> None:
        if json_:
            print(json.dumps({"event": "started", **told}), flush=True)
            return
        console.print(f"node      {told['node']}\npeers     {told['address']} (UDP)\npage      {told['page']}")
        console.print(
            f"library   {told['items']:,} items; {told['clicks']:,} clicks known\nstop      Ctrl-C", style="dim"
        )

    left = stay(
        library, out, port=port, page=page, host=host, page_host=page_host, peers=names(peers), secret=secret,
        push=push, on_start=started, **options,
    )  # fmt: skip
    if json_:
        print(json.dumps({"event": "stopped", **left}))
        return
    refused = ", ".join(f"{count:,} {why}" for why, count in sorted(left["refused"].items())) or "none"
    console.print(f"\nkept      {left['clicks']:,} clicks of {left['nodes']:,} nodes in {out}\nrefused   {refused}")
