import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from rankwise.tuning import S2LoraConfig
from rankwise.tuning.s2lora import S2LoraLayer, delta_weight, effective_rank
from rankwise.tuning.s2lora_step import soft_threshold
from small_models import bert, gpt2, llama, randomise

R = 3


def config(**options):
    return S2LoraConfig(r=R, **options)


def layers(model, adapter="default"):
    return {n: m for n, m in model.named_modules() if isinstance(m, S2LoraLayer)}


def test_zero_coefficients_give_the_base_models_logits_bit_for_bit(any_model, batch):
    base = any_model(**batch).logits
    adapted = get_peft_model(any_model, config()).eval()
    assert torch.equal(adapted(**batch).logits, base)


def test_merge_equals_forward_with_adapter_and_unmerge_restores(any_model, batch):
    before = {n: p.clone() for n, p in any_model.named_parameters()}
    adapted = randomise(get_peft_model(any_model, config())).eval()
    expected = adapted(**batch).logits
    adapted.merge_adapter(safe_merge=True)
    torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    adapted.unmerge_adapter()
    after = dict(adapted.get_base_model().named_parameters())
    for name, weight in before.items():  # one rounding each way: 2 ulp of the largest weight
        found = after.get(
            name, after.get(name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"))
        )
        torch.testing.assert_close(found, weight, atol=2e-7, rtol=0)
    merged = adapted.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert not layers(merged)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 3))
def test_delta_equals_the_dense_product(out, in_, r, scale):
    P, lam, Q = (torch.randn(s, dtype=torch.float64) for s in ((out, r), (r,), (r, in_)))
    torch.testing.assert_close(delta_weight(P, lam, Q, scale), scale * P @ torch.diag(lam) @ Q, atol=1e-12, rtol=1e-12)
    c = 2.5  # scale ambiguity: P by c, λ by 1/c
    torch.testing.assert_close(delta_weight(c * P, lam / c, Q, scale), delta_weight(P, lam, Q, scale))


def test_one_matrix_has_the_function_class_of_adalora(model, batch):
    target = ["bert.encoder.layer.0.attention.self.query"]
    with pytest.warns(UserWarning, match="nothing is shared"):
        mine = randomise(get_peft_model(copy.deepcopy(model), config(target_modules=target))).eval()
    ada = get_peft_model(
        model, AdaLoraConfig(init_r=R, target_r=R, lora_alpha=R, total_step=10, target_modules=target)
    ).eval()
    P, lam, Q = next(iter(layers(mine).values())).factors("default")
    theirs = ada.base_model.model.get_submodule(target[0])
    with torch.no_grad():
        theirs.lora_A["default"].copy_(Q)
        theirs.lora_B["default"].copy_(P)
        theirs.lora_E["default"].copy_(lam[:, None] * (theirs.ranknum["default"] + 1e-5) / theirs.scaling["default"])
    torch.testing.assert_close(mine(**batch).logits, ada(**batch).logits, atol=1e-6, rtol=1e-5)


def test_frozen_factors_equal_vera_with_unit_output_scale(model, batch):
    target = ["query", "key"]
    mine = randomise(get_peft_model(copy.deepcopy(model), config(target_modules=target, train_shared=False))).eval()
    vera = get_peft_model(model, VeraConfig(r=R, target_modules=target)).eval()
    with torch.no_grad():
        for name, layer in layers(mine).items():
            P, lam, Q = layer.factors("default")
            other = vera.get_submodule(name)
            other.vera_A["default"].copy_(Q)
            other.vera_B["default"].copy_(P)
            other.vera_lambda_d["default"].copy_(lam)
            other.vera_lambda_b["default"].fill_(1.0)
    torch.testing.assert_close(mine(**batch).logits, vera(**batch).logits, atol=1e-6, rtol=1e-5)
    assert {n.split(".")[-2] for n, p in mine.named_parameters() if p.requires_grad} == {"s2lora_lambda"}


def test_gradient_of_a_shared_factor_is_the_sum_over_matrices(model, batch):
    target, labels = ["query", "key", "value"], torch.tensor([0, 1, 0, 1])
    shared = randomise(get_peft_model(copy.deepcopy(model), config(target_modules=target)))
    apart = get_peft_model(model, config(target_modules=target, share="none"))
    with torch.no_grad():
        for name, layer in layers(shared).items():
            for mine, theirs in zip(
                layer.factors("default"), apart.get_submodule(name).factors("default"), strict=True
            ):
                theirs.copy_(mine)
    for m in (shared, apart):
        m.eval()(**batch, labels=labels).loss.backward()
    for side in ("s2lora_P", "s2lora_Q"):
        one = getattr(shared.base_model, side)["default"]["16x16"].grad
        many = sum(p.grad for p in getattr(apart.base_model, side)["default"].values())
        torch.testing.assert_close(one, many, atol=1e-7, rtol=1e-4)


