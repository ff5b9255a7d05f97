"""CoDyRA's adapter: its equation, its threshold and schedule, its export, and training in a Trainer."""

import warnings
from itertools import pairwise

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from rankwise.tuning import CodyraCallback, CodyraConfig, export_lora, kappa
from rankwise.tuning.codyra import (
    check_schedule,
    factored_norm,
    kappa_index,
    released_threshold,
)
from rankwise.tuning.s2lora_step import soft_threshold
from small_models import bert, clip, gpt2, llama

GRID = torch.tensor([-3.0, -2.0, -1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.0001, 1.5, 2.0, 2.5])


def net(inputs=6, outputs=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs))


def adapted(**options):
    torch.manual_seed(1)
    return get_peft_model(net(), CodyraConfig(target_modules=["0"], **{"r": 4, "init_weights": False, **options}))


def layer_of(model):
    return next(iter(model.base_model.adapted_layers().values()))


# --- the equation


def test_output_and_delta_are_those_of_the_equation():
    model, x = adapted(), torch.randn(3, 6)
    A, g, B = layer_of(model).factors("default")
    base = net()[0]
    expected = base(x) + torch.einsum("or,r,ri,bi->bo", B, g, A, x)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(layer_of(model).get_delta_weight("default"), B @ torch.diag(g) @ A)


def test_the_start_is_kaimings_uniform_zero_and_standard_normal():
    torch.manual_seed(0)
    config = CodyraConfig(r=400, target_modules=["0"])
    A, g, B = (
        f.detach() for f in layer_of(get_peft_model(nn.Sequential(nn.Linear(100, 7)), config)).factors("default")
    )
    bound = 100**-0.5  # √(6 / ((1 + a²) in)) with a = √5
    assert A.abs().max() <= bound
    assert A.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not B.any()
    assert abs(g.mean()) < 0.15
    assert g.std() == pytest.approx(1, abs=0.1)


def test_the_gates_gradient_is_the_product_of_both_sides():
    model, x = adapted(), torch.randn(3, 6)
    A, g, B = layer_of(model).factors("default")
    weights = torch.randn(3, 5)  # δ, the gradient of the outputs
    (model(x) * weights).sum().backward()
    torch.testing.assert_close(g.grad, ((weights @ B) * (x @ A.mT)).sum(0))


@pytest.mark.parametrize("make", [bert, llama, gpt2, clip])
def test_default_targets_are_all_projections_of_all_towers(make):
    model = get_peft_model(make(), CodyraConfig(r=2))
    names = set(model.base_model.gates())
    assert names == {n for n, m in make().named_modules() if n.split(".")[-1] in ENDS and "pooler" not in n}


ENDS = {
    "query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj",
    "down_proj", "fc1", "fc2", "c_attn", "c_proj", "c_fc",
}  # fmt: skip


# --- the threshold


@pytest.mark.parametrize("amount", [0.25, 1.0, 4.0])
def test_the_threshold_is_softshrink(amount):
    torch.testing.assert_close(soft_threshold(GRID, amount), nn.functional.softshrink(GRID, amount))


def test_the_threshold_takes_what_it_equals_and_the_released_one_keeps_it():
    ends = torch.tensor([1.0, -1.0])
    assert soft_threshold(ends, 1.0).tolist() == [0, 0]
    assert released_threshold(ends, 1.0).tolist() == [1, -1]


def test_the_released_threshold_is_its_three_statements():
    for amount in (0.25, 1.0, 0.75):
        expected = GRID.clone()
        expected[expected > amount] -= amount
        expected[expected < -amount] += amount
        expected[expected.abs() < amount] = 0
        assert torch.equal(released_threshold(GRID, amount), expected)
    assert released_threshold(torch.tensor(1.0), 0.75) == 0  # the paper's leaves 0.25


