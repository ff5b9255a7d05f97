"""A family's sample of mutants tried, remembered in a JSON file and told."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from mutants.places import Mutant, draw, places
from mutants.trial import attempt, measure, side_by_side, warm

KILLED, LATE, SURVIVED, UNTESTED, EQUIVALENT = "killed", "killed (too slow)", "survived", "never executed", "equivalent"


@dataclass(frozen=True)
class Table:
    """``tools/mutants.toml`` of a project: what its layout does not tell.

    Attributes
    ----------
    only : dict
        Family to the patterns of its files that hold mathematics; all files where a family is not named.
    tests : dict
        Pattern of source files (below the package) to patterns of their test files (below ``tests``), where those are
        not just the one that is named alike; the first that fits.
    equivalent : list of dict
        ``file``, ``before``, ``after``, where needed ``inside`` (a function), and ``why``, of mutants that were read
        and found to change nothing that can be observed.
    """

    only: dict[str, list[str]]
    tests: dict[str, list[str]]
    equivalent: list[dict[str, str]]

    @classmethod
    def of(cls, root: Path) -> Table:
        file = root / "tools" / "mutants.toml"
        told = tomllib.loads(file.read_text()) if file.exists() else {}
        return cls(told.get("only", {}), told.get("tests", {}), told.get("equivalent", []))

    def names(self, file: str, mutant: Mutant) -> bool:
        """Whether the mutant is listed as equivalent."""
        found = {"file": file, "before": mutant.before, "after": mutant.after, "inside": mutant.scope}
        return any(all(found[k] == v for k, v in entry.items() if k != "why") for entry in self.equivalent)


class Family:
    """The files of one family with their tests, and what a run over its mutants finds."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.table = root, name, Table.of(root)
        self.package = next((root / "src").glob("*/__init__.py")).parent
        folder = self.package / name
        patterns = self.table.only.get(name, ["**/*.py"])
        self.files = sorted({f for p in patterns for f in folder.glob(p) if f.name != "__init__.py"})
        if not self.files:
            raise SystemExit(f"{folder} has no files to mutate")

    def short(self, file: Path) -> str:
        """The file as the table names it, below the package."""
        return file.relative_to(self.package).as_posix()

    def tests_of(self, file: Path) -> list[Path]:
        """The test files of a source file: named in the table, else ``tests/FAMILY/test_FILE.py``."""
        tests, path = self.root / "tests", file.relative_to(self.package)
        alike = [path.with_name(f"test_{path.name}").as_posix()]
        named = next((t for pattern, t in self.table.tests.items() if fnmatch(path.as_posix(), pattern)), alike)
        return sorted({f for pattern in named for f in tests.glob(pattern)})

    def fingerprint(self, test_files: Sequence[Path], *more: str) -> str:
        """Of what decides a verdict: the family, the tests and their helpers (not the families it imports)."""
        folders = {d for t in test_files for d in t.parents if d.is_relative_to(self.root / "tests")}
        helpers = [f for d in folders for f in d.glob("*.py")]
        decides = {*(self.package / self.name).rglob("*.py"), *test_files}
        decides |= {f for f in helpers if not f.name.startswith("test_")}
        digests = (hashlib.sha256(f.name.encode() + f.read_bytes()).hexdigest() for f in sorted(decides))
        return hashlib.sha256("".join([*more, *digests]).encode()).hexdigest()[:24]

    def run(self, n: int, seed: int, keep: Path) -> Iterator[tuple[Mutant, str]]:
        """Every mutant of the sample with its verdict, as they come; ``keep`` holds what is known already."""
        keep.mkdir(parents=True, exist_ok=True)
        sample = list(islice(draw([p for f in self.files for p in places(f)], seed), n))
        known = _Known(keep / f"{self.name}.json")
        pending: list[tuple[Mutant, str]] = []
        for mutant in sample:
            key = self.fingerprint(self.tests_of(mutant.file), mutant.source)
            if self.table.names(self.short(mutant.file), mutant):
                yield mutant, EQUIVALENT
            elif key in known.verdicts:
                yield mutant, known.verdicts[key]
            else:
                pending.append((mutant, key))
        covered = self._covered({tuple(self.tests_of(mutant.file)) for mutant, _ in pending}, keep)
        tasks = []
        for mutant, key in pending:
            test_files = self.tests_of(mutant.file)
            told = covered.get(tuple(test_files), {})
            tests = _touching(told, mutant)
            if tests:
                limit = 20 + 5 * sum(told["seconds"][t] for t in tests)
                arguments = (self.root, mutant.file, mutant.source, test_files, tests)
                tasks.append(((mutant, key), limit, attempt, arguments))
            else:
                yield mutant, UNTESTED
        for (mutant, key), code in side_by_side(tasks):
            verdict = {None: LATE, 0: SURVIVED}.get(code, KILLED)
            known.remember(key, verdict)
            yield mutant, verdict

    def _covered(self, wanted: set[tuple[Path, ...]], keep: Path) -> dict[tuple[Path, ...], dict[str, Any]]:
        outs = {t: keep / f"tests-{self.fingerprint(t)}.json" for t in sorted(wanted) if t}
        tasks = [(t, 3600.0, measure, (self.root, t, out)) for t, out in outs.items() if not out.exists()]
        for test_files, _ in side_by_side(tasks):
            if not outs[test_files].exists():
                raise SystemExit(f"the tests of {', '.join(map(str, test_files))} do not come to an end")
            warm(json.loads(outs[test_files].read_text())["modules"])
        told = {t: json.loads(out.read_text()) for t, out in outs.items()}
        for test_files, what in told.items():
            warm(what["modules"])
            if what["code"]:
                outs[test_files].unlink()
                raise SystemExit(f"{', '.join(map(str, test_files))} fail without a mutant: {what['failed']}")
        return told


