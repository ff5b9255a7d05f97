"""Where a server is and what it is told of who asks: addresses, and which key goes where.

A key goes over https, or to this machine; never over plain http elsewhere. The variable ``OPENAI_API_KEY`` is OpenAI's:
it goes to api.openai.com and to this machine alone. Nothing here is ever part of a message: not the key, not a
password in an address.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field

import httpx

from rankwise.reading import printable

OWN_VARIABLE = "RANKWISE_API_KEY"
OPENAI = "api.openai.com"


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server's address, and the secrets that requests to it carry.

    Attributes
    ----------
    url : str
        The address without a password, ending in ``/``.
    local : bool
        Whether it is this machine.
    headers : dict
        What requests carry: the key or the password, if there is one.
    secrets : tuple of str
        Texts that are struck out of whatever the server says.
    keyless : str
        Why a key that is there is not sent; empty where that is not so.

    Examples
    --------
    >>> from rankwise.prompting.server_address import address
    >>> server = address("https://user:secret@example.org/v1")
    >>> server.url, server.clean("wrong password: secret")
    ('https://example.org/v1/', 'wrong password: [key]')
    """

    url: str
    local: bool
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    keyless: str = ""

    def clean(self, text: str, most: int = 500) -> str:
        """The server's words for a message: without secrets and control characters, cut."""
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return printable(text[:most])


def address(base_url: str, *, api_key: str | None = None, key_variable: str | None = None) -> Address:
    """An address and the key that goes there.

    Parameters
    ----------
    base_url : str
        ``http://`` or ``https://``, up to the version; a user's name and password may stand in it.
    api_key : str, optional
        The key itself; an empty one: none is sent.
    key_variable : str, optional
        The environment's variable that holds it. By default ``RANKWISE_API_KEY``, and for OpenAI and this machine
        ``OPENAI_API_KEY``.

    Raises
    ------
    ValueError
        No such address, a variable that is not set, several secrets at once, one that would go over plain http to
        another machine, or a key with characters that no key has.

    Examples
    --------
    >>> from rankwise.prompting.server_address import address
    >>> address("http://example.org/v1", api_key="secret")
    Traceback (most recent call last):
    ValueError: a key or password is not sent over plain http to example.org: use https
    """
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"base_url is no address: {error}") from error
    bare = url.copy_with(userinfo=None)
    if url.scheme not in ("http", "https") or not url.host or not 0 < (80 if url.port is None else url.port) < 65536:
        raise ValueError(f"base_url={str(bare)!r} is no http:// or https:// address")
    if url.query or url.fragment:
        raise ValueError(
            f"base_url={str(bare.copy_with(query=None, fragment=None))!r} is followed by ? or #: leave it out"
        )
    local, login = _local(url.host), url.userinfo
    key = _given(api_key, key_variable)
    if login and key:
        raise ValueError("both a key and a password in the address: give one of them")
    if (login or key) and not (local or url.scheme == "https"):
        raise ValueError(f"a key or password is not sent over plain http to {url.host}: use https")
    keyless = ""
    if key is None and not login:
        key, keyless = _of_the_environment(url, local)
    headers, secrets = {}, ()
    if login:
        encoded = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers, secrets = {"Authorization": f"Basic {encoded}"}, (url.password, encoded)
    elif key:
        headers, secrets = {"Authorization": f"Bearer {_checked(key)}"}, (_checked(key),)
    secrets = tuple(s for s in secrets if s)
    return Address(url=f"{str(bare).rstrip('/')}/", local=local, headers=headers, secrets=secrets, keyless=keyless)


def _given(api_key: str | None, key_variable: str | None) -> str | None:
    if key_variable is None:
        return api_key
    if api_key is not None:
        raise ValueError("both api_key and key_variable: give one of them")
    if not os.environ.get(key_variable):
        raise ValueError(f"the environment has no {key_variable}, which is to hold the key")
    return os.environ[key_variable]


def _of_the_environment(url: httpx.URL, local: bool) -> tuple[str | None, str]:
    """The key that is there for this address, and why one that is there is not for it."""
    safe = local or url.scheme == "https"
    for variable, meant in ((OWN_VARIABLE, safe), ("OPENAI_API_KEY", local or (safe and url.host == OPENAI))):
        if os.environ.get(variable) and meant:
            return os.environ[variable], ""
    if os.environ.get(OWN_VARIABLE):
        return None, f"{OWN_VARIABLE} is not sent over plain http to another machine"
    if os.environ.get("OPENAI_API_KEY"):
        return None, f"OPENAI_API_KEY goes to {OPENAI} alone: set {OWN_VARIABLE}, or name the variable"
    return None, ""


def _checked(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the key holds spaces, line ends or other characters that no key has; it was not sent")
    return key


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
