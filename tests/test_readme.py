"""What the README tells a reader to type works as it stands there, and prints what stands below it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from rankwise.cli.main import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```(?:\n\n```\n(.*?)^```)?", TEXT, flags=re.DOTALL | re.MULTILINE)
# those that a newcomer runs after installing, each with what it printed
TASKS = [(typed, shown) for typed, shown in BLOCKS if "rankwise " in typed]
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e-?\d+)?")


def environment():
    """One thread, and the command of this environment first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}


def parsed(words):
    """The innermost command's parameters and their values; what the grammar does not take is an error."""
    command, context = get_command(app), None
    while below := getattr(command, "commands", None):
        context = command.make_context("rankwise", [], parent=context, resilient_parsing=True)
        command, words = below[words[0]], words[1:]
    return command.make_context(command.name, list(words), parent=context).params


def paths(values):
    """Inputs and outputs of a command: parameters of a path's type, and the table that ``--data`` names."""
    return {n: Path(v) for n, v in values.items() if isinstance(v, Path) or (n == "data" and v)}


def dry(words, folder):
    """What a command says where torch cannot be imported: all that it looks at before."""
    code = "import sys; sys.modules['torch'] = None; from rankwise.cli.main import run; run()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)


def test_there_are_three_tasks_and_a_block_of_output_under_each():
    assert len(TASKS) == 3
    assert all(shown for _, shown in TASKS)


@pytest.mark.parametrize("typed", [typed for typed, _ in TASKS], ids=lambda typed: typed.split()[-1][:20])
def test_a_command_finds_every_file_that_it_names_and_gets_as_far_as_torch(typed, tmp_path):
    made = set()  # by commands that are only read here
    for line in typed.splitlines():
        if not line.startswith("rankwise "):
            subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), check=True, timeout=120)
            continue
        words = shlex.split(line)[1:]
        named = paths(parsed(words))
        out = named.pop("out", None)
        later = {p for p in named.values() if p in made}
        assert all(p in later or (tmp_path / p).exists() for p in named.values()), (line, named)
        if not later:
            said = dry(words, tmp_path)
            assert said.returncode, line
            assert "torch" in said.stderr, f"{line}: {said.stderr}"
        made |= {out} if out else set()


def test_what_is_installed_and_made_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in (line for typed, _ in BLOCKS for line in typed.splitlines()):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), line
        elif words[0] == "pip" and "-c" in words:
            assert (ROOT / words[words.index("-c") + 1]).is_file()
        else:
            assert words[0] in ("pip", "printf", "for", "rankwise", "python"), line
    for file in re.findall(r"`rankwise \w+ (examples/\S+)`", TEXT):
        assert (ROOT / file).is_file(), file


def skeleton(text):
    """The words of a text line by line, and its numbers apart: costs differ from machine to machine."""
    text = re.sub(r"\b[\d.]+(s|KB|MB)\b", "COST", text)
    lines = [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines() if line.strip()]
    return lines, [float(n) for n in NUMBER.findall(text)]


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "shown"), TASKS, ids=["adapt", "quantile", "answer"])
def test_a_task_prints_what_stands_below_it(typed, shown, tmp_path):
    done = subprocess.run(
        ["bash", "-ec", typed], cwd=tmp_path, env=environment(), stdout=-1, stderr=-2, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout
    (words, numbers), (expected, values) = skeleton(done.stdout), skeleton(shown)
    assert words == expected
    assert numbers == pytest.approx(values, rel=0.05, abs=0.05)


def test_a_skeleton_tells_words_from_numbers_and_costs():
    assert skeleton("LoRA  82.9k 337KB 16s 76.5\n\n90%  -1.5 0.000373\n") == (
        ["LoRA #k COST COST #", "#% # #"],
        [82.9, 76.5, 90.0, -1.5, 0.000373],
    )
