"""The compression job and its commands on a small random model: what is asked before loading, and what is written."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import rankwise.jobs.compress as job
from rankwise.cli.main import app
from rankwise.compression import load
from rankwise.data import Corpus
from rankwise.data.corpus import side
from rankwise.files import check_output
from rankwise.jobs.compress import compress_model, sample
from rankwise.models import load_tokenizer
from small_models import bert

TOKENIZER = load_tokenizer("minilm")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama of 64 units in bfloat16, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "notes.jsonl"
    rows = [json.dumps({"text": f"note number {i} says that all is well on day {i}"}) for i in range(80)]
    path.write_text("\n".join(rows))
    return str(path)


@pytest.fixture
def nothing_loaded(monkeypatch):
    """Any attempt to load a model or a tokenizer fails the test."""

    def loaded(*args, **options):
        raise AssertionError("loaded before it was checked")

    monkeypatch.setattr(job, "load", loaded)
    monkeypatch.setattr(job, "load_tokenizer", loaded)


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)))


def test_a_bfloat16_checkpoint_gets_smaller_in_bfloat16_and_its_bytes_are_those_on_disk(model, tmp_path):
    done = compress_model(model, tmp_path / "out", data=None, bytes=0.985)
    told = json.loads((tmp_path / "out" / "compression.json").read_text())
    file = (tmp_path / "out" / "model.safetensors").read_bytes()
    weights = len(file) - 8 - int.from_bytes(file[:8], "little")
    original = sum(p.nbytes for p in LlamaForCausalLM.from_pretrained(model, dtype="auto").parameters())
    assert told["bytes_before"] == original
    assert weights == told["bytes"] <= 0.985 * original
    assert told["bytes_on_disk"] == len(file)
    assert told["dtype"] == done.dtype == "bfloat16"
    assert load(tmp_path / "out").dtype == torch.bfloat16
    assert "rankwise.compression.load" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_is_written_on_request_and_sizes_are_of_that_dtype(model, dtype, tmp_path):
    done = compress_model(model, tmp_path / "out", data=None, ratio=0.6, dtype=dtype)
    again = load(tmp_path / "out")
    assert str(again.dtype) == f"torch.{dtype}"
    assert done.plan.bytes_before == {"float32": 4, "float16": 2}[dtype] * done.plan.parameters_before


def test_without_measuring_nothing_is_run(model, tmp_path, monkeypatch):
    def forward(*args, **options):
        raise AssertionError("the model ran")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    done = compress_model(model, tmp_path / "out", data=None, ratio=0.6)
    assert done.before == done.after == {}


def test_measured_and_calibrated_on_a_file_of_ones_own(model, texts, tmp_path):
    out, reported = tmp_path / "out", []
    done = compress_model(
        model,
        out,
        data=texts,
        calibrate=texts,
        calibrate_limit=9,
        max_length=12,
        ratio=0.6,
        report=lambda folder, result: reported.append((folder, result.bytes_on_disk)),
    )
    assert done.before["perplexity"] > 1
    assert done.after["tokens_per_second"] > 0
    rows = [len(b["input_ids"]) for b in done.plan.calibration]
    assert rows == [8, 1]
    assert all(b["input_ids"].shape[1] <= 12 for b in done.plan.calibration)
    assert reported[0][0] != out  # into the draft, so that it is there when the folder takes its place
    assert check_output(out, made_by="compress")  # and may be replaced by the next run


def test_more_calibration_texts_than_the_librarys_default_of_batches_are_all_read(model, tmp_path, monkeypatch):
    corpus = Corpus(name="c", texts=[f"a text {i}" for i in range(600)], labels=[], groups=[str(i) for i in range(600)])
    monkeypatch.setattr(job.corpora, "load", lambda *a, **k: corpus)
    seen = []
    monkeypatch.setattr(job.compression, "plan", lambda *a, **k: seen.append((len(k["calibrate"]), k["max_batches"])))
    with pytest.raises(AttributeError):  # there is no plan to apply
        compress_model(model, tmp_path / "out", data=None, calibrate="c", calibrate_limit=320, ratio=0.5)
    assert seen == [(40, 40)]


def written(folder, name, texts):
    (folder / name).write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return str(folder / name)


MINE = [f"note number {i} of mine" for i in range(30)]
OTHERS = [f"word {i} of another" for i in range(20)]


@pytest.mark.parametrize("measured", [MINE, MINE[:3]])
def test_all_rows_of_files_of_ones_own_measure_and_calibrate(model, measured, tmp_path):
    data, calibrate = written(tmp_path, "a.jsonl", measured), written(tmp_path, "b.jsonl", OTHERS)
    done = compress_model(model, tmp_path / "out", data=data, calibrate=calibrate, ratio=0.6)
    told = json.loads((tmp_path / "out" / "compression.json").read_text())["texts"]
    rows = len(measured)
    assert (
        told
        == done.texts
        == {
            "measured": {"from": data, "rows": rows, "used": rows, "how": "all rows"},
            "calibrated": {"from": calibrate, "rows": 20, "used": 20, "how": "all rows"},
        }
    )
    assert sum(len(b["input_ids"]) for b in done.plan.calibration) == 20
    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    nats, tokens = 0.0, 0
    for text in measured:  # as the task does: the tokenizer's own marks, one text at a time
        ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = network(ids).logits.float()[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    assert done.before["perplexity"] == pytest.approx(float(np.exp(nats / tokens)), rel=1e-2)


def test_the_same_texts_are_split_and_shared_ones_counted(model, tmp_path):
    data, copy = written(tmp_path, "a.jsonl", MINE), written(tmp_path, "copy.jsonl", MINE)
    sides = [side(t) for t in MINE]
    for calibrate in (data, copy):
        texts = compress_model(model, tmp_path / "out", data=data, calibrate=calibrate, ratio=0.6).texts
        assert [texts[use]["used"] for use in texts] == [sides.count("test"), sides.count("train")]
        assert texts["measured"]["how"] == "the test part, by a hash of each row's group"
    more = written(tmp_path, "more.jsonl", [*OTHERS, *MINE[:4]])
    done = compress_model(model, tmp_path / "out", data=data, calibrate=more, ratio=0.6)
    assert done.told()[0].endswith("(all rows; 4 of them also stand among the texts to calibrate on)")
    few = written(tmp_path, "few.jsonl", [t for t, s in zip(MINE, sides, strict=True) if s == "train"])
    with pytest.raises(ValueError, match=r"no rows are left for its test part: .* too few to split; give two files"):
        compress_model(model, tmp_path / "out", data=few, calibrate=few, ratio=0.6)


def test_the_seed_decides_which_texts_calibrate():
    corpus = Corpus(name="c", texts=list("abcdefghij"), labels=[], groups=list("abcdefghij"))
    drawn = ["".join(sample(corpus, 4, seed).texts) for seed in range(20)]
    assert drawn == ["".join(sample(corpus, 4, seed).texts) for seed in range(20)]
    assert len(set(drawn)) > 10
    assert set("".join(drawn)) == set("abcdefghij")
    assert sample(corpus, 99, 0).texts == corpus.texts


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of ratio, parameters and bytes"),
        ({"ratio": 1.5}, r"ratio=1\.5 is outside"),
        ({"ratio": 0.5, "method": "welor"}, "did you mean welore"),
        ({"ratio": 0.5, "dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"ratio": 0.5, "calibrate_limit": 0}, "calibrate_limit=0"),
        ({"ratio": 0.5, "max_length": 1}, "max_length=1: at least 2"),
        ({"ratio": 0.5, "seed": -1}, "seed=-1"),
        ({"ratio": 0.5, "data": "text:nowhere"}, "nowhere"),
        ({"ratio": 0.5, "calibrate": "missing.csv"}, "no such data file: missing.csv"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        compress_model("smollm2", tmp_path / "out", **{"data": None, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_loaded")
def test_an_image_model_is_refused_by_name(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="is a vit model: its task is image-classification"):
        compress_model(str(tmp_path / "model"), tmp_path / "out", data=None, ratio=0.5)


@pytest.mark.usefixtures("nothing_loaded")
def test_an_output_that_would_not_be_replaced_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        compress_model("smollm2", tmp_path / "mine", data=None, ratio=0.5)
    with pytest.raises(ValueError, match="is read"):
        compress_model(str(tmp_path / "mine"), tmp_path / "mine", data=None, ratio=0.5)


def test_an_encoder_is_not_compressed_as_a_language_model(tmp_path):
    bert().bert.save_pretrained(tmp_path / "encoder")
    TOKENIZER.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="BertModel: a causal language model is needed"):
        compress_model(str(tmp_path / "encoder"), tmp_path / "out", data=None, ratio=0.5)
    assert not (tmp_path / "out").exists()


# --- the commands


def test_compress_prints_what_it_did_and_reports_it(model, texts, tmp_path):
    out = tmp_path / "out"
    args = ("--data", texts, "--calibrate", texts, "--calibrate-limit", 8, "--max-length", 12, "--seed", 3)
    shown = run("compress", "--model", model, "--parameters", 0.99, *args, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "bytes (bfloat16)" in shown.output
    assert "perplexity" in shown.output
    for use, rows in json.loads((out / "compression.json").read_text())["texts"].items():
        assert f"{use} on {rows['used']} of {rows['rows']} texts in" in shown.output
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 2
    again = run("compress", "--model", model, "--ratio", 0.6, "--no-measure", "--out", out, "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told["method"] == "energy"
    assert told["before"] == {}
    assert "perplexity" not in (out / "report.html").read_text()


def test_a_model_far_from_what_was_asked_is_said_on_the_terminal_in_the_file_and_on_the_page(model, tmp_path):
    out = tmp_path / "out"
    args = ("--ratio", 0.5, "--multiple-of", 16, "--no-measure")
    with pytest.warns(UserWarning, match="ranks are rounded up"):
        shown = run("compress", "--model", model, *args, "--out", out)
    assert shown.exit_code == 0, shown.output
    said = json.loads((out / "compression.json").read_text())["note"]
    assert "with multiple_of=1, " in said
    assert "with --multiple-of 1, " in " ".join(shown.output.split())
    assert said in (out / "report.html").read_text()


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--ratio", "0.5", "--seed", "1"], "of --calibrate"),
        (["--ratio", "0.5", "--calibrate-limit", "9"], "of --calibrate"),
        (["--ratio", "0.5", "--no-measure", "--data", "text:nyt"], "--no-measure reads no texts"),
        (["--ratio", "0.5", "--no-measure", "--max-length", "9"], "--no-measure reads no texts"),
        ([], "exactly one"),
    ],
)
def test_options_of_compress_that_nothing_would_read_are_refused(args, match, tmp_path):
    done = run("compress", "--model", "smollm2", *args, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert match in str(done.exception)


def test_inspect_writes_a_folder_that_it_may_replace_and_no_other(model, tmp_path):
    out = tmp_path / "out"
    for args, plot in (([], "spectra.png"), (["--outliers", "--threshold", "4"], "outliers.png")):
        done = run("inspect", model, *args, "--out", out, "--json")
        assert done.exit_code == 0, done.output
        assert (out / plot).is_file()
        assert json.loads(done.stdout)
    (out / "thesis.txt").write_text("years of work")
    done = run("inspect", model, "--out", out)
    assert "thesis.txt" in str(done.exception)
    assert (out / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--data", "text:nyt"], "--outliers: add it"),
        (["--threshold", "5"], "--outliers: add it"),
        (["--outliers", "--target", "mlp"], "--target chooses layers"),
    ],
)
def test_options_of_inspect_that_nothing_would_read_are_refused(args, match):
    assert match in str(run("inspect", "smollm2", *args).exception)
