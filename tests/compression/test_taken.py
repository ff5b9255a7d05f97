"""What compression takes: served rightly, or refused by name before work starts."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from rankwise.compression import apply, compress, load, plan, to_dense, welore
from rankwise.compression.directions import damped, decomposed, factors, in_groups, second_moments
from rankwise.compression.options import check_options
from rankwise.compression.ranks import WORTH, energy_spectrum, normalized_spectrum, removal_order, top_spectrum
from rankwise.models import linear_layers
from rankwise.models import load as load_any
from rankwise.models.low_rank import LowRankLinear, low_rank_layers
from rankwise.models.spectra import layer_spectra
from small_models import bert, gpt2, llama, vit

IDS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(4))
EVERYTHING = {"min_ratio": 0.0, "only_if_smaller": False}


def batches(n=4, length=12):
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 50, (4, length), generator=g)} for _ in range(n)]


def mixtral():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()


# --- worth and ranks


def test_worth_of_a_direction_in_closed_form():
    S = torch.tensor([4.0, 3.0, 0.0], dtype=torch.float64)
    assert energy_spectrum(S).tolist() == [16 / 25, 9 / 25, 0]
    assert top_spectrum(S).tolist() == [1, 0.75, 0]
    assert normalized_spectrum(torch.tensor([5.0, 3.0, 1.0])).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("method", WORTH)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scaling_a_matrix_changes_no_worth(method, scale):
    S = torch.tensor([4.0, 3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(WORTH[method](scale * S), WORTH[method](S), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", WORTH)
def test_a_matrix_of_zeros_loses_its_directions_first(method):
    spectra = [torch.tensor([3.0, 2.0, 1.5]), torch.zeros(3), torch.tensor([2.0, 2.0, 2.0])]
    owner, values = removal_order(spectra, method)
    zeros = [i for i, m in enumerate(owner) if m == 1]
    assert max(values[zeros]) == 0
    if method != "welore":  # where the smallest direction of every matrix is worth nothing
        assert zeros == [0, 1]
    assert len(owner) == 6


def test_the_paper_takes_the_last_direction_of_a_flat_matrix_and_energy_the_weak_ones_of_a_steep():
    """A small matrix whose every direction matters beside a large one that is steep, as values beside queries."""
    flat, steep = torch.tensor([1.0, 0.99, 0.98]), torch.logspace(0, -3, 9)
    first = {m: removal_order([flat, steep], m)[0][:4].tolist() for m in WORTH}
    assert 0 in first["welore"]
    assert first["energy"] == first["top"] == [1, 1, 1, 1]


def test_energy_keeps_the_most_of_all_matrices_relative_squares():
    """No other choice of as many directions leaves a smaller sum of the matrices' relative squared errors."""
    model = llama()
    chosen = plan(model, ratio=0.4, **EVERYTHING)
    worth = torch.cat([energy_spectrum(c.spectrum)[1:] for c in chosen.components])
    kept = torch.cat([energy_spectrum(c.spectrum)[1 : c.rank] for c in chosen.components])
    best = worth.sort(descending=True).values[: len(kept)]
    torch.testing.assert_close(kept.sum(), best.sum())
    assert chosen.method == "energy"


def test_the_papers_method_has_its_own_name():
    model = llama()
    paper = plan(model, ratio=0.4, method="welore", **EVERYTHING)
    assert [c.rank for c in paper.components] != [c.rank for c in plan(model, ratio=0.4, **EVERYTHING).components]
    for c in paper.components:
        assert c.rank == int((normalized_spectrum(c.spectrum) >= paper.threshold).sum())


# --- options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of ratio, parameters and bytes; given: none of them"),
        ({"ratio": 0.5, "bytes": 0.5}, "given: ratio, bytes"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"parameters": float("nan")}, "parameters=nan"),
        ({"bytes": -3.0}, "bytes=-3"),
        ({"parameters": float("inf")}, "parameters=inf"),
        ({"ratio": 0.5, "method": "energi"}, "did you mean energy"),
        ({"ratio": 0.5, "min_ratio": float("nan")}, "min_ratio=nan"),
    ],
)
def test_options_are_checked_without_a_model(options, match):
    with pytest.raises(ValueError, match=match):
        check_options(**options)


