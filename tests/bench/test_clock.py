import time

import pytest

from rankwise.bench import clock
from rankwise.bench.clock import Took, whole_time
from rankwise.reading import read_json


@pytest.fixture
def now(monkeypatch):
    at = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: at[0])
    return at


def called(folder, now, seconds, *, cut=False, keeps=True, seeds=5):
    with whole_time(folder, {"seeds": seeds}) as took:
        if keeps:
            (folder / "runs").mkdir(exist_ok=True)
            (folder / "runs" / "one.json").touch()
        now[0] += seconds
        found = took()
        if cut:
            raise KeyboardInterrupt
    return found


def test_a_recipe_that_was_cut_short_counts_the_seconds_of_every_call(tmp_path, now):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            called(tmp_path, now, 600, cut=True)
    assert called(tmp_path, now, 30) == Took(1230, 3)
    assert read_json(tmp_path / "took.json") == {"seconds": 1230, "calls": 3, "ended": {"seeds": "5"}}


def test_reading_a_finished_recipe_back_adds_nothing_and_measuring_anew_counts_alone(tmp_path, now):
    assert called(tmp_path, now, 600) == Took(600, 1)
    assert called(tmp_path, now, 2) == Took(600, 1)
    assert called(tmp_path, now, 700) == Took(700, 1)


def test_more_seeds_than_were_measured_add_to_the_time(tmp_path, now):
    assert called(tmp_path, now, 600, seeds=3) == Took(600, 1)
    assert called(tmp_path, now, 500) == Took(1100, 2)


def test_a_call_that_kept_no_run_does_not_count_later(tmp_path, now):
    with pytest.raises(KeyboardInterrupt):
        called(tmp_path, now, 600, cut=True, keeps=False)
    assert called(tmp_path, now, 20) == Took(20, 1)


def test_what_a_killed_call_took_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "EVERY", 0.01)
    with whole_time(tmp_path):
        waited = 0
        while not (tmp_path / "took.json").exists() and waited < 1000:
            time.sleep(0.01)
            waited += 1
        assert read_json(tmp_path / "took.json")["ended"] is None
