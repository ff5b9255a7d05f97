"""The ways in which the recipe learns a stream, on a small model, and its verdicts on numbers made up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from rankwise.bench.shared import stream_claims
from rankwise.bench.shared.stream_claims import (
    CHANCE,
    EVEN,
    HEADER,
    OURS,
    Stream,
    claims_of,
    evidence_of,
    extras,
    mean_before,
    mean_rank,
    rows_of_table,
    runs_of,
    ways,
)
from rankwise.bench.shared.streams import Domain, Subject, Way, learned, scores_of, some_of_each
from rankwise.continual import Classifier, Schedule
from small_models import bert

pytestmark = pytest.mark.filterwarnings("ignore")
SCHEDULE = Schedule(steps=8, batch_size=4, learning_rate=1e-2)


def subject():
    g = torch.Generator().manual_seed(0)

    def rows(n):
        ids = torch.randint(0, 50, (n, 5), generator=g)
        return [{"input_ids": ids[i], "labels": i % 2} for i in range(n)]

    def make():
        model = bert()
        model.config.label2id = {"no": 0, "yes": 1}
        return model

    names = ("no", "yes")
    domains = [Domain(name=n, classes=names, train=rows(12), test=rows(10)) for n in ("a", "b", "c")]
    return Subject(make=make, objective=Classifier(), collate=default_collate, domains=domains)


def test_runs_are_kept_one_by_one_and_those_that_depend_on_ours_know_its_ranks(tmp_path, monkeypatch):
    stream = Stream(subject=lambda setting, seed: subject(), setting=None, schedule=SCHEDULE)
    wanted = {OURS: Way(kind="codyra", r=4, kappa=0.05), "LoRA r=4": Way(kind="lora", r=4)}
    told = []
    found = runs_of(tmp_path, stream, wanted, 1, lambda *note: told.append(note))
    assert set(found) == {*wanted, EVEN, CHANCE}
    assert len(told) == 4
    assert mean_rank(found[EVEN][0]) == max(1, round(mean_rank(found[OURS][0])))
    open_gates = [[sum(task.values()) for task in found[name][0]["ranks"]] for name in (OURS, CHANCE)]
    assert open_gates[0] == open_gates[1]
    monkeypatch.setattr(stream_claims, "learned", lambda *_, **__: pytest.fail("what is kept is read back"))
    again = runs_of(tmp_path, stream, wanted, 1, lambda *_: None)
    assert again[OURS][0]["table"] == found[OURS][0]["table"]
    rows = rows_of_table(found)
    assert [row[0] for row in rows] == [*found]
    assert {len(row) for row in rows} == {len(HEADER)}
    assert mean_before(found[OURS][0]) == np.mean(found[OURS][0]["before"][1:])
    told = extras(found, ["a", "b", "c"])
    assert told["tables"][OURS] == found[OURS][0]["table"]
    assert set(told["ranks"]) == {"a", "b", "c"}


def test_some_of_each_class_are_at_most_so_many_and_drawn_by_the_seed():
    labels = [0] * 9 + [2] * 3 + [1] * 9
    rows = some_of_each(labels, 4, 0)
    assert [labels[i] for i in rows] == [0] * 4 + [1] * 4 + [2] * 3
    assert len(set(rows)) == len(rows)
    assert rows == some_of_each(labels, 4, 0) != some_of_each(labels, 4, 1)


def test_the_evidence_has_a_row_a_way_and_names_the_command_and_where_the_untouched_model_was(tmp_path):
    setting = SimpleNamespace(tasks=("a", "b", "c"))
    stream = Stream(subject=lambda setting, seed: subject(), setting=setting, schedule=SCHEDULE)
    about = {"title": "A stream", "command": "rankwise bench codyra", "setting": "three small tasks"}
    runs = runs_of(tmp_path, stream, ways(kappa=0.05, ladder=(0.0,), ranks=(1, 16), ewc=1.0), 1, lambda *_: None)
    found = evidence_of(runs, tasks=setting.tasks, ladder=(0.0,), ranks=(1, 16), **about)
    assert {OURS, EVEN, CHANCE, "κ x 0", "LoRA r=1", "LoRA r=16"} <= {row[0] for row in found.rows}
    assert found.command == "rankwise bench codyra --seeds 1"
    assert found.setting.startswith("three small tasks. The untouched model is at ")
    assert sum(c.control for c in found.claims) == 2


@pytest.mark.parametrize("kind", ["codyra", "lora", "full", "ewc", "joint"])
def test_every_way_learns_all_tasks_and_moves_the_weights(kind):
    found = learned(subject(), Way(kind=kind, r=4, kappa=0.05, rate=0.5, weight=1.0), SCHEDULE, 0)
    assert np.shape(found["table"]) == ((1, 3) if kind == "joint" else (3, 3))
    assert len(found["before"]) == len(found["mixed"]) == 3
    assert all(size > 0 for size in found["norms"])
    assert found == learned(subject(), Way(kind=kind, r=4, kappa=0.05, rate=0.5, weight=1.0), SCHEDULE, 0)
    ranks = {r for task in found["ranks"] for r in task.values()}
    assert ranks == {"lora": {4}, "joint": {4}, "full": {16}, "ewc": {16}}.get(kind, ranks)
    assert len(found["ranks"][0]) == 12


def test_the_change_of_a_task_is_the_drift_after_the_first():
    found = learned(subject(), Way(kind="lora", r=4), SCHEDULE, 0)
    assert found["norms"][0] == pytest.approx(found["drift"][0])
    assert found["drift"][-1] <= sum(found["norms"]) + 1e-6


def test_a_heavy_penalty_holds_the_weights_after_the_first_task():
    free = learned(subject(), Way(kind="ewc", weight=0.0), SCHEDULE, 0)
    held = learned(subject(), Way(kind="ewc", weight=1e9), SCHEDULE, 0)
    plain = learned(subject(), Way(kind="full"), SCHEDULE, 0)
    assert free["norms"] == pytest.approx(plain["norms"])
    assert held["norms"][0] == pytest.approx(free["norms"][0])
    assert held["norms"][1] < 0.8 * free["norms"][1]


def test_chance_keeps_as_many_gates_a_weight_and_task_as_were_chosen():
    chosen = learned(subject(), Way(kind="codyra", r=8, kappa=0.5), SCHEDULE, 0)
    chance = learned(subject(), Way(kind="random", r=8), SCHEDULE, 0, counts=chosen["ranks"])
    assert chance["ranks"] == chosen["ranks"]
    assert 0 < mean_rank(chosen) < 8
    assert chance["norms"] != chosen["norms"]
    after = learned(subject(), Way(kind="codyra", r=8, kappa=0.5), SCHEDULE, 0)
    assert after == chosen  # the way of chance is gone again


def run(table, drift, rank=8.0):
    return {
        "table": table, "before": [0.5, 0.6], "mixed": [0.4, 0.4], "norms": [drift, drift], "drift": [drift, 2 * drift],
        "ranks": [{"w": rank}, {"w": rank}],
    }  # fmt: skip


def test_scores_are_those_of_the_table():
    found = scores_of(run([[0.9, 0.6], [0.7, 0.8]], 1.5))
    assert found["learned"] == pytest.approx(0.85)
    assert found["last"] == pytest.approx(0.75)
    assert found["forgetting"] == pytest.approx(0.2)
    assert found["transfer"] == pytest.approx(0.6)
    assert (found["size"], found["drift"], found["mixed"]) == (1.5, 3.0, pytest.approx(0.4))
    assert "forgetting" not in scores_of(run([[0.7, 0.8]], 1.0))


def test_verdicts_follow_the_numbers():
    good, bad = run([[0.9, 0.62], [0.9, 0.9]], 1.0), run([[0.9, 0.3], [0.5, 0.9]], 3.0, 16)
    names = [*ways(kappa=1.0, ladder=(0.0, 2.0), ranks=(1, 16), ewc=1.0), EVEN, CHANCE]
    found = {name: [bad] * 5 for name in names} | {OURS: [good] * 5, "κ x 2": [run(good["table"], 0.5)] * 5}
    assert {c.text for c in claims_of(found, (0.0, 2.0), (1, 16)) if not c.held} == set()
    turned = found | {OURS: [bad] * 5, "LoRA r=16": [good] * 5}
    held = {c.text for c in claims_of(turned, (0.0, 2.0), (1, 16)) if c.held}
    assert held == {"tasks are learned within 1 point of LoRA r=16 (in the mean)"}  # as it was made up
    assert [c.control for c in claims_of(found, (0.0, 2.0), (1, 16))].count(True) == 2