# --- models


def test_a_model_under_peft_is_refused_and_served_once_merged():
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear"))
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(ValueError, match=r"wrapped by PEFT \(14 layers.*merge_and_unload"):
            plan(model, ratio=0.5)
    assert len(plan(adapted.merge_and_unload(), ratio=0.5).components) == 14


@pytest.mark.parametrize("target", ["auto", "mlp", "all-linear"])
def test_experts_in_one_parameter_are_named_with_their_share(target):
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.gate_up_proj.*3 other parameters.*% of the model"):
        plan(mixtral(), ratio=0.5, target=target)


def test_the_attention_of_a_mixture_of_experts_is_compressed_and_its_experts_counted():
    model = mixtral()
    chosen = compress(model, ratio=0.5, target="attention", **EVERYTHING)
    assert len(chosen.components) == 8
    assert chosen.parameters == sum(p.numel() for p in model.parameters())
    assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize(("dtype", "match"), [(torch.complex64, "complex"), (torch.int8, "quantised")])
def test_weights_that_are_no_real_floats_are_named(dtype, match):
    model = llama()
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=rf"layers\.1\.mlp\.up_proj is {match} \({dtype}\)"):
        plan(model, ratio=0.5)


def test_float64_weights_are_compressed_in_float64():
    torch.manual_seed(0)
    layer = nn.Linear(14, 20).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(20, 5, dtype=torch.float64) @ torch.randn(5, 14, dtype=torch.float64))
    model, W = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"fc": layer})])}), layer.weight.detach().clone()
    compress(model, ratio=9 / 14, **EVERYTHING)
    low = model["h"][0]["fc"]
    assert low.rank == 5
    torch.testing.assert_close(low.weight, W, rtol=1e-12, atol=1e-12)


def test_a_plan_for_layers_of_another_shape_is_refused():
    chosen = plan(llama(), ratio=0.6)
    other = llama()
    other.model.layers[0].mlp.up_proj = nn.Linear(16, 40, bias=False)
    with pytest.raises(ValueError, match="another model"):
        apply(other, chosen)


# --- bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_those_of_the_models_own_dtype_and_of_the_file(dtype, tmp_path):
    model = llama().to(dtype)
    before = sum(p.nbytes for p in model.parameters())
    chosen = compress(model, bytes=0.8)
    assert chosen.bytes_before == before
    assert chosen.bytes <= 0.8 * before
    model.save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").read_bytes()
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == chosen.bytes


def test_equal_ranks_that_fall_far_below_what_was_asked_are_warned_of_and_can_come_nearer():
    with pytest.warns(UserWarning, match=r"are left where 95.0% may be.*min_ratio") as caught:
        far = plan(llama(), bytes=0.95, method="uniform")
    assert caught[0].filename == __file__  # where it was asked for
    assert far.bytes < 0.94 * far.bytes_before
    assert far.as_dict()["note"] == far.note != ""
    with pytest.warns(UserWarning, match=r"are left where 95.0% may be") as caught:
        near = plan(llama(), bytes=0.95, method="uniform", min_ratio=0.0)
    assert far.bytes < near.bytes <= 0.95 * near.bytes_before
    assert f"with min_ratio=0, {near.bytes / near.bytes_before:.1%}" in far.note
    assert "with" not in near.note  # nothing comes nearer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        met = plan(llama(), bytes=0.95, min_ratio=0.0)
    assert met.note == ""
    assert met.bytes > 0.94 * met.bytes_before


