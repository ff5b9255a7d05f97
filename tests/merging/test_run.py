"""Merges of whole checkpoints: in memory against streamed, interrupted, misfitting, hostile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankwise.merging import Conflict, merge, merge_checkpoints, prepare
from rankwise.merging.engine.config import read
from rankwise.merging.engine.sources import Source
from small_checkpoints import moved, recipe, tensors, tiny
from small_models import bert, gpt2, llama


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "rtsvm", "linear"])
def test_streamed_in_shards_equals_in_memory_bit_for_bit(folders, tmp_path, method):
    models = [str(folders / f"e{i}") for i in range(3)]
    held = merge(models, base=str(folders / "base"), method=method, dtype=torch.bfloat16, seed=3)
    config = recipe(folders, method, dtype="bfloat16", seed=3)
    merge_checkpoints(config, tmp_path / "out", shard_size=30_000)
    streamed = tensors(tmp_path / "out")
    assert set(streamed) == set(held)
    assert all(torch.equal(streamed[n], t) for n, t in held.items())


def test_the_result_loads_and_generates_in_transformers(folders, tmp_path):
    merge_checkpoints(recipe(folders, "tsvm", dtype="bfloat16"), tmp_path / "out", shard_size=30_000)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape == (1, 7)
    assert "tsvm" in (tmp_path / "out" / "README.md").read_text()
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert told["method"] == "tsvm"
    assert {m["name"] for m in told["merged"]} == set(tensors(tmp_path / "out"))
    assert merge_checkpoints(tmp_path / "out" / "merge.yaml", tmp_path / "again")
    assert all(torch.equal(t, tensors(tmp_path / "again")[n]) for n, t in tensors(tmp_path / "out").items())


def test_a_killed_merge_goes_on_and_ends_the_same(folders, tmp_path):
    config = recipe(folders, "dare_ties", seed=5)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code = (
        "import sys, time\nfrom rankwise.merging import merge_checkpoints\nfrom rankwise.merging import shards\n"
        "write = shards.ShardWriter.write\n"
        "def slow(self, name, tensor):\n    write(self, name, tensor); time.sleep(0.2)\n"
        "shards.ShardWriter.write = slow\n"
        f"merge_checkpoints({str(tmp_path / 'c.yaml')!r}, {str(tmp_path / 'out')!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = tmp_path / ".out.rankwise-draft" / "written.txt"
    for _ in range(600):
        if journal.exists() and len(journal.read_text().splitlines()) >= 4:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = set(journal.read_text().splitlines()[1:])  # the first line names the boot
    assert not (tmp_path / "out").exists()
    seen = []
    merge_checkpoints(tmp_path / "c.yaml", tmp_path / "out", progress=lambda name, done, total: seen.append(name))
    assert len(before) >= 3
    assert not before & set(seen)
    merge_checkpoints(tmp_path / "c.yaml", tmp_path / "whole")
    assert all(torch.equal(t, tensors(tmp_path / "whole")[n]) for n, t in tensors(tmp_path / "out").items())
    assert not (tmp_path / ".out.rankwise-draft").exists()


class Cut(BaseException):
    """As a kill would: nothing tidies up."""


def cut_short(config, out, *, after=3):
    """A merge that ends after some tensors, and which they were."""
    seen = []

    def progress(name, done, total):
        seen.append(name)
        if len(seen) == after:
            raise Cut

    with pytest.raises(Cut):
        merge_checkpoints(config, out, workers=1, progress=progress)
    return seen


@pytest.mark.parametrize("change", ["option", "weights", "touched", "beside"])
def test_a_draft_of_other_options_or_files_is_not_continued(folders, tmp_path, change):
    root = tmp_path / "models"
    shutil.copytree(folders, root)
    cut_short(recipe(root, "task_arithmetic"), tmp_path / "out")
    config = recipe(root, "task_arithmetic")
    file = root / "e0" / "model.safetensors"
    if change == "option":
        config["parameters"] = {"lambda": 0.5}
    elif change == "weights":  # another file of the same name, size and time
        before = file.stat()
        state = {k: v + 1 for k, v in load_file(file).items()}
        file.unlink()
        save_file(state, file, metadata={"format": "pt"})
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size
    elif change == "touched":
        os.utime(file)
    else:
        (root / "base" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    seen = []
    merge_checkpoints(config, tmp_path / "out", progress=lambda name, done, total: seen.append(name))
    merge_checkpoints(config, tmp_path / "fresh")
    fresh = tensors(tmp_path / "fresh")
    assert len(seen) == len(fresh)
    assert all(torch.equal(t, fresh[n]) for n, t in tensors(tmp_path / "out").items())


def test_a_draft_of_the_same_merge_is_continued(folders, tmp_path):
    before = cut_short(recipe(folders, "linear"), tmp_path / "out")
    seen = []
    merge_checkpoints(recipe(folders, "linear"), tmp_path / "out", progress=lambda n, d, t: seen.append(n))
    assert len(before) == 3
    assert not set(before) & set(seen)


def test_a_second_merge_into_a_folder_that_is_being_written_is_refused(folders, tmp_path):
    def second(name, done, total):
        with pytest.raises(ValueError, match="another command is writing"):
            merge_checkpoints(recipe(folders, "linear"), tmp_path / "out")
        raise Cut

    with pytest.raises(Cut):
        merge_checkpoints(recipe(folders, "ties"), tmp_path / "out", progress=second)


def test_a_folder_that_is_no_merge_is_not_replaced(folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="rankwise did not write"):
        merge_checkpoints(recipe(folders, "linear"), tmp_path / "out")


def test_a_users_own_file_in_an_earlier_merge_is_never_deleted(folders, tmp_path):
    out = tmp_path / "out"
    merge_checkpoints(recipe(folders, "linear"), out)
    held = {p.name for p in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, added or changed"):
        merge_checkpoints(recipe(folders, "ties"), out)
    assert (out / "notes.txt").read_text() == "mine"
    assert {p.name for p in out.iterdir()} == held | {"notes.txt"}
    (out / "notes.txt").unlink()
    merge_checkpoints(recipe(folders, "ties"), out)
    assert json.loads((out / "merge.json").read_text())["method"] == "ties"


def test_where_to_write_is_settled_before_anything_is_read(folders, tmp_path, monkeypatch):
    def late(config):
        raise AssertionError("looked at the models first")

    monkeypatch.setattr("rankwise.merging.engine.run.prepare", late)
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("")
    monkeypatch.chdir(tmp_path)
    for out, message in (
        (folders / "base", "is read: it is not replaced"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "mine", "rankwise did not write"),
        (Path("."), "is the working folder"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_checkpoints(recipe(folders, "linear"), out)


def test_the_target_of_a_link_and_an_empty_folder_are_written(folders, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    merge_checkpoints(recipe(folders, "linear"), tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()


def test_every_misfit_is_told_at_once(folders, tmp_path):
    state = tensors(folders / "e0")
    other = {**state, "model.norm.weight": torch.ones(33), "model.extra.weight": torch.ones(2)}
    del other["model.layers.0.mlp.up_proj.weight"]
    other["model.layers.1.mlp.up_proj.weight"] = other["model.layers.1.mlp.up_proj.weight"].int()
    with pytest.raises(Conflict) as error:
        merge([state, other], base=tensors(folders / "base"), method="ties")
    told = str(error.value)
    assert "at 4 tensors" in told
    assert "model.norm.weight" in told
    assert "shape [32] in base, [33] in model 2" in told
    assert "model.layers.0.mlp.up_proj.weight  missing in model 2" in told
    assert "torch.int32 in model 2" in told
    assert "model.extra.weight                 missing in base, model 1" in told


def test_nan_names_the_file_and_the_tensor(folders, tmp_path):
    state = {k: v.clone() for k, v in tensors(folders / "e0").items()}
    state["model.layers.2.mlp.up_proj.weight"][3, 3] = float("inf")
    folder = tmp_path / "bad"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text((folders / "e0" / "config.json").read_text())
    for method in ("ties", "linear", "tsvm", "consensus"):
        config = recipe(folders, method)
        config["models"][1]["model"] = str(folder)
        with pytest.raises(ValueError, match=r"layers.2.mlp.up_proj.weight: .*bad/model.safetensors\) has NaN or Inf"):
            merge_checkpoints(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_are_copied_and_narrow_floats_refused(folders):
    state = {"a": torch.randn(4, 4), "steps": torch.tensor(7), "mask": torch.tensor([True, False])}
    done = merge([state, {**state, "steps": torch.tensor(9)}], base=state, method="ties")
    assert done["steps"] == 7
    assert torch.equal(done["mask"], state["mask"])
    with pytest.raises(Conflict, match="quantised in model 1"):
        merge([{"a": torch.ones(2, 2).to(torch.float8_e4m3fn)}], base={"a": torch.ones(2, 2)}, method="ties")


def test_half_precision_overflow_is_said(folders):
    big = {"a": torch.full((2, 2), 6e4)}
    with pytest.raises(ValueError, match="beyond float16's range"):
        merge([big, big], base={"a": torch.zeros(2, 2)}, method="task_arithmetic", dtype=torch.float16)


def test_an_expert_that_is_the_base_is_allowed_and_noted(folders):
    config = recipe(folders, "ties")
    config["models"].append({"model": str(folders / "base") + "/."})
    assert any("adds nothing" in n for n in prepare(config).notes)


def test_no_models_and_an_unwritable_dtype():
    with pytest.raises(ValueError, match="list of models is empty"):
        merge([], method="linear")
    with pytest.raises(ValueError, match=r"torch.int8 is not written"):
        merge([{"a": torch.ones(1)}], method="linear", dtype=torch.int8)


def test_tied_and_untied_experts_meet(folders, tmp_path):
    untied = tiny(tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "untied")
    config = recipe(folders, "linear")
    config["models"] = [{"model": str(folders / "e0")}, {"model": str(tmp_path / "untied")}]
    merge_checkpoints(config, tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    embedding = tensors(folders / "e0")["model.embed_tokens.weight"]
    expected = (embedding + untied.lm_head.weight) / 2
    torch.testing.assert_close(model.lm_head.weight, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("method", ["task_arithmetic", "tsvm", "ties"])
def test_adapters_merge_as_what_they_stand_for(tmp_path, make, method):
    make().save_pretrained(tmp_path / "base")
    targets = ["q_proj", "up_proj"] if make is llama else ["c_attn", "c_fc"]
    for i, rank in enumerate((3, 2)):
        torch.manual_seed(i)
        config = LoraConfig(
            r=rank, lora_alpha=8, target_modules=targets, init_lora_weights=False, use_rslora=i == 1,
            fan_in_fan_out=make is gpt2, alpha_pattern={targets[0]: 2} if i == 0 else {},
        )  # fmt: skip
        adapted = get_peft_model(make(), config)
        adapted.save_pretrained(tmp_path / f"adapter{i}")
        adapted.merge_and_unload().save_pretrained(tmp_path / f"dense{i}")
    low = [f"{tmp_path}/base+{tmp_path}/adapter{i}" for i in range(2)]
    dense = [str(tmp_path / f"dense{i}") for i in range(2)]
    mine, expected = (merge(m, base=str(tmp_path / "base"), method=method) for m in (low, dense))
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-4)


def test_an_adapter_that_is_not_plain_lora_is_answered(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    get_peft_model(llama(), config).save_pretrained(tmp_path / "dora")
    with pytest.raises(ValueError, match=r"is DoRA, not plain LoRA; make it so: rankwise export"):
        merge([f"{tmp_path}/base+{tmp_path}/dora"], base=str(tmp_path / "base"), method="ties")


def test_an_adapter_of_an_embedding_is_not_dropped_silently(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    get_peft_model(llama(), config).save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match=r"adapts more than linear layers \(.*lora_embedding"):
        merge([f"{tmp_path}/base+{tmp_path}/both"], base=str(tmp_path / "base"), method="ties")


def test_a_folder_may_have_a_plus_in_its_name_and_the_model_keeps_its_configuration(folders, tmp_path):
    shutil.copytree(folders / "e0", tmp_path / "a+b")
    config = {"merge_method": "linear", "models": [{"model": f"{tmp_path}/a+b"}], "dtype": "bfloat16"}
    (source,) = merge_checkpoints(config, tmp_path / "out").sources.values()
    assert source.config == json.loads((tmp_path / "a+b" / "config.json").read_text())


def test_the_example_is_a_valid_recipe():
    assert read(Path(__file__).parents[2] / "examples" / "merge.yaml").merge_method == "tsvm"


def test_memory_stays_far_below_the_checkpoint(tmp_path):
    """24 tensors of 8 MB a model: a process that held one model would need 192 MB."""
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        state = {f"layers.{i}.weight": torch.randn(1024, 2048) for i in range(24)}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "import resource, sys\nfrom rankwise.merging import merge, merge_checkpoints\n"
        "x = {'a': torch.randn(64, 64)}\nmerge([x, x], base=x, method='ties')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "p = sys.argv[1]\n"
        "merge_checkpoints({'merge_method': 'ties', 'base_model': p + '/base', "
        "'models': [{'model': p + '/a'}, {'model': p + '/b'}]}, p + '/out')\nprint(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 120e6
    os.sync()


def folder_of(root, name, state, **config):
    """A model folder of these tensors."""
    (root / name).mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, root / name / "model.safetensors")
    (root / name / "config.json").write_text(json.dumps(config))
    return str(root / name)


def test_a_base_without_the_experts_prefix_is_matched(tmp_path):
    """The bare encoder, and a classifier of it; a bare GPT-2, and one with its head."""
    for make, bare, seed in ((bert, "bert", 1), (gpt2, "transformer", 2)):
        model = make()
        getattr(model, bare).save_pretrained(tmp_path / f"{bare}-base")
        moved(model, seed).save_pretrained(tmp_path / f"{bare}-expert")
        config = {
            "merge_method": "task_arithmetic", "base_model": str(tmp_path / f"{bare}-base"),
            "models": [{"model": str(tmp_path / f"{bare}-expert")}], "ignore": ["^classifier"],
        }  # fmt: skip
        merge_checkpoints(config, tmp_path / f"{bare}-out")
        merged = tensors(tmp_path / f"{bare}-out")
        assert set(merged) == set(tensors(tmp_path / f"{bare}-base"))
        expert = tensors(tmp_path / f"{bare}-expert")
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, expert[f"{bare}.{name}"], atol=1e-6, rtol=1e-5)
        swapped = config | {"base_model": config["models"][0]["model"], "models": [{"model": config["base_model"]}]}
        back = prepare(swapped | {"ignore": ["classifier", "lm_head"]})
        assert {t.name.removeprefix(f"{bare}.") for t in back.tensors} == set(merged)


def test_a_head_that_the_base_lacks_is_a_misfit_with_a_way_round(tmp_path):
    model = bert()
    model.bert.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "e0")
    config = {"merge_method": "ties", "base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "e0")}]}
    with pytest.raises(Conflict, match=r"classifier.weight  missing in .*base(.|\n)*left out of the result: ignore:"):
        prepare(config)
    assert not any("classifier" in t.name for t in prepare(config | {"ignore": [r"classifier\.(weight|bias)"]}).tensors)
    with pytest.raises(ValueError, match=r"ignore: .* is no regular expression"):
        prepare(config | {"ignore": ["((("]})


def test_an_ignored_pattern_that_takes_for_ever_is_given_up(folders, monkeypatch):
    monkeypatch.setattr("rankwise.reading.SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"ignore: the pattern .* takes too long"):
        prepare(recipe(folders, "linear", ignore=[r"(\w+\.?)+X"]))


@pytest.mark.parametrize(
    "name", ["rotary_emb.inv_freq", "embeddings.position_ids", "h.0.attn.masked_bias", "h.0.attn.bias"]
)
def test_tables_that_loading_works_out_may_be_absent_or_of_another_length(name):
    shape = (1, 1, 4, 4) if name.endswith("attn.bias") else (4,)
    plain = {"a": torch.ones(2, 2)}
    table = torch.ones(shape) if "freq" in name else torch.ones(shape).long()
    for base, expert in ((plain, plain | {name: table}), (plain | {name: table}, plain)):
        assert set(merge([expert], base=base, method="ties")) == {"a"}
    longer = plain | {name: torch.ones([2 * n for n in shape])}
    assert set(merge([longer], base=plain | {name: torch.ones(shape)}, method="ties")) == {"a"}
    both = plain | {name: table}
    assert torch.equal(merge([both], base=both, method="ties")[name], table)


def test_a_bias_that_is_named_like_a_mask_is_merged(tmp_path):
    base, expert = {"h.0.attn.bias": torch.zeros(4)}, {"h.0.attn.bias": torch.ones(4)}
    assert merge([expert], base=base, method="task_arithmetic")["h.0.attn.bias"].tolist() == [1.0] * 4


def test_what_only_the_base_of_an_average_has_is_a_misfit(tmp_path):
    base = {"a": torch.zeros(2, 2), "b": torch.zeros(2)}
    with pytest.raises(Conflict, match="b  missing in model 1"):
        merge([{"a": torch.ones(2, 2)}], base=base, method="linear")
    with pytest.raises(Conflict, match=r"shape \[3\] in base, \[2\] in model 1"):
        merge([{"a": torch.ones(2)}], base={"a": torch.zeros(3)}, method="linear")


@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_stacked_experts_are_decomposed_one_by_one(method):
    g = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    base = {name: torch.randn(3, 12, 20, generator=g)}
    experts = [{name: base[name] + 0.1 * torch.randn(3, 12, 20, generator=g)} for _ in range(3)]
    whole = merge(experts, base=base, method=method)[name]
    for i in range(3):
        one = merge([{"w": e[name][i]} for e in experts], base={"w": base[name][i]}, method=method)["w"]
        torch.testing.assert_close(whole[i], one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", True),
        ("model.layers.0.block_sparse_moe.input_linear.weight", True),
        ("model.encoder.conv1.weight", False),
        ("encoder.pos_conv_embed.conv.weight", False),
    ],
)
def test_kernels_are_one_matrix_and_stacks_are_many(name, stack):
    state = {name: torch.randn(4, 6, 5)}
    (plan,) = prepare({"merge_method": "tsvm", "base_model": "b", "models": [{"model": "e"}]},
                      {r: Source(label=r, tensors=state) for r in "be"}).tensors  # fmt: skip
    assert plan.matrix
    assert plan.stack is stack


def test_dare_means_its_seed_over_two_hundred_of_them(folders):
    """The mean of merges over seeds nears the sum of task vectors as independent draws do."""
    base = {"a": torch.zeros(40, 50)}
    experts = [{"a": torch.ones(40, 50)}, {"a": 2 * torch.ones(40, 50)}]
    total = torch.zeros(40, 50)
    for seed in range(200):
        total += merge(experts, base=base, method="dare_linear", seed=seed, density=0.5)["a"]
    # of entries (1 + 4) / 4 · (1 / 0.5 - 1) … : a variance of τ² (1 - p) / p an expert
    expected = ((1 + 4) * (1 - 0.5) / 0.5 / 200) ** 0.5
    assert abs(float((total / 200 - 3).std()) - expected) < 0.1 * expected


def test_no_two_tensors_or_seeds_of_a_merge_share_a_mask():
    base = {n: torch.zeros(8, 64) for n in ("a", "b", "layers.0.c")}
    ones = {n: torch.ones(8, 64) for n in base}
    masks = set()
    for seed in (0, 1, 2**32):
        done = merge([ones], base=base, method="dare_linear", seed=seed, density=0.5)
        masks |= {tuple((t != 0).flatten().tolist()) for t in done.values()}
    assert len(masks) == 9


def test_layer_ranks_are_shared_out_over_the_whole_model_streamed_as_in_memory(folders, tmp_path):
    config = recipe(folders, "rtsvm", {"rank": "layer", "weighting": "none"})
    merge_checkpoints(config, tmp_path / "out")
    ready = prepare(config)
    matrices = [t for t in ready.tensors if t.matrix]
    ranks = [ready.rations[t.name]["layer_rank"] for t in matrices]
    budget = sum(max(1, min(t.shape) // 3) for t in matrices)
    assert abs(sum(ranks) - budget) <= len(ranks)
    held = merge([str(folders / f"e{i}") for i in range(3)], base=str(folders / "base"), method="rtsvm", rank="layer",
                 weighting="none")  # fmt: skip
    assert all(torch.equal(t, held[n]) for n, t in tensors(tmp_path / "out").items())


def test_options_out_of_range_are_refused_before_anything_is_merged(folders):
    for method, parameters, message in (
        ("della", {"density": [0.1, 0.9]}, r"density=0.1 .* leaves \(0, 1\)"),
        ("linear", {"weight": 0}, "sum to zero"),
        ("ties", {"density": [0.5, 1.5]}, "density=.* is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(recipe(folders, method, parameters))


def test_the_memory_that_is_promised_is_for_the_workers_that_are_used(folders, monkeypatch):
    ready = prepare(recipe(folders, "ties"))
    costs = [ready.cost(w)["memory_bytes"] for w in (1, 2, 4)]
    largest = max(t.read_bytes + t.bytes for t in ready.tensors)
    assert costs[0] == largest
    assert costs[0] < costs[1] < costs[2]
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert ready.cost()["workers"] == 8
    assert ready.cost() == ready.cost(8)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp", "pcb", "consensus", "model_stock", "tsvm", "rtsvm"])
def test_no_method_holds_more_than_is_promised(tmp_path, method):
    experts = ["a"] if method == "slerp" else ["a", "b", "c"]
    for name in ("base", *experts):
        folder_of(tmp_path, name, {f"layers.{i}.w": torch.randn(1536, 1024) for i in range(4)})
    code = (
        "import torch; torch.set_num_threads(1)\nimport json, resource, sys\n"
        "from rankwise.merging import merge, merge_checkpoints\n"
        "p, method, experts = sys.argv[1], sys.argv[2], sys.argv[3].split(',')\n"
        "x, given = {'a': torch.randn(64, 64)}, {'t': 0.5} if method == 'slerp' else {}\n"
        "merge([x] * len(experts), base=x, method=method, **given)\n"
        "peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "done = merge_checkpoints({'merge_method': method, 'base_model': p + '/base', 'parameters': given,\n"
        "    'models': [{'model': p + '/' + e} for e in experts]}, p + '/out', workers=1)\n"
        "print(peak() - before, done.cost(1)['memory_bytes'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), method, ",".join(experts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, promised = map(int, done.stdout.split()[-2:])
    assert used < 1.3 * promised + 30e6  # the allocator's own, and libraries that are loaded late


def test_a_symmetric_gradient_reaches_the_last_layer_of_every_stack(tmp_path):
    """t runs over each stack's own layers: the eyes of two layers beside a language model of four."""
    state = {f"vision.layers.{i}.w": torch.ones(2, 2) for i in range(2)}
    state |= {f"language_model.layers.{i}.w": torch.ones(2, 2) for i in range(4)}
    config = {
        "merge_method": "linear",
        "models": [{"model": "a"}],
        "parameters": {"weight": [1, 2], "normalize": False},
    }
    ready = prepare(config, {"a": Source(label="a", tensors=state)})
    weights = {t.name: t.options["weight"][0] for t in ready.tensors}
    assert [weights[f"vision.layers.{i}.w"] for i in range(2)] == [1, 2]
    assert weights["language_model.layers.3.w"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_hostile_files_end_in_one_line(tmp_path, seed):
    """Bytes and values of every file of a model and an adapter, exchanged at random."""
    import random

    r = random.Random(seed)
    root = tmp_path / "whole"
    torch.manual_seed(0)
    llama().save_pretrained(root / "base", max_shard_size="8KB")
    get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(root / "lora")
    values = [None, [], {}, "x", -1, 0, 10**9, 1e308, True, "[" * 5000, ["a"], {"a": {"b": 1}}, float("nan")]
    for trial in range(40):
        copy = tmp_path / str(trial)
        shutil.copytree(root, copy)
        path = r.choice(sorted(p for p in copy.rglob("*") if p.suffix in (".json", ".safetensors")))
        data = bytearray(path.read_bytes())
        if path.suffix == ".json" and r.random() < 0.7:
            loaded = json.loads(data)
            loaded[r.choice(list(loaded))] = r.choice(values)
            path.write_text(json.dumps(loaded))
        else:
            at = r.randrange(min(len(data), 4000))
            data[at : at + r.randrange(4)] = r.randbytes(r.randrange(4))
            path.write_bytes(data)
        config = {
            "merge_method": "ties", "base_model": str(copy / "base"),
            "models": [{"model": f"{copy}/base+{copy}/lora"}], "dtype": "float32",
        }  # fmt: skip
        try:
            merge_checkpoints(config, copy / "out")
        except (ValueError, OSError):
            assert not (copy / "out").exists()
        shutil.rmtree(copy)
