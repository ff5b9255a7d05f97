"""What a job is asked and reads: split and told, or refused by name before anything heavy is imported."""

import json
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from command import ENV
from rankwise.data.corpus import side
from rankwise.jobs.adapt.config import AdaptConfig
from rankwise.jobs.adapt.inputs import check_early, read_inputs, told


def table(path, rows, header="text,label"):
    path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def reviews(n, start=0):
    return [(f"{'great' if i % 2 else 'awful'} film {i}", "pos" if i % 2 else "neg") for i in range(start, start + n)]


@pytest.fixture
def data(tmp_path):
    return table(tmp_path / "data.csv", reviews(200))


# which rows


def test_one_file_is_split_by_its_groups_and_the_split_is_told(data):
    inputs = read_inputs(AdaptConfig(data=data))
    assert list(inputs.parts) == ["train", "validation", data]
    parts = [set(p.texts) for p in inputs.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200
    assert inputs.splits["train"]["how"] == "by a hash of each row's group: 15% of the groups test, 15% validation"
    for name, part in inputs.parts.items():
        told_of = inputs.splits[name]
        assert (told_of["from"], told_of["rows"], told_of["used"]) == (data, len(part), len(part))
        assert told_of["groups"] == len(set(part.groups))
    assert any(n.startswith(f"train: {len(parts[0])} rows ({len(parts[0])} groups) of {data}") for n in inputs.notes)
    assert inputs == read_inputs(AdaptConfig(data=data))


def test_own_training_and_test_files_are_used_whole(tmp_path):
    train = table(tmp_path / "train.csv", reviews(100))
    test = table(tmp_path / "test.tsv.csv", reviews(7, 200))
    inputs = read_inputs(AdaptConfig(train=train, test=test))
    assert inputs.tests[test].texts == [t for t, _ in reviews(7, 200)]
    assert len(inputs.train) + len(inputs.validation) == 100
    assert 5 <= len(inputs.validation) <= 25
    assert not set(inputs.train.groups) & set(inputs.validation.groups)
    assert inputs.splits[test]["how"] == "all rows"
    assert inputs.splits["train"]["how"] == "what validation leaves"
    own = table(tmp_path / "validation.csv", reviews(9, 300))
    inputs = read_inputs(AdaptConfig(train=train, validation=own, test=test))
    assert (len(inputs.train), len(inputs.validation)) == (100, 9)


def test_all_rows_of_a_further_file_are_scored(data, tmp_path):
    more = table(tmp_path / "more.csv", [("fine film 1", "neg"), ("poor film 2", "neg"), ("good film 3", "neg")])
    inputs = read_inputs(AdaptConfig(data=data, eval=[more]))
    assert inputs.tests[more].texts == ["fine film 1", "poor film 2", "good film 3"]
    assert inputs.tests[more].labels == [0, 0, 0]  # the training file's classes: neg, pos
    assert inputs.splits[more] == {"from": more, "rows": 3, "groups": 3, "used": 3, "how": "all rows"}


def test_of_a_further_corpus_the_test_part_is_scored():
    inputs = read_inputs(AdaptConfig(eval=["sentiment:tweets"]))
    assert inputs.splits["sentiment:tweets"]["how"] == "its test part"
    assert len(inputs.tests["sentiment:tweets"]) < 1000


def test_limits_draw_by_hash_and_say_so(tmp_path):
    rows = sorted(reviews(600), key=lambda r: r[1])  # sorted by class
    inputs = read_inputs(AdaptConfig(data=table(tmp_path / "sorted.csv", rows), train_limit=100, eval_limit=20))
    assert [len(p) for p in inputs.parts.values()] == [100, 20, 20]
    assert 30 <= sum(inputs.train.labels) <= 70
    assert inputs.splits["train"]["rows"] > 300
    assert any(n.startswith("train: 100 drawn from ") for n in inputs.notes)


def test_texts_that_stand_in_training_and_test_rows_are_counted(tmp_path):
    train, test = table(tmp_path / "a.csv", reviews(50)), table(tmp_path / "b.csv", reviews(10, 45))
    notes = read_inputs(AdaptConfig(train=train, validation=table(tmp_path / "c.csv", reviews(4, 90)), test=test)).notes
    assert f"{test}: 5 of 10 texts also stand among the training rows" in notes


def test_a_class_without_training_rows_is_told(tmp_path):
    tested = next(t for t in (f"fine film {i}" for i in range(99)) if side(t) == "test")
    inputs = read_inputs(AdaptConfig(data=table(tmp_path / "a.csv", [*reviews(60), (tested, "odd")])))
    assert "train: no row of class odd, which cannot be learnt" in inputs.notes
    one = [(t, "odd" if side(t) == "train" else "pos") for t, _ in reviews(60)]
    with pytest.raises(ValueError, match="the training rows have one class only, odd"):
        read_inputs(AdaptConfig(data=table(tmp_path / "b.csv", one)))


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        ([("same", "a"), ("Same", "b")] * 9, {}, "all 18 texts are equal"),
        ([(f"t{i}", 3) for i in range(30)], {"task": "regression"}, "holds one value only"),
        (reviews(2), {}, "no rows are left for"),
        (
            [(f"t{i}", "inf" if i == 4 else i) for i in range(30)],
            {"task": "regression"},
            "line 6: column 'label'",
        ),
    ],
)
def test_rows_that_cannot_teach_are_refused(tmp_path, rows, options, match):
    path = table(tmp_path / "a.csv", rows)
    with pytest.raises(ValueError, match=rf"a\.csv.*{match}"):
        read_inputs(AdaptConfig(data=path, **options))


