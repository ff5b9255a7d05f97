import json
import math

import pytest

from rankwise.files import read_json, whole_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with whole_folder(target) as draft:
        (draft / "x").write_text("1")
        assert not target.exists()

    def fail():
        with whole_folder(target) as draft:
            (draft / "x").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_json_holds_no_nan_and_broken_json_names_the_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [1, math.inf]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