@pytest.mark.parametrize("method", ["uniform", "owl"])
def test_a_size_that_rounded_ranks_miss_is_told_with_what_finer_ones_would_give(method):
    asked = {"parameters": 0.85, "method": method, "min_ratio": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded, finer = (plan(llama(), multiple_of=m, **asked) for m in (4, 1))
    assert rounded.parameters < finer.parameters <= 0.85 * finer.parameters_before
    assert f"with multiple_of=1, {finer.parameters / finer.parameters_before:.1%}" in rounded.note
    assert "min_ratio" not in rounded.note


def test_a_ratio_of_which_rounding_leaves_less_is_told_and_without_rounding_is_not():
    with pytest.warns(UserWarning, match=r"of all directions go where 50.0% may: ranks are rounded up; with multiple"):
        rounded = plan(llama(), ratio=0.5, multiple_of=8)
    finer = plan(llama(), ratio=0.5)
    assert f"{rounded.reduction:.1%} of all" in rounded.note
    assert f"with multiple_of=1, {finer.reduction:.1%}" in rounded.note
    assert finer.note == ""


def test_a_size_out_of_reach_for_rounded_ranks_says_what_finer_ones_reach():
    finer = plan(llama(), parameters=0.4)
    with pytest.raises(ValueError, match=r"cannot be reached.*\(with multiple_of=1, [\d,]+\)") as caught:
        plan(llama(), parameters=0.4, multiple_of=8)
    reached = int(str(caught.value).rpartition(", ")[2].removesuffix(")").replace(",", ""))
    assert reached <= finer.parameters


# --- plans and the weights they are of


@pytest.mark.parametrize("what", ["another", "trained", "cast"])
def test_a_plan_of_other_weights_is_refused_and_nothing_is_changed(what):
    model = llama()
    chosen = plan(model, parameters=0.7)
    if what == "another":
        torch.manual_seed(7)
        model = LlamaForCausalLM(model.config)
    elif what == "trained":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    else:
        model.bfloat16()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="another model, or for this one before its weights changed"):
        apply(model, chosen)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_a_plan_is_not_applied_to_weights_that_are_not_there():
    model = llama()
    chosen = plan(model, parameters=0.7)
    with pytest.raises(ValueError, match="is on the meta device: a whole weight is needed"):
        apply(model.to("meta"), chosen)


def test_a_multiple_that_no_rank_is_below_is_refused_before_any_matrix_is_decomposed(monkeypatch):
    monkeypatch.setattr(welore, "decompositions", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(ValueError, match="multiple_of=16 rounds every rank up to the full one"):
        plan(llama(), ratio=0.5, multiple_of=16)


def test_a_plan_is_applied_to_a_copy_of_its_model():
    model = llama()
    chosen, twin = plan(model, parameters=0.7), copy.deepcopy(model)
    torch.testing.assert_close(apply(twin, chosen)(IDS).logits, apply(model, chosen)(IDS).logits, rtol=0, atol=0)


def test_adapters_put_on_after_planning_are_not_thrown_away():
    model = llama()
    chosen = plan(model, parameters=0.7)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    before = adapted(IDS).logits
    for given in (model, adapted):
        with pytest.raises(ValueError, match="wrapped by PEFT"):
            apply(given, chosen)
    assert torch.equal(adapted(IDS).logits, before)


# --- loading


def classifier(labels, problem):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, num_labels=labels, problem_type=problem, **sizes)
    ).eval()


@pytest.mark.parametrize(
    ("labels", "problem"), [(1, "multi_label_classification"), (3, "multi_label_classification"), (3, "regression")]
)
def test_a_classifier_keeps_what_its_labels_mean(labels, problem, tmp_path):
    model = classifier(labels, problem)
    compress(model, parameters=0.8)
    model.save_pretrained(tmp_path)
    again = load(str(tmp_path)).eval()
    assert again.config.problem_type == problem
    truth = torch.rand(3, labels, generator=torch.Generator().manual_seed(1)).round()
    assert torch.equal(again(IDS, labels=truth).loss, model(IDS, labels=truth).loss)


