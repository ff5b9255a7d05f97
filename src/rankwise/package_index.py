"""One file of a package release, found where pip would look for it; nothing is built, installed or opened.

pip itself cannot fetch a source archive without running its ``setup.py``. So the pages of the indexes are read here:
``index-url``, ``extra-index-url`` and ``find-links`` of pip's configuration files and ``PIP_*`` variables, with its
certificates, proxy, trusted hosts and time-out, and with credentials in an address or in ``.netrc``. A file counts only
when its SHA-256 is the one on record.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from rankwise.reading import parse_json

if TYPE_CHECKING:
    import httpx

PYPI = "https://pypi.org/simple"
MOST_PAGE, MOST_FILE = 64_000_000, 2_000_000_000  # bytes
PAGE_SECONDS, FILE_SECONDS = 120.0, 3600.0
_ACCEPTED = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


def fetch(package: str, version: str, sha256: str, target: Path, *, source: bool = False) -> str:
    """Write the file of a release that has this hash to ``target``; its name.

    Parameters
    ----------
    source : bool
        The source archive instead of a wheel.

    Raises
    ------
    OSError
        No index has the file, or it cannot be reached: each with its reason, credentials left out.
    ValueError
        Only files with another hash were found.
    """
    settings, others, reasons = pip_settings(), [], []
    with _client(settings) as client:
        for page in _pages(settings, package):
            try:
                for url, stated in _links(client, page):
                    if not is_file_of(_name(url), package, version, source=source):
                        continue
                    seen = stated
                    if seen in (None, sha256):
                        with target.open("wb") as sink:
                            seen = _copied(_get(client, url, most=MOST_FILE, seconds=FILE_SECONDS), sink)
                    if seen == sha256:
                        return _name(url)
                    others.append(f"{_name(url)} has SHA-256 {seen}")
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                reasons.append(f"{shown(page)}: {error}")
    if others:
        raise ValueError(f"{others[0]}, expected {sha256}: not using it")
    raise OSError(f"could not fetch {package}=={version}: {'; '.join(reasons) or 'no index has such a file'}")


def pip_settings() -> dict[str, str]:
    """pip's options from its configuration files and ``PIP_*`` variables, as `pip download` would take them."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise OSError("`pip config list` gives no answer within 60 seconds") from error
    if done.returncode:  # no pip here: the variables are what is known
        return {k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith("PIP_")}
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for section, key, value in re.findall(r"^(global|download|:env:)\.([\w-]+)=(.*)$", done.stdout, re.MULTILINE):
        found[section][key] = ast.literal_eval(value)
    return found["global"] | found["download"] | found[":env:"]


def is_file_of(name: str, package: str, version: str, *, source: bool) -> bool:
    """Whether a file of this name is the release's source archive, or one of its wheels."""
    stem = rf"{re.sub(r'[-_.]+', '[-_.]+', package)}-{re.escape(version)}"
    rest = r"\.(tar\.(gz|bz2|xz)|zip)" if source else r"-.+\.whl"
    return re.fullmatch(stem + rest, name, re.IGNORECASE) is not None


def shown(url: str) -> str:
    """An address without its user name and password."""
    return re.sub(r"//[^/@]*@", "//", url)


def _pages(settings: dict[str, str], package: str) -> Iterator[str]:
    """Addresses of the pages that may list the package's files, in pip's order."""
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        name = re.sub(r"[-_.]+", "-", package).lower()
        for index in [settings.get("index-url", PYPI), *settings.get("extra-index-url", "").split()]:
            yield f"{index.rstrip('/')}/{name}/"
    for place in settings.get("find-links", "").split():
        yield place if "://" in place else Path(place).expanduser().absolute().as_uri()


