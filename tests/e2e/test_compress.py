"""``rankwise compress`` and ``inspect --outliers`` on the bundled model, as a person would run them."""

import json
import subprocess
import sys

import pytest

from command import ENV, rankwise


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "small"
    done = rankwise("compress", "--model", "smollm2", "--parameters", "0.9", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_prints_ranks_bytes_perplexity_and_speed_in_eighty_columns(small):
    folder, shown = small
    for word in ("q_proj", "factorised", "perplexity", "tokens/s", "bytes", "report"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 80 + len(str(folder))


def test_the_folder_holds_what_it_says(small):
    folder, _ = small
    told = json.loads((folder / "compression.json").read_text())
    on_disk = (folder / "model.safetensors").stat().st_size
    assert told["parameters"] <= 0.9 * told["parameters_before"]
    assert abs(on_disk - told["bytes"]) / on_disk < 0.01
    assert told["dtype"] == "bfloat16"  # as the checkpoint
    assert told["bytes"] < told["bytes_before"] == 2 * told["parameters_before"]
    assert told["after"]["perplexity"] > told["before"]["perplexity"] > 1
    assert (folder / "report.html").read_text().count("data:image/png") == 2


def test_the_compressed_model_loads_in_a_fresh_process_and_generates(small):
    folder, _ = small
    code = (
        "from rankwise.compression import load; from rankwise.models import load_tokenizer\n"
        f"m, t = load(r'{folder}'), load_tokenizer(r'{folder}')\n"
        "out = m.generate(**t('The capital', return_tensors='pt'), max_new_tokens=3, min_new_tokens=3)\n"
        "print(out.shape[1], type(m).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "LlamaForCausalLM"]


def test_it_exports_to_a_dense_model_that_transformers_loads_alone(small, tmp_path):
    done = rankwise("export", small[0], "--to", "dense", "--out", tmp_path / "dense")
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        f"m = AutoModelForCausalLM.from_pretrained(r'{tmp_path / 'dense'}')\n"
        "print(sum(p.numel() for p in m.parameters()), 'rankwise' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=ENV)
    assert loaded.stdout.split() == ["134515008", "False"], loaded.stderr


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("smollm2", ["--ratio", "0.9999"], "without a direction"),
        ("smollm2", [], "exactly one of ratio, parameters and bytes"),
        ("minilm", ["--ratio", "0.5"], "a causal language model is needed"),
    ],
)
def test_bad_input_is_one_line(model, options, message, tmp_path):
    done = rankwise("compress", "--model", model, *options, "--no-measure", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in done.stderr


def test_outliers_by_block(tmp_path):
    done = rankwise("inspect", "minilm", "--outliers", "--threshold", "5", "--out", tmp_path / "o", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [r["block"] for r in records] == list(range(6))
    assert sum(r["probability"] for r in records) == pytest.approx(1)
    assert (tmp_path / "o" / "outliers.png").is_file()


def test_lama_is_trained_by_one_line_and_its_attention_drawn(tmp_path):
    run = tmp_path / "run"
    done = rankwise(
        "adapt", "--model", "lama", "--steps", "4", "--train-limit", "64", "--eval-limit", "20", "--out", run
    )
    assert done.returncode == 0, done.stderr
    drawn = rankwise(
        "predict", run, "--adapter", "full", "--text", "A quiet triumph.", "--attention", tmp_path / "maps"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(("positive", "negative"))
    assert (tmp_path / "maps" / "attention-1.png").is_file()
