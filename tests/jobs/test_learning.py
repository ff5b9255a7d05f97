"""A stream out of a YAML file: what it ends with, going on after a kill, and what is refused by name."""

import csv
import json

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from rankwise.continual import CodyraLearner, Schedule, stream_scores
from rankwise.jobs.learning.config import StreamConfig, check_stream, read_stream
from rankwise.jobs.learning.job import learn_stream
from rankwise.models import load
from small_models import WORDS, bert, llama, saved

SHORT = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "r": 3, "max_kappa": 0.1, "dense_share": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text encoder, a language model, and three files of texts."""
    root = tmp_path_factory.mktemp("stream")
    saved(bert(), root / "bert")
    saved(llama(), root / "llama")
    for k, names in enumerate((("good", "bad"), ("great", "dull"), ("good", "bad"))):
        rows = [[f"{WORDS[6 + (i + k) % 9]} {names[i % 2]} film {i}", names[i % 2]] for i in range(60)]
        with (root / f"{k}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["text", "label"], *rows])
    return root


def stream(folder, tmp_path, *, model="bert", tasks=3, **options):
    told = SHORT | options | {"model": str(folder / model)}
    told["tasks"] = [{"name": f"t{k}", "data": str(folder / f"{k}.csv")} for k in range(tasks)]
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out / "out", learn_stream(stream(folder, out), out / "out")


def test_the_folder_holds_matrix_ranks_and_one_model_of_the_original_size(whole, folder):
    out, done = whole
    told = json.loads((out / "results.json").read_text())
    assert told["table"] == done.table
    assert len(done.table) == 3
    assert all(len(row) == 3 for row in done.table)
    assert all(0 <= a <= 1 for row in (*done.table, done.before) for a in row)
    assert tuple(done.scores.values()) == stream_scores(done.table)
    rows = list(csv.reader((out / "accuracy.csv").open()))
    assert rows[0] == ["after", "t0", "t1", "t2"]
    assert [float(v) for v in rows[2][1:]] == done.table[0]
    ranks = list(csv.reader((out / "ranks.csv").open()))
    assert len(ranks) == 1 + 12
    assert {int(v) for row in ranks[1:] for v in row[1:]} <= {0, 1, 2, 3}
    first, last = AutoModel.from_pretrained(folder / "bert"), AutoModel.from_pretrained(out / "model")
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (first, last)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(first.encoder.layer[0].output.dense.weight, last.encoder.layer[0].output.dense.weight)
    assert not (out / "accuracy.json").exists()


def test_a_task_can_be_taken_out_of_what_was_written(whole, folder):
    out, _ = whole
    learner = CodyraLearner(load(str(folder / "bert"), task="base"), objective=object())
    learner.resume(out / "tasks")
    last = AutoModel.from_pretrained(out / "model").state_dict()
    assert all(torch.equal(p, last[n]) for n, p in learner.model.state_dict().items())
    for name in ("t1", "t0", "t2"):
        learner.forget(name)
    first = load(str(folder / "bert"), task="base").state_dict()
    assert all(torch.equal(p, first[n]) for n, p in learner.model.state_dict().items())


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("task", "phase", "step"), [("t1", "train", 5), ("t0", "done", 6), ("t2", "train", 1)])
def test_killed_within_or_between_tasks_it_ends_at_the_same_numbers(whole, folder, tmp_path, task, phase, step):
    def kill(name, what, at, steps, loss):
        if (name, what, at) == (task, phase, step):
            raise Killed

    path, seen = stream(folder, tmp_path), []
    with pytest.raises(Killed):
        learn_stream(path, tmp_path / "out", checkpoint_steps=2, on_event=kill)
    assert not (tmp_path / "out").exists()
    again = learn_stream(
        path, tmp_path / "out", checkpoint_steps=2, on_event=lambda name, what, at, *_: seen.append((name, what, at))
    )
    assert seen[0] == {"t1": ("t1", "train", 5), "t0": ("t1", "train", 1), "t2": ("t2", "train", 1)}[task]
    out, done = whole
    assert (again.table, again.before, again.drift, again.ranks) == (done.table, done.before, done.drift, done.ranks)
    assert (tmp_path / "out/model/model.safetensors").read_bytes() == (out / "model/model.safetensors").read_bytes()


def test_a_draft_of_other_data_is_not_gone_on_from(folder, tmp_path):
    path, seen = stream(folder, tmp_path, tasks=2), []

    def kill(name, what, at, *_):
        if (name, what) == ("t1", "train"):
            raise Killed

    with pytest.raises(Killed):
        learn_stream(path, tmp_path / "out", on_event=kill)
    told = yaml.safe_load(path.read_text())
    told["tasks"][0]["shots"] = 5
    path.write_text(yaml.safe_dump(told))
    learn_stream(path, tmp_path / "out", on_event=lambda name, *_: seen.append(name))
    assert seen[0] == "t0"


def test_a_language_model_learns_the_labels_words(folder, tmp_path):
    done = learn_stream(
        stream(folder, tmp_path, model="llama", tasks=2, steps=40, learning_rate=0.05, max_kappa=0.0), tmp_path / "out"
    )
    assert done.table[0][0] > done.before[0]
    assert (tmp_path / "out/model/tokenizer.json").is_file()


def test_pictures_are_learned_by_captions_and_classes_are_called_as_told(tmp_path):
    pytest.importorskip("sklearn")
    task = {"name": "d", "data": "digits", "classes": ["3", "1"], "words": {"3": "digit three"}, "shots": 4}
    told = SHORT | {"model": "clip-cifar10", "tasks": [task], "test_limit": 20}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(told))
    done = learn_stream(tmp_path / "t.yaml", tmp_path / "out")
    assert json.loads((tmp_path / "out/tasks/tasks.json").read_text())["tasks"][0]["classes"] == ["digit three", "1"]
    assert any("digits has no splits" in note for note in done.notes)


def test_tasks_are_learned_in_the_precision_asked_for(folder, tmp_path, monkeypatch):
    seen, cast = [], Schedule.cast
    monkeypatch.setattr(Schedule, "cast", lambda self, device: seen.append(self.precision) or cast(self, device))
    learn_stream(stream(folder, tmp_path, tasks=1, precision="bf16"), tmp_path / "out")
    assert seen == ["bf16"] * SHORT["steps"]


def test_a_run_too_short_for_the_schedule_and_closed_gates_are_said(folder, tmp_path):
    done = learn_stream(stream(folder, tmp_path, tasks=1, max_kappa=9.0), tmp_path / "out")
    assert "6 steps leave 4.8 for 50 levels" in done.notes[0]
    assert "t0: every gate is closed" in done.notes[-1]


def test_shots_are_drawn_by_the_seed_and_counted_by_class(folder, tmp_path):
    from rankwise.jobs.learning.tasks import learner_of, tasks_of

    held = learner_of(str(folder / "bert"))
    drawn = []
    for seed in (0, 0, 1):
        config = read_stream(stream(folder, tmp_path, shots=4, seed=seed))
        (task, *_) = tasks_of(config, held, None)
        labels = [row["labels"] for row in task.train]
        assert sorted(labels) == [0] * 4 + [1] * 4
        drawn.append(task.fingerprint)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": []}, "tasks"),
        ({"modle": "x"}, "unknown key 'modle'; did you mean model"),
        ({"steps": 0}, "steps"),
        ({"max_kappa": -1}, "max_kappa"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"template": "a photo"}, "needs {} once"),
        ({"tasks": [{"name": "a", "data": "digits"}, {"name": "a", "data": "mnist"}]}, "two tasks are called 'a'"),
        ({"tasks": [{"name": "a", "data": "digts"}]}, "digits"),
        ({"tasks": [{"name": "a", "data": "none.csv"}]}, "no such file or folder of data: none.csv"),
        ({"tasks": [{"name": "a", "data": "digits", "classes": ["1", "1"]}]}, "each once"),
        ({"tasks": [{"name": "a", "data": "digits", "classes": ["1"], "words": {"2": "two"}}]}, "'2'"),
        ({"tasks": [{"name": "a", "data": "digits", "shots": 0}]}, "shots"),
        ({"model": "clip-cifar"}, "clip-cifar10"),
        ({"tasks": [{"name": "a", "data": "digits", "classes": [True, "1"]}]}, "YAML reads a bool, True: .*quotes"),
        ({"tasks": [{"name": "a", "data": "digits", "words": {"1": 1.5}}]}, r"YAML reads a float, 1\.5: .*quotes"),
        ({"tasks": [{"name": None, "data": "digits"}]}, "YAML reads a NoneType"),
    ],
)
def test_bad_files_are_refused_by_name_before_work(change, match, tmp_path):
    told = {"model": "clip-cifar10", "tasks": [{"name": "a", "data": "digits"}]} | change
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match=match):
        check_stream(tmp_path / "t.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_fit_the_model_is_refused_by_task(folder, tmp_path):
    def refused(match, **told):
        path = tmp_path / "t.yaml"
        path.write_text(yaml.safe_dump(SHORT | told))
        with pytest.raises(ValueError, match=match):
            learn_stream(path, tmp_path / "out")

    texts, encoder = str(folder / "0.csv"), str(folder / "bert")
    refused("sees pictures", model="clip-cifar10", tasks=[{"name": "a", "data": texts}])
    refused("reads texts", model=encoder, tasks=[{"name": "a", "data": "digits"}])
    refused(
        "unknown class of task 'a' 'fine'", model=encoder, tasks=[{"name": "a", "data": texts, "classes": ["fine"]}]
    )
    refused("leave template out", model="vit-cifar10", template="a {}", tasks=[{"name": "a", "data": "digits"}])
    refused("unknown class '0'", model="vit-cifar10", tasks=[{"name": "a", "data": "digits", "shots": 1}])
    refused("whisper", model="whisper-tiny.en", tasks=[{"name": "a", "data": texts}])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_cifar10_is_for_tasks_that_read_it(tmp_path):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"tasks": [{"name": "a", "data": "digits"}]}))
    with pytest.raises(ValueError, match="no task reads cifar10"):
        check_stream(tmp_path / "t.yaml", tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="no such data folder"):
        check_stream(tmp_path / "t.yaml", tmp_path / "out", tmp_path / "none")


def test_defaults_are_the_papers():
    c = StreamConfig(tasks=[{"name": "a", "data": "digits"}])
    assert (c.r, c.max_kappa, c.dense_share, c.steps, c.batch_size, c.learning_rate) == (16, 0.005, 0.5, 500, 64, 5e-4)


def test_the_command_prints_matrix_and_scores_or_json_and_writes_a_page(folder, tmp_path):
    from command import rankwise

    path = stream(folder, tmp_path, tasks=2)
    done = rankwise("continual", "learn", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "forgetting" in done.stdout
    assert "note: 6 steps leave" in done.stderr
    assert {"report.html", "accuracy.png", "drift.png", "ranks.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    again = rankwise("continual", "learn", str(path), "--out", str(tmp_path / "other"), "--json")
    told = json.loads(again.stdout)
    assert told["table"] == json.loads((tmp_path / "out/results.json").read_text())["table"]


def test_whole_numbers_in_the_file_are_names_of_classes(tmp_path):
    (tmp_path / "t.yaml").write_text("tasks: [{name: 2026, data: digits, classes: [0, 1], words: {0: zero, 1: 11}}]")
    (task,) = read_stream(tmp_path / "t.yaml").tasks
    assert (task.name, task.classes, task.words) == ("2026", ["0", "1"], {"0": "zero", "1": "11"})


def test_data_of_which_one_part_is_left_empty_are_refused_by_name(folder, tmp_path):
    (tmp_path / "same.csv").write_text("text,label\n" + "the same film,good\nanother film,bad\n" * 20)
    told = SHORT | {"model": str(folder / "bert"), "tasks": [{"name": "a", "data": str(tmp_path / "same.csv")}]}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match=r"task 'a': .*same\.csv leaves no texts to (train|test)"):
        learn_stream(tmp_path / "t.yaml", tmp_path / "out")


def test_a_classifiers_task_of_one_class_is_refused_before_any_is_learned(tmp_path):
    tasks = [{"name": "a", "data": "digits", "classes": ["1"], "words": {"1": "cat"}, "shots": 2}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(SHORT | {"model": "vit-cifar10", "tasks": tasks}))
    with pytest.raises(ValueError, match="task 'a': a classifier learns nothing from one class alone, '1'"):
        learn_stream(tmp_path / "t.yaml", tmp_path / "out")


def test_a_head_that_is_left_out_is_told(whole):
    _, done = whole
    assert any(
        "is a BertForSequenceClassification: it learns, and is saved, as a text encoder" in n for n in done.notes
    )


def test_two_classes_of_one_word_are_refused_before_any_task_is_learned(folder, tmp_path):
    path = stream(folder, tmp_path, tasks=2)
    told = yaml.safe_load(path.read_text())
    told["tasks"][1]["words"] = {"great": "dull"}
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match="task 't1' has two classes that are called 'dull'"):
        learn_stream(path, tmp_path / "out")
    assert not [*tmp_path.glob("*out*")]


def test_a_class_without_pictures_in_one_part_is_told_with_the_part(tmp_path):
    for part, names in (("train", "ab"), ("test", "a")):
        for i, name in enumerate(names):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (i, 0, len(part))).save(tmp_path / "data" / part / name / "0.png")
    tasks = [{"name": "t", "data": str(tmp_path / "data"), "classes": ["b"]}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(SHORT | {"tasks": tasks}))
    with pytest.raises(ValueError, match=r"task 't': the test part of .*data has no examples of b"):
        learn_stream(tmp_path / "t.yaml", tmp_path / "out")
