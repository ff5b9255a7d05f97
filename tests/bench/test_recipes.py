import ast
import importlib
import inspect
import json
import re
import socket
from collections.abc import Collection
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rankwise.bench
from rankwise import archive
from rankwise.bench import Located, Recipe, recipes
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import ROWS, recorded, rows_of
from rankwise.bench.speed import core
from rankwise.bench.speed.core import alternate, truncated

ALL = [located for parts in recipes().values() for located in parts.values()]
BENCH = Path(rankwise.bench.__file__).parent
SOURCES = sorted(BENCH.rglob("*.py"))


@pytest.mark.parametrize("located", ALL, ids=lambda located: "/".join(located.place.parts))
def test_a_recipe_runs_by_its_record_and_only_with_arguments_that_it_has(located):
    module = importlib.import_module(located.module)
    assert located.recipe == module.RECIPE
    taken = inspect.signature(getattr(module, "measure", None) or module.run).parameters
    if "judge" in vars(module):
        assert not hasattr(module, "run")
        assert set(inspect.signature(module.judge).parameters) - {"seeds"} == {"found"}
        assert ("seeds" in inspect.signature(module.judge).parameters) == ("seeds" in taken)
    assert {"out", "on_event"} <= set(taken)
    assert located.recipe.smoke
    for name in located.recipe.smoke:
        assert name in taken if name.islower() else hasattr(module, name), name


@pytest.mark.parametrize("located", ALL, ids=lambda located: "/".join(located.place.parts))
def test_a_recipe_keeps_what_it_measured_but_for_times_which_have_no_items(located):
    kept = hasattr(importlib.import_module(located.module), "judge")
    assert kept != (located.place.parts[0] == "speed")


def test_records_are_found_without_importing_what_they_need():
    import subprocess
    import sys

    code = "import sys; from rankwise.bench import recipes; recipes(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_run_keeps_its_evidence_and_a_changed_recipe_asks_for_another_folder(written, tmp_path, monkeypatch):
    written("toy", TOY)
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


def test_truncated_svd_keeps_its_error_bound_on_the_benchs_matrices(monkeypatch):
    for size, small in (("MATRICES", 4), ("TIMES", 1)):  # matrices of the same spectra, each judged alone
        monkeypatch.setattr(core, size, small)
    rows, claims = truncated()
    excess = float(claims[0].found.rpartition("error ")[2].partition("%")[0])
    assert excess <= 1.0
    assert rows[0][0] == "truncated SVD"
    above = [float(x) for x in re.findall(r"\(([\d.]+)% above optimal", claims[1].found)]
    assert len(above) == 4
    assert max(above) <= 0.5


def test_alternate_runs_both_in_turn():
    order = []
    alternate(lambda: order.append("a"), lambda: order.append("b"), times=2)
    assert order == ["a", "b", "a", "b"]


def grown(source):
    """Containers of the library (not of the bench) that a source reads other than by a key: they grow by themselves."""
    nodes = list(ast.walk(ast.parse(source)))
    taken = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and re.match(r"rankwise\.(?!bench\b)", node.module or ""):
            home = importlib.import_module(node.module)
            taken |= {a.asname or a.name for a in node.names if _container(getattr(home, a.name, None), a.name)}
    by_key = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}
    return {n.id for n in nodes if isinstance(n, ast.Name) and n.id in taken and id(n) not in by_key}


def _container(value, name):
    return name.isupper() and isinstance(value, Collection) and not isinstance(value, str)


def test_a_list_that_grows_by_itself_is_found():
    taken = "from rankwise.merging import METHODS as ALL, merge\n"
    assert grown(f"{taken}x = [m for m in ALL]") == {"ALL"}
    assert grown(f"{taken}x = ALL['rtsvm'].parameters") == set()
    assert grown("from rankwise.bench.shared.experts import TASKS\nx = list(TASKS)") == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(BENCH)))
def test_a_recipe_names_what_it_judges_itself(path):
    assert grown(path.read_text(encoding="utf-8")) == set()