T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
SIZES = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 20}
WORDS = {"input_ids": IDS, "decoder_input_ids": IDS}
KINDS = {
    "T5ForConditionalGeneration": (lambda: T5ForConditionalGeneration(T5Config(**T5)), WORDS),
    "T5EncoderModel": (lambda: T5EncoderModel(T5Config(**T5)), {"input_ids": IDS}),
    "BartForConditionalGeneration": (lambda: BartForConditionalGeneration(BartConfig(**SIZES)), WORDS),
    "BertForMaskedLM": (lambda: BertForMaskedLM(classifier(2, None).config), {"input_ids": IDS}),
    "BertForTokenClassification": (lambda: BertForTokenClassification(classifier(3, None).config), {"input_ids": IDS}),
    "ViTForImageClassification": (vit, {"pixel_values": torch.ones(1, 3, 32, 32)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_can_be_compressed_is_loaded_as_the_class_it_was(kind, tmp_path):
    torch.manual_seed(0)
    model, given = KINDS[kind][0]().eval(), KINDS[kind][1]
    compress(model, ratio=0.6)
    assert low_rank_layers(model)
    model.save_pretrained(tmp_path)
    again = load(str(tmp_path)).eval()
    assert type(again).__name__ == kind
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(again(**given)[0], model(**given)[0], rtol=1e-6, atol=1e-6)  # a convolution's layout
        dense = to_dense(again)
        torch.testing.assert_close(dense(**given)[0], model(**given)[0], rtol=1e-4, atol=1e-5)  # one product, or two


def test_bytes_of_a_model_of_several_dtypes_with_tied_weights_and_buffers_are_counted_tensor_by_tensor():
    model = gpt2().bfloat16()
    model.transformer.ln_f.float()
    model.transformer.h[0].mlp.c_fc.float()
    model.register_buffer("seen", torch.zeros(7, dtype=torch.float64))
    model.register_buffer("scratch", torch.zeros(9), persistent=False)
    chosen = plan(model, ratio=0.6)
    assert chosen.bytes_before == sum(p.nbytes for p in model.parameters()) + 56
    apply(model, chosen)
    marks = sum(m.A.weight.element_size() for m in low_rank_layers(model).values())
    assert chosen.bytes == sum(p.nbytes for p in model.parameters()) + 56 + marks


# --- calibration


def moment(n, d, seed=0):
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return X, X.T @ X / n


@pytest.mark.parametrize("shape", [(20, 14), (14, 20), (14, 14)])
@pytest.mark.parametrize("tokens", [200, 3])
def test_factors_leave_the_least_error_on_the_inputs_however_few_there_are(shape, tokens):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    X, C = moment(tokens, shape[1])
    B, A = factors(W, 5, damped(C.clone()))
    error = torch.linalg.matrix_norm((W.double() - B @ A) @ X.T)
    best = torch.linalg.svdvals(W.double() @ X.T)[5:].square().sum().sqrt()
    assert float(error) <= float(best) * (1 + 1e-3) + 1e-2
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 14), (14, 20)])
def test_what_the_inputs_do_not_show_is_decided_by_the_weights(shape):
    """Inputs that only reach one feature: the rest of the directions are those of the weights without that feature."""
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    C = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    C[0, 0] = 1.0
    B, A = factors(W, 6, damped(C))
    rest = W.double()[:, 1:]
    seen = W.double()[:, :1] / W[:, 0].double().norm()
    hidden = rest - seen @ (seen.T @ rest)
    best = torch.linalg.svdvals(hidden)[5:].square().sum().sqrt()
    assert float(torch.linalg.matrix_norm((W.double() - B @ A)[:, :1])) < 1e-3
    assert float(torch.linalg.matrix_norm((W.double() - B @ A)[:, 1:])) == pytest.approx(float(best), rel=1e-3)


