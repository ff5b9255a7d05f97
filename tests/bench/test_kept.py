import json

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
    assert json.loads(path.read_text()) == {"one": 10}
    found = kept_runs(path, lambda item: 20 * item, {"one": 1, "three": 3}, lambda *event: told.append(event[:4]))
    assert found == json.loads(path.read_text()) == {"one": 10, "three": 60}
    assert ran == [1, 3]
    assert told == [("three", "done", 2, 2)]


def test_work_of_several_kinds_is_called_with_what_it_needs():
    assert called((divmod_of, {"a": 7, "b": 2})) == (3, 1)


def divmod_of(*, a, b):
    return divmod(a, b)
