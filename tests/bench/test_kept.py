import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rankwise.bench.shared.kept import called, kept_runs


def test_runs_that_a_stopped_recipe_kept_are_not_run_again(tmp_path):
    path, told, ran = tmp_path / "new" / "runs.json", [], []

    def work(item):
        ran.append(item)
        if item == 3:
            raise KeyboardInterrupt
        return 10 * item

    with pytest.raises(KeyboardInterrupt):
        kept_runs(path, work, {"one": 1, "three": 3, "five": 5})
    assert {name: run["result"] for name, run in json.loads(path.read_text()).items()} == {"one": 10}
    found = kept_runs(path, lambda item: 20 * item, {"one": 1, "three": 3}, lambda *event: told.append(event[:4]))
    assert found == {"one": 10, "three": 60}
    assert ran == [1, 3]
    assert told == [("three", "done", 2, 2)]


@dataclass(frozen=True)
class Asked:
    sizes: tuple[int, ...]
    folder: Path
    seeds: int


def test_a_run_of_other_sizes_under_a_known_name_is_run_and_one_of_a_moved_folder_is_not(tmp_path):
    def drawn(asked):
        ran.append(asked[1]["how"].seeds)
        return ran[-1]

    def asked(seeds, folder="first"):
        return {"noise": (divmod_of, {"how": Asked((1, 2), tmp_path / folder / "rows.npz", seeds), "d": 0.5})}

    ran, path = [], tmp_path / "runs.json"
    for seeds, folder in ((2, "first"), (2, "moved"), (6, "first"), (2, "first")):
        assert kept_runs(path, drawn, asked(seeds, folder)) == {"noise": seeds}
    assert ran == [2, 6, 2]


def test_runs_that_are_not_asked_for_are_kept_and_not_given(tmp_path):
    path = tmp_path / "runs.json"
    kept_runs(path, str, {"a": 1, "b": 2})
    assert kept_runs(path, str, {"b": 2}) == {"b": "2"}
    assert set(json.loads(path.read_text())) == {"a", "b"}


def test_a_run_is_the_same_whether_it_has_just_ended_or_is_read_back(tmp_path):
    def drawn(_):
        return {"errors": np.array([0.5, np.nan]), 3: np.float64(2), "lost": float("nan"), "digits": 1 / 3}

    fresh = kept_runs(tmp_path / "runs.json", drawn, {"a": 1})["a"]
    again = kept_runs(tmp_path / "runs.json", lambda _: pytest.fail("run again"), {"a": 1})["a"]
    for found in (fresh, again):
        assert found["errors"][0] == 0.5
        assert np.isnan(found["errors"][1])
        assert (found["3"], found["lost"], found["digits"]) == (2, None, 0.3333333)


def test_work_of_several_kinds_is_called_with_what_it_needs():
    assert called((divmod_of, {"a": 7, "b": 2})) == (3, 1)


def divmod_of(*, a, b):
    return divmod(a, b)


def test_what_cannot_be_told_apart_is_refused_before_a_run(tmp_path):
    with pytest.raises(TypeError, match="a run is asked with object"):
        kept_runs(tmp_path / "runs.json", str, {"one": {"size": object()}})