def test_labels_that_the_training_file_does_not_have_are_refused_in_their_line(tmp_path):
    train, test = table(tmp_path / "a.csv", reviews(40)), table(tmp_path / "b.csv", [("x", "pos"), ("y", "positive")])
    with pytest.raises(ValueError, match=r"b\.csv, line 3, column 'label': unknown class 'positive'; did you mean pos"):
        read_inputs(AdaptConfig(train=train, test=test))
    with pytest.raises(ValueError, match=r"sentiment:tweets has classes negative, positive; .*a\.csv has neg, pos"):
        read_inputs(AdaptConfig(data=train, eval=["sentiment:tweets"]))


# what decides the numbers


def test_a_changed_row_and_nothing_else_changes_the_content_of_its_part(tmp_path):
    config = AdaptConfig(train=table(tmp_path / "a.csv", reviews(40)), test=table(tmp_path / "b.csv", reviews(9, 90)))
    before = told(config, read_inputs(config))
    table(tmp_path / "b.csv", [*reviews(8, 90), ("great film 98", "pos")])  # one label flipped
    after = told(config, read_inputs(config))
    assert [k for k in before if before[k] != after[k]] == [f"content of {config.test}"]
    table(tmp_path / "b.csv", reviews(9, 90))
    assert told(config, read_inputs(config)) == before


def test_the_model_counts_by_content(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text('{"model_type": "bert"}')
    config = AdaptConfig(model=str(tmp_path / "m"))
    before = told(config, None)
    (tmp_path / "m/model.safetensors").write_text("other weights")
    assert [k for k, v in told(config, None).items() if v != before[k]] == ["content of the model"]


# refused early


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"test": "b.csv"}, "validation and test belong to train"),
        ({"train": "a.csv"}, "train needs a test file"),
        ({"train": "a.csv", "test": "b.csv", "data": "c.csv"}, "give one of the two"),
        ({"train": "a.csv", "test": "a.csv"}, "must be different files"),
        ({"data": "a.csv", "eval": ["b.csv", "a.csv"]}, r"a\.csv is among the data already"),
        ({"budget": "1.2.3%"}, "budget '1.2.3%' is not understood"),
        ({"budget": "1e999"}, "budget '1e999' is not understood"),
        ({"learning_rates": {"lor": [1e-3]}}, "did you mean lora"),
        ({"learning_rates": {"lora": []}}, "is no grid"),
        ({"learning_rates": {"lora": [-1.0]}}, "is no grid"),
        ({"learning_rates": {"lora": [1e39]}}, "is no grid"),
        ({"projection_rank": 4}, "projection_rank has no effect here: it needs galore or owlore"),
        ({"methods": ["lisa"], "update_gap": 4}, "update_gap has no effect"),
        ({"scale": 2.0}, "scale has no effect here: it needs galore or owlore"),
        ({"methods": ["lisa"], "rest": 0.5}, "rest has no effect here"),
        ({"methods": ["galore"], "scale": 0.0}, "greater than 0"),
        ({"active_layers": 1, "methods": ["galore"]}, "it needs owlore or lisa"),
        ({"methods": ["lora"], "optimizer": "galore"}, "optimizer has no effect here: it needs full"),
        ({"label_prompt": "?"}, "it needs the task text-to-label"),
        ({"steps": 2**31}, "less than or equal to 1000000"),
        ({"batch_size": 2**24}, "less than or equal to 65536"),
        ({"steps": 10**6, "batch_size": 101}, "more than the 100,000,000 that a run may see"),
        ({"skip_bad": True}, "it needs the task asr"),
        ({"task": "asr", "max_length": 12}, "it needs a task on texts"),
        ({"text_column": "body"}, "it needs a data file"),
        ({"data": "a.csv", "task": "causal-lm", "label_column": "y"}, "it needs a file with labels"),
        ({"model": "lama", "dropout": 0.1}, "it needs a pretrained model"),
    ],
)
def test_options_that_contradict_each_other_or_have_no_effect_are_refused(options, match):
    with pytest.raises(ValidationError, match=match):
        AdaptConfig(**options)


def test_options_are_kept_where_they_have_an_effect():
    AdaptConfig(methods=["full", "lora"], optimizer="owlore", projection_rank=4, update_gap=5, active_layers=1)
    AdaptConfig(task="text-to-label", label_prompt="?", data="a.csv", text_column="body", label_column="y")
    AdaptConfig(task="asr", skip_bad=True, audio_column="file", data="folder", text_column="said")
    whole = AdaptConfig(train="a.csv", test="b.csv", validation="c.csv")
    assert AdaptConfig(**whole.model_dump()) == whole  # as a run's config.yaml holds it


