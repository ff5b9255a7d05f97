"""``rankwise merge`` on the bundled model and adapters of it, as a person would run it."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from command import ENV, RANKWISE, rankwise
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


def test_a_merge_without_a_folder_or_with_an_odd_shard_size_is_told_what_to_give(recipe):
    assert "give --out" in rankwise("merge", recipe).stderr
    assert "write 5GB or 500MB" in rankwise("merge", recipe, "--out", "x", "--shard-size", "5 apples").stderr


def test_a_recipe_of_aliases_nine_levels_deep_is_one_line_at_once(tmp_path):
    path = tmp_path / "bomb.yaml"
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path.write_text("\n".join([*levels, "models: *a9", "merge_method: ties"]))
    for more in (("--dry-run",), ("--out", tmp_path / "out")):
        done = rankwise("merge", path, *more)
        assert done.returncode == 2
        assert "unfolds to more than" in done.stderr
        assert len(done.stderr) < 1000
        assert "Traceback" not in done.stderr


def test_two_merges_into_one_folder_at_once_do_not_mix(recipe, tmp_path):
    """The second is refused while the first writes; what the first leaves is whole and its own."""
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"merge_method": "task_arithmetic"}))
    out = tmp_path / "out"
    command = [RANKWISE, "merge", str(recipe), "--out", str(out), "--workers", "1"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    draft = tmp_path / ".out.rankwise-draft" / "written.txt"
    while first.poll() is None and not draft.exists():
        time.sleep(0.05)
    second = rankwise("merge", other, "--out", out)
    _, said = first.communicate(timeout=400)
    assert first.returncode == 0, said
    assert second.returncode == 2
    assert "another command is writing" in second.stderr
    assert json.loads((out / "merge.json").read_text())["method"] == "tsvm"


def test_brackets_and_control_codes_in_names_are_shown_as_they_are(recipe, tmp_path):
    folder = tmp_path / "a [bold] b"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    save_file({"w\x1b[2J[/red]": torch.ones(2, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": [{"model": str(folder)}]}))
    done = rankwise("merge", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "[bold]" in done.stdout
    assert "[/red]" in done.stdout
    assert "\x1b[2J" not in done.stdout
    assert rankwise("merge", path, "--out", tmp_path / "out [x]").returncode == 0


def test_a_dry_run_says_of_an_output_that_it_could_not_be_written(recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    done = rankwise("merge", recipe, "--dry-run", "--out", tmp_path / "mine")
    assert done.returncode == 2
    assert "rankwise did not write" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_what_differs_from_mergekit_is_said_when_it_is_run(recipe, tmp_path):
    path = tmp_path / "ties.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"merge_method": "ties"}))
    done = rankwise("merge", path, "--dry-run")
    assert "density is left out: 0.2 is taken, where mergekit takes 1.0" in " ".join(done.stdout.split())
    assert re.search(r"memory for tensors, \d+ at once", " ".join(done.stdout.split()))
    told = json.loads(rankwise("merge", path, "--dry-run", "--workers", "3", "--json").stdout)
    assert told["workers"] == 3
    assert any("density is left out" in n for n in told["notes"])
