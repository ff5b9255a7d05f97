"""A small transformer that learns from its context: what is kept, what is said, and that it goes on when cut short."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.dynamics import InContextTask, PhenomenologicalModel
from rankwise.dynamics.in_context import experiment
from rankwise.jobs.in_context import PRESETS, TASK, InContextReport, learn_in_context, settings, theory_beside
from rankwise.report.plots.dynamics import learning_from_context

FEW = {"preset": "quick", "steps": 4, "every": 2, "eval_size": 20, "seeds": 2}


def rows(**changed):
    """Two seeds, three steps, of a network that learns."""
    made = {
        "seed": [0, 0, 0, 1, 1, 1], "step": [0, 50, 100] * 2, "loss": [2.1, 1.4, 0.1] * 2,
        "accuracy": [0.1, 0.2, 0.9] * 2, "tla2": [0.4, 0.6, 0.9] * 2,
        "iwl": [0.1] * 6, "ic2": [0.1, 0.2, 0.9] * 2, "ic": [0.1, 0.2, 0.9] * 2, "strength": [0.0, 0.1, 0.8] * 2,
        "cla": [0.3, 0.9, 1.0] * 2, "ila1": [0.2, 0.2, 0.9] * 2, "tila2": [0.1, 0.2, 0.9] * 2,
    }  # fmt: skip
    return pd.DataFrame(made | changed)


def test_defaults_are_the_tasks_own_and_presets_can_be():
    task = InContextTask()
    assert {name: getattr(task, name) for name in TASK} == TASK
    for preset in PRESETS:
        given, training = settings(preset)
        experiment.InContextExperiment(InContextTask(**given), **training)


def test_a_longer_context_gets_room_and_what_is_not_given_is_the_presets():
    task, training = settings("small", pairs=12, burstiness=2, steps=100, zipf=None)
    assert (task["pairs"], task["n_max"], task["burstiness"], task["labels"]) == (12, 12, 2, 16)
    assert (training["steps"], training["every"]) == (100, 100)


def test_the_folder_holds_what_was_measured_and_the_weights(tmp_path):
    seen = []
    done = learn_in_context(str(tmp_path / "out"), report=lambda folder, d: seen.append(d), **FEW)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"results.json", "steps.csv", "run.safetensors"}
    kept = pd.read_csv(tmp_path / "out" / "steps.csv")
    pd.testing.assert_frame_equal(kept, done.frame)
    assert kept.step.tolist() == [0, 2, 4] * 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["task"]["labels"] == 8
    assert seen == [done]
    assert len(done.notes) == 1
    assert "seed 0, 1: below 50% on new classes; more steps" in done.notes[0]


def test_a_command_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "SAVED", -1.0)
    told = []

    def event(name, phase, step, steps, loss):
        told.append(step)
        if len(told) == 2:
            raise KeyboardInterrupt

    many = FEW | {"steps": 6}
    with pytest.raises(KeyboardInterrupt):
        learn_in_context(tmp_path / "out", on_event=event, **many)
    assert not (tmp_path / "out").exists()
    done = learn_in_context(tmp_path / "out", on_event=event, **many)
    assert told == [2, 4, 4, 6]
    whole = learn_in_context(tmp_path / "whole", **many)
    pd.testing.assert_frame_equal(done.frame, whole.frame)


def test_the_theory_falls_half_of_its_way_where_the_network_does():
    theory = theory_beside(rows(), pairs=4, labels=8)
    assert theory.step.iloc[0] == 0
    assert theory.loss.iloc[0] == pytest.approx(math.log(8))
    at = theory.step[theory.loss < math.log(4) / 2].iloc[0]
    assert at == pytest.approx(100)
    flow = PhenomenologicalModel(pairs=4, labels=8).flow([0, 1, 2])
    slope = (theory.loss[1] - theory.loss[0]) / (theory.step[1] - theory.step[0])
    assert slope < 0
    assert flow.loss[1] < flow.loss[0]


def test_where_nothing_is_learned_or_the_context_has_all_labels_there_is_no_theory():
    assert theory_beside(rows(), pairs=8, labels=8) is None
    assert theory_beside(rows(loss=[2.1] * 6), pairs=4, labels=8) is None


def test_the_table_has_a_row_a_seed_and_the_notes_say_who_did_not_learn():
    from rankwise.jobs.in_context import _notes

    task = TASK | {"labels": 8, "pairs": 4, "classes": 64}
    lost = rows(loss=[2.1, 1.4, 0.1, 2.1, float("nan"), float("nan")], ic=[0.1, 0.2, 0.4, 0.1, 0.1, 0.1])
    report = InContextReport(frame=rows(), theory=None, task=task, training={"steps": 100}, seconds=0.0, notes=[])
    header, table = report.table()
    assert header == ["seed", "loss", "new", "swapped", "known", "CLA at", "ILA1 at", "TILA2 at"]
    assert table[0] == ["0", "0.100", "90%", "90%", "10%", "50", "100", "100"]
    assert _notes(rows(), task) == []
    said = _notes(lost, task)
    assert "seed 1: the loss is not finite" in said[0]
    assert said[1].startswith("seed 0: below 50% on new classes; more steps")
    assert "L = N" in _notes(rows(ic=[0.1] * 6), task | {"pairs": 8})[0]


def test_known_classes_that_the_context_holds_by_chance_are_told():
    task = TASK | {"classes": 16, "labels": 8, "pairs": 4, "zipf": 1.0}
    report = InContextReport(frame=rows(), theory=None, task=task, training={}, seconds=0.0, notes=[])
    held = InContextTask(**task).eval_sets(20_000)["iwl"].match.any(-1).float().mean()
    assert report.by_chance() == pytest.approx(float(held), abs=0.012)


def test_the_plot_has_the_means_of_every_set_and_the_theory():
    frame = rows(loss=[2.1, 1.4, 0.1, 2.1, 1.6, 0.3])
    figure = learning_from_context(frame, pairs=4, labels=8, theory=theory_beside(frame, pairs=4, labels=8))
    named = [{line.get_label(): line for line in axis.lines if line.get_label()[0] != "_"} for axis in figure.axes]
    assert [set(n) for n in named] == [
        {"network", "theory, time stretched"}, {"new classes", "swapped labels", "known classes"},
        {"CLA", "TLA2", "ILA1", "TILA2"},
    ]  # fmt: skip
    np.testing.assert_allclose(named[0]["network"].get_ydata(), [2.1, 1.5, 0.2])


def test_the_command_writes_a_page_and_prints_a_row_a_seed(tmp_path):
    out = tmp_path / "out"
    said = CliRunner().invoke(
        app, ["dynamics", "icl", "--preset", "quick", "--steps", "2", "--seeds", "2", "--seed", "3", "--out", str(out)]
    )
    assert said.exit_code == 0, said.output
    assert "report.html" in said.output
    page = (out / "report.html").read_text()
    assert "K 128, L 8, N 4, B 1, D 15" in page
    assert "2 steps of 64 sequences" in page
    assert {p.name for p in out.iterdir()} >= {"learning.png", "report.html", "steps.csv"}
    assert sorted(pd.read_csv(out / "steps.csv").seed.unique()) == [3, 4]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"preset": "smal"}, "unknown preset 'smal'; did you mean small"),
        ({"classes": 50}, "classes=50: a multiple of labels=8"),
        ({"steps": 0}, "steps=0: at least 1"),
        ({"seeds": 0}, "seeds=0: at least 1"),
        ({"seed": -1}, "seed=-1: at least 0"),
        ({"p_novel": 2.0}, "p_novel=2.0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        learn_in_context(tmp_path / "out", **(FEW | changed))
    assert list(tmp_path.iterdir()) == []