def test_every_module_of_the_bench_is_a_recipe_or_is_tested_directly():
    tests = "\n".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.rglob("test_*.py"))
    run = {located.place for located in ALL}
    for path in SOURCES:
        place = path.relative_to(BENCH).with_suffix("")
        if place.name != "__init__" and place not in run:
            assert re.search(rf"\b{place.name}\b", tests), place
        if place.parts[0] == "shared":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    assert re.search(rf"\b{node.name}\b", tests), f"{place}: {node.name}"


# --- the command


def command(*args, **kept):
    from rankwise.cli.main import app

    return CliRunner().invoke(app, ["bench", *map(str, args)], **kept)


def test_the_list_names_recipe_part_and_what_is_measured():
    said = command("--list").stdout
    assert all(len(line) <= 80 for line in said.splitlines())
    listed = json.loads(command("--list", "--json").stdout)
    assert listed == [{"recipe": r.recipe.name, "part": r.recipe.part, "about": r.recipe.about} for r in ALL]
    assert all(f"{r.recipe.name} " in said and f" {r.recipe.part} " in said for r in ALL)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A recipe of two parts whose first draws nothing; what ran is recorded."""
    ran = []

    def module(name):
        def drawing(out, *, seeds=3, on_event=None):
            ran.append((name, seeds))
            return made(name)

        def fixed(out, *, on_event=None):
            ran.append((name, None))
            return made(name)

        return type("Module", (), {"run": staticmethod(fixed if name == "fixed" else drawing), "__file__": __file__})

    monkeypatch.setattr(rankwise.bench, "import_module", lambda name: module(name.rpartition(".")[2]))
    parts = {n: Located(Recipe(name="toy", part=n, about="a toy"), Path(n)) for n in ("drawing", "fixed")}
    monkeypatch.setattr(rankwise.bench, "recipes", lambda: {"toy": parts})
    monkeypatch.chdir(tmp_path)
    return ran


def made(name, header=("variant", "score"), rows=(("ours", "1"),), text="it holds", found="1 against 0"):
    claims = [Claim(text=text, held=True, found=found)]
    return Evidence(
        recipe=name, title="A toy", command="", setting="", header=[*header], rows=[[*r] for r in rows], claims=claims
    )


def test_a_number_of_seeds_is_refused_before_any_part_runs(toy):
    assert command("toy", "--seeds", 5).exit_code
    assert toy == []
    assert command("toy", "--part", "drawing", "--seeds", 5).exit_code == 0
    assert toy == [("drawing", 5)]


def test_a_folder_of_data_goes_to_the_recipes_that_read_one_and_is_refused_by_the_others(toy, tmp_path, monkeypatch):
    refused = command("toy", "--data", tmp_path)
    assert "reads no data of yours" in str(refused.exception)
    assert toy == []
    reading = []

    def reads(out, *, data=None, on_event=None):
        reading.append(data)
        return made("reads")

    module = type("Module", (), {"run": staticmethod(reads), "__file__": __file__})
    monkeypatch.setattr(rankwise.bench, "import_module", lambda name: module)
    assert "no such folder of data: nowhere" in str(command("toy", "--part", "fixed", "--data", "nowhere").exception)
    assert command("toy", "--part", "fixed", "--data", tmp_path, "--out", tmp_path / "a").exit_code == 0
    assert command("toy", "--part", "fixed", "--out", tmp_path / "b").exit_code == 0
    assert reading == [tmp_path, None]


def test_the_json_of_a_run_is_a_list_with_one_entry_a_part(toy):
    assert [e["recipe"] for e in json.loads(command("toy", "--json").stdout)] == ["drawing", "fixed"]
    (one,) = json.loads(command("toy", "--part", "fixed", "--json").stdout)
    assert (one["rows"], one["claims"][0]["held"]) == ([["ours", "1"]], True)


def test_a_result_fits_eighty_columns_and_no_word_of_it_is_cut(monkeypatch, capsys):
    from rankwise.cli import evidence

    monkeypatch.setattr(evidence.console, "width", 80, raising=False)
    wide = [f"held-out-log-likelihood-{i}" for i in range(5)]
    rows = [(f"method {i}", *[f"-552.14±610.0{i}{j}" for j in range(5)]) for i in range(2)]
    tight = ["data", "rule", "bandwidth", "μ", "regime", "points per estimate", "held-out log-density", "AUROC (%)"]
    numbers = ("movie sentences", "silverman", "0.752", "61467.09", "extreme-value", "1.6", "-51.78±0.11", "50.5±0.1")
    narrow = (["method", "score"], [("ours " * 9, "0.25±0.01")] * 2)
    for header, kept in ((["method", *wide], rows), (tight, [numbers] * 2), narrow):
        evidence._print_evidence(made("toy", header, kept, "a claim of many words " * 9, "found " * 30))
        said = capsys.readouterr().out
        assert all(len(line) <= 80 for line in said.splitlines())
        words = said.split()
        assert {w for row in [header, *kept] for cell in row for w in cell.split()} <= set(words)
    lines = said.splitlines()
    assert [line[:5] for line in lines if line.startswith("HELD")] == ["HELD "]
    assert all(line.startswith("     ") for line in lines[lines.index(next(x for x in lines if x[:4] == "HELD")) + 1 :])


# --- smoke runs


@pytest.fixture
def no_network(monkeypatch):
    """Connections to elsewhere that were tried, those to fetch a bundled archive aside; none succeeds."""
    tried, connect, fetch, fetching = [], socket.socket.connect, archive.fetch, []

    def connecting(self, address):
        sends = self.type == socket.SOCK_STREAM  # datagrams: nothing is sent, py-ipv8 asks for its own address so
        over = self.family in (socket.AF_INET, socket.AF_INET6) and sends
        if over and not fetching and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise ConnectionError(f"no network: {address}")
        return connect(self, address)

    def fetched(*args, **options):
        fetching.append(args)
        try:
            return fetch(*args, **options)
        finally:
            fetching.pop()

    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setattr(archive, "fetch", fetched)
    return tried


@pytest.mark.slow
@pytest.mark.parametrize("located", ALL, ids=lambda located: "/".join(located.place.parts))
def test_a_smoke_run_measures_and_judges_without_a_network(located, tmp_path, no_network):
    evidence = located.run(tmp_path / "run", seeds=None, smoke=True)
    assert evidence.rows
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
    assert all(c.text and c.found for c in evidence.claims)
    assert any(not c.control for c in evidence.claims)
    assert any(c.control for c in evidence.claims) == located.recipe.control
    kept = json.loads((tmp_path / "run" / "evidence.json").read_text(encoding="utf-8"))
    assert kept["rows"] == evidence.rows
    if (tmp_path / "run" / ROWS).exists():
        rows = rows_of(tmp_path / "run" / ROWS)
        again = located.rescored(rows)
        assert (recorded(again), again.rows) == (rows.claims, evidence.rows)
    assert no_network == []


def test_runs_that_go_one_after_another_are_not_spread():
    parts = [located for parts in recipes().values() for located in parts.values()]
    for located in parts:
        if located.recipe.spreads:
            located.check(None, spread=True)
        else:
            with pytest.raises(ValueError, match="go one after another"):
                located.check(None, spread=True)
    assert {located.recipe.spreads for located in parts} == {True, False}


def test_recipes_that_spread_hand_their_runs_to_the_fan_out():
    for parts in recipes().values():
        for located in parts.values():
            source = Path(importlib.import_module(located.module).__file__).read_text()
            hands_over = any(
                word in source
                for word in (
                    "fan_out(",
                    "kept_runs(",
                    "Job(",
                    "trained(out",
                    "owlore.compared(",
                    "runs_of(",
                    "evidence_of(",
                    "by_seed(out, ",
                )
            )
            assert located.recipe.spreads == hands_over, located.module
