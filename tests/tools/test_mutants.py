import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mutants.places import draw, places
from mutants.run import Table
from mutants.trial import side_by_side

TOOLS = Path(__file__).parents[2] / "tools"
SOURCE = '''
"""Sums: 1 + 1."""
from typing import TYPE_CHECKING, Literal

Kind = Literal["a"]
if TYPE_CHECKING:
    import os as system


def total(values, start: "int | None" = 0):
    if start is None:
        raise ValueError(f"start={1 + 1} is needed")
    for a, _ in zip(values, values, strict=True):
        start = start + a
    return start


def larger(a, b):
    return a if a > b else b


def largest(a, b):
    return a if a > b else b


def halves(n):
    return n / 2
'''
TESTS = """
import pytest
from toy.sums.sums import larger, total

@pytest.fixture(scope="module")
def three():
    return total([1, 2])

def test_total(three):
    assert three == 3

def test_larger():
    assert (larger(1, 2), larger(2, 1)) == (2, 2)
"""
TABLE = """
[[equivalent]]
file = "sums/sums.py"
inside = "larger"
before = "return a if a > b else b"
after = "return a if a >= b else b"
why = "equal numbers are the same"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    files = {
        "src/toy/__init__.py": "",
        "src/toy/sums/__init__.py": "",
        "src/toy/sums/sums.py": SOURCE,
        "tests/sums/test_sums.py": TESTS,
        "tools/mutants.toml": TABLE,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def told(root):
    command = [sys.executable, "-m", "mutants", "sums", "--n", "100"]
    env = {**os.environ, "PYTHONPATH": str(TOOLS)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def output(project):
    return told(project)


def test_what_no_test_executes_survives_and_what_a_test_notices_does_not(output):
    assert "never executed\n  - return n / 2\n  + return n * 2\n" in output
    assert "start + a" not in output
    assert "start - a" not in output


def test_a_line_that_only_a_shared_fixture_executes_is_tested_by_those_who_use_it(output):
    assert "for a, _" not in output


def test_a_mutant_that_is_listed_as_equivalent_is_not_counted(output):
    killed, counted = (int(x) for x in output.splitlines()[-1].split()[1:4:2])
    assert output.endswith("; 1 equivalent\n")
    assert output.count("a >= b") == 1  # in the other function of the same line, which no test executes
    assert output.count("\n  + ") == counted - killed


def test_a_verdict_is_taken_from_the_record_while_source_and_tests_are_the_same(project, output):
    record = project / "runs" / "mutants" / "sums.json"
    known = json.loads(record.read_text())
    record.write_text(json.dumps(dict.fromkeys(known, "survived")))
    assert told(project).splitlines()[-1].startswith("sums: 0 of ")
    test = project / "tests" / "sums" / "test_sums.py"
    test.write_text(test.read_text() + "\n")
    assert told(project) == output


def test_the_projects_own_table_names_files_that_are_there():
    table, root = Table.of(TOOLS.parent), TOOLS.parent
    assert all(entry["why"] for entry in table.equivalent)
    for file in {entry["file"] for entry in table.equivalent}:
        assert (root / "src" / "rankwise" / file).is_file(), file
    for pattern, tests in table.tests.items():
        assert list((root / "src" / "rankwise").glob(pattern)), pattern
        assert all(list((root / "tests").glob(test)) for test in tests), tests


def test_texts_types_messages_and_guards_are_not_mutated(project):
    found = places(project / "src" / "toy" / "sums" / "sums.py")
    mutated = {m.before for m in draw(found, 0)}
    assert not any(word in line for line in mutated for word in ("Sums", "Literal", "system", "raise"))
    assert not any("strict=True" not in m.after for m in draw(found, 0) if m.before.startswith("for a"))


def test_a_seed_decides_the_draw_and_every_line_comes_once_before_any_comes_again(project):
    found = places(project / "src" / "toy" / "sums" / "sums.py")
    first, again, other = ([(m.line, m.after) for m in draw(found, seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
    lines = {line for line, _ in first}
    assert {line for line, _ in first[: len(lines)]} == lines


def test_every_mutant_parses_and_differs_in_the_line_it_names(project):
    file = project / "src" / "toy" / "sums" / "sums.py"
    for mutant in draw(places(file), 0):
        compile(mutant.source, "mutant", "exec")
        changed = [a != b for a, b in zip(SOURCE.splitlines(), mutant.source.splitlines(), strict=True)]
        assert changed.index(True) + 1 == mutant.line
        assert sum(changed) == 1


def test_what_takes_too_long_is_stopped():
    tasks = [("fast", 30, _sleep, (0.0,)), ("slow", 0.3, _sleep, (30.0,))]
    start = time.monotonic()
    assert dict(side_by_side(tasks)) == {"fast": 0, "slow": None}
    assert time.monotonic() - start < 10


def _sleep(seconds, folder):
    time.sleep(seconds)
