"""The installed command, driven as a person would: every complaint is one line, exit status 2, no traceback."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from command import ENV, RANKWISE, rankwise
from rankwise.jobs.adapt.config import AdaptConfig
from rankwise.models import resolve

SMALL = """
model: minilm
methods: [s2lora, adalora]
baseline: false
steps: 8
batch_size: 4
max_length: 16
train_limit: 64
eval_limit: 20
dropout: 0.0
checkpoint_steps: 2
learning_rates: {s2lora: [8.0e-3], adalora: [1.0e-2]}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("e2e")
    (folder / "small.yaml").write_text(SMALL)
    done = rankwise("adapt", folder / "small.yaml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder, done


def numbers(run):
    """Everything a run measured but times and memory."""
    results = json.loads((run / "results.json").read_text())
    return [
        [m["name"], m["scores"], [[t["loss_curve"], t["ranks"], t["mass"], t["scores"]] for t in m["trials"]]]
        for m in results["methods"]
    ]


def test_a_run_prints_its_table_and_where_to_look(finished):
    folder, done = finished
    assert "S2-LoRA" in done.stdout
    assert "AdaLoRA" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(folder))
    for name in ("report.html", "results.json", "table.md", "config.yaml", "adapters/s2lora/adapter_model.safetensors"):
        assert (folder / "run" / name).is_file()