def test_gradients_agree_with_finite_differences(batch):
    m = randomise(get_peft_model(bert().double(), config(target_modules=["query", "value"]))).double().eval()
    labels = torch.tensor([0, 1, 0, 1])
    Q = m.base_model.s2lora_Q["default"]["16x16"]
    m(**batch, labels=labels).loss.backward()
    for i, j in ((0, 0), (1, 5)):
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                Q[i, j] += step
                losses.append(float(m(**batch, labels=labels).loss))
        with torch.no_grad():
            Q[i, j] += 1e-6
        assert Q.grad[i, j].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-9)


@given(st.floats(0.0, 2.0))
def test_proximal_step_solves_the_lasso_of_an_orthonormal_design(amount):
    target = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = soft_threshold(target, amount)
    # optimality: the subgradient of ½‖x - target‖² + amount ‖x‖₁ contains zero
    gradient = target - solution
    on = solution != 0
    torch.testing.assert_close(gradient[on], amount * solution[on].sign())
    assert (gradient[~on].abs() <= amount + 1e-12).all()


def test_regularisation_is_counted_once_and_ignores_the_number_of_targets():
    few = get_peft_model(bert(layers=1), config(target_modules=["query", "key"], l1="penalty", sparsity=1.0))
    many = get_peft_model(bert(layers=4), config(target_modules=["query", "key"], l1="penalty", sparsity=1.0))
    with torch.no_grad():
        for m in (few, many):
            for layer in layers(m).values():
                layer.s2lora_lambda["default"].fill_(0.7)
            m.base_model.s2lora_P["default"]["16x16"].copy_(2 * torch.eye(16)[:, :R])
            m.base_model.s2lora_Q["default"]["16x16"].copy_(torch.eye(16)[:R])
    expected = 0.7 + 0.1 * R * 9 / R**2  # mean |λ|, and μ ‖4I - I‖² / r² with I of size r
    assert float(few.base_model.regularization_loss()) == pytest.approx(expected, rel=1e-5)
    assert float(many.base_model.regularization_loss()) == pytest.approx(expected, rel=1e-5)


def test_parameter_count_and_file_size_follow_the_formula(tmp_path):
    adapted = get_peft_model(bert(hidden=32), S2LoraConfig(r=8))
    expected = 8 * (64 + 96 + 96) + 12 * 8  # three shapes, twelve matrices
    assert adapted.get_nb_trainable_parameters()[0] == expected
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * expected + 1200


def test_matrices_of_different_shape_never_share(model):
    adapted = get_peft_model(model, config())
    for layer in layers(adapted).values():
        P, _, Q = layer.factors("default")
        assert (P.shape[0], Q.shape[1]) == (layer.out_features, layer.in_features)
    assert set(adapted.base_model.s2lora_P["default"]) == {"16x16", "32x16", "16x32"}


@pytest.mark.parametrize(("share", "pairs"), [("max", 1), ("role", 6), ("none", 12)])
def test_other_ways_to_share(model, batch, share, pairs):
    adapted = randomise(get_peft_model(model, config(share=share))).eval()
    assert len(adapted.base_model.s2lora_P["default"]) == pairs
    expected = adapted(**batch).logits
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_query_key_and_value_project_their_input_once(model, batch, monkeypatch):
    adapted = get_peft_model(model, config(target_modules=["query", "key", "value"])).eval()
    calls = []
    linear = nn.functional.linear
    monkeypatch.setattr(
        "rankwise.tuning.shared_product.F.linear", lambda x, w, *b: calls.append(w.shape) or linear(x, w, *b)
    )
    adapted(**batch)
    assert calls.count(torch.Size([R, 16])) == 2  # once a block, not three times


