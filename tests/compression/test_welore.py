import copy
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from rankwise.compression import LowRankLinear, apply, compress, load, plan, to_dense, train_only, welore
from rankwise.compression.directions import factors
from rankwise.compression.ranks import normalized_spectrum, removal_order
from rankwise.models import linear_layers
from rankwise.models.low_rank import low_rank_layers
from rankwise.spectral import singular_values
from small_models import bert, gpt2, llama

IDS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(4))
EVERYTHING = {"min_ratio": 0.0, "only_if_smaller": False}


def rank_of(k, m=20, n=14, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=g) @ torch.randn(k, n, generator=g)


def test_a_matrix_of_rank_k_is_reproduced_and_at_one_less_the_error_is_its_last_singular_value():
    W = rank_of(5)
    S = torch.linalg.svdvals(W.double())
    B, A = factors(W, 5)
    torch.testing.assert_close(B @ A, W, rtol=1e-6, atol=1e-6 * float(S[0]))
    B, A = factors(W, 4)
    assert float(torch.linalg.matrix_norm(B @ A - W.double())) == pytest.approx(float(S[4]), rel=1e-5)


def test_factors_split_the_singular_values_evenly():
    B, A = factors(rank_of(6), 3)
    torch.testing.assert_close(B.T @ B, A @ A.T, rtol=1e-4, atol=1e-4)