def test_all_gates_of_all_layers_are_thresholded_and_nothing_else():
    torch.manual_seed(0)
    model = get_peft_model(bert(), CodyraConfig(r=3, max_kappa=0.5, dense_share=0.0, kappa_steps=2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with model.base_model.gate_step(1, 2) as amount:
        pass
    assert amount == 0.5
    for name, p in model.named_parameters():
        expected = nn.functional.softshrink(before[name], 0.5) if "codyra_g" in name else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_only_the_named_adapter_is_thresholded():
    model = adapted(dense_share=0.0, max_kappa=9.0)
    model.add_adapter("other", CodyraConfig(r=4, target_modules=["0"], dense_share=0.0, max_kappa=9.0))
    with model.base_model.gate_step(99, 100, "other"):
        pass
    ranks = {name: next(iter(model.base_model.rank_map(name).values())).rank for name in ("default", "other")}
    assert ranks == {"default": 4, "other": 0}


@pytest.mark.parametrize("freeze", [True, False])
def test_a_closed_gate_stays_closed_only_where_that_is_asked(freeze):
    model = adapted(freeze_zero=freeze, max_kappa=0.0)
    gates = model.base_model.gates()["0"]
    with torch.no_grad():
        gates[1] = 0.0
    with model.base_model.gate_step(9, 10), torch.no_grad():
        gates.add_(0.5)
    assert (gates[1].item() == 0) == freeze
    assert gates[[0, 2, 3]].all()


# --- the schedule


def test_levels_of_five_hundred_steps_are_the_released_ones():
    for config in (CodyraConfig(), CodyraConfig(released=True)):
        index = [kappa_index(t, 500, config) for t in range(500)]
        assert index[:250] == [0] * 250
        assert (index[250], index[254], index[255], index[489], index[490], index[499]) == (1, 1, 2, 48, 49, 49)


def test_thresholds_begin_after_the_dense_part_and_end_at_the_largest():
    config = CodyraConfig(max_kappa=0.49)
    found = [kappa(t, 500, config) for t in range(500)]
    assert found[:251] == [0.0] * 251
    assert found[251] == pytest.approx(0.01)
    assert found[499] == pytest.approx(0.49)
    assert all(a <= b for a, b in pairwise(found))


@pytest.mark.parametrize("total", [60, 77, 501, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_the_ramp_is_even_and_whole_for_any_number_of_steps(total, share):
    config = CodyraConfig(dense_share=share)
    index = [kappa_index(t, total, config) for t in range(total)]
    sparse = total * (1 - share)
    assert index[-1] >= 48
    for t, i in enumerate(index):
        reached = max(0.0, t + 1 - share * total) * 50 / sparse
        assert abs(i - min(reached, 49)) <= 1 + 50 / sparse


def test_a_short_training_warns_and_prunes_and_the_released_one_never_does():
    with pytest.warns(UserWarning, match="60 steps leave 30 for 50 levels"):
        check_schedule(60, CodyraConfig())
    assert kappa(59, 60, CodyraConfig()) == pytest.approx(0.005, rel=0.03)
    with pytest.warns(UserWarning, match="nothing is ever pruned"):
        check_schedule(60, CodyraConfig(released=True))
    assert {kappa(t, 60, CodyraConfig(released=True)) for t in range(60)} == {0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_schedule(100, CodyraConfig())
        check_schedule(60, CodyraConfig(max_kappa=0.0))


def test_released_lengths_are_whole_steps():
    config = CodyraConfig(released=True)  # 508 steps: 254 sparse ones, 5 a level, and 255 is the first multiple
    assert [kappa_index(t, 508, config) for t in (254, 255, 259, 260)] == [0, 1, 1, 2]
    assert kappa_index(254, 508, CodyraConfig()) == 1


def test_a_dense_share_of_one_prunes_nothing():
    assert {kappa(t, 100, CodyraConfig(dense_share=1.0)) for t in range(100)} == {0.0}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": 0}, "r=0"),
        ({"max_kappa": -0.1}, "max_kappa=-0.1"),
        ({"max_kappa": float("nan")}, "max_kappa=nan"),
        ({"max_kappa": float("inf")}, "max_kappa=inf"),
        ({"dense_share": 1.2}, "dense_share=1.2"),
        ({"kappa_steps": 1}, "kappa_steps=1"),
    ],
)
def test_options_out_of_range_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        CodyraConfig(**options)


def test_defaults_are_the_papers():
    c = CodyraConfig()
    assert (c.r, c.max_kappa, c.dense_share, c.kappa_steps, c.freeze_zero, c.released) == (
        16, 0.005, 0.5, 50, False, False
    )  # fmt: skip


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_training_is_refused(step):
    with pytest.raises(ValueError, match="counted from 0"):
        kappa(step, 10, CodyraConfig())


# --- what is left


def test_kept_ranks_fall_as_the_threshold_rises():
    ranks = []
    for most in (0.0, 0.2, 0.5, 1.0, 5.0):
        torch.manual_seed(0)
        model = get_peft_model(bert(), CodyraConfig(r=8, max_kappa=most, dense_share=0.0, kappa_steps=2))
        with model.base_model.gate_step(1, 2):
            pass
        ranks.append(sum(kept.rank for kept in model.base_model.rank_map().values()))
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 8 * 12
    assert ranks[-1] == 0


def test_a_pruned_adapter_exports_without_its_closed_gates(tmp_path):
    model, x = adapted().eval(), torch.randn(3, 6)
    with torch.no_grad():
        model.base_model.gates()["0"][[0, 2]] = 0.0
    written = export_lora(model, tmp_path / "lora", pad=False)
    assert written.ranks == {"0": 2}
    plain = PeftModel.from_pretrained(net(), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(x), model(x))


def test_the_norm_of_factors_is_that_of_their_product():
    A, B = torch.randn(3, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert factored_norm(A, B) == pytest.approx(torch.linalg.matrix_norm(B @ A).item(), rel=1e-12)
    model = adapted()
    (kept,) = model.base_model.rank_map().values()
    expected = torch.linalg.matrix_norm(layer_of(model).get_delta_weight("default")).item()
    assert kept.norm == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_is_not_linear_is_refused_by_name():
    with pytest.raises(TypeError, match=r"CoDyRA adapts linear layers; .*word_embeddings is a Embedding"):
        get_peft_model(bert(), CodyraConfig(target_modules=["word_embeddings"]))


# --- in a Trainer


def trained(tmp_path, *, steps=20, resume=None, save=0, **options):
    torch.manual_seed(0)
    model = get_peft_model(bert(), CodyraConfig(r=4, **{"max_kappa": 0.3, "kappa_steps": 5, **options}))
    g = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(0, 50, (6,), generator=g), "labels": i % 2} for i in range(16)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        disable_tqdm=True, use_cpu=True, save_strategy="steps" if save else "no", save_steps=save or 500, seed=0,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, callbacks=[CodyraCallback()]).train(resume_from_checkpoint=resume)
    return model


def gates_of(model):
    return torch.cat([*model.base_model.gates().values()]).detach()


def test_a_trainer_prunes_by_the_schedule(tmp_path):
    pruned, dense = trained(tmp_path), trained(tmp_path, max_kappa=0.0)
    assert not (gates_of(dense) == 0).any()
    share = (gates_of(pruned) == 0).float().mean()
    assert 0.4 < share < 1
    torch.manual_seed(0)
    start = gates_of(get_peft_model(bert(), CodyraConfig(r=4)))
    config = pruned.peft_config["default"]
    total = sum(kappa(t, 20, config) for t in range(20))
    closed = start.abs() < total - 20 * 1e-2  # whatever Adam's steps of at most the rate did
    assert (gates_of(pruned)[closed] == 0).float().mean() > 0.9


@pytest.mark.parametrize("freeze", [False, True])
def test_a_resumed_trainer_ends_where_the_other_did(tmp_path, freeze):
    whole = trained(tmp_path, save=15, freeze_zero=freeze)
    again = trained(tmp_path, resume=str(tmp_path / "checkpoint-15"), freeze_zero=freeze)
    torch.testing.assert_close(gates_of(again), gates_of(whole), rtol=0, atol=0)


def test_a_trainer_without_such_an_adapter_is_refused(tmp_path):
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True)
    rows = [{"input_ids": torch.tensor([1]), "labels": 0}]
    with pytest.raises(ValueError, match="BertForSequenceClassification has no CoDyRA adapter"):
        Trainer(bert(), arguments, train_dataset=rows, callbacks=[CodyraCallback()]).train()
