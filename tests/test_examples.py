"""Every example of a docstring says what is true, and every public class of a family has one."""

import ast
import doctest
import warnings
from pathlib import Path

import pytest

import rankwise

# families whose public classes all have an example
SHOWN = (
    "compression", "continual", "data", "distributions", "dynamics", "merging", "models", "optim", "prompting",
    "ranking", "spectral", "tuning",
)  # fmt: skip
FOLDER = Path(rankwise.__file__).parent
FILES = [f for f in sorted(FOLDER.rglob("*.py")) if ">>> " in f.read_text(encoding="utf-8")]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Runner(doctest.DocTestRunner):
    """Skips, by name, an example that needs a package that is not installed; other failed imports are failures."""

    def report_unexpected_exception(self, out, test, example, exc_info):
        error = exc_info[1]
        cause = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
        if isinstance(cause, ModuleNotFoundError) and not str(cause.name).startswith("rankwise"):
            pytest.skip(f"{test.name} needs {cause.name}")
        super().report_unexpected_exception(out, test, example, exc_info)


def run(path):
    """How many lines were run, and what went wrong; each docstring starts from nothing, as where it is pasted."""
    said, runner, parser = [], Runner(optionflags=FLAGS, verbose=False), doctest.DocTestParser()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            name, line = getattr(node, "name", path.stem), node.body[0].lineno - 1
            runner.run(parser.get_doctest(doc, {"__name__": "__main__"}, name, str(path), line), out=said.append)
    return runner.tries, "".join(said)


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(path.relative_to(FOLDER).with_suffix("").parts))
def test_examples_print_what_they_say_without_a_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        tries, said = run(path)
    assert not said, said
    assert tries


def undocumented(path):
    """Public classes of a file without an Examples section that a user could paste."""
    classes = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
    docs = {c.name: ast.get_docstring(c) or "" for c in classes if not c.name.startswith("_")}
    return [name for name, doc in docs.items() if "Examples\n--------\n" not in doc or ">>>" not in doc]


@pytest.mark.parametrize("family", SHOWN)
def test_every_public_class_of_a_family_has_an_example(family):
    files = sorted((FOLDER / family).rglob("*.py"))
    assert files
    without = [f"{f.relative_to(FOLDER)}: {name}" for f in files for name in undocumented(f)]
    assert not without, without


SECTION = "\n\n    Examples\n    --------\n    "


def made(path, **docs):
    """A file of classes with these examples."""
    path.write_text("\n".join(f'class {n}:\n    """A class.{d}\n    """\n' for n, d in docs.items()))
    return path


def test_a_missing_example_a_wrong_one_and_a_name_that_is_not_imported_are_noticed(tmp_path):
    wrong, foreign = f"{SECTION}>>> 1 + 1\n    3", f"{SECTION}>>> Bare.__name__\n    'Bare'"
    path = made(tmp_path / "f.py", Bare="", Empty=f"{SECTION}None yet.", Wrong=wrong, Foreign=foreign, _Own="")
    assert undocumented(path) == ["Bare", "Empty"]
    tries, said = run(path)
    assert tries == 2
    assert "Expected:\n    3" in said
    assert "name 'Bare' is not defined" in said


def test_an_example_is_skipped_for_a_package_that_is_not_there_and_for_no_other_import(tmp_path):
    with pytest.raises(pytest.skip.Exception, match="Needs needs no_such_package"):
        run(made(tmp_path / "f.py", Needs=f"{SECTION}>>> import no_such_package.part"))
    for line in ("import rankwise.no_such", "from rankwise import no_such", "from math import no_such"):
        assert "no_such" in run(made(tmp_path / "f.py", Broken=f"{SECTION}>>> {line}"))[1]
