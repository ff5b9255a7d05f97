"""Runs that a recipe keeps: the claims are judged from the file alone, and once more by anyone who has it."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import rankwise.bench
from rankwise.bench import Located, Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import ROWS, Rows, kept, plain, recorded, rows_of

TOY = """
import numpy as np
from rankwise.bench.shared.evidence import Claim, Evidence
SIZE = 3
asked = []
def measure(out, *, seeds=2, on_event=None):
    asked.append(seeds)
    return {f"seed {s}": {"said": np.arange(SIZE) / 3, "gold": [0, 1 / 3, 1]} for s in range(seeds)}
def judge(found, *, seeds):
    right = [float(np.mean(np.equal(r["said"], r["gold"]))) for r in found.values()]
    claim = Claim(text=f"two of {SIZE} are right", held=np.mean(right) > 0.6, found=f"{np.mean(right):.3f}, {seeds}")
    control = Claim(text="control: there are runs", held=True, found=str(len(found)), control=True)
    told = {"recipe": "toy", "title": "Toy", "command": "", "setting": "", "header": ["a"], "rows": [["1"]]}
    return Evidence(**told, claims=[claim, control])
"""


@pytest.fixture
def toy(written, tmp_path, monkeypatch):
    written("toy", TOY)
    monkeypatch.setattr(Located, "module", property(lambda self: str(self.place)))
    located = Located(Recipe(name="toy", part="main", about="a toy", smoke={"SIZE": 1}), Path("toy"))
    monkeypatch.setattr(rankwise.bench, "recipes", lambda: {"toy": {"main": located}})
    monkeypatch.chdir(tmp_path)
    return located


def command(*args):
    from rankwise.cli.main import app

    return CliRunner().invoke(app, ["bench", *map(str, args)])


def test_a_recipe_is_judged_by_what_its_file_holds_and_by_the_file_alone_once_more(toy, tmp_path):
    first = toy.run(tmp_path / "out", seeds=None, smoke=False)
    rows = rows_of(tmp_path / "out" / ROWS)
    assert list(rows.runs) == ["seed 0", "seed 1"]
    assert rows.runs["seed 0"]["said"] == [0.0, 0.3333333, 0.6666667]  # seven digits: by these it was judged
    assert first.claims[0].found == "0.667, 2"
    assert rows.claims == recorded(first)
    assert rows.told["asked"] == {"seeds": 2}
    again = toy.rescored(rows)
    assert (recorded(again), again.rows) == (rows.claims, first.rows)
    import toy as module

    assert module.asked == [2]  # nothing was measured again
    assert json.loads((tmp_path / "out" / "evidence.json").read_text())["seconds"] > 0


def test_a_changed_row_is_told_apart(toy, tmp_path):
    toy.run(tmp_path / "out", seeds=3, smoke=False)
    rows = rows_of(tmp_path / "out" / ROWS)
    rows.runs["seed 1"]["said"] = [9, 9, 9]
    assert recorded(toy.rescored(rows)) != rows.claims


def test_a_try_is_judged_at_its_own_sizes(toy, tmp_path):
    toy.run(tmp_path / "out", seeds=None, smoke=True)
    rows = rows_of(tmp_path / "out" / ROWS)
    assert rows.told["smoke"] is True
    assert toy.rescored(rows).claims[0].text == "two of 1 are right"


def test_the_same_runs_make_the_same_file(toy, tmp_path):
    for name in ("one", "two"):
        toy.run(tmp_path / name, seeds=None, smoke=False)
    assert (tmp_path / "one" / ROWS).read_bytes() == (tmp_path / "two" / ROWS).read_bytes()


def test_the_command_says_whether_the_claims_are_those_recorded(toy, tmp_path):
    toy.run(tmp_path / "out", seeds=None, smoke=False)
    file = tmp_path / "out" / ROWS
    said = command("toy", "--rescore", file).stdout
    assert "all 2 claims as recorded" in said
    assert "HELD" in said
    told = json.loads(command("toy", "--rescore", file, "--json").stdout)
    assert told["same"]
    assert told["claims"] == told["recorded"] == rows_of(file).claims
    lines = gzip.decompress(file.read_bytes()).decode().replace('"verdict": "held"', '"verdict": "not held"', 1)
    file.write_bytes(gzip.compress(lines.encode()))
    assert "other than recorded" in command("toy", "--rescore", file).stdout
    assert not json.loads(command("toy", "--rescore", file, "--json").stdout)["same"]


def test_what_rescoring_does_not_use_is_refused(toy, tmp_path):
    for given in (["--seeds", 3], ["--smoke"], ["--jobs", 2], ["--out", tmp_path], ["--data", tmp_path]):
        refused = command("toy", "--rescore", "none.jsonl.gz", *given).exception
        assert f"--rescore measures nothing: leave out {given[0]}" in str(refused)
    assert "no such file" in str(command("toy", "--rescore", "none.jsonl.gz").exception)


def test_a_recipe_that_keeps_no_runs_another_recipes_runs_and_other_forms_are_refused_by_name(
    toy, written, monkeypatch
):
    told = {"recipe": "toy", "version": "1", "smoke": False, "asked": {"seeds": 1}}
    with pytest.raises(ValueError, match="these are runs of x, not of toy"):
        toy.rescored(Rows(told=told | {"recipe": "x"}, claims=[], runs={}))
    with pytest.raises(ValueError, match=r"toy \(main\) cannot judge these runs: .*at fault: \w+Error"):
        toy.rescored(Rows(told=told, claims=[], runs={"seed 0": {"gone": 1}}))
    with pytest.raises(ValueError, match=r"toy \(main\) cannot judge these runs: .*at fault: \w+Error"):
        toy.rescored(Rows(told=told | {"asked": {"colour": 1}}, claims=[], runs={}))
    written("old", "def run(out, *, on_event=None): pass\n")
    old = Located(Recipe(name="old", part="main", about=""), Path("old"))
    with pytest.raises(ValueError, match=r"old \(main\) does not keep its runs: it cannot be rescored"):
        old.rescored(Rows(told=told | {"recipe": "old"}, claims=[], runs={}))
    timed = Located(Recipe(name="speed", part="old", about=""), Path("speed/old"))
    monkeypatch.setattr(Located, "module", property(lambda self: "old"))
    with pytest.raises(ValueError, match=r"speed \(old\) measures times, which have no items to keep: it cannot be"):
        timed.rescored(Rows(told=told, claims=[], runs={}))


@pytest.mark.parametrize(("lines", "said"), [
    ([], "first line names no recipe"),
    ([{"recipe": "toy"}], "first line names no recipe"),
    ([{"recipe": "toy", "smoke": False, "asked": {}, "claims": []}, {"run": "a"}], "line 2: run and found"),
])  # fmt: skip
def test_a_file_of_another_kind_is_refused(tmp_path, lines, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=said):
        rows_of(path)


def test_numbers_are_as_json_has_them():
    found = plain({1: np.float32(1 / 3), "a": (np.arange(2), True), "b": np.int64(123456789), "c": None, "d": np.nan})
    assert found == {"1": 0.3333333, "a": [[0, 1], True], "b": 123456789, "c": None, "d": None}
    assert [type(v) for v in found["a"][0]] == [int, int]


def test_lists_of_numbers_stay_so_where_one_is_not_finite_measured_or_read_back(tmp_path):
    told = {"recipe": "m", "smoke": False, "asked": {}}
    evidence = Evidence(recipe="r", title="", command="", setting="", header=[], rows=[], claims=[])
    seen = []
    module = SimpleNamespace(
        measure=lambda out: {"a": [1.0, np.inf, None, [np.nan]]}, judge=lambda found: seen.append(found) or evidence
    )
    kept(module, tmp_path, tmp_path / "r.jsonl.gz", told=told)
    for runs in (*seen, rows_of(tmp_path / "r.jsonl.gz").runs):
        np.testing.assert_equal(runs, {"a": [1.0, np.nan, np.nan, [np.nan]]})
    assert b"NaN" not in gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes())


def test_what_was_measured_is_kept_where_judging_it_fails(tmp_path):
    module = SimpleNamespace(measure=lambda out: {"a": 1}, judge=lambda found: found["b"])
    told = {"recipe": "m", "smoke": False, "asked": {}}
    with pytest.raises(KeyError, match="b"):
        kept(module, tmp_path, tmp_path / "r.jsonl.gz", told=told)
    assert rows_of(tmp_path / "r.jsonl.gz") == Rows(told=told, claims=[], runs={"a": 1})


def test_runs_are_kept_beside_what_was_asked(tmp_path):
    claims = [Claim(text="x", held=True, found="1")]
    evidence = Evidence(recipe="r", title="", command="", setting="", header=[], rows=[], claims=claims)
    module = type(
        "M", (), {"measure": staticmethod(lambda out: {"a": 1}), "judge": staticmethod(lambda found: evidence)}
    )
    told = {"recipe": "m", "smoke": False, "asked": {}}
    assert kept(module, tmp_path, tmp_path / "r.jsonl.gz", told=told) is evidence
    assert rows_of(tmp_path / "r.jsonl.gz") == Rows(told=told, claims=recorded(evidence), runs={"a": 1})
