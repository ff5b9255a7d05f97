"""Adapters as experts: what PEFT makes of them, and those that are refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from rankwise.merging import merge, prepare
from rankwise.merging.engine.sources import open_source
from rankwise.models import load, model_fingerprint
from rankwise.models.loading import resolve
from small_checkpoints import tensors, tiny
from small_models import gpt2, llama


def trained(root, name, model, **options):
    """An adapter on ``root/base`` with random values, as PEFT saves it; the weights PEFT merges it to."""
    torch.manual_seed(len(name))
    adapted = get_peft_model(
        model, LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]} | options))
    )
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_" in n:
                p.add_(0.1 * torch.randn(p.shape))
    adapted.save_pretrained(root / name)
    return adapted.merge_and_unload().state_dict()


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")
    return tmp_path


def change(root, **settings):
    """Settings of ``root/lora`` replaced; None deletes one."""
    path = root / "lora" / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | settings).items() if v is not ...}))


STARTS = [True, False, "gaussian", "orthogonal", "mica", "eva", "pissa", "olora"]


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_merged_as_peft_merges_it_whatever_it_started_from(tmp_path, make, start, rslora):
    if make is gpt2 and start in ("olora", "eva", "mica"):
        pytest.skip("PEFT starts these on linear layers alone")
    make().save_pretrained(tmp_path / "base")
    targets = ["q_proj", "up_proj"] if make is llama else ["c_attn", "c_fc"]
    options = {
        "init_lora_weights": start,
        "use_rslora": rslora,
        "fan_in_fan_out": make is gpt2,
        "target_modules": targets,
    }
    if start in ("orthogonal", "mica"):
        options["r"] = 4
    expected = trained(tmp_path, "lora", make(), **options)
    reloaded = PeftModel.from_pretrained(make(), tmp_path / "lora").merge_and_unload().state_dict()
    for method in ("task_arithmetic", "linear"):
        mine = merge([f"{tmp_path}/base+{tmp_path}/lora"], base=str(tmp_path / "base"), method=method)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(tensor, reloaded[name], atol=2e-5, rtol=1e-4)


def test_a_start_that_was_taken_out_of_the_base_stays_low_rank(base):
    expected = trained(base, "lora", llama(), init_lora_weights="pissa")
    source = open_source(f"{base}/base+{base}/lora")
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = tensors(base / "base")[name]
    low = source.adapters[name].read(weight)
    assert low.B.shape == (16, 6)  # what was learned, and what was taken out
    torch.testing.assert_close(weight + low.dense(), expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga", "something_new", 3, ["pissa"]])
def test_a_start_that_cannot_be_worked_out_again_is_refused(base, start):
    trained(base, "lora", llama())
    change(base, init_lora_weights=start)
    with pytest.raises(ValueError, match=r"was started by init_lora_weights.*save it as plain LoRA"):
        open_source(f"{base}/base+{base}/lora")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "VERA"}, r"is VERA, not plain LoRA; make it so: rankwise export"),
        ({"peft_type": "NEW_KIND"}, "is NEW_KIND, not plain LoRA"),
        ({"peft_type": ...}, "is None, not plain LoRA"),
        ({"peft_type": {"a": 1}}, "not plain LoRA"),
        ({"use_dora": True}, "is DoRA"),
        ({"lora_bias": True}, "LoRA with biases"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens .* is not understood"),
        ({"layer_replication": [[0, 2]]}, "layer_replication .* is not understood"),
        ({"use_qalora": True}, "use_qalora .* is not understood"),
        ({"of_the_future": "yes"}, "of_the_future .* is not understood"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices .* is not understood"),
        ({"lora_alpha": ...}, r"adapter_config.json: lora_alpha must be a number"),
        ({"lora_alpha": "8"}, r"adapter_config.json: lora_alpha must be a number"),
        ({"alpha_pattern": ["q_proj"]}, r"adapter_config.json: alpha_pattern must map patterns to numbers"),
        ({"alpha_pattern": {"q_proj": "8"}}, r"alpha_pattern must map patterns to numbers"),
        ({"alpha_pattern": {"(((": 8}}, r"adapter_config.json: .* is no regular expression"),
        ({"init_lora_weights": "olora", "fan_in_fan_out": True}, "OLoRA of a transposed layer"),
    ],
)
def test_settings_that_change_what_an_adapter_computes_are_refused_by_name(base, settings, message):
    trained(base, "lora", llama())
    change(base, **settings)
    with pytest.raises(ValueError, match=message):
        open_source(f"{base}/base+{base}/lora")


def test_a_pattern_that_takes_for_ever_is_given_up(base, monkeypatch):
    monkeypatch.setattr("rankwise.reading.SECONDS", 0.5)
    trained(base, "lora", llama())
    change(base, alpha_pattern={r"(\w+\.?)+X": 8})
    with pytest.raises(ValueError, match=r"adapter_config.json: the pattern .* takes too long"):
        open_source(f"{base}/base+{base}/lora")


def test_the_first_matching_pattern_sets_alpha_as_in_peft(base):
    patterns = {r"layers\.0\.self_attn\.q_proj": 3, "q_proj": 7, ".*up_proj": 11}
    expected = trained(base, "lora", llama(), alpha_pattern=patterns)
    mine = merge([f"{base}/base+{base}/lora"], base=str(base / "base"), method="linear")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-4)


def test_an_adapter_that_does_not_name_its_base_is_told_how_to(base):
    trained(base, "lora", llama())
    for named in (..., None, "", 7):
        change(base, base_model_name_or_path=named)
        with pytest.raises(ValueError, match=r"adapter_config.json does not say of which model .* write model\+"):
            open_source(str(base / "lora"))
    change(base, base_model_name_or_path=str(base / "base"), revision="main")
    assert open_source(str(base / "lora")).adapters


def test_a_folder_that_is_no_adapter_and_pickled_factors_are_named(base):
    trained(base, "lora", llama())
    with pytest.raises(ValueError, match=r"base has no adapter_config.json: not an adapter"):
        open_source(f"{base}/base+{base}/base")
    (base / "lora" / "adapter_model.safetensors").rename(base / "lora" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin is pickled and is not opened"):
        open_source(f"{base}/base+{base}/lora")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda k, t: None if "0.self_attn.q_proj.lora_B" in k else t, "without its lora_B"),
        (lambda k, t: None if "0.self_attn.q_proj.lora_A" in k else t, "without its lora_A"),
        (lambda k, t: t[:, :-1] if "lora_A" in k else t, r"factors .* do not fit model.layers.0"),
        (lambda k, t: t[:-1] if "lora_A" in k else t, r"factors .* do not fit model.layers.0"),
        (lambda k, t: t[:0] if "lora_A" in k else t[:, :0], r"factors .* do not fit model.layers.0"),
    ],
)
def test_factors_that_do_not_belong_together_are_named(base, edit, message):
    trained(base, "lora", llama())
    file = base / "lora" / "adapter_model.safetensors"
    state = {k: edit(k, t) for k, t in load_file(file).items()}
    save_file({k: t.contiguous() for k, t in state.items() if t is not None}, file)
    with pytest.raises(ValueError, match=message):
        open_source(f"{base}/base+{base}/lora")


def test_a_lora_of_a_tied_output_layer_unties_it(tmp_path):
    torch.manual_seed(0)
    tiny().save_pretrained(tmp_path / "base")
    model = tiny()
    model.load_state_dict(tiny().from_pretrained(tmp_path / "base").state_dict())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    ids = torch.tensor([[3, 1, 4]])
    expected = adapted(ids).logits
    from rankwise.merging import merge_checkpoints

    config = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "dtype": "float32"}
    merge_checkpoints(config | {"models": [{"model": f"{tmp_path}/base+{tmp_path}/lora"}]}, tmp_path / "out")
    merged = tiny().from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.model.embed_tokens.weight, tensors(tmp_path / "base")["model.embed_tokens.weight"])


def test_an_adapter_of_another_base_is_merged_as_a_whole_model(base):
    """τ is relative to the merge's base, not to the adapter's own."""
    torch.manual_seed(9)
    other = llama()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other.save_pretrained(base / "other")
    expected = trained(base, "lora", other)
    mine = merge([f"{base}/other+{base}/lora"], base=str(base / "base"), method="task_arithmetic")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-4)


def test_the_same_base_by_another_path_is_the_same(base):
    trained(base, "lora", llama())
    (base / "link").symlink_to(base / "base")
    ready = merge([f"{base}/link+{base}/lora"], base=str(base / "base"), method="tsvm")
    again = merge([f"{base}/base+{base}/lora"], base=str(base / "base"), method="tsvm")
    assert all(torch.equal(t, again[n]) for n, t in ready.items())


def test_an_adapter_of_a_quantised_base_is_told_to_take_the_full_one(base):
    trained(base, "lora", llama())
    shutil.copytree(base / "base", base / "nf4")
    config = json.loads((base / "nf4" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "nf4" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is quantised \(bitsandbytes\): .* give the model it was made from"):
        open_source(f"{base}/nf4+{base}/lora")


def test_an_adapter_on_other_weights_than_its_own_is_said_in_the_notes(base):
    """``rankwise adapt`` writes beside an adapter what its base was by content; a copy elsewhere is the same base."""
    trained(base, "lora", llama())
    about = {"base": "elsewhere", "base_content": model_fingerprint(str(base / "base"), weights_only=True)}
    (base / "lora" / "rankwise.json").write_text(json.dumps(about))
    shutil.copytree(base / "base", base / "copy")
    torch.manual_seed(5)
    LlamaForCausalLM(llama().config).save_pretrained(base / "other")

    def notes(name, lead="base"):
        models = [f"{base}/{name}+{base}/lora", str(base / lead)]
        given = {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": 1}} for m in models]}
        return [n for n in prepare(given).notes if "other weights" in n]

    assert notes("base") == notes("copy") == []
    (said,) = notes("other")
    assert f"{base}/other+{base}/lora: the adapter was trained on other weights than those of {base}/other" in said
    shutil.rmtree(base / "base")
    shutil.copytree(base / "other", base / "base")  # in place, as training on does
    assert len(notes("base", lead="copy")) == 1
    (base / "lora" / "rankwise.json").unlink()  # PEFT's own adapters say nothing of content
    assert notes("base", lead="copy") == []
    (base / "lora" / "rankwise.json").write_text("[]")
    with pytest.raises(ValueError, match=r"rankwise.json: an object is needed, found a list"):
        notes("base", lead="copy")


def test_an_adapter_of_a_bundled_model_knows_it_by_name_and_in_its_folder(tmp_path):
    folder = resolve("minilm")
    about = {"base_content": model_fingerprint("minilm", weights_only=True)}
    trained(tmp_path, "lora", load("minilm"), target_modules=["query"])
    (tmp_path / "lora" / "rankwise.json").write_text(json.dumps(about))
    assert open_source(f"minilm+{tmp_path}/lora").notes == open_source(f"{folder}+{tmp_path}/lora").notes == ()