def test_the_low_rank_layer_is_the_dense_truncated_product_with_its_bias():
    for make in (lambda: nn.Linear(14, 20).double(), lambda: nn.Linear(14, 20, bias=False).double()):
        layer = make()
        model = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"fc": layer})])})
        chosen = plan(model, ratio=0.6, **EVERYTHING)
        x = torch.randn(4, 14, dtype=torch.float64)
        U, S, Vh = torch.linalg.svd(layer.weight.detach().float().double(), full_matrices=False)
        k = chosen.components[0].rank
        expected = x @ (U[:, :k] * S[:k] @ Vh[:k]).T + (0 if layer.bias is None else layer.bias)
        apply(model, chosen)
        low = model["h"][0]["fc"]
        assert isinstance(low, LowRankLinear)
        # factors come from the float32 weight: its rounding, not the algebra, is the difference
        torch.testing.assert_close(low(x), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(low.to_dense()(x), low(x), rtol=1e-12, atol=1e-12)


@given(st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=9), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_the_threshold_counts_what_is_below_it(values, share):
    spectra = [torch.tensor(sorted(v, reverse=True), dtype=torch.float64) for v in values]
    owner, removed = removal_order(spectra, "welore")
    assert len(owner) == sum(len(S) - 1 for S in spectra)
    assert (np.diff(removed) >= 0).all()
    R = round(share * len(owner))
    if R == 0 or len(owner) == R:
        return
    k = removed[R]
    counts = np.bincount(owner[:R], minlength=len(spectra))
    for S, count in zip(spectra, counts, strict=True):
        normal = normalized_spectrum(S)[1:].numpy()
        # with ties at the threshold anything between "below" and "at most" may be gone
        assert (normal < k).sum() <= count <= (normal <= k).sum()


def test_the_lowest_direction_is_never_below_a_threshold_of_zero():
    S = torch.tensor([5.0, 3.0, 1.0])
    normal = normalized_spectrum(S)
    assert normal.tolist() == [1.0, 0.5, 0.0]
    assert int((normal < 0).sum()) == 0


def test_equal_singular_values_lose_nothing_before_others_do():
    Q = torch.linalg.qr(torch.randn(12, 12)).Q
    assert (normalized_spectrum(singular_values(Q)) == 1).all()
    owner, _ = removal_order([singular_values(Q), singular_values(rank_of(3, 12, 12))], "welore")
    assert (owner[:11] == 1).all()


@given(st.floats(1e-3, 1e3))
def test_scaling_a_matrix_changes_no_rank(scale):
    S = singular_values(rank_of(14, 20, 14))
    torch.testing.assert_close(normalized_spectrum(S), normalized_spectrum(S * scale), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("method", ["welore", "uniform", "owl"])
def test_the_reduction_found_is_the_target(method, ratio):
    chosen = plan(llama(), ratio=ratio, method=method, **EVERYTHING)
    total = sum(c.full_rank for c in chosen.components)
    slack = 1 if method == "welore" else len(chosen.components)  # the others round every matrix
    assert abs(chosen.reduction - ratio) * total <= slack + 1e-9
    assert min(c.rank for c in chosen.components) >= 1
    if method == "welore":
        for c in chosen.components:
            assert c.rank == int((normalized_spectrum(c.spectrum) >= chosen.threshold).sum())


def test_a_higher_target_never_raises_a_rank():
    model = llama()
    plans = [plan(model, ratio=r) for r in (0.1, 0.3, 0.5, 0.7)]
    for low, high in pairwise(plans):
        assert all(a.rank >= b.rank for a, b in zip(low.components, high.components, strict=True))


def test_uniform_takes_the_same_share_of_every_matrix_and_owl_spares_blocks_with_outliers():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.view(-1)[:30] = 3.0
    uniform = plan(model, ratio=0.5, method="uniform", **EVERYTHING)
    assert all(c.rank == c.full_rank / 2 for c in uniform.components)
    owl = plan(model, ratio=0.5, method="owl", **EVERYTHING)
    kept = {i: sum(c.rank for c in owl.components if f".{i}." in c.name) for i in (0, 1)}
    assert kept[1] > kept[0]


def test_only_matrices_that_lose_enough_and_get_smaller_are_factorised():
    chosen = plan(llama(), ratio=0.5)
    for c in chosen.components:
        loses = (c.full_rank - c.rank) / c.full_rank > 0.5
        smaller = c.rank * sum(c.shape) < c.shape[0] * c.shape[1]
        assert c.low_rank == (loses and smaller)
    assert any(c.low_rank for c in chosen.components)
    assert not all(c.low_rank for c in chosen.components)
    assert chosen.applied_reduction < chosen.reduction


@pytest.mark.parametrize(("options", "wanted"), [({"parameters": 0.85}, 0.85), ({"bytes": 0.8}, 0.8)])
def test_a_target_in_size_is_met_with_the_fewest_removals(options, wanted):
    model = llama()
    chosen = plan(model, **options)
    assert chosen.parameters <= wanted * chosen.parameters_before
    largest_step = max(sum(c.shape) for c in chosen.components)
    biggest_switch = max(c.parameters_before - c.parameters for c in chosen.components)
    assert chosen.parameters > wanted * chosen.parameters_before - max(largest_step, biggest_switch)
    absolute = plan(model, parameters=wanted * chosen.parameters_before)
    assert [c.rank for c in absolute.components] == [c.rank for c in chosen.components]


@pytest.mark.parametrize("make", [llama, gpt2, bert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nearly_full_rank_changes_the_outputs_a_little_and_counts_are_real(make, dtype):
    model = make().to(dtype)
    before = model(IDS).logits.float()
    chosen = compress(model, ratio=0.02, **EVERYTHING)
    after = model(IDS).logits.float()
    assert (before - after).norm() / before.norm() < 0.2
    assert {m.A.weight.dtype for m in low_rank_layers(model).values()} == {dtype}
    assert chosen.parameters == sum(p.numel() for p in model.parameters())


def test_conv1d_is_transposed_right():
    model = gpt2()
    dense = copy.deepcopy(model)
    compress(model, ratio=0.5, **EVERYTHING)
    name, low = next(iter(low_rank_layers(model).items()))
    old = dense.get_submodule(name)
    W = old.weight.detach().T
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    k = low.rank
    x = torch.randn(5, 16)
    torch.testing.assert_close(low(x), x @ (U[:, :k] * S[:k] @ Vh[:k]).T + old.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_saved_loaded_and_dense_again(make, tmp_path):
    model = make()
    compress(model, ratio=0.6, min_ratio=0.3)
    model.save_pretrained(tmp_path / "low")
    again = load(tmp_path / "low")
    assert type(again) is type(model)
    assert torch.equal(model(IDS).logits, again(IDS).logits)
    assert again.config.rankwise_compression == model.config.rankwise_compression
    expected = model(IDS).logits
    to_dense(again).save_pretrained(tmp_path / "dense")
    plain = type(model).from_pretrained(tmp_path / "dense")
    assert isinstance(plain, LlamaForCausalLM | GPT2LMHeadModel)
    assert not low_rank_layers(plain)
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_new_process_without_the_original_gives_the_same_logits(tmp_path):
    model = llama().bfloat16()
    chosen = compress(model, ratio=0.6)
    model.save_pretrained(tmp_path / "low")
    torch.save(model(IDS).logits, tmp_path / "logits.pt")
    code = (
        "import torch, sys; from rankwise.compression import load\n"
        f"m = load(r'{tmp_path / 'low'}'); torch.set_num_threads({torch.get_num_threads()})\n"
        f"ids = torch.tensor({IDS.tolist()}); a = m(ids).logits\n"
        f"b = torch.load(r'{tmp_path / 'logits.pt'}')\n"
        "sys.exit(0 if torch.equal(a, b) and a.dtype == torch.bfloat16 else 1)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    on_disk = (tmp_path / "low" / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "low" / "model.safetensors").read_bytes()[:8], "little")
    assert on_disk - header == chosen.bytes


def test_generation_works_on_a_compressed_model():
    model = llama()
    compress(model, ratio=0.5)
    assert model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 13)


def test_peft_adapts_the_inner_linears():
    from peft import LoraConfig, get_peft_model

    model = llama()
    compress(model, ratio=0.6)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert any("q_proj.A.lora_A" in n or "up_proj.A.lora_A" in n for n, _ in adapted.named_parameters())


@pytest.mark.parametrize("which", ["lrc", "n-lrc"])
def test_only_the_chosen_part_moves(which):
    model = llama().train()
    compress(model, ratio=0.5)
    trained = set(train_only(model, which))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    low = {f"{n}.{f}.weight" for n in low_rank_layers(model) for f in "AB"}
    assert trained == (low if which == "lrc" else trained - low)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (name in trained)


class Shared(nn.Module):
    """Two blocks that share a module, and one whose weight is tied to another with a bias of its own."""

    def __init__(self):
        super().__init__()
        first, tied = nn.Linear(16, 16), nn.Linear(16, 16)
        tied.weight = first.weight
        self.layers = nn.ModuleList(nn.ModuleDict({"fc": m}) for m in (first, first, tied))

    def forward(self, x):
        for layer in self.layers:
            x = layer["fc"](x).tanh()
        return x


def test_shared_modules_and_tied_weights_are_compressed_once_and_stay_shared():
    model, x = Shared(), torch.randn(2, 16)
    chosen = compress(model, ratio=0.7, **EVERYTHING)
    assert len(chosen.components) == 1
    a, b, c = (layer["fc"] for layer in model.layers)
    assert a is b
    assert c is not a
    assert c.A.weight is a.A.weight
    assert c.B.weight is a.B.weight
    assert c.B.bias is not a.B.bias
    assert model(x).shape == (2, 16)
    assert chosen.parameters == sum(p.numel() for p in model.parameters())


def batches():
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 50, (4, 12), generator=g)} for _ in range(4)]


def test_calibrated_factors_have_the_smallest_error_of_the_outputs():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(200, 14, generator=g, dtype=torch.float64) @ torch.diag(torch.logspace(0, -2, 14).double())
    W = torch.randn(20, 14, generator=g)
    best = torch.linalg.svdvals(W.double() @ X.T)
    B, A = factors(W, 5, X.T @ X)
    error = torch.linalg.matrix_norm((W.double() - B @ A) @ X.T)
    assert float(error) == pytest.approx(float(best[5:].square().sum().sqrt()), rel=1e-5)
    plain_B, plain_A = factors(W, 5)
    assert error < torch.linalg.matrix_norm((W.double() - plain_B @ plain_A) @ X.T)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_calibration_lowers_the_error_of_the_first_block_on_its_data(make):
    model = make()
    plain, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    compress(plain, ratio=0.6, method="uniform", **EVERYTHING)
    compress(calibrated, ratio=0.6, method="uniform", calibrate=batches(), **EVERYTHING)
    name = next(iter(linear_layers(model)))
    kept = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    for batch in batches():
        model(**batch)
    hook.remove()
    x = torch.cat(kept).flatten(0, -2)
    errors = [(m.get_submodule(name)(x) - model.get_submodule(name)(x)).norm() for m in (plain, calibrated)]
    assert errors[1] < errors[0]


def test_a_compressed_model_is_not_compressed_again():
    model = llama()
    compress(model, ratio=0.6)
    with pytest.raises(ValueError, match="compressed already"):
        plan(model, ratio=0.5)


def broken(value):
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = value
    return model


def quantised():
    model = llama()
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(32, 16, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (llama, {"ratio": 1.2}, r"ratio=1.2 is outside \(0, 1\)"),
        (llama, {"ratio": 0.99}, "leaves some matrix without a direction; at most 0.9"),
        (llama, {}, "exactly one"),
        (llama, {"ratio": 0.5, "parameters": 0.5}, "exactly one"),
        (llama, {"parameters": 0.01}, "cannot be reached"),
        (llama, {"bytes": 1e12}, "takes nothing away: the model has"),
        (llama, {"parameters": 1.0}, "a share lies below 1"),
        (llama, {"ratio": 0.5, "multiple_of": 16}, r"multiple_of=16 rounds every rank up to the full one \(16 at most"),
        (llama, {"parameters": 0.9, "only_if_smaller": False}, "only_if_smaller"),
        (llama, {"ratio": 0.5, "method": "welor"}, "did you mean welore"),
        (llama, {"ratio": 0.5, "min_ratio": 1.0}, "min_ratio=1.0"),
        (lambda: broken(float("nan")), {"ratio": 0.5}, r"layers.1.mlp.up_proj has NaN"),
        (quantised, {"ratio": 0.5}, r"up_proj is quantised \(torch.int8\)"),
        (lambda: nn.Sequential(nn.Embedding(3, 3)), {"ratio": 0.5}, "no linear layer"),
        (lambda: nn.Linear(4, 4, device="meta"), {"ratio": 0.5}, "meta device"),
        (llama, {"ratio": 0.5, "calibrate": []}, "empty"),
    ],
)
def test_bad_input_is_named(make, options, match):
    with pytest.raises(ValueError, match=match):
        plan(make(), **options)


def test_loading_names_what_is_wrong(tmp_path):
    llama().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is not compressed"):
        load(tmp_path / "plain")
    model = llama()
    compress(model, ratio=0.6)
    model.save_pretrained(tmp_path / "low")
    config = json.loads((tmp_path / "low" / "config.json").read_text())
    config["rankwise_compression"] = {"ranks": {"model.layers.0.mlp.up_proj": "3; import os"}}
    (tmp_path / "low" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="positive ranks"):
        load(tmp_path / "low")
    config["rankwise_compression"] = {"ranks": {"model.layers.7.mlp.up_proj": 3}}
    (tmp_path / "low" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.7"):
        load(tmp_path / "low")


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(ValueError, match="another model"):
        welore.apply(gpt2(), plan(llama(), ratio=0.6))
