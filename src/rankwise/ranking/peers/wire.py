"""What goes over the wire: a question for clicks and its answer, and the signature of one click.

An answer is one datagram of at most 1,200 bytes, so that nothing is cut on its way and nobody can make a node send
much to a third party by asking little.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import ClassVar

from ipv8.keyvault.crypto import default_eccrypto
from ipv8.keyvault.keys import PrivateKey, PublicKey
from ipv8.messaging.lazy_payload import VariablePayload, vp_compile

from rankwise.ranking.peers.clicks import Click

LARGEST = 1_472  # bytes of a datagram that no network cuts: 1,500 less the headers
ROOM = 1_000  # bytes of clicks in an answer: with key, signature and headers it stays below 1,200
UNASKED = 0  # the identifier of clicks that nobody asked for


@vp_compile
class Ask(VariablePayload):
    """Your own clicks from ``counter`` on, please.

    Examples
    --------
    >>> from rankwise.ranking.peers.wire import Ask
    >>> Ask(identifier=7, counter=30).counter
    30
    """

    msg_id = 1
    format_list: ClassVar = ["Q", "Q"]
    names: ClassVar = ["identifier", "counter"]

    identifier: int
    counter: int


@vp_compile
class SignedClick(VariablePayload):
    """One click of the sender's, signed by itself so that others can check it wherever it goes.

    Examples
    --------
    >>> from rankwise.ranking.peers.wire import SignedClick
    >>> SignedClick(counter=0, query="blues", item="x", signature=b"").item
    'x'
    """

    format_list: ClassVar = ["Q", "varlenHutf8", "varlenHutf8", "varlenH"]
    names: ClassVar = ["counter", "query", "item", "signature"]

    counter: int
    query: str
    item: str
    signature: bytes


@vp_compile
class Answer(VariablePayload):
    """Clicks in order; ``total`` is how many the sender has made in all.

    Examples
    --------
    >>> from rankwise.ranking.peers.wire import Answer
    >>> Answer(identifier=7, total=0, clicks=[]).total
    0
    """

    msg_id = 2
    format_list: ClassVar = ["Q", "Q", [SignedClick]]
    names: ClassVar = ["identifier", "total", "clicks"]

    identifier: int
    total: int
    clicks: list[SignedClick]


def node_of(key: PublicKey) -> str:
    """A node's id: the hash of its key, 40 hexadecimal digits."""
    return key.key_to_hash().hex()


def signed(click: Click, key: PrivateKey) -> Click:
    """The click with its node's signature."""
    return click._replace(signature=default_eccrypto.create_signature(key, _said(click)))


def is_signed(click: Click, key: PublicKey) -> bool:
    """Whether the key's owner, and nobody else, said so."""
    return click.node == node_of(key) and default_eccrypto.is_valid_signature(key, _said(click), click.signature)


def fitting(clicks: Iterable[Click]) -> list[SignedClick]:
    """As many clicks, from the first on, as an answer has room for."""
    found, size = [], 0
    for click in clicks:
        size += 14 + len(click.query.encode()) + len(click.item.encode()) + len(click.signature)
        if size > ROOM:
            break
        found.append(SignedClick(click.counter, click.query, click.item, click.signature))
    return found


def _said(click: Click) -> bytes:
    """What is signed: every field with its length, so that no two clicks read alike."""
    fields = [click.node.encode(), struct.pack(">Q", click.counter), click.query.encode(), click.item.encode()]
    return b"rankwise click 1" + b"".join(struct.pack(">H", len(f)) + f for f in fields)
