"""Tests run in a process forked from one that has imported the libraries: once as it stands, then with a fault."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_FORK = get_context("fork")


def side_by_side(tasks: Iterable[tuple[Any, float, Callable[..., None], tuple]], at_once: int = 2) -> Iterator:
    """Run ``function(*arguments, folder)`` of every ``(key, seconds, function, arguments)`` in a forked process.

    ``folder`` is a fresh temporary one. Yields ``(key, exit code)`` as they end; the code is None for what took longer
    than its seconds and was killed with all its children.
    """
    gc.freeze()  # else every trial goes through, and copies, all that the libraries left
    waiting = iter(tasks)
    running: dict[BaseProcess, tuple[Any, float, TemporaryDirectory]] = {}
    while True:
        while len(running) < at_once and (task := next(waiting, None)):
            key, seconds, function, arguments = task
            folder = TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True)
            process = _FORK.Process(target=_alone, args=(function, *arguments, folder.name))
            process.start()
            running[process] = key, time.monotonic() + seconds, folder
        if not running:
            return
        next_deadline = min(deadline for _, deadline, _ in running.values())
        ended = wait([p.sentinel for p in running], max(0.0, next_deadline - time.monotonic()))
        for process, (key, deadline, folder) in list(running.items()):
            late = process.sentinel not in ended and time.monotonic() >= deadline
            if process.sentinel not in ended and not late:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.ident or 0, signal.SIGKILL)  # its group: what the tests started ends with it
            process.join()
            del running[process]
            folder.cleanup()
            yield key, None if late else process.exitcode


def _alone(function: Callable[..., None], *arguments: Any) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    function(*arguments)
    os._exit(0)


def attempt(root: Path, file: Path, source: str, test_files: Sequence[Path], tests: Sequence[str], folder: str) -> None:
    """Exit with pytest's code for ``tests``, in this order, up to the first failure, with ``source`` for ``file``."""
    sys.meta_path.insert(0, _Instead(file, source))
    os._exit(_pytest(root, test_files, folder, ["-x"], _Chosen(tests)))


def measure(root: Path, test_files: Sequence[Path], out: Path, folder: str) -> None:
    """Write which tests execute which line, how long each takes, and what got imported, as JSON to ``out``."""
    import coverage

    cov = coverage.Coverage(data_file=None, config_file=False, source=[str(root / "src")])
    watch = _Watch(cov)
    cov.start()
    code = _pytest(root, test_files, folder, [], watch)
    cov.stop()
    data = cov.get_data()
    lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
    told = {"lines": lines, "seconds": watch.seconds, "fixtures": watch.fixtures, "failed": watch.failed}
    out.write_text(json.dumps({**told, "code": code, "modules": _libraries(root)}))


def warm(modules: Sequence[str]) -> None:
    """Import what the tests will need, so that forked processes have it."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _pytest(root: Path, test_files: Sequence[Path], folder: str, options: Sequence[str], plugin: object) -> int:
    os.chdir(root)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
    sys.path.insert(0, str(root / "src"))
    fixed = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={folder}/pytest", "--hypothesis-seed=0"]
    return int(pytest.main([*fixed, *options, *map(str, test_files)], plugins=[plugin, _OneThread()]))


def _libraries(root: Path) -> list[str]:
    ours = tuple(str(root / folder) + os.sep for folder in ("src", "tests", "tools"))
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return [name for name, file in files.items() if file and not file.startswith(ours) and name != "__main__"]


class _OneThread:
    """One thread, and no shrinking of what Hypothesis finds: that a test fails is enough."""

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        name = settings.get_current_profile_name()
        profile = settings.get_profile(name)
        settings.register_profile("mutants", profile, phases=[Phase.explicit, Phase.generate], database=None)
        settings.load_profile("mutants")
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)


class _Chosen:
    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


class _Watch:
    """Tells coverage which test runs; a fixture that tests share is a context of its own."""

    def __init__(self, cov: Any) -> None:
        self.cov, self.seconds, self.failed = cov, defaultdict(float), []
        self.fixtures: dict[str, list[str]] = defaultdict(list)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.cov.switch_context(nodeid)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for name in getattr(item, "fixturenames", ()):
            self.fixtures[name].append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        shared = fixturedef.scope != "function"
        if shared:
            self.cov.switch_context(f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            if shared:
                self.cov.switch_context(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


class _Instead(SourceFileLoader):
    """Finds and loads one module from a text instead of its file."""

    def __init__(self, file: Path, source: str) -> None:
        self.file, self.source = file, source

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if self.file.stem != name.rpartition(".")[2]:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None or Path(spec.origin) != self.file:
            return None
        super().__init__(name, spec.origin)
        spec.loader = self
        return spec

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)
