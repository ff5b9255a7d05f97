"""What is promised of all public functions alike."""

import importlib
import inspect
import pkgutil
import re
from types import SimpleNamespace

import pytest

import rankwise

FAMILIES = [
    m.name for m in pkgutil.iter_modules(rankwise.__path__) if m.ispkg and m.name not in ("bench", "cli", "jobs")
]


def functions(module):
    """Public functions of a family, its classes' own constructors and methods among them, by name."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for key, member in vars(value).items():
                member = inspect.unwrap(getattr(member, "__func__", member))
                written = "\n" in (inspect.getsource(member) if own(member) else "")
                if own(member) and written and (key == "__init__" or not key.startswith("_")):
                    yield f"{name}.{key}", member


def own(member):
    """A function that stands in a file of ours; those of dataclasses are made up."""
    return inspect.isfunction(member) and member.__code__.co_filename.endswith(".py")


def narrow(function):
    """Parameters that take a ``Path`` alone."""
    parameters = inspect.signature(function).parameters
    said = {n: str(getattr(p.annotation, "__name__", p.annotation)) for n, p in parameters.items()}
    return [name for name, a in said.items() if re.search(r"\bPath\b", a) and not re.search(r"\bstr\b", a)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_takes_a_path_takes_it_as_text_too(family):
    module = importlib.import_module(f"rankwise.{family}")
    assert {name: found for name, f in functions(module) if (found := narrow(f))} == {}


def test_every_family_lists_its_public_names():
    seen = {family: dict(functions(importlib.import_module(f"rankwise.{family}"))) for family in FAMILIES}
    assert {"read_file", "read_audio", "read_manifest"} <= set(seen["data"])
    assert {"read_examples", "Recorded.__init__", "DQLoReSelector.load"} <= set(seen["prompting"])
    assert "ActivationSpectra.save" in seen["tuning"]


def test_a_narrow_parameter_is_found():
    from pathlib import Path

    def function(a: Path, b: str | Path, c: "Path | None", d: int):
        pass

    assert narrow(function) == ["a", "c"]


def test_text_that_is_a_path_is_read(tmp_path):
    from rankwise.data import read_file
    from rankwise.prompting import Recorded, read_examples

    (tmp_path / "a.csv").write_text("text,label,question,answer\none,x,one?,1\ntwo,y,two?,2\n")
    assert read_file(str(tmp_path / "a.csv")).texts == read_file(tmp_path / "a.csv").texts == ["one", "two"]
    assert [e.answer for e in read_examples(str(tmp_path / "a.csv"))] == ["1", "2"]
    model = SimpleNamespace(name="m", context=None)
    assert Recorded(model, str(tmp_path / "r.jsonl")).path == tmp_path / "r.jsonl"
