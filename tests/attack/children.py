"""Run an attacked call in a forked child: how it ended, how long it took, how much memory it took."""

import contextlib
import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
MEMORY = 1 << 30  # bytes above what the process had
SECONDS = 60.0
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink", "os.link", "os.utime")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def rankwise(*args: object) -> Callable[[], tuple[str, str]]:
    """The command in this process, as `rankwise ARGS` would run: how it ended, and what it said."""

    def call() -> tuple[str, str]:
        from rankwise.cli import main

        sys.argv = ["rankwise", *map(str, args)]
        try:
            main.run()
        except SystemExit as ended:
            return {0: "success", None: "success", 2: "clean"}.get(ended.code, f"exit {ended.code}"), ""
        return "success", ""

    return call


def judged(call: Callable[[], object]) -> tuple[str, str]:
    """How a call ended: success, clean (one line), or what must not be: a traceback, control codes, many lines."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            given = call()
        ended = given[0] if isinstance(given, tuple) and isinstance(given[0], str) else "success"
    except (ValueError, OSError, ImportError) as error:
        from rankwise.cli.main import explained
        from rankwise.reading import printable

        ended = "clean"
        err.write(f"error: {printable(explained(error))}")
    except BaseException as error:
        ended = "memory" if isinstance(error, MemoryError) else "traceback"
        err.write(traceback.format_exc())
    said = err.getvalue()
    if ended in ("traceback", "memory"):
        return ended, said
    if found := CONTROL.search(out.getvalue() + said):
        return "control codes", f"{found[0]!r} in {(out.getvalue() + said)[max(0, found.start() - 60) :][:200]!r}"
    if ended == "clean" and "Traceback" in said:
        return "traceback", said
    if ended == "clean" and len(said.strip().splitlines()) > 1 and "Usage:" not in said:
        return "many lines", said
    if ended == "clean" and len(said) > 3000:
        return "long line", said[:3000]
    return ended, said


def peak() -> int:
    """The most resident bytes since `forget_peak`."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def forget_peak() -> int:
    """Start measuring anew; the bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def in_child(
    work: Callable[[Callable[[dict], None]], None], *, seconds: float = SECONDS, kill_after: float | None = None
):
    """Fork; the child calls ``work(tell)``; each told message is yielded as it comes.

    A child that says nothing for ``seconds`` (more, the busier the machine is) is killed (last message: hang), one that
    dies says so (crash). With
    ``kill_after`` it is killed after so many seconds, without a word.
    """
    seconds *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.setsid()
            most = resource.getrlimit(resource.RLIMIT_AS)[1]  # of a child's child no more than of the child
            limit = MEMORY * 5 + _virtual()
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            null = os.open(os.devnull, os.O_RDWR)
            for handle in (0, 1, 2):
                os.dup2(null, handle)
            work(lambda message: os.write(writer, json.dumps(message).encode() + b"\n"))
            status = 0
        except BaseException:
            os.write(writer, json.dumps({"ended": "harness", "said": traceback.format_exc()}).encode() + b"\n")
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    pending = b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], seconds if kill_after is None else kill_after)
            if not ready and kill_after is not None:
                return
            if not ready:
                yield {"ended": "hang", "said": f"nothing for {seconds:.0f} s"}
                return
            piece = os.read(reader, 1 << 16)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            yield from map(json.loads, lines)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, _ = os.wait4(pid, 0)
        os.close(reader)
    if status and status != signal.SIGKILL:
        yield {"ended": "crash", "said": f"status {status} (signal {status & 127})"}


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def timed(call: Callable[[], object]) -> dict:
    """How a call ended, with seconds and bytes; too much memory is an ending of its own."""
    before, start = forget_peak(), time.perf_counter()
    ended, said = judged(call)
    took = peak() - before
    if took > MEMORY and ended in ("success", "clean"):
        ended, said = "memory", f"{took / 2**20:.0f} MB; {said}"
    return {"ended": ended, "said": said[-6000:], "seconds": time.perf_counter() - start, "bytes": took}


def run(args: tuple[str, ...], place: Path, *, after: float | None = None, before_write: int | None = None) -> dict:
    """Run a command in a child; kill it after some seconds, or before its n-th write in ``place``. How it ended."""

    def work(tell: Callable[[dict], None]) -> None:
        os.chdir(place)
        count = _counting(place, before_write)
        ended, said = judged(rankwise(*args))
        tell({"ended": ended, "said": said[-3000:], "writes": count[0]})

    start = time.perf_counter()
    endings = list(in_child(work, seconds=120, kill_after=after))
    return {"seconds": time.perf_counter() - start, **(endings[0] if endings else {"ended": "killed"})}


def _counting(place: Path, fatal: int | None) -> list[int]:
    """Count this process's writes below a folder from here on; at number ``fatal`` it is killed."""
    count, here, process = [0], str(place), os.getpid()

    def hook(event: str, given: tuple) -> None:
        if event == "open":
            path, mode, flags = given
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
        else:
            path, writes = (given[0] if given else None), event in WRITES
        if not writes or not isinstance(path, str | bytes | os.PathLike) or os.getpid() != process:
            return
        if os.path.abspath(os.fsdecode(path)).startswith(here):
            count[0] += 1
            if count[0] == fatal:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(hook)
    return count