def test_without_any_input_the_weights_decide_alone():
    W = torch.randn(20, 14)
    B, A = factors(W, 5, damped(torch.zeros(14, 14, dtype=torch.float64)))
    b, a = factors(W, 5)
    torch.testing.assert_close(B @ A, (b @ a).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        decomposed(W, torch.eye(14, dtype=torch.float64), vectors=False).S,
        torch.linalg.svdvals(W.double()),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_calibration_with_a_single_token_and_a_dead_input_gives_finite_factors(make):
    model = make()
    with torch.no_grad():
        list(linear_layers(model).values())[1].weight.zero_()
    compress(model, ratio=0.6, calibrate=[{"input_ids": torch.tensor([[7]])}], **EVERYTHING)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_layer_that_calibration_does_not_reach_is_named_and_may_be_left_out():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"used": nn.Linear(6, 6), "idle": nn.Linear(6, 6)}) for _ in "ab")

        def forward(self, x):
            return self.layers[1]["used"](self.layers[0]["used"](x))

    data = [{"x": torch.randn(5, 6)}]
    with pytest.raises(ValueError, match=r"layer layers\.0\.idle did not run.*give data that reaches it"):
        plan(Idle(), ratio=0.5, calibrate=data)
    assert len(plan(Idle(), ratio=0.5, calibrate=data, target="used").components) == 2


def test_nan_inputs_name_the_layer():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj"):
        plan(model, ratio=0.5, calibrate=batches())


def test_memory_bounds_what_is_held_at_once_and_changes_no_bit(monkeypatch):
    import rankwise.compression.directions as module

    model, held = llama(), []

    def counted(*args):
        held.append(len(args[1]))
        return second_moments(*args)

    monkeypatch.setattr(module, "second_moments", counted)
    whole = plan(model, ratio=0.5, calibrate=batches(), **EVERYTHING)
    assert held == [14]
    held.clear()
    small = plan(model, ratio=0.5, calibrate=iter(batches()), memory=1, **EVERYTHING)  # read once, used 14 times
    assert held == [1] * 14
    for a, b in zip(whole.components, small.components, strict=True):
        torch.testing.assert_close(a.spectrum, b.spectrum, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(module, "_KEEP", 0)  # directions are not kept: they are found again
    held.clear()
    lean = plan(model, ratio=0.5, calibrate=batches(), **EVERYTHING)
    assert not lean.directions
    models = [copy.deepcopy(model), copy.deepcopy(model)]
    apply(models[0], whole)
    apply(models[1], lean, memory=8 * 16**2 * 3)
    assert max(held[1:]) == 3
    torch.testing.assert_close(models[0](IDS).logits, models[1](IDS).logits, rtol=1e-4, atol=1e-5)


def test_groups_of_layers_fit_the_memory_that_is_given():
    layers = {f"l{i}": nn.Linear(d, 3) for i, d in enumerate((10, 10, 30, 10, 10))}
    groups = [list(g) for g in in_groups(layers, 1600)]
    assert groups == [["l0", "l1"], ["l2"], ["l3", "l4"]]


def test_an_empty_calibration_set_is_refused_before_a_spectrum_is_taken():
    seen = []
    with pytest.raises(ValueError, match="no batch of inputs"):
        plan(llama(), ratio=0.5, calibrate=[], progress=lambda names, what: seen.append(what) or names)
    assert not seen


# --- checkpoints


@pytest.mark.parametrize("make", [llama, gpt2])
def test_loaders_that_do_not_know_of_factors_stop_with_an_error(make, tmp_path):
    model = make()
    compress(model, ratio=0.6, min_ratio=0.3)
    model.save_pretrained(tmp_path)
    for cls in (AutoModelForCausalLM, AutoModel, LlamaForCausalLM if make is llama else GPT2LMHeadModel):
        with pytest.raises(RuntimeError, match="mismatch"):
            cls.from_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(IDS).logits, model(IDS).logits)


def test_a_loaded_model_marks_its_next_checkpoint_too_and_reads_its_own_state(tmp_path):
    model = llama()
    compress(model, ratio=0.6)
    model.save_pretrained(tmp_path / "first")
    again = load(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    with pytest.raises(RuntimeError, match="mismatch"):
        LlamaForCausalLM.from_pretrained(tmp_path / "second")
    twin = copy.deepcopy(again)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(IDS).logits, model(IDS).logits)