def test_saved_adapter_gives_bit_equal_logits_in_a_new_process(tmp_path, batch):
    model = bert()
    model.save_pretrained(tmp_path / "base")
    adapted = randomise(get_peft_model(model, config(task_type="SEQ_CLS"))).eval()
    torch.save({"batch": batch, "logits": adapted(**batch).logits.detach()}, tmp_path / "expected.pt")
    adapted.save_pretrained(tmp_path / "adapter")
    code = f"""
import rankwise, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
torch.set_num_threads({torch.get_num_threads()})
saved = torch.load(r'{tmp_path}/expected.pt', weights_only=True)
for low in (False, True):
    base = AutoModelForSequenceClassification.from_pretrained(r'{tmp_path}/base')
    model = PeftModel.from_pretrained(base, r'{tmp_path}/adapter', low_cpu_mem_usage=low).eval()
    assert torch.equal(model(**saved['batch']).logits, saved['logits']), low
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_two_adapters_switch_delete_and_disable(model, batch):
    base = model(**batch).logits
    adapted = randomise(get_peft_model(model, config(), adapter_name="a"), seed=1).eval()
    first = adapted(**batch).logits
    adapted.add_adapter("b", S2LoraConfig(r=2, target_modules=["query", "key"]))
    assert torch.equal(adapted(**batch).logits, first)
    adapted.set_adapter("b")
    assert {n.split(".")[-2] for n, p in adapted.named_parameters() if p.requires_grad and "s2lora_P" in n} == {"b"}
    second = randomise(adapted, seed=2)(**batch).logits
    assert not torch.allclose(first, second)
    adapted.set_adapter("a")
    assert torch.equal(adapted(**batch).logits, first)
    with adapted.disable_adapter():
        assert torch.equal(adapted(**batch).logits, base)
        assert not any(p.requires_grad for p in adapted.base_model.s2lora_P.parameters())
    assert all(p.requires_grad for p in adapted.base_model.s2lora_P["a"].parameters())
    adapted.delete_adapter("b")
    assert list(adapted.base_model.s2lora_P) == ["a"]
    assert torch.equal(adapted(**batch).logits, first)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query"]},
        {"target_modules": r".*\.(query|value)"},
        {"target_modules": "all-linear"},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": ["query", "key"], "exclude_modules": ["key"]},
    ],
)
def test_targets_are_chosen_as_in_plain_lora(options, batch):
    mine = set(layers(get_peft_model(bert(), config(task_type="SEQ_CLS", **options))))
    plain = get_peft_model(bert(), LoraConfig(r=R, task_type="SEQ_CLS", **options))
    assert mine == {n.removesuffix(".lora_A") for n, _ in plain.named_modules() if n.endswith(".lora_A")}


def test_head_is_trained_and_saved(model, tmp_path, batch):
    adapted = get_peft_model(model, config(task_type="SEQ_CLS"))
    assert any("classifier.modules_to_save" in n for n, p in adapted.named_parameters() if p.requires_grad)
    with torch.no_grad():
        adapted.base_model.model.classifier.modules_to_save["default"].weight.fill_(1.0)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(), tmp_path)
    assert (again.base_model.model.classifier.modules_to_save["default"].weight == 1).all()


def test_bfloat16_base_keeps_float32_coefficients_and_factors(batch):
    adapted = randomise(get_peft_model(bert().bfloat16(), config())).eval()
    assert {p.dtype for n, p in adapted.named_parameters() if "s2lora" in n} == {torch.float32}
    assert adapted(**batch).logits.dtype == torch.bfloat16
    full = randomise(get_peft_model(bert(), config())).eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = full(**batch).logits
    torch.testing.assert_close(mixed.float(), full(**batch).logits, atol=0.05, rtol=0.05)


def test_gradient_checkpointing_gives_the_same_gradients(batch):
    grads = []
    for checkpointing in (False, True):
        m = randomise(get_peft_model(llama(), config())).train()
        if checkpointing:
            m.enable_input_require_grads()
            m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        m(**batch, labels=batch["input_ids"]).loss.backward()
        grads.append([p.grad.clone() for p in m.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_compiled_model_agrees(batch):
    adapted = randomise(get_peft_model(bert(layers=1), config())).eval()
    compiled = torch.compile(adapted, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, adapted(**batch).logits, atol=1e-6, rtol=1e-5)


def test_conv1d_layers_are_adapted_in_their_orientation(batch):
    adapted = randomise(get_peft_model(gpt2(), config(target_modules=["c_attn"]))).eval()
    layer = next(iter(layers(adapted).values()))
    assert layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape == (16, 48)


def test_rank_map_reports_rank_mass_and_coefficients(model):
    adapted = get_peft_model(model, config())
    layer = next(iter(layers(adapted).values()))
    with torch.no_grad():
        layer.s2lora_lambda["default"].copy_(torch.tensor([2.0, 0.0, -1.0]))
    first = next(iter(adapted.base_model.rank_map().values()))
    assert (first.rank, first.mass) == (2, 3.0)
    assert effective_rank(torch.zeros(3)) == 0
    assert effective_rank(torch.tensor([1.0, 1e-4])) == 1


def test_bad_configurations_name_the_value(model):
    for options, match in (
        ({"r": 0}, "r=0"),
        ({"sparsity": -1.0}, "sparsity=-1.0"),
        ({"dropout": 1.0}, r"dropout=1.0"),
        ({"share": "shap"}, "did you mean shape"),
        ({"l1": "prox"}, "proximal"),
        ({"bias": "lora_only"}, "s2lora_only"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be positive"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"pair_ranks": {"16x16": 0}}, "r=0"),
    ):
        with pytest.raises(ValueError, match=match):
            S2LoraConfig(**options)
    for pairs, match in (
        ({"16x16": 17}, r"pair_ranks\['16x16'\]=17 is larger than 16"),
        ({"16x61": 2}, "did you mean"),
    ):
        with pytest.raises(ValueError, match=match):
            get_peft_model(bert(), config(pair_ranks=pairs))
    with pytest.raises(ValueError, match="did you mean query"):
        get_peft_model(bert(), config(target_modules=["qeury"]))


def test_adapter_of_another_base_model_is_refused_by_name(tmp_path):
    get_peft_model(bert(layers=3), config()).save_pretrained(tmp_path)
    for make, match in (
        (lambda: bert(layers=2), r"lacks: bert\.encoder\.layer\.2\."),
        (lambda: bert(layers=3, hidden=32), "other shapes"),
        (llama, "made for another model"),
    ):
        with pytest.raises(ValueError, match=match):
            PeftModel.from_pretrained(make(), Path(tmp_path))


def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def test_a_shared_product_is_never_older_than_the_factors():
    """Also where the encoder's states stay the same tensor, and the factors are changed behind autograd's back."""
    adapted = randomise(get_peft_model(t5(), config(task_type="SEQ_2_SEQ_LM", target_modules=["q", "k", "v"])))
    states = adapted.get_encoder()(input_ids=torch.ones(2, 5, dtype=torch.long))
    options = {"encoder_outputs": states, "max_new_tokens": 3, "output_scores": True, "return_dict_in_generate": True}
    for change in (lambda Q: Q.data.mul_(-2.0), lambda Q: Q.mul_(3.0), lambda Q: setattr(Q, "data", Q.data + 1.0)):
        before = adapted.generate(**options).scores
        with torch.no_grad():
            change(adapted.base_model.s2lora_Q["default"]["16x16"])
        found = adapted.generate(**options).scores
        fresh = copy.deepcopy(adapted).generate(**options).scores
        assert not torch.allclose(found[0], before[0])
        for one, other in zip(found, fresh, strict=True):
            assert torch.equal(one, other)


def test_products_stay_within_a_checkpoint_and_its_repetition():
    """All layers read an encoder's states, and so does the next step; a checkpoint is repeated without the others."""

    def trained(**options):
        readers = config(task_type="SEQ_2_SEQ_LM", target_modules=r".*EncDecAttention\.[kv]")
        adapted = randomise(get_peft_model(t5(), readers)).train()
        if options:
            adapted.base_model.model.gradient_checkpointing_enable(**options)
        ids = torch.ones(2, 5, dtype=torch.long)
        states = adapted.get_encoder().eval()(input_ids=ids).last_hidden_state.detach().requires_grad_()
        optimizer, losses = torch.optim.SGD(adapted.parameters(), lr=1.0), []
        for _ in range(3):
            loss = adapted(encoder_outputs=(states,), labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    expected = trained()
    assert len(set(expected)) == 3
    for reentrant in (False, True):
        kwargs = {"use_reentrant": reentrant}
        assert trained(gradient_checkpointing_kwargs=kwargs) == pytest.approx(expected, rel=1e-6)


def test_a_layer_called_by_itself_sees_the_factors_as_they_are(model):
    adapted = randomise(get_peft_model(model, config(target_modules=["query", "key"])))
    attention, x = adapted.base_model.model.bert.encoder.layer[0].attention.self, torch.randn(2, 3, 16)
    first = attention.query(x)
    adapted.base_model.s2lora_Q["default"]["16x16"].data.zero_()
    assert not torch.allclose(attention.query(x), first)
    torch.testing.assert_close(attention.query(x), attention.query.base_layer(x))


def test_products_are_let_go_when_the_forward_pass_ends(model, batch):
    adapted = randomise(get_peft_model(model, config()))
    shared = adapted.base_model._shared
    adapted(**batch)
    assert not shared.last
    with pytest.raises(IndexError):
        adapted(input_ids=torch.full((1, 3), 99))
    assert not shared.running


def test_layers_of_a_low_precision_base_add_in_the_adapters_type(batch):
    exact = randomise(get_peft_model(bert(), config())).eval()
    low = randomise(get_peft_model(bert().bfloat16(), config())).eval()
    for p, q in zip(exact.parameters(), low.parameters(), strict=True):
        p.data.copy_(q.data)
    torch.testing.assert_close(low(**batch).logits.float(), exact(**batch).logits, atol=0.03, rtol=0.03)


def test_a_damaged_file_is_refused_by_the_pairs_name(tmp_path):
    from safetensors.torch import load_file, save_file

    get_peft_model(bert(), config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for change in (lambda t: t[:-1], lambda t: None):
        broken = dict(tensors)
        rows = change(broken.pop("base_model.s2lora_lambda.16x32"))
        save_file(broken | ({} if rows is None else {"base_model.s2lora_lambda.16x32": rows.contiguous()}), path)
        with pytest.raises(ValueError, match="lacks coefficients of the pair 16x32"):
            PeftModel.from_pretrained(bert(), tmp_path)
