"""ViDA's adapter: closed forms, scales, fused projections, refusals. PEFT's own measure is `test_peft_properties`."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from rankwise.tuning import VidaConfig, export_lora, low_rank_factors
from rankwise.tuning.vida import VidaLayer, delta_weight
from small_models import gpt2, randomise, vit

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def config(**options):
    return VidaConfig(**{"r": 1, "r_high": 4} | options)


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, VidaLayer)}


def adapted(**options):
    return randomise(get_peft_model(vit(), config(**options))).eval()


def test_the_start_is_the_base_model_bit_for_bit():
    base = vit()
    expected = base(PIXELS).logits
    assert torch.equal(get_peft_model(base, config()).eval()(PIXELS).logits, expected)


def test_the_default_targets_are_the_projections_of_attention_alone():
    names = {n.rpartition(".")[2] for n in layers(adapted())}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(("r", "r_high"), [(1, 4), (2, 0), (0, 5), (1, 64)])
def test_a_layer_has_r_plus_r_high_times_both_sides_parameters(r, r_high):
    model = get_peft_model(nn.Sequential(nn.Linear(6, 10)), VidaConfig(r=r, r_high=r_high, target_modules=["0"]))
    assert model.get_nb_trainable_parameters()[0] == (r + r_high) * (6 + 10)


@pytest.mark.parametrize("r", [1, 2, 16])
def test_down_starts_with_a_standard_deviation_of_one_over_r_squared_and_up_at_zero(r):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(4000, 8)), VidaConfig(r=r, r_high=0, target_modules=["0"]))
    D, U, scale = model.base_model.model[0].branches("default")["low"]
    assert float(D.detach().std()) == pytest.approx(1 / r**2, rel=0.05)
    assert not U.any()
    assert scale == 1.0


@given(st.floats(-2, 2), st.floats(-2, 2), st.booleans())
def test_the_output_is_the_closed_form_and_merging_it_changes_nothing(low, high, wide_only):
    torch.manual_seed(0)
    base = nn.Linear(5, 7).double()
    x, weight, bias = torch.randn(3, 5).double(), base.weight.detach().clone(), base.bias.detach().clone()
    model = get_peft_model(
        nn.Sequential(base),
        config(target_modules=["0"], r=0 if wide_only else 1, scale_low=low, scale_high=high, init_weights=False),
    ).double()
    layer = model.base_model.model[0]
    expected = x @ weight.mT + bias
    for branch, scale in (("low", low), ("high", high)):
        if branch == "high" or not wide_only:
            D, U = getattr(layer, f"vida_{branch}_down")["default"], getattr(layer, f"vida_{branch}_up")["default"]
            expected = expected + scale * x @ D.mT @ U.mT
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, atol=1e-12, rtol=1e-12)


def test_a_delta_is_the_scaled_product():
    D, U = torch.randn(2, 3), torch.randn(4, 2)
    torch.testing.assert_close(delta_weight(D, U, 0.5), torch.einsum("or,ri->oi", U, D) / 2)


def test_scales_are_set_in_every_layer_and_saved_with_the_adapter(tmp_path):
    mine = config(init_weights=False)
    model = get_peft_model(vit(), mine).eval()
    model.base_model.set_scales(0.7, 1.3)
    assert {m.scaling["default"] for m in layers(model).values()} == {(0.7, 1.3)}
    assert (mine.scale_low, mine.scale_high) == (1.0, 1.0)  # the configuration stays its owner's
    expected = model(PIXELS).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert torch.equal(again(PIXELS).logits, expected)
    again.base_model.set_scales(1.0, 1.0)
    assert not torch.allclose(again(PIXELS).logits, expected, atol=1e-4)


def test_scales_of_one_adapter_leave_anothers():
    shared = config(target_modules=["q_proj"])
    model = get_peft_model(vit(), shared, adapter_name="a")
    model.add_adapter("b", shared)
    model.base_model.set_scales(0.5, 1.5, adapter_name="b")
    assert {m.scaling["a"] for m in layers(model).values()} == {(1.0, 1.0)}
    assert {m.scaling["b"] for m in layers(model).values()} == {(0.5, 1.5)}
    assert (model.peft_config["a"].scale_low, model.peft_config["b"].scale_low) == (1.0, 0.5)


def test_scales_of_single_rows_are_each_rows_own_also_in_repeated_batches():
    model = adapted()
    scales = torch.tensor([0.5, 1.0, 2.0])
    model.base_model.set_scales(scales, 2 - scales)
    found = model(torch.cat([PIXELS, PIXELS])).logits
    for i, s in enumerate(scales.tolist()):
        model.base_model.set_scales(s, 2 - s)
        for row in (i, i + 3):
            torch.testing.assert_close(found[row], model(PIXELS[i : i + 1]).logits[0], atol=1e-5, rtol=1e-5)


def test_scales_of_single_rows_are_neither_merged_nor_exported_nor_used_for_other_numbers_of_rows(tmp_path):
    model = adapted()
    model.base_model.set_scales(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="set_scales with two numbers"):
        model.merge_adapter()
    with pytest.raises(TypeError, match="set_scales with two numbers"):
        export_lora(model, tmp_path / "lora")
    with pytest.raises(ValueError, match="3 scales for a batch of 2 rows"):
        model(PIXELS[:2])


def test_scales_of_a_merged_adapter_are_refused_and_after_unmerging_set():
    model = adapted()
    before = copy.deepcopy(model.base_model.model.state_dict())
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge"):
        model.base_model.set_scales(0.5, 1.5)
    model.unmerge_adapter()
    model.base_model.set_scales(0.5, 1.5)
    for name, weight in model.base_model.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_weights_give_the_same_and_are_gone_bit_for_bit_afterwards(dtype):
    model = adapted().to(dtype)
    model.base_model.set_scales(0.6, 1.4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        expected = model(PIXELS.to(dtype)).logits
        with model.base_model.folded():
            found = model(PIXELS.to(dtype)).logits
            assert all(m.merged for m in layers(model).values())
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=0.05)
    assert not torch.equal(found, expected)  # it was another computation
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m.merged for m in layers(model).values())
    with pytest.raises(ValueError, match="2 scales"), model.base_model.folded():
        raise ValueError("2 scales")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with model.disable_adapter(), model.base_model.folded():
        assert torch.equal(model(PIXELS.to(dtype)).logits, vit().to(dtype)(PIXELS.to(dtype)).logits)


@pytest.mark.parametrize("low", [True, False])
def test_an_exported_lora_is_the_adapter_at_its_scales(low, tmp_path):
    model = adapted()
    model.base_model.set_scales(0.6, 0.0 if low else 1.4)
    expected = model(PIXELS).logits
    written = export_lora(model, tmp_path / "lora", pad=False)
    assert set(written.ranks.values()) == {1 if low else 5}  # a branch at scale 0 is left out
    plain = PeftModel.from_pretrained(vit(), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(PIXELS).logits, expected, atol=1e-4, rtol=1e-4)


def test_factors_multiply_to_the_delta():
    model = adapted()
    model.base_model.set_scales(0.6, 1.4)
    for layer in layers(model).values():
        A, B = low_rank_factors(layer)
        torch.testing.assert_close(B @ A, layer.get_delta_weight("default"), atol=1e-5, rtol=1e-5)


# --- fused projections


class Fused(nn.Module):
    """One projection for query, key and value."""

    def __init__(self, weight):
        super().__init__()
        self.qkv = nn.Linear(6, 12, bias=False)
        self.qkv.weight.data = weight.clone()

    def forward(self, x):
        return self.qkv(x)


class Apart(nn.Module):
    """The same as three."""

    def __init__(self, weight):
        super().__init__()
        for name, part in zip(("query", "key", "value"), weight.chunk(3), strict=True):
            layer = nn.Linear(6, 4, bias=False)
            layer.weight.data = part.clone()
            setattr(self, name, layer)

    def forward(self, x):
        return torch.cat([self.query(x), self.key(x), self.value(x)], -1)


def test_shared_downs_are_the_function_and_the_gradients_of_an_adapter_on_the_fused_layer():
    torch.manual_seed(0)
    weight, x = torch.randn(12, 6), torch.randn(5, 6)
    fused = get_peft_model(Fused(weight), config(target_modules=["qkv"], fuse_qkv=True, init_weights=False))
    apart = get_peft_model(
        Apart(weight), config(target_modules=["query", "key", "value"], fuse_qkv=True, init_weights=False)
    )
    one, three = fused.base_model.model.qkv, apart.base_model.model
    with torch.no_grad():
        for branch in ("low", "high"):
            getattr(three.query, f"vida_{branch}_down")["default"].copy_(getattr(one, f"vida_{branch}_down")["default"])
            parts = getattr(one, f"vida_{branch}_up")["default"].chunk(3)
            for layer, part in zip((three.query, three.key, three.value), parts, strict=True):
                getattr(layer, f"vida_{branch}_up")["default"].copy_(part)
    torch.testing.assert_close(apart(x), fused(x))
    for model in (fused, apart):
        model(x).square().sum().backward()
    for branch in ("low", "high"):
        torch.testing.assert_close(
            getattr(three.query, f"vida_{branch}_down")["default"].grad,
            getattr(one, f"vida_{branch}_down")["default"].grad,
            atol=1e-4,
            rtol=1e-4,
        )
    assert apart.get_nb_trainable_parameters()[0] == fused.get_nb_trainable_parameters()[0] == 5 * (6 + 12)


@pytest.mark.parametrize("low", [False, True])
def test_shared_downs_are_saved_once_and_come_back_shared(low, tmp_path):
    model = adapted(fuse_qkv=True)
    expected = model(PIXELS).logits
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in kept.values()) == model.get_nb_trainable_parameters()[0]
    assert not [n for n in kept if "down" in n and ("k_proj" in n or "v_proj" in n)]
    again = PeftModel.from_pretrained(vit(), tmp_path, low_cpu_mem_usage=low, is_trainable=True).eval()
    assert torch.equal(again(PIXELS).logits, expected)
    for twin in (again, copy.deepcopy(again)):
        mine = layers(twin)
        for name in (n for n in mine if n.endswith("q_proj")):
            downs = [mine[name.replace("q_proj", f"{k}_proj")].branches("default")["low"][0] for k in "qkv"]
            assert downs[0] is downs[1] is downs[2]
    assert layers(copy.deepcopy(again)).keys() == layers(again).keys()
    torch.testing.assert_close(again.merge_and_unload()(PIXELS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_deleted_adapter_with_shared_downs_leaves_the_others():
    model = get_peft_model(vit(), config(fuse_qkv=True, init_weights=False), adapter_name="a").eval()
    expected = model(PIXELS).logits
    model.add_adapter("b", config(fuse_qkv=True, init_weights=False))
    model.set_adapter("b")
    model(PIXELS)
    model.delete_adapter("b")
    assert not [n for n, _ in model.named_parameters() if "b" in n.split(".")]
    assert not any("b" in m.leader for m in layers(model).values())
    assert torch.equal(model(PIXELS).logits, expected)


@pytest.mark.parametrize(
    ("targets", "match"),
    [(["q_proj", "v_proj"], "q_proj, k_proj, v_proj.*all three"), (["o_proj"], "no effect"), (["fc1"], "no effect")],
)
def test_fusing_half_or_nothing_is_refused(targets, match):
    with pytest.raises(ValueError, match=match):
        get_peft_model(vit(), config(fuse_qkv=True, target_modules=targets))


def test_fusing_projections_of_two_widths_is_refused():
    net = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(6, 4), "value": nn.Linear(6, 4)})
    with pytest.raises(ValueError, match="read the same width"):
        get_peft_model(net, config(fuse_qkv=True, target_modules=["query", "key", "value"]))


# --- other models, refusals


def test_fused_and_transposed_weights_of_gpt2_are_merged_right():
    ids = torch.tensor([[3, 1, 4, 1]])
    model = randomise(get_peft_model(gpt2(), config(fuse_qkv=True))).eval()
    expected = model(ids).logits
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_text_encoders_are_adapted_as_well():
    bert = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    model = get_peft_model(BertForSequenceClassification(bert), config(fuse_qkv=True))
    # each block: D of q, k, v once and that of the output projection, U of all four
    assert model.get_nb_trainable_parameters()[0] == 2 * 5 * (2 * 16 + 4 * 16)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": -1}, "r=-1"),
        ({"r_high": -2}, "r_high=-2"),
        ({"r": 0, "r_high": 0}, "nothing to train"),
        ({"scale_low": float("nan")}, "scale_low=nan"),
        ({"scale_high": float("inf")}, "scale_high=inf"),
    ],
)
def test_impossible_configurations_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        VidaConfig(**options)


def test_layers_that_are_read_without_a_call_and_other_kinds_are_refused():
    reader = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 1)})
    with pytest.raises(TypeError, match="without calling it"):
        get_peft_model(reader, config(target_modules=["out_proj"]))
    with pytest.raises(TypeError, match="Conv2d"):
        get_peft_model(nn.Sequential(nn.Conv2d(1, 1, 1)), config(target_modules=["0"]))
