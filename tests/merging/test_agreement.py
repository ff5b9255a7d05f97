"""Configurations that agree, those that do not, and models that are no weights at all."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from rankwise.merging import Conflict, merge, merge_checkpoints, prepare
from rankwise.merging.engine.agreement import full
from small_checkpoints import recipe, tensors, tiny


def two(root, **changes):
    """A base and an expert of the same weights, whose ``config.json`` differs."""
    torch.manual_seed(0)
    tiny().save_pretrained(root / "base")
    (root / "e0").mkdir()
    for file in (root / "base").iterdir():
        (root / "e0" / file.name).write_bytes(file.read_bytes())
    config = json.loads((root / "base" / "config.json").read_text())
    (root / "e0" / "config.json").write_text(json.dumps(config | changes))
    return {"merge_method": "ties", "base_model": str(root / "base"), "models": [{"model": str(root / "e0")}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "num_attention_heads .*base: 4, .*e0: 8"),
        ({"num_key_value_heads": 1, "head_dim": 16}, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act .*base: silu, .*e0: gelu"),
        ({"model_type": "mistral"}, "model_type .*base: llama, .*e0: mistral"),
    ],
)
def test_models_whose_weights_mean_other_things_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=rf"do not mean the same by their weights: .*{said}"):
        prepare(two(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta"),
        ({"rms_norm_eps": 1e-4}, r"rms_norm_eps \(.*base: 1e-06, .*e0: 0.0001\)"),
        ({"max_position_embeddings": 99}, "max_position_embeddings"),
        ({"of_their_own": [1]}, "of_their_own"),
    ],
)
def test_differences_that_shape_the_function_are_noted(tmp_path, changes, said):
    import re

    (note,) = [n for n in prepare(two(tmp_path, **changes)).notes if "configurations" in n]
    assert re.search(said, note)
    assert note.endswith("base's is written")


def test_an_absent_setting_means_its_default(tmp_path):
    config = two(tmp_path)
    raw = json.loads((tmp_path / "e0" / "config.json").read_text())
    for key in ("rms_norm_eps", "hidden_act", "attention_bias"):
        del raw[key]
    (tmp_path / "e0" / "config.json").write_text(json.dumps(raw))
    assert not [n for n in prepare(config).notes if "configurations" in n]


def test_how_a_model_was_made_and_answers_is_no_difference(tmp_path):
    changes = {
        "_name_or_path": "x", "transformers_version": "4", "dtype": "bfloat16", "use_cache": False, "eos_token_id": 7,
        "attention_dropout": 0.1, "architectures": ["X"], "initializer_range": 1.0,
    }  # fmt: skip
    assert not [n for n in prepare(two(tmp_path, **changes)).notes if "configurations" in n]


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "num_labels"])
def test_numbers_that_would_take_the_machines_memory_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=rf"config.json says .*{key}=1,000,000,000"):
        prepare(two(tmp_path, **{key: 10**9}))
    with pytest.raises(ValueError, match=r"says text_config\.num_hidden_layers"):
        full({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}}, "x")


@pytest.mark.parametrize("changes", [{"rope_parameters": 3}, {"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_a_configuration_that_transformers_does_not_take_is_named(tmp_path, changes):
    with pytest.raises(ValueError, match=r"e0: config\.json is no configuration of a llama"):
        prepare(two(tmp_path, **changes))


def test_a_type_that_transformers_does_not_know_is_compared_as_it_is_written(tmp_path):
    config = two(tmp_path)
    for name, theta in (("base", 1), ("e0", 2)):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({"model_type": "of_their_own", "theta": theta, "num_hidden_layers": 4}))
    assert any("theta" in n for n in prepare(config).notes)


# models that are no weights


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
        ({"quantization_config": {"quant_method": "awq"}}, r"is quantised \(awq\)"),
        ({"quantization_config": [1]}, "is quantised"),
        ({"compression_config": {"format": "pack-quantized"}}, "is quantised"),
        ({"rankwise_compression": {"ranks": {}}}, r"is compressed into factors.*--to dense"),
    ],
)
def test_codes_and_factors_are_refused_before_work(tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        prepare(two(tmp_path, **config))


def test_packed_weights_are_refused_though_nothing_says_that_they_are_packed():
    g = torch.Generator().manual_seed(0)

    def packed(seed):
        codes = torch.randint(0, 2**30, (8, 16), generator=g.manual_seed(seed), dtype=torch.int32)
        return {
            "layers.0.qweight": codes,
            "layers.0.scales": torch.rand(4, 16, generator=g),
            "norm.weight": torch.ones(4),
        }

    with pytest.raises(Conflict, match=r"layers.0.qweight  integers that differ in model 1: codes of packed weights"):
        merge([packed(1)], base=packed(0), method="linear")
    same = packed(0)
    assert torch.equal(merge([same], base=same, method="linear")["layers.0.qweight"], same["layers.0.qweight"])


def test_counters_that_differ_are_copied_and_noted(tmp_path):
    for name, steps in (("base", 3), ("e0", 8)):
        (tmp_path / name).mkdir()
        save_file(
            {"a": torch.ones(2, 2), "bn.num_batches_tracked": torch.tensor(steps)},
            tmp_path / name / "model.safetensors",
        )
        (tmp_path / name / "config.json").write_text("{}")
    config = recipe(tmp_path, "ties", models=[{"model": str(tmp_path / "e0")}])
    ready = merge_checkpoints(config, tmp_path / "out")
    assert tensors(tmp_path / "out")["bn.num_batches_tracked"] == 3
    assert any("num_batches_tracked is copied from" in n and "has other integers" in n for n in ready.notes)


# what is written


def test_the_dtype_of_the_configuration_is_kept_where_the_recipe_names_none(tmp_path):
    config = two(tmp_path)
    for name in ("base", "e0"):
        path = tmp_path / name / "config.json"
        raw = json.loads(path.read_text())
        raw.pop("dtype", None)
        path.write_text(json.dumps(raw | {"torch_dtype": "float32"}))
    merge_checkpoints(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    merge_checkpoints(config | {"dtype": "bfloat16"}, tmp_path / "narrow")
    written = json.loads((tmp_path / "narrow" / "config.json").read_text())
    assert written["dtype"] == "bfloat16"
    assert "torch_dtype" not in written


def test_a_head_of_a_masked_language_model_meets_its_tied_self(tmp_path):
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    for i in range(2):
        torch.manual_seed(i)
        BertForMaskedLM(config).save_pretrained(tmp_path / f"e{i}")
    models = [{"model": str(tmp_path / f"e{i}")} for i in range(2)]
    merge_checkpoints({"merge_method": "linear", "models": models}, tmp_path / "out")
    merged, info = BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert merged.cls.predictions.decoder.weight is merged.bert.embeddings.word_embeddings.weight


def test_models_in_memory_are_not_handed_back_as_parts_of_the_result():
    state = {"a": torch.ones(2, 2), "steps": torch.tensor([7])}
    for method in ("passthrough", "linear"):
        done = merge([state], method=method)
        done["a"].zero_()
        done["steps"].zero_()
        assert state["a"].sum() == 4
        assert state["steps"] == 7
