import importlib
import inspect
import json

import pytest

from rankwise.bench import Located, Recipe, recipes
from rankwise.bench.speed.core import alternate, truncated

ALL = [located for parts in recipes().values() for located in parts.values()]


@pytest.mark.parametrize("located", ALL, ids=lambda located: "/".join(located.place.parts))
def test_a_recipe_runs_by_its_record_and_only_with_arguments_that_it_has(located):
    module = importlib.import_module(located.module)
    assert located.recipe == module.RECIPE
    taken = inspect.signature(module.run).parameters
    assert {"out", "on_event"} <= set(taken)
    for name in located.recipe.smoke:
        assert name in taken if name.islower() else hasattr(module, name), name


def test_records_are_found_without_importing_what_they_need():
    import subprocess
    import sys

    code = "import sys; from rankwise.bench import recipes; recipes(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_run_keeps_its_evidence_and_a_changed_recipe_asks_for_another_folder(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Located, "module", property(lambda self: "toy"))
    toy = Located(Recipe(name="toy", part="main", about="a toy", smoke={"SIZE": 2}), tmp_path / "toy")
    out = tmp_path / "out"
    assert toy.run(out, seeds=None, smoke=False).setting == "size 100"
    assert json.loads((out / "evidence.json").read_text())["setting"] == "size 100"
    small = toy.run(tmp_path / "small", seeds=None, smoke=True)
    assert small.setting == "size 2"
    with pytest.raises(ValueError, match="--seeds does not apply"):
        toy.run(out, seeds=3, smoke=False)
    (tmp_path / "toy.py").write_text(TOY + "# changed\n")
    with pytest.raises(ValueError, match=r"other settings or data \(code differ\)"):
        toy.run(out, seeds=None, smoke=False)


TOY = """
from rankwise.bench.shared.evidence import Evidence
SIZE = 100
def run(out, *, on_event=None):
    return Evidence(recipe="toy", title="", command="", setting=f"size {SIZE}", header=[], rows=[], claims=[])
"""


def test_truncated_svd_keeps_its_error_bound_on_the_benchs_matrices():
    rows, claims = truncated()
    excess = float(claims[0].found.rpartition("error ")[2].partition("%")[0])
    assert excess <= 1.0
    assert rows[0][0] == "truncated SVD"


def test_alternate_runs_both_in_turn():
    order = []
    alternate(lambda: order.append("a"), lambda: order.append("b"), times=2)
    assert order == ["a", "b", "a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("located", [r for r in ALL if r.recipe.smoke], ids=lambda r: "/".join(r.place.parts))
def test_a_smoke_run_judges_every_claim(located, tmp_path):
    evidence = located.run(tmp_path / "run", seeds=None, smoke=True)
    assert all(c.found for c in evidence.claims)
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
