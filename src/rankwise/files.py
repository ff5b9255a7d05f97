"""Writing and reusing: nothing half-written is read as whole, nothing of a stranger's is removed, no two commands mix.

* `whole_file` and `whole_folder` write beside the target and take its place in one step.
* `drafted` is a folder whose draft survives a kill; it goes on where everything that decides its content is the same.
* `claimed` is a folder that grows under its own name (many runs in one), under the same condition.

A folder that rankwise made carries ``.rankwise.json``: the command that made it, what decided its content, and its
files with their sizes and (below a megabyte) hashes. A folder without that marker, one that another command made, and
one that holds anything besides those files, unchanged, is refused before work starts and never touched. A draft is
locked while it is being written, by a lock of the system that ends with the process. Linux and macOS.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rankwise.reading import read_json

MARKER = ".rankwise.json"
DRAFT = ".rankwise-draft"
HASHED_BELOW = 1_000_000  # bytes; of larger files the marker keeps the size alone


# --- files


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Replace ``path`` by ``value`` as indented JSON in one step; NaN and infinities become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_file(path: Path, *, inputs: Iterable[Path | str] = ()) -> Path:
    """Where a file given as ``path`` will be written, links resolved; ask before work that takes long.

    Raises
    ------
    ValueError
        A folder, a device, a pipe or one of the ``inputs`` is there.
    """
    target = _real(path)
    if any(_real(Path(given)) == target for given in inputs):
        raise ValueError(f"{path} is read by the same command: it is not replaced; give another name")
    if os.path.lexists(target) and not target.is_file():
        raise ValueError(f"{path} is {_kind(target)}: only a regular file is written or replaced")
    _check_parent(target, path)
    return target


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A fresh file beside ``path`` that takes its place only when the block ends well."""
    target = check_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(target)
    handle = _lock(draft, wait=True)
    try:
        os.ftruncate(handle, 0)  # what a killed command left
        with _disk_errors():
            yield draft
        os.fsync(handle)
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path``, a file that is appended to, for this process alone; it is made where there is none.

    Raises
    ------
    ValueError
        Another command holds it, or it is no regular file.
    """
    target = check_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = _lock(target, wait=False, said=path)
    try:
        yield
    finally:
        os.close(handle)


# --- folders


def check_output(path: Path, *, made_by: str, inputs: Iterable[Path | str] = ()) -> Path:
    """Where a folder given as ``path`` will be written, links resolved; ask before work that takes long.

    Parameters
    ----------
    made_by : str
        The command; an earlier result of the same command may be replaced.
    inputs : iterable of path or str
        What it reads: neither they nor a folder above them is replaced. Names that are no path are passed over.

    Raises
    ------
    ValueError
        The working folder or one above it, home, an input, a mount point, no folder, a folder that something else made
        or that holds other or changed files: which, and what to do.
    """
    target = _real(path)
    here, home = Path.cwd().resolve(), Path.home().resolve()
    for what, place in (("the working folder", here), ("the home folder", home)):
        if target == place or target in place.parents:
            raise ValueError(f"{path} is {what} or above it: it is never replaced; give a folder of its own")
    for given in inputs:
        held = _real(Path(given))
        if held.exists() and (held == target or target in held.parents):
            raise ValueError(f"{path} holds {given}, which is read: it is not replaced; give a folder of its own")
    if not os.path.lexists(target):
        _check_parent(target, path)
        return target
    if not target.is_dir():
        raise ValueError(f"{path} is {_kind(target)}: a folder is written; give another name")
    if os.path.ismount(target):
        raise ValueError(f"{path} is a mount point, which cannot be replaced; give a folder in it")
    _check_made_by(target, path, made_by)
    return target


@contextmanager
def whole_folder(path: Path, *, made_by: str, inputs: Iterable[Path | str] = (), told: object = None) -> Iterator[Path]:
    """A fresh folder that takes the place of ``path`` only when the block ends well; the old one stands until then.

    Parameters are those of `check_output`; ``told`` (JSON) is kept in the marker: what decided the content.

    Raises
    ------
    ValueError
        As `check_output`; also when another command is writing the same folder.
    """
    target = check_output(path, made_by=made_by, inputs=inputs)
    with _held_draft(target, path) as draft:
        _empty(draft)
        try:
            with _disk_errors():
                yield draft
            _publish(draft, target, made_by, told)
        except BaseException:
            _remove(draft, last=DRAFT)
            raise


@contextmanager
def drafted(path: Path, *, made_by: str, told: object, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """As `whole_folder`, but a draft that was cut short by a kill, an interrupt or a full disk goes on where it was.

    Parameters
    ----------
    told : JSON value
        All that decides the content: options, and fingerprints of what is read. A draft made from anything else is
        emptied first.

    Raises
    ------
    ValueError
        As `whole_folder`.
    """
    target, key = check_output(path, made_by=made_by, inputs=inputs), fingerprint([made_by, told])
    with _held_draft(target, path) as draft:
        mark = draft / DRAFT
        with mark.open("rb") as said:
            known = said.read(len(key) + 1)  # whatever its size is
        if known != key.encode():
            _empty(draft)
            mark.write_text(key, encoding="utf-8")
        try:
            with _disk_errors():
                yield draft
            _publish(draft, target, made_by, told)
        except (OSError, MemoryError):
            raise
        except Exception:
            _remove(draft, last=DRAFT)
            raise


def check_claim(path: Path, *, made_by: str, told: dict[str, Any]) -> None:
    """Whether a folder could be claimed for these settings; ask before work that takes long.

    Parameters are those of `claimed`, but that ``told`` may be a part of what will be told.

    Raises
    ------
    ValueError
        It holds something else, or belongs to other settings.
    """
    marker = _real(path) / MARKER
    if not marker.is_file():
        check_output(path, made_by=made_by)
    elif marker.stat().st_size:
        _check_told(path, read_json(marker), made_by, told, part=True)


@contextmanager
def claimed(path: Path, *, made_by: str, told: dict[str, Any]) -> Iterator[Path]:
    """A folder that grows under its own name, for one process at a time; continued where ``told`` is the same.

    Raises
    ------
    ValueError
        It holds something else, belongs to other settings (which differ is said), or another command is writing it.
    """
    target = _real(path)
    if not (target / MARKER).is_file():
        check_output(path, made_by=made_by)
        target.mkdir(parents=True, exist_ok=True)
    handle = _lock(target / MARKER, wait=False, said=path)
    try:
        if (target / MARKER).stat().st_size:
            _check_told(path, read_json(target / MARKER), made_by, told)
        else:
            text = json.dumps({"made_by": made_by, "told": told}, indent=1)
            os.pwrite(handle, text.encode(), 0)  # in place: the lock is on this file
        with _disk_errors():
            yield target
    finally:
        os.close(handle)


def _check_told(path: Path, theirs: dict, made_by: str, told: dict[str, Any], *, part: bool = False) -> None:
    if theirs.get("made_by") != made_by:
        raise ValueError(_of_another(path, theirs, made_by))
    held = theirs.get("told")
    if part and isinstance(held, dict):
        held = {k: v for k, v in held.items() if k in told}
    if differ := differences(told, held):
        raise ValueError(
            f"{path} belongs to other settings or data ({', '.join(differ)} differ); give another folder, or delete it"
        )


@contextmanager
def amended(folder: Path) -> Iterator[Path]:
    """A draft that holds what a folder of rankwise's holds; with what the block adds it takes the folder's place.

    Raises
    ------
    ValueError
        Not made by rankwise, other or changed files in it, or another command is writing it.
    """
    target, marker = _real(folder), _marker(folder)
    if marker is None:
        raise ValueError(f"{folder} was not made by rankwise: nothing is added to it")
    _check_made_by(target, folder, str(marker.get("made_by")))
    with _held_draft(target, folder) as draft:
        _empty(draft)
        try:
            _link_all(target, draft)
            with _disk_errors():
                yield draft
            _publish(draft, target, marker["made_by"], marker.get("told"))
        except BaseException:
            _remove(draft, last=DRAFT)
            raise


def _link_all(folder: Path, into: Path) -> None:
    """Everything but rankwise's marks under a second name; copies where the file system cannot."""

    def linked(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    def marks(place: str, names: list[str]) -> list[str]:
        return [MARKER, DRAFT] if Path(place) == folder else []

    shutil.copytree(folder, into, copy_function=linked, symlinks=True, ignore=marks, dirs_exist_ok=True)


def cached(path: Path, make: Callable[[Path], None]) -> Path:
    """``path``, a folder that ``make`` fills once; a second process waits for the first. What is there is kept."""
    if not path.is_dir():
        with _held_draft(path, path, wait=True) as draft:
            if not path.is_dir():
                _empty(draft)
                try:
                    make(draft)
                except BaseException:
                    _remove(draft, last=DRAFT)
                    raise
                _as_umask(draft)
                os.replace(draft, path)
                (path / DRAFT).unlink()
            else:
                _remove(draft, last=DRAFT)
    return path


# --- fingerprints


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content_of(path: Path | str) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder, rankwise's own marks aside."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in (MARKER, DRAFT))
        return fingerprint({str(p.relative_to(path)): content_of(p) for p in inside})
    found = path.stat()
    return _hash(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def differences(mine: object, theirs: object) -> list[str]:
    """The keys in which two mappings of JSON values differ."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return [] if fingerprint(mine) == fingerprint(theirs) else ["settings"]
    keys = [*mine, *(k for k in theirs if k not in mine)]
    return [str(k) for k in keys if fingerprint(mine.get(k)) != fingerprint(theirs.get(k))]


@lru_cache(maxsize=4096)
def _hash(path: Path, *changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- pieces


def _real(path: Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.rankwise-draft")


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a device, a pipe or a socket"


def _check_parent(target: Path, said: Path) -> None:
    above = next(p for p in target.parents if os.path.lexists(p))
    if not above.is_dir():
        raise ValueError(f"{said} cannot be made: {above} is {_kind(above)}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write", str(above))


def _check_made_by(target: Path, said: Path, made_by: str) -> None:
    marker, held = _marker(target), sorted(n for n in os.listdir(target) if n not in (MARKER, DRAFT))
    if marker is None and not held:
        return  # empty
    if marker is None:
        raise ValueError(
            f"{said} holds {_some(held)}, which rankwise did not write: it is not replaced; give another folder"
        )
    if marker.get("made_by") != made_by:
        raise ValueError(_of_another(said, marker, made_by))
    if strange := _strange(target, marker):
        raise ValueError(
            f"{said} holds {_some(strange)}, added or changed since it was made: it is not replaced; move that away, "
            "or give another folder"
        )


def _of_another(said: Path, marker: dict, made_by: str) -> str:
    return f"{said} was made by `rankwise {marker.get('made_by')}`, not `rankwise {made_by}`; give another folder"


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _marker(folder: Path) -> dict | None:
    if not (folder / MARKER).is_file():
        return None
    found = read_json(folder / MARKER)
    return found if isinstance(found.get("files", {}), dict) else None


def _files(folder: Path) -> dict[str, list]:
    """Size and, of small files, hash of everything in a folder but rankwise's own marks; links are not followed."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(place, f)))]:
            path = Path(place, name)
            if path.name in (MARKER, DRAFT, _draft(Path(MARKER)).name) and path.parent == folder:
                continue
            size = path.lstat().st_size
            small = size < HASHED_BELOW and path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = [size, content_of(path) if small else None]
    return found


def _strange(folder: Path, marker: dict) -> set[str]:
    """Files that are not on the marker's list as they are now."""
    listed = marker.get("files", {})
    return {n for n, held in _files(folder).items() if listed.get(n) != held}


def _lock(path: Path, *, wait: bool, said: Path | None = None) -> int:
    """A handle of ``path`` (made where absent) that has the system's exclusive lock; the lock ends with the handle."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise ValueError(f"another command is writing {said or path}; wait for it, or give another name") from error
        except FileNotFoundError:
            pass  # its holder finished and renamed it while this one waited: once more
        os.close(handle)


@contextmanager
def _held_draft(target: Path, said: Path, *, wait: bool = False) -> Iterator[Path]:
    """The draft folder of ``target``, locked; after a kill it may hold what was written."""
    draft = _draft(target)
    while True:
        draft.mkdir(parents=True, exist_ok=True)
        try:
            there = {p.name for p in draft.iterdir()}  # once: others may be making it at this moment
        except FileNotFoundError:
            continue  # the folder was renamed in between
        if draft.is_symlink() or (there and not there & {DRAFT, MARKER}):
            raise ValueError(f"{draft} is in the way and rankwise did not make it; move it, or give another name")
        try:
            handle = _lock(draft / DRAFT, wait=wait, said=said)
            break
        except FileNotFoundError:
            continue  # the folder was renamed in between
    try:
        for old in target.parent.glob(f"{glob.escape(_old(target, ''))}*"):  # left by a kill in the moment of replacing
            _remove(old, last=MARKER)
        yield draft
    finally:
        os.close(handle)


def _old(target: Path, process: int | str) -> str:
    return f".{target.name}.rankwise-old-{process}"


def _as_umask(folder: Path) -> None:
    """Give files the mode that the umask gives; safetensors writes them for the owner alone."""
    os.umask(mask := os.umask(0o077))
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


def _publish(draft: Path, target: Path, made_by: str, told: object) -> None:
    if target.is_dir():
        try:
            _check_made_by(target, target, made_by)
        except ValueError as error:  # since the work began; where the draft can go on, it is kept
            raise FileExistsError(str(error)) from error
    _as_umask(draft)
    write_json(draft / MARKER, {"made_by": made_by, "told": told, "files": _files(draft)})
    if not target.exists() or not any(target.iterdir()):
        os.rename(draft, target)
    else:
        old = target.with_name(_old(target, os.getpid()))
        if _exchange(draft, target):
            os.rename(draft, old)
        else:  # the file system cannot: for a moment there is neither
            os.rename(target, old)
            os.rename(draft, target)
        _remove(old, last=MARKER)
    (target / DRAFT).unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that a reader finds the old folder or the new one; False where that is unknown."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _empty(folder: Path, *, but: str = DRAFT) -> None:
    """Remove everything but the draft's lock; what another process removes at the same time is no error."""
    for inside in folder.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside, ignore_errors=True)
        elif inside.name != but:
            inside.unlink(missing_ok=True)


def _remove(folder: Path, *, last: str) -> None:
    """Remove a folder that carries the mark ``last``, the mark at the end: cut short, it is still known as ours."""
    with suppress(FileNotFoundError):
        if folder.is_symlink() or (not (folder / last).is_file() and any(folder.iterdir())):
            return
        _empty(folder, but=last)
        (folder / last).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _disk_errors() -> Iterator[None]:
    """What the system refused is an `OSError`, also where a library underneath writes in Rust or C++."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if found := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error)):
            number = int(found[1] or found[2])
            raise OSError(number, os.strerror(number)) from error
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch keeps no number
            raise OSError(errno.EIO, "a checkpoint cannot be written; is the disk full?") from error
        raise


def finite(value: object) -> object:
    """The same with null for NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