def _links(client: httpx.Client, page: str) -> list[tuple[str, str | None]]:
    """Addresses of the files on a page (JSON or HTML) or in a folder, and the SHA-256 that the page states."""
    if page.startswith("file:"):
        folder = Path(url2pathname(urlsplit(page).path))
        if folder.is_dir() and not (folder / "index.html").is_file():
            return [(f.absolute().as_uri(), None) for f in folder.iterdir() if f.is_file()]
        page = ((folder / "index.html") if folder.is_dir() else folder).absolute().as_uri()
    text = b"".join(_get(client, page, most=MOST_PAGE, seconds=PAGE_SECONDS)).decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        files = parse_json(text, "the page").get("files", [])
        found = [
            (str(f["url"]), f.get("hashes", {}).get("sha256")) for f in files if isinstance(f, dict) and "url" in f
        ]
    else:
        parser = _Anchors()
        parser.feed(text)
        found = [(url, next(iter(re.findall(r"#sha256=(\w+)", url)), None)) for url in parser.found]
    return [(_joined(page, url), stated) for url, stated in found]


def _joined(page: str, url: str) -> str:
    """The address of a link; on the page's own host it keeps the page's credentials."""
    url, here = urljoin(page, url).partition("#")[0], urlsplit(page)
    if urlsplit(url).scheme == "file" and here.scheme != "file":
        raise ValueError("it links to a file of this machine")
    if (urlsplit(url).hostname, urlsplit(url).port) == (here.hostname, here.port) and "@" not in urlsplit(url).netloc:
        return url.replace("//", f"//{here.netloc.rpartition('@')[0]}@", 1) if "@" in here.netloc else url
    return url


def _get(client: httpx.Client, url: str, *, most: int, seconds: float) -> Iterator[bytes]:
    """What is at an address, in pieces; too many bytes or seconds are an `OSError`."""
    size, end = 0, time.monotonic() + seconds
    for piece in _file(url) if url.startswith("file:") else _answer(client, url):
        size += len(piece)
        if size > most or time.monotonic() > end:
            raise OSError(f"more than {most:,} bytes" if size > most else f"not read within {seconds:.0f} s")
        yield piece


def _file(url: str) -> Iterator[bytes]:
    path = Path(url2pathname(urlsplit(url).path))
    if not path.is_file():
        raise OSError("no such file")
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece


def _answer(client: httpx.Client, url: str) -> Iterator[bytes]:
    import httpx

    try:
        auth = (None if "@" in urlsplit(url).netloc else _netrc()) or httpx.USE_CLIENT_DEFAULT
        with client.stream("GET", url, headers={"Accept": _ACCEPTED}, auth=auth) as answer:
            answer.raise_for_status()
            yield from answer.iter_bytes()
    except httpx.HTTPStatusError as error:
        raise OSError(f"{error.response.status_code} {error.response.reason_phrase}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(shown(str(error)) or type(error).__name__) from error


def _netrc() -> httpx.Auth | None:
    import netrc

    import httpx

    try:
        return httpx.NetRCAuth(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return None


def _client(settings: dict[str, str]) -> httpx.Client:
    import certifi
    import httpx

    context = ssl.create_default_context()  # the system's, and where it has none those of Mozilla
    context.load_verify_locations(settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where())
    if "client-cert" in settings:
        context.load_cert_chain(settings["client-cert"])
    trusted = settings.get("trusted-host", "").split()
    return httpx.Client(
        verify=context,
        mounts={f"all://{host}": httpx.HTTPTransport(verify=False) for host in trusted},
        proxy=settings.get("proxy"),
        timeout=float(settings.get("timeout") or settings.get("default-timeout") or 15),
        follow_redirects=True,
    )


def _copied(pieces: Iterator[bytes], sink: BinaryIO) -> str:
    """Write the pieces; their SHA-256."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        sink.write(piece)
    return digest.hexdigest()


def _name(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


class _Anchors(HTMLParser):
    """The addresses that an HTML page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        if tag == "a" and (url := dict(attrs).get("href")):
            self.found.append(url)
