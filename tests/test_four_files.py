"""A method is four files: a toy one is added to a copy of the project, and found wherever methods are found."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD = '''"""Toy: steps of a fixed length.

    θ ← θ - η sign(g)
"""

import torch

__all__ = ["Toy"]


class Toy(torch.optim.SGD):
    """Signs of gradients.

    Examples
    --------
    >>> from rankwise.optim import Toy
    """
'''
TEST = """from rankwise.optim import Toy


def test_toy_is_an_optimiser():
    assert Toy.__mro__[1].__name__ == "SGD"
"""
RECIPE = '''"""Does the toy do what its paper says?"""

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence

RECIPE = Recipe(name="toy", part="steps", about="steps of a fixed length", smoke={"seeds": 1})


def run(out, *, seeds=5, on_event=None):
    claims = [Claim(text="nothing changes nothing", held=True, found="0", control=True)]
    return Evidence(recipe="toy", title="Toy", command="rankwise bench toy", setting=f"{seeds} seeds",
                    header=["a"], rows=[["1"]], claims=claims, seconds=0.0, environment={})
'''
ROW = """    Entry(
        id="toy",
        name="Toy",
        family="optim",
        object="Toy",
        paper="Nobody, Toys, 2099",
        arxiv="9999.99999",
        claim="Steps of a fixed length.",
        status="ready",
    ),
)


def entry("""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "src/rankwise/optim/toy.py").write_text(METHOD)
    (root / "tests/optim").mkdir(parents=True)
    (root / "tests/optim/test_toy.py").write_text(TEST)
    (root / "src/rankwise/bench/optim/toy.py").write_text(RECIPE)
    catalogue = root / "src/rankwise/catalogue.py"
    text = catalogue.read_text()
    assert text.count(")\n\n\ndef entry(") == 1
    catalogue.write_text(text.replace(")\n\n\ndef entry(", ROW, 1))
    return root


def run(copy, *args):
    env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy / 'docs'}"}
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=copy)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_in_its_familys_namespace(copy):
    assert run(copy, "-c", "from rankwise import optim; print(optim.Toy.__module__, 'Toy' in dir(optim))").split() == [
        "rankwise.optim.toy", "True",
    ]  # fmt: skip


def test_it_is_listed_among_the_methods(copy):
    rows = json.loads(run(copy, "-m", "rankwise", "methods", "--json"))
    assert [r["path"] for r in rows if r["id"] == "toy"] == ["rankwise.optim.Toy"]


def test_its_recipe_is_found_and_run(copy, tmp_path):
    told = json.loads(run(copy, "-m", "rankwise", "bench", "--list", "--json"))
    assert {"recipe": "toy", "part": "steps", "about": "steps of a fixed length"} in told
    run(copy, "-m", "rankwise", "bench", "toy", "--smoke", "--out", str(tmp_path / "out"))
    assert json.loads(next((tmp_path / "out").rglob("evidence.json")).read_text())["setting"] == "1 seeds"


def test_the_docs_list_it(copy):
    said = run(copy, "-c", "import generate; print('\\n'.join(generate.generated().values()))")
    assert "rankwise.optim.Toy" in said
    assert "9999.99999" in said


def test_its_own_test_is_collected(copy):
    said = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(copy / "tests"))
    assert re.search(r"1 passed|\[100%\]", said)


def test_no_count_of_methods_is_written_down():
    sources = [p for p in (ROOT / "src").rglob("*.py") if "bench" not in p.parts]
    for path in (*sources, ROOT / "README.md", ROOT / "docs/index.md", ROOT / "mkdocs.yml"):
        found = re.search(r"\b(\d+|fourteen|twenty-seven)\b (published )?methods\b", path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found and found[0]}"
