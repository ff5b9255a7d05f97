"""Slices: what configurations say of every layer follows, and what cannot be stacked is refused."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from rankwise.merging import merge_checkpoints, prepare
from small_checkpoints import KINDS, SMALL, eyes, moved, stacked, tensors, tiny
from small_models import bert, gpt2, whisper


def gemma(root, name, types=None, layers=6):
    config = Gemma3TextConfig(
        **SMALL, num_hidden_layers=layers, layer_types=types or KINDS * (layers // 2), sliding_window=4
    )
    torch.manual_seed(0)
    moved(Gemma3ForCausalLM(config), len(name)).save_pretrained(root / name)


def layer_types(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("text_config", config)["layer_types"]


def test_every_list_with_an_entry_a_layer_is_cut_as_the_layers_are(tmp_path):
    gemma(tmp_path, "e0")
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 3)), ({}, ("e0", 1, 6))), tmp_path / "out")
    s, f = KINDS
    assert layer_types(tmp_path / "out") == [s, f, s, f, s, f, s, f]
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 2)), ({}, ("e0", 0, 3))), tmp_path / "odd")
    assert layer_types(tmp_path / "odd") == [s, f, s, f, s]
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 1)), ({}, ("e0", 2, 3))), tmp_path / "even")
    assert layer_types(tmp_path / "even") == [s, s]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "even")
    assert model.config.layer_types == [s, s]
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_kinds_that_transformers_fills_in_are_written_down_before_they_shift(tmp_path):
    gemma(tmp_path, "e0", types=["sliding_attention"] * 5 + ["full_attention"])
    path = tmp_path / "e0" / "config.json"
    raw = json.loads(path.read_text())
    del raw["layer_types"]  # as files of before it was written: every sixth layer sees all
    path.write_text(json.dumps(raw | {"sliding_window_pattern": 6}))
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 4, 6)), ({}, ("e0", 3, 6))), tmp_path / "out")
    s, f = KINDS
    assert layer_types(tmp_path / "out") == [s, f, s, s, f]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.layer_types == [s, f, s, s, f]


def test_layers_of_two_kinds_on_each_other_are_refused(tmp_path):
    gemma(tmp_path, "e0")
    gemma(tmp_path, "e1")
    config = stacked(tmp_path, "linear", ({}, ("e0", 0, 3), ("e1", 1, 4)))
    with pytest.raises(
        ValueError, match=r"layer 0 of .*e0 and layer 1 of .*e1 are of two kinds \(layer_types: sliding"
    ):
        prepare(config)
    prepare(stacked(tmp_path, "linear", ({}, ("e0", 0, 3), ("e1", 2, 5))))


def test_kinds_come_from_the_model_that_gives_the_layer(tmp_path):
    s, f = KINDS
    gemma(tmp_path, "e0", [s, f, s, f], layers=4)
    gemma(tmp_path, "e1", [f, f, f, f, s, s], layers=6)
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 2)), ({}, ("e1", 3, 6))), tmp_path / "out")
    assert layer_types(tmp_path / "out") == [s, f, f, s, s]


def test_of_a_model_with_eyes_the_language_layers_are_stacked(tmp_path):
    eyes(tmp_path / "e0")
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 3)), ({}, ("e0", 1, 4))), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    s, f = KINDS
    assert written["text_config"]["num_hidden_layers"] == 6
    assert written["text_config"]["layer_types"] == [s, f, s, f, s, f]
    assert written["vision_config"]["num_hidden_layers"] == 2
    _, info = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    before, after = tensors(tmp_path / "e0"), tensors(tmp_path / "out")
    assert {n for n in before if "vision" in n} == {n for n in after if "vision" in n}
    (third,) = [n for n in after if "layers.3.mlp.up_proj" in n and "language_model" in n]
    assert torch.equal(after[third], before[third.replace("layers.3", "layers.1")])


def t5(root):
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(root / "e0")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda root: whisper().save_pretrained(root / "e0"),
            r"model\.\w+\.layers\.0 to 1, model\.\w+\.layers\.0 to 1",
        ),
        (t5, r"\w+\.block\.0 to 1, \w+\.block\.0 to 1"),
    ],
)
def test_an_encoder_with_a_decoder_is_not_sliced_and_that_is_said_first(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(ValueError, match=rf"slices stack the layers of one stack, .* has {said}: merge whole models"):
        prepare(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 2))))


def test_layers_of_different_tensors_are_not_sliced_unless_a_list_tells_which(tmp_path):
    config = Qwen2MoeConfig(
        **SMALL, num_hidden_layers=3, mlp_only_layers=[0], num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8, shared_expert_intermediate_size=8,
    )  # fmt: skip
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "e0")
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 1, 3)), ({}, ("e0", 0, 2))), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mlp_only_layers"] == [2]
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    path = tmp_path / "e0" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlp_only_layers": [], "model_type": "of_their_own"}))
    with pytest.raises(ValueError, match="has layers of different tensors, and no list"):
        prepare(stacked(tmp_path, "passthrough", ({}, ("e0", 1, 3))))


@pytest.mark.parametrize("last", [5, 10**9])
def test_layers_that_no_model_has_are_refused_at_once(tmp_path, last):
    tiny().save_pretrained(tmp_path / "e0")
    with pytest.raises(ValueError, match=rf"layer_range \[0, {last}\]: .*e0 has 4 layers"):
        prepare(stacked(tmp_path, "passthrough", ({}, ("e0", 0, last))))


@pytest.mark.parametrize("make", [gpt2, bert])
def test_other_names_for_the_number_of_layers_are_found(tmp_path, make):
    model = make()
    model.save_pretrained(tmp_path / "e0")
    merge_checkpoints(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 2)), ({}, ("e0", 1, 2))), tmp_path / "out")
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.num_hidden_layers == 3


def test_a_configuration_that_names_no_number_of_layers_is_told(tmp_path):
    tiny().save_pretrained(tmp_path / "e0")
    path = tmp_path / "e0" / "config.json"
    path.write_text(json.dumps({"model_type": "of_their_own"}))
    with pytest.raises(ValueError, match="does not say that there are 4 layers"):
        prepare(stacked(tmp_path, "passthrough", ({}, ("e0", 0, 2))))
