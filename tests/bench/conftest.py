"""What the tests of recipes share."""

import sys

import pytest


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module that this test alone imports: the next one may write another of the same name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)
