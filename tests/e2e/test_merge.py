"""``rankwise merge`` on the bundled model and adapters of it, as a person would run it."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from command import ENV, rankwise
from rankwise.models import load


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("merge")
    for i in range(2):
        torch.manual_seed(i)
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_alpha=1)
        get_peft_model(load("smollm2"), config).save_pretrained(root / f"adapter{i}")
    models = [{"model": f"smollm2+{root}/adapter{i}"} for i in range(2)]
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "tsvm", "base_model": "smollm2", "models": models}))
    return path


def test_a_dry_run_shows_tensors_and_cost_in_eighty_columns_and_writes_nothing(recipe):
    done = rankwise("merge", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("q_proj", "576×576", "bfloat16", "matrix", "TSVM", "written", "memory"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [p.name for p in recipe.parent.iterdir() if "out" in p.name] == []


def test_the_merged_model_generates_text_with_stock_transformers(recipe):
    out = recipe.parent / "out"
    done = rankwise("merge", recipe, "--out", out, "--shard-size", "100MB", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == 272
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys']\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('The capital of France is', return_tensors='pt')\n"
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, env=ENV)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("The capital of France is")
    assert len(list(out.glob("*.safetensors"))) == 3


def test_merging_the_base_into_itself_leaves_what_it_says(recipe, tmp_path):
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": [{"model": "smollm2"}] * 2}))
    done = rankwise("merge", path, "--out", tmp_path / "same")
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout
    merged, base = AutoModelForCausalLM.from_pretrained(tmp_path / "same"), load("smollm2", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "same")
    ids = tokenizer("Ranks", return_tensors="pt")["input_ids"]
    assert torch.equal(merged(ids).logits, base(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tvsm"}, "did you mean tsvm"),
        ({"base_model": None}, "base_model is needed"),
        ({"models": [{"model": "smollm3"}]}, "did you mean smollm2"),
    ],
)
def test_bad_input_exits_two_with_one_line(recipe, tmp_path, change, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    done = rankwise("merge", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert "give --out" in rankwise("merge", path).stderr
    assert "write 5GB or 500MB" in rankwise("merge", recipe, "--out", "x", "--shard-size", "5 apples").stderr