def test_a_run_killed_at_two_moments_ends_with_the_same_numbers(finished):
    folder, _ = finished
    moments = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(
            [RANKWISE, "adapt", str(folder / "small.yaml"), "--out", str(folder / "killed")],
            env=ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.time() + 120
            while not (folder / "killed").exists() and process.poll() is None and time.time() < deadline:
                time.sleep(0.1)
            time.sleep(moments.uniform(0.5, 7))
            process.kill()
    done = rankwise("adapt", folder / "small.yaml", "--out", folder / "killed")
    assert done.returncode == 0, done.stderr
    assert numbers(folder / "killed") == numbers(folder / "run")


def test_a_run_interrupted_between_trials_says_that_it_goes_on_and_does(finished):
    folder, _ = finished
    words = [RANKWISE, "adapt", str(folder / "small.yaml"), "--out", str(folder / "interrupted")]
    with subprocess.Popen(
        words, env=ENV | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        first = process.stdout.readline()  # of the trials, of which another is still to come
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert first.strip().endswith(": done")
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command continues"
    done = rankwise("adapt", folder / "small.yaml", "--out", folder / "interrupted")
    assert done.returncode == 0, done.stderr
    assert numbers(folder / "interrupted") == numbers(folder / "run")


def test_predict_and_export_use_the_run(finished, tmp_path):
    folder, _ = finished
    done = rankwise("predict", folder / "run", "--adapter", "s2lora", "--text", "A quiet triumph.", "--json")
    prediction = json.loads(done.stdout)[0]
    assert prediction["text"] == "A quiet triumph."
    assert prediction["label"] in ("negative", "positive")
    assert 0.5 <= prediction["probability"] <= 1
    adapter = shutil.copytree(folder / "run/adapters/s2lora", tmp_path / "alone")
    piped = rankwise("predict", adapter, input="A quiet triumph.\n\nDull [/b].\n")
    assert piped.stdout.splitlines()[0].endswith(f"{prediction['probability']:.3f}  A quiet triumph.")
    assert piped.stdout.splitlines()[1].endswith("Dull [/b].")
    (tmp_path / "new.csv").write_text("id,text\n7,A quiet triumph.\n8,Dull.\n")
    done = rankwise("predict", adapter, "--data", tmp_path / "new.csv", "--out", tmp_path / "labelled.csv")
    assert (done.returncode, "2 rows, label, probability added" in done.stdout) == (0, True), done.stderr
    header, first, *_ = (tmp_path / "labelled.csv").read_text().splitlines()
    assert header == "id,text,label,probability"
    assert first.startswith(f"7,A quiet triumph.,{prediction['label']},0.")
    assert rankwise("export", adapter, "--to", "lora", "--out", tmp_path / "lora").returncode == 0
    assert rankwise("export", adapter, "--to", "merged", "--out", tmp_path / "merged").returncode == 0
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
ids = AutoTokenizer.from_pretrained(r'{tmp_path}/merged')('A quiet triumph.', return_tensors='pt')['input_ids']
merged = Auto.from_pretrained(r'{tmp_path}/merged').eval()(input_ids=ids).logits
base = Auto.from_pretrained({resolve("minilm")!r})
lora = PeftModel.from_pretrained(base, r'{tmp_path}/lora').eval()(input_ids=ids).logits
torch.testing.assert_close(lora, merged, atol=1e-5, rtol=1e-5)
assert 'rankwise' not in sys.modules
print(torch.softmax(lora, -1).max().item())
"""
    plain = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=ENV)
    assert plain.returncode == 0, plain.stderr
    assert float(plain.stdout) == pytest.approx(prediction["probability"], abs=1e-4)


def test_two_processes_give_the_statistics_and_losses_of_one(tmp_path):
    config = SMALL.replace("[s2lora, adalora]", "[s2lora, eva]").replace("adalora: [1.0e-2]", "eva: [4.0e-3]")
    (tmp_path / "c.yaml").write_text(config.replace("steps: 8", "steps: 4"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "rankwise"]
    arguments = ["adapt", str(tmp_path / "c.yaml"), "--out"]
    two = subprocess.run(
        [*launch, *arguments, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**ENV, "OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stderr
    assert rankwise(*arguments, tmp_path / "one").returncode == 0
    assert json.loads((tmp_path / "two/results.json").read_text())["environment"]["processes"] == 2
    for one, other in zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True):
        (losses, ranks, mass, _), (losses2, ranks2, mass2, _) = one[2][0], other[2][0]
        assert ranks == ranks2  # EVA's ranks come from the all-reduced statistics
        assert mass == pytest.approx(mass2, rel=1e-2, abs=1e-4)
        for (_, a), (_, b) in zip(losses, losses2, strict=True):
            assert a == pytest.approx(b, rel=1e-4)  # float32 sums in another order


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["adapt", "--model", "minilmm"], "did you mean minilm"),
        (["adapt", "--methods", "lor"], "did you mean lora"),
        (["adapt", "--data", "sentiment:movy"], "did you mean movies"),
        (["adapt", "--methods", "lora", "--budget", "0.02%"], "lora at rank 1"),
        (["adapt", "--budget", "200%"], "more than the model"),
        (["adapt", "--target", "qury"], "nearest: query"),
        (["adapt", "none.yaml"], "no such file: none.yaml"),
        (["export", "none"], "holds no adapter_config.json"),
        (["predict", "none", "--adapter", "eva", "--text", "x"], "is not a run"),
        (["predict", "none"], "is not a run"),
        (["predict", ".", "--text", "x"], "is not a run"),
        (["predict", ".", "--text", "x", "--audio", "y.wav"], "--text and --audio: give one of them"),
        (["predict", ".", "--text", "x", "--out", "y.csv"], "belong to --data"),
        (["export", ".", "--to", "merged", "--pad"], "are for --to lora, not merged"),
        (["adapt", "--train", "a.csv"], "train needs a test file"),
        (["bench", "evaa"], "did you mean eva"),
        (["inspect", "minilmm"], "did you mean minilm"),
        (["methods", "--family", "tunning"], "did you mean tuning"),
    ],
)
def test_complaints_are_one_line_and_status_2(args, match, tmp_path):
    out = ["--out", tmp_path / "out"] if args[0] in ("adapt", "export") else []
    done = rankwise(*args, *out)
    assert done.returncode == 2
    assert match in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_user_files_and_folders_are_named(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "one.csv").write_text("text,label\na,1\nb,1\n")
    done = rankwise("adapt", "--data", tmp_path / "one.csv", "--out", tmp_path / "out")
    assert (done.returncode, "one class only" in done.stderr) == (2, True)
    (tmp_path / "unknown.yaml").write_text("budgt: 1%\nout: x\n")
    done = rankwise("adapt", tmp_path / "unknown.yaml")
    assert (done.returncode, "budgt" in done.stderr) == (2, True)
    done = rankwise("adapt", folder / "small.yaml", "--steps", "9", "--out", folder / "run")
    assert (done.returncode, "belongs to other settings or data (steps differ)" in done.stderr) == (2, True)


def test_broken_and_foreign_adapters_are_named(finished, tmp_path):
    folder, _ = finished
    broken = tmp_path / "broken"
    shutil.copytree(folder / "run/adapters/s2lora", broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    done = rankwise("export", broken, "--out", tmp_path / "out")
    assert (done.returncode, "Is the file whole?" in done.stderr) == (2, True), done.stderr
    done = rankwise("export", folder / "run/adapters/s2lora", "--model", "smollm2", "--out", tmp_path / "out")
    assert (done.returncode, "made for another model" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    full = (
        "import resource, signal, sys, errno, os, rankwise.files as f\n"
        "def fail(*a): raise OSError(errno.ENOSPC, 'No space left on device', 'config.yaml')\n"
        "f.os.fsync = fail\nfrom rankwise.cli.main import run\nrun()"
    )
    done = subprocess.run(
        [sys.executable, "-c", full, "adapt", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert done.returncode == 2
    assert "no space left on disk while writing config.yaml; free some; the same command continues" in done.stderr
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == [".rankwise.json"]  # whose folder it is


def test_every_default_is_shown_and_is_the_one_used():
    shown = " ".join(rankwise("adapt", "--help").stdout.replace("│", " ").split()).partition(" Options ")[2]
    for option, default in (("--steps", "200; asr: 60"), ("--budget", "0.5%; asr: 1%"), ("--dropout", None)):
        said = shown.rpartition(f"{option} ")[2].partition(" --")[0]
        assert ("[default: (" in said) == (default is not None)
        assert default is None or f"[default: ({default})]" in said
    options = {f"--{name.replace('_', '-')}" for name in AdaptConfig.model_fields if name != "learning_rates"}
    assert all(f"{option} " in shown or f"{option}/" in shown for option in options)


def test_a_run_of_which_every_method_diverged_is_no_success(tmp_path):
    (tmp_path / "c.yaml").write_text(SMALL.replace("8.0e-3", "1.0e+30").replace("[s2lora, adalora]", "[s2lora]"))
    for more in ([], ["--json"]):
        done = rankwise("adapt", tmp_path / "c.yaml", "--out", tmp_path / "out", *more)
        assert done.returncode == 2
        assert "every method diverged" in done.stderr
    assert json.loads(done.stdout)["methods"][0]["status"] == "diverged"


def test_listings_fit_80_columns_and_help_has_examples():
    listing = rankwise("methods")
    assert "S2-LoRA" in listing.stdout
    assert max(map(len, listing.stdout.splitlines())) <= 80
    assert len(json.loads(rankwise("methods", "--json").stdout)) == 27
    for command in ("adapt", "methods", "inspect", "compress", "merge", "compare", "export", "predict", "bench"):
        shown = rankwise(command, "--help").stdout
        assert f"rankwise {command}" in shown, shown
        assert max(map(len, shown.splitlines())) <= 80


def test_inspect_prints_and_plots_the_spectra(tmp_path):
    done = rankwise("inspect", "minilm", "--target", "query", "--out", tmp_path / "spectra")
    assert done.returncode == 0, done.stderr
    assert "384x384" in done.stdout
    assert (tmp_path / "spectra/spectra.png").stat().st_size > 5_000
    assert (tmp_path / "spectra/report.html").is_file()


def test_a_test_worker_has_one_thread():
    assert torch.get_num_threads() == 1
