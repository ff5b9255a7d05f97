import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from rankwise.models import linear_layers, target_modules
from rankwise.models.targets import fused_experts, plain_modules
from small_models import bert, gpt2, llama


def ends(names):
    return sorted({n.rsplit(".", 1)[-1] for n in names})


def test_all_linear_leaves_heads_and_poolers_out():
    assert len(target_modules(bert())) == 12
    assert len(target_modules(llama())) == 14
    assert ends(target_modules(gpt2())) == ["c_attn", "c_fc", "c_proj"]
    assert not [n for n in target_modules(bert()) if "pooler" in n or "classifier" in n]


def test_kinds_part_the_layers_between_them():
    for model in (bert(), llama(), gpt2()):
        attention, mlp = target_modules(model, "attention"), target_modules(model, "mlp")
        assert sorted(attention + mlp) == sorted(target_modules(model))
        assert attention
        assert mlp
    assert ends(target_modules(llama(), "attention")) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_names_and_patterns():
    assert ends(target_modules(llama(), "q_proj,v_proj")) == ["q_proj", "v_proj"]
    assert target_modules(llama(), r"layers\.1\..*down_proj") == ["model.layers.1.mlp.down_proj"]
    with pytest.raises(ValueError, match="q_proj"):
        target_modules(llama(), "qproj")


def test_an_adapted_models_layers_have_the_names_they_had_before():
    for make, targets in ((bert, ["query", "intermediate.dense"]), (gpt2, ["c_attn"]), (llama, ["q_proj", "up_proj"])):
        adapted = get_peft_model(
            make(), LoraConfig(r=2, target_modules=targets, modules_to_save=["lm_head", "classifier"])
        )
        inner, plain = adapted.base_model.model, make()
        assert list(linear_layers(inner)) == list(linear_layers(plain))
        assert target_modules(inner) == target_modules(plain)
        for name, layer in linear_layers(inner).items():
            assert torch.equal(layer.weight, plain.get_submodule(name).weight)
        assert [n for n, _ in plain_modules(inner)] == [n for n, _ in plain.named_modules()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mixtral", "mlp.experts.gate_up_proj"),
        ("Qwen3Moe", "mlp.experts.gate_up_proj"),
        ("GptOss", "mlp.experts.gate_up_proj"),
        ("GraniteMoe", "block_sparse_moe.experts.gate_up_proj"),
        ("JetMoe", "mlp.input_linear.weight"),
    ],
)
def test_fused_experts_are_found_in_every_architecture_and_refused_by_name(name, expected):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts=4, head_dim=4, moe_intermediate_size=8,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    assert any(n.endswith(expected) for n in fused_experts(model))
    for target in ("auto", "mlp", "all-linear"):
        with pytest.raises(ValueError, match=rf"{name}ForCausalLM .*attention"):
            target_modules(model, target)
    assert target_modules(model, "attention" if name != "JetMoe" else ".*(proj|linear)") is not None


def test_experts_in_one_flat_matrix_are_found_too():
    class ExpertGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = nn.Parameter(torch.ones(4 * 8, 16))

    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(16, 16), "mlp": ExpertGLU()})])
    assert fused_experts(model) == ["layers.0.mlp.w1"]


def test_models_without_fused_experts_have_none():
    for model in (bert(), llama(), gpt2(), nn.Sequential(nn.Conv1d(2, 2, 3))):
        assert fused_experts(model) == []
