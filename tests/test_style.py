"""What no linter looks at: exceptions from the type checker are named and give their reason."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [f for part in ("src", "tests", "tools", "examples", "docs") for f in sorted((ROOT / part).rglob("*.py"))]
IGNORE = re.compile(r"#\s*(type|pyright|mypy)\s*:")
# the rule in brackets, then why
SOUND = re.compile(r"# pyright: ignore\[report\w+(, report\w+)*\]  \([^()]{5,}\)$")


def unsound(text):
    """Comments to a type checker that are not one line's, without a rule, or without a reason."""
    return [line.strip() for line in text.splitlines() if IGNORE.search(line) and not SOUND.search(line)]


def test_whoever_overrules_the_type_checker_names_the_rule_and_the_reason():
    strays = {
        str(f.relative_to(ROOT)): found for f in FILES if f != Path(__file__) and (found := unsound(f.read_text()))
    }
    assert strays == {}


@pytest.mark.parametrize(
    "line",
    [
        "x = f(y)  # type: ignore",
        "x = f(y)  # type: ignore[arg-type]",
        "x = f(y)  # type: ignore[arg-type]  (another checker's rule)",
        "x = f(y)  # pyright: ignore",
        "x = f(y)  # pyright: ignore[reportArgumentType]",
        "x = f(y)  # pyright: ignore  (no rule)",
        "# pyright: basic, reportArgumentType=false",
        "# mypy: ignore-errors",
    ],
)
def test_an_exception_without_rule_or_reason_is_found(line):
    assert unsound(line) == [line]


def test_an_exception_with_rule_and_reason_passes_and_so_does_prose():
    assert unsound("x = f(y)  # pyright: ignore[reportArgumentType]  (groups are its own use)") == []
    assert unsound("x = f(y)  # pyright: ignore[reportCallIssue, reportArgumentType]  (two of them)") == []
    assert unsound("the type of y is checked  # by pyright") == []


def test_singular_values_are_decomposed_in_spectral_alone_and_where_others_are_timed():
    library = ROOT / "src" / "rankwise"
    homes = (library / "spectral", library / "bench")
    decomposed = re.compile(r"linalg\.svd(vals)?\(|\b(svd|pca)_lowrank\(|\bsvds\(|TruncatedSVD\(n_components")
    strays = [
        str(f.relative_to(ROOT)) for f in library.rglob("*.py")
        if not any(home in f.parents for home in homes) and decomposed.search(f.read_text(encoding="utf-8"))
    ]  # fmt: skip
    assert strays == []
