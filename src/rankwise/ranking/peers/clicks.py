"""One click of one peer, and the words of a query."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from hashlib import blake2b
from typing import NamedTuple

__all__ = ["Click", "as_query"]

LONGEST = 200  # bytes in UTF-8 of a query, of an item's id, of a node's id: a click fits into one datagram
MOST_CLICKS = 1 << 40  # of one node: a counter beyond is nobody's


class Click(NamedTuple):
    """What a node clicked after a query; ``(node, counter)`` names it, wherever it travels.

    Attributes
    ----------
    node : str
        Who clicked.
    counter : int
        The node's clicks before this one.
    query : str
        As `as_query` writes it.
    item : str
        The id of what was clicked.
    signature : bytes
        Of the node, over the rest; empty where nothing is signed.

    Examples
    --------
    >>> from rankwise.ranking import Click
    >>> Click(node="ann", counter=0, query="slow blues", item="song-7").item
    'song-7'
    """

    node: str
    counter: int
    query: str
    item: str
    signature: bytes = b""


def as_query(text: str, *, secret: str = "") -> str:
    """The words of a query in small letters, one space between them: two queries are the same where these are.

    Parameters
    ----------
    text : str
        What was typed: at most 200 bytes in UTF-8, at least one letter or digit.
    secret : str
        A word that the peers of one network share. Each word is then written as a keyed hash of 16 hexadecimal digits:
        who does not know the secret learns which queries are equal, and no more. Whoever knows it can try words.

    Returns
    -------
    str
        Compatible characters are written alike (NFKC).

    Raises
    ------
    ValueError
        Without a letter or digit, or too long.

    Examples
    --------
    >>> from rankwise.ranking import as_query
    >>> as_query("  Slow BLUES! ")
    'slow blues'
    """
    if (size := _bytes(text)) > LONGEST:
        raise ValueError(f"a query of {size:,} bytes (UTF-8); at most {LONGEST} are taken")
    words = words_of(text)
    if not words:
        raise ValueError(f"the query {text!r} holds no word: type at least one letter or digit")
    if secret:
        key = blake2b(secret.encode(), digest_size=32).digest()
        words = [blake2b(w.encode(), key=key, digest_size=8).hexdigest() for w in words]
    query = " ".join(words)
    if (size := _bytes(query)) > LONGEST:  # letters can grow when they are written alike, and hashes are longer
        raise ValueError(f"a query of {len(words)} words takes {size:,} bytes (UTF-8) as it is kept; at most {LONGEST}")
    return query


def words_of(text: str) -> list[str]:
    """Letters and digits that hang together with their marks (accents, vowel signs), in small letters."""
    if text.isascii():
        return re.findall(r"\w+", text.lower())
    for _ in range(4):  # writing alike can leave what can be written alike again
        alike = _UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold().replace("i\u0307", "i")
        alike = unicodedata.normalize("NFKC", alike)
        if alike == text:
            break
        text = alike
    return _words().findall(text)


# What a word looks the same without: soft hyphen, joiners, directions, variants
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)


@cache
def _words() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"\w[\w{marks}]*")


def fault(click: Click) -> str:
    """What is wrong with a click that came from elsewhere; empty where nothing is."""
    if not (0 <= click.counter < MOST_CLICKS):
        return "counter"
    texts = {"node": click.node, "query": click.query, "item": click.item}
    for name, text in texts.items():
        if not 0 < len(text) <= LONGEST or not _is_sound(text):
            return name
    return "" if _is_query(click.query) else "query"


@lru_cache(1 << 15)  # the same nodes, queries and items come again and again; all are short
def _is_sound(text: str) -> bool:
    return text.isprintable() and _bytes(text) <= LONGEST


@lru_cache(1 << 15)
def _is_query(text: str) -> bool:
    return text == " ".join(words_of(text))


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