class _Known:
    """Verdicts by fingerprint, in a file written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.verdicts: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def remember(self, key: str, verdict: str) -> None:
        self.verdicts[key] = verdict
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(self.verdicts, indent=0))
        draft.replace(self.file)


def _touching(told: dict[str, Any], mutant: Mutant) -> list[str]:
    """The tests that execute the statement, shortest first; all, where it is executed as the module is imported."""
    lines = told.get("lines", {}).get(str(mutant.file), {})
    contexts = {c for line in mutant.statement for c in lines.get(str(line), ())}
    tests = set(told["seconds"]) if "" in contexts else contexts & set(told.get("seconds", ()))
    for context in contexts:
        if context.startswith("fixture "):
            tests |= set(told["fixtures"].get(context.removeprefix("fixture "), ()))
    return sorted(tests, key=lambda t: (told["seconds"][t], t))


def tell(found: Sequence[tuple[Mutant, str]], family: Family) -> None:
    """Print the survivors and the share killed."""
    for mutant, verdict in sorted(found, key=lambda f: (f[0].file, f[0].line)):
        if verdict in (SURVIVED, UNTESTED):
            print(_told(mutant, verdict, family))
    told = [v for _, v in found]
    killed, counted = sum(v in (KILLED, LATE) for v in told), sum(v != EQUIVALENT for v in told)
    share = f"{killed / counted:.0%}" if counted else "nothing"
    print(f"{family.name}: {killed} of {counted} killed ({share}); {len(told) - counted} equivalent")


def _told(mutant: Mutant, verdict: str, family: Family) -> str:
    where = f"{family.short(mutant.file)}:{mutant.line} {verdict}"
    return f"{where}\n  - {mutant.before}\n  + {mutant.after}" if verdict in (SURVIVED, UNTESTED) else where


def main(root: Path, name: str, n: int, seed: int) -> None:
    """Try ``n`` mutants of a family and print what is found."""
    family, found = Family(root, name), []
    for mutant, verdict in family.run(n, seed, root / "runs" / "mutants"):
        found.append((mutant, verdict))
        print(f"{len(found)}/{n} {_told(mutant, verdict, family)}", file=sys.stderr, flush=True)
    tell(found, family)