EARLY = {
    "unknown model": ({"model": "minilmm"}, "did you mean minilm"),
    "a model of another task": ({"model": "whisper-tiny.en"}, "its task is asr"),
    "no model folder": ({"model": "{tmp}"}, r"has no config\.json"),
    "no data": ({"data": "{tmp}/none.csv"}, "no such data file"),
    "a broken row": ({"data": "{tmp}/broken.csv"}, r"broken\.csv, line 3: column 'label' is empty"),
    "an option": ({"methods": "lor"}, "did you mean lora"),
    "a stranger's folder": ({"out": "{tmp}/mine"}, "which rankwise did not write"),
    "another task's folder": ({"out": "{tmp}/merged"}, "was made by `rankwise merge`"),
}


EARLY_USE = {
    "export: no folder": (["export", "{tmp}/none", "--out", "{tmp}/out"], "no such folder"),
    "export: no adapter": (["export", "{tmp}/mine", "--out", "{tmp}/out"], r"holds no adapter_config\.json"),
    "export: a stranger's folder": (["export", "{tmp}/merged", "--out", "{tmp}/mine"], "rankwise did not write"),
    "export: of what": (["export", "{tmp}/merged", "--to", "lor", "--out", "{tmp}/out"], "did you mean lora"),
    "export: dtype of a LoRA": (
        ["export", "{tmp}/merged", "--dtype", "bfloat16", "--out", "{tmp}/out"],
        "--dtype is for --to merged, not lora",
    ),
    "predict: no run": (["predict", "{tmp}/mine", "--text", "x"], "is not a run"),
    "predict: another base": (["predict", "{tmp}/adapter", "--text", "x"], "made for another model than this"),
    "predict: no such column": (["predict", "{tmp}/adapter", "--data", "{tmp}/b.csv"], "unknown column 'text'"),
    "predict: an output that is the input": (
        ["predict", "{tmp}/adapter", "--data", "{tmp}/b.csv", "--out", "{tmp}/b.csv"],
        "is read by the same command",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("early")
    (tmp / "broken.csv").write_text("text,label\na,1\nb,\n")
    (tmp / "mine").mkdir()
    (tmp / "mine/thesis.tex").write_text("mine")
    (tmp / "merged").mkdir()
    about = {
        "task": "classification",
        "method": "lora",
        "base": "minilm",
        "base_content": 64 * "0",
        "labels": ["a", "b"],
    }
    (tmp / "adapter").mkdir()
    (tmp / "adapter/rankwise.json").write_text(json.dumps(about))
    (tmp / "b.csv").write_text("txt\nx\n")
    (tmp / "merged/.rankwise.json").write_text(json.dumps({"made_by": "merge", "files": {}}))
    return tmp


def refused_early(words, place):
    """What is said: one line, with status 2, before anything heavy is imported."""
    code = (
        "import sys\nfrom rankwise.cli.main import run\n"
        "try: run()\nexcept SystemExit as e: print('torch' in sys.modules, 'peft' in sys.modules, e.code)"
    )
    words = [w.format(tmp=place) for w in words]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENV)
    assert done.stdout.strip() == "False False 2", done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "out").exists()
    return done.stderr


@pytest.mark.parametrize("name", list(EARLY))
def test_bad_input_is_refused_before_torch_is_imported(name, place):
    given, match = EARLY[name]
    arguments = {"out": "{tmp}/out", **given}
    words = ["adapt", *(w for k, v in arguments.items() for w in (f"--{k}", v))]
    assert re.search(match, refused_early(words, place))


@pytest.mark.parametrize("name", list(EARLY_USE))
def test_what_cannot_be_used_is_refused_before_torch_is_imported(name, place):
    words, match = EARLY_USE[name]
    assert re.search(match, refused_early(words, place))


def test_a_run_of_other_data_is_refused_before_the_model_is_loaded(tmp_path):
    from rankwise.files import claimed

    config = AdaptConfig(data=table(tmp_path / "a.csv", reviews(60)))
    settings = told(config, read_inputs(config), **{"precision used": "fp32"})
    with claimed(tmp_path / "run", made_by="adapt", told=settings):
        pass
    assert check_early(config, tmp_path / "run") == read_inputs(config)
    table(tmp_path / "a.csv", [(t, "pos" if label == "neg" else "neg") for t, label in reviews(60)])
    with pytest.raises(ValueError, match=r"belongs to other settings or data \(content of train"):
        check_early(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"\(steps differ\)"):
        check_early(config.model_copy(update={"steps": 3}), tmp_path / "run")


@pytest.mark.parametrize(("kind", "tasks"), [("vit", "image-classification"), ("clip", "zero-shot-image")])
def test_an_image_model_is_refused_by_name(kind, tasks, data, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"is a {kind} model: its task is {tasks}"):
        check_early(AdaptConfig(data=data, model=str(tmp_path / "model")), tmp_path / "out")