def test_a_mark_is_one_number_under_the_dense_weights_name_and_no_parameter():
    layer = LowRankLinear(6, 5, 2, bias=False)
    state = layer.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {"A.weight": (2, 6), "B.weight": (5, 2), "weight": (1,)}
    assert state["weight"].item() == 2
    assert {n for n, _ in layer.named_parameters()} == {"A.weight", "B.weight"}
    layer.load_state_dict(state)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_compressed_checkpoint_keeps_its_dtype_and_loads_in_it(make, tmp_path):
    model = make().bfloat16()
    compress(model, ratio=0.6)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.bfloat16
    assert load_any(str(tmp_path), task="causal-lm", dtype=None).dtype == torch.bfloat16
    assert load_any(str(tmp_path), task="causal-lm").dtype == torch.float32


# --- a causal model is meant


def saved(model, path, **config):
    model.save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return str(path)


def test_an_encoder_or_a_model_without_its_head_is_no_language_model(tmp_path):
    from transformers import BertForMaskedLM

    classifier = bert()
    for name, path in {
        "BertForSequenceClassification": saved(classifier, tmp_path / "classifier"),
        "BertModel": saved(classifier.bert, tmp_path / "encoder"),
        "BertForMaskedLM": saved(BertForMaskedLM(classifier.config), tmp_path / "masked"),
        "LlamaModel": saved(llama().model, tmp_path / "headless"),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: a causal language model is needed"):
            load_any(path, task="causal-lm")
    tied = saved(gpt2().transformer, tmp_path / "tied")  # its head is its embedding
    torch.testing.assert_close(load_any(tied, task="causal-lm")(IDS).logits, gpt2()(IDS).logits)
    assert load_any(saved(llama(), tmp_path / "unnamed", architectures=None), task="causal-lm") is not None


# --- inspect


def test_spectra_of_one_row_of_zeros_and_of_a_compressed_model(tmp_path):
    model = llama()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    saved(model, tmp_path / "zero")
    zero = {r["layer"]: r for r in layer_spectra(str(tmp_path / "zero"))}["layers.0.mlp.up_proj"]
    assert zero["effective_rank"] == zero["stable_rank"] == zero["rank_90"] == 0
    compress(model, ratio=0.6, min_ratio=0.3)
    names = list(low_rank_layers(model))
    saved(model, tmp_path / "low")
    records = {f"model.{r['layer']}": r for r in layer_spectra(str(tmp_path / "low"))}
    assert len(records) == 14
    for name in names:
        rank = model.get_submodule(name).rank
        S = torch.tensor(records[name]["spectrum"])
        assert float(S[rank:].max()) < 1e-5


def test_spectra_of_experts_are_listed_one_by_one(tmp_path):
    model = mixtral()
    records = {r["layer"]: r for r in layer_spectra(saved(model, tmp_path))}
    expected = torch.linalg.svdvals(model.model.layers[1].mlp.experts.down_proj[2].detach().double())
    found = torch.tensor(records["layers.1.mlp.experts.down_proj[2]"]["spectrum"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sum("experts" in n for n in records) == 16
    attention = layer_spectra(str(tmp_path), target="attention")
    assert not any("experts" in r["layer"] for r in attention)


def test_nan_weights_are_named_by_layer(tmp_path):
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer layers\.1\.mlp\.up_proj.*NaN"):
        layer_spectra(saved(model, tmp_path))


def test_a_linear_of_one_row_has_a_spectrum_without_a_tail(tmp_path, monkeypatch):
    import rankwise.models.spectra as module

    model = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"gate": nn.Linear(6, 1), "fc": nn.Linear(6, 4)})])})
    monkeypatch.setattr(module, "load", lambda *a, **k: model)
    gate, fc = layer_spectra("any")
    assert gate["hill_alpha"] != gate["hill_alpha"]
    assert gate["effective_rank"] == pytest.approx(1)
    block = module.block_outliers("any")[0]
    assert block["hill_alpha"] == pytest.approx(fc["hill_alpha"])
