"""What the optimisers take: served rightly, or refused by name before anything moves."""

import copy
import gc
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from rankwise.models.targets import stacked_experts
from rankwise.optim import GaLoreAdamW, LayerSampler, OwLore, galore_groups
from small_models import gpt2, llama

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def backward(model):
    model(input_ids=IDS, labels=IDS).loss.backward()


def weight(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def run(p, steps=3, *, lr=1e-2, layout=lambda g: g, **options):
    """The weight after a few steps of a fixed drift of gradients."""
    p = nn.Parameter(p)
    optimizer = GaLoreAdamW([p], lr=lr, **options)
    for i in range(steps):
        p.grad = layout(torch.sin(weight(*p.shape, dtype=torch.float64) * (i + 1)).to(p.dtype))
        optimizer.step()
    return p.detach()


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
    return MixtralForCausalLM(config)


# --- dtypes and layouts


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_transposed_parameter_or_gradient_is_updated_like_a_contiguous_one(dtype, rank):
    W = weight(6, 4, dtype=dtype)
    expected = run(W.clone(), rank=rank)
    other = W.T.contiguous().T
    assert not other.is_contiguous()
    kept = other.clone()
    assert not kept.is_contiguous()
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if W.element_size() > 2 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(run(kept, rank=rank), expected, **tolerance)
    torch.testing.assert_close(run(W.clone(), rank=rank, layout=lambda g: g.T.contiguous().T), expected, **tolerance)
    assert not torch.equal(expected, W)


@pytest.mark.parametrize("rank", [None, 4])
def test_float64_weights_and_moments_are_updated_in_float64(rank):
    """With a basis of full rank projecting is rotating: compare with AdamW on the rotated weight."""
    W = weight(6, 4, dtype=torch.float64)
    p = nn.Parameter(W.clone())
    optimizer = GaLoreAdamW([p], lr=1e-2, rank=rank, scale=1.0, eps=1e-8, svd="full")
    Q, q, adamw = torch.eye(4, dtype=torch.float64), None, None
    for i in range(5):
        p.grad = torch.sin(W * (i + 1))
        optimizer.step()
        if rank:
            Q = optimizer.state[p]["right"]
        if q is None:
            q = nn.Parameter(W @ Q.T)
            adamw = torch.optim.AdamW([q], lr=1e-2, eps=1e-8, weight_decay=0.0)
        q.grad = torch.sin(W * (i + 1)) @ Q.T
        adamw.step()
    torch.testing.assert_close(p.detach(), q.detach() @ Q, rtol=1e-12, atol=1e-13)
    assert optimizer.state[p]["exp_avg"].dtype == torch.float64


def test_a_rate_of_zero_moves_no_bit_of_any_kind():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for rank in (None, 2):
            W = weight(6, 4, dtype=dtype)
            assert torch.equal(run(W.clone(), lr=0.0, rank=rank), W)


@pytest.mark.parametrize(
    ("dtype", "match"),
    [
        (torch.complex64, "complex64.*real and its imaginary part"),
        (torch.complex128, "complex128"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.int8, "int8; float32, float64, bfloat16 and float16"),
    ],
)
@pytest.mark.parametrize("rank", [None, 2])
def test_complex_and_integer_parameters_are_refused(dtype, match, rank):
    p = nn.Parameter(torch.zeros(6, 4).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=match):
        GaLoreAdamW([p], rank=rank)
    optimizer = GaLoreAdamW([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients_of_an_embedding_are_the_dense_ones(in_backward, dtype):
    tables = []
    for sparse in (False, True):
        table = nn.Embedding(5, 4, sparse=sparse, _weight=weight(5, 4, dtype=dtype))
        optimizer = GaLoreAdamW(table.parameters(), rank=2, lr=1e-2)
        if in_backward:
            optimizer.step_in_backward()
        for row in (1, 2, 2):
            table(torch.tensor([row, 3, 3])).square().sum().backward()
            assert table.weight.grad is None or table.weight.grad.is_sparse == sparse
            optimizer.step()
            optimizer.zero_grad()
        tables.append(table.weight.detach())
    torch.testing.assert_close(*tables, rtol=1e-6, atol=1e-7)
    assert not torch.equal(tables[0], weight(5, 4, dtype=dtype))


def test_large_finite_gradients_are_not_taken_for_infinite_ones():
    for dtype, size in ((torch.float16, 6e4), (torch.float32, 1e30), (torch.bfloat16, 1e30)):
        p = nn.Parameter(torch.ones(30, 30, dtype=dtype))
        optimizer = GaLoreAdamW([p], lr=0.1)
        p.grad = torch.full_like(p, size)
        optimizer.step()
        assert optimizer.skipped == 0


def test_stochastic_rounding_of_float16_is_refused():
    with pytest.raises(ValueError, match="for bfloat16 weights"):
        GaLoreAdamW([nn.Parameter(torch.ones(2).half())], stochastic_rounding=True)


# --- groups


@pytest.mark.parametrize(
    ("group", "match"),
    [
        ({"rank": 2, "udpate_gap": 3}, "did you mean update_gap"),
        ({"scale": 4.0}, r"scale=4\.0 is of projected groups"),
        ({"rank": None, "svd": "full"}, "svd=full is of projected groups"),
        ({"rank": 2, "amsgrad": True}, "key of a parameter group 'amsgrad'"),
        ({"rank": 2, "update_gap": 3, "update_proj_gap": 3}, "give one"),
        ({"rank": 2.0}, r"rank=2\.0"),
        ({"rank": 2, "scale": 0}, "scale=0"),
        ({"rank": 2, "scale": math.nan}, "scale=nan"),
        ({"lr": -1.0}, "lr=-1"),
        ({"lr": math.nan}, "lr=nan"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_key_or_value_of_a_group_that_means_nothing_is_refused(group, match):
    with pytest.raises(ValueError, match=match):
        GaLoreAdamW([{"params": [nn.Parameter(torch.ones(3, 3))], **group}])


def test_every_tensor_of_a_group_is_looked_at():
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex64"):
        GaLoreAdamW([good, bad])


def test_named_parameters_are_taken_as_parameters():
    layer = nn.Linear(4, 3)
    optimizer = GaLoreAdamW(layer.named_parameters(), rank=2)
    assert [[p.shape for p in g["params"]] for g in optimizer.param_groups] == [[(3, 4)], [(3,)]]
    assert optimizer.param_groups[0]["rank"] == 2
    assert "rank" not in optimizer.param_groups[1]


def test_parameters_that_processes_share_are_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.DeviceMesh("cpu", [0])
        p = nn.Parameter(torch.distributed.tensor.distribute_tensor(torch.ones(4, 4), mesh))
        with pytest.raises(ValueError, match="sharded"):
            GaLoreAdamW([p])
    finally:
        torch.distributed.destroy_process_group()


def test_defaults_are_galore_torchs_and_owlores():
    optimizer = GaLoreAdamW([nn.Parameter(torch.ones(3, 3))], rank=2)
    assert optimizer.defaults == {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "update_gap": 200, "scale": 0.25,
        "proj_type": "std", "on_refresh": "keep", "svd": "subspace", "seed": 0, "steps": 0,
    }  # fmt: skip
    assert optimizer.max_skipped == 10
    assert not optimizer.stochastic_rounding
    owlore = OwLore(llama(), in_backward=False)
    group = owlore.param_groups[0]
    assert {k: group[k] for k in ("lr", "update_gap", "scale", "seed")} == {
        "lr": 3e-4, "update_gap": 100, "scale": None, "seed": 0,
    }  # fmt: skip
    assert (owlore.sampler.interval, owlore.keep_state) == (50, False)


def test_parameters_without_a_rank_or_all_of_them_with_one_are_a_single_group():
    matrix, vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    assert [g.get("rank") for g in GaLoreAdamW([matrix], rank=2).param_groups] == [2]
    assert [g.get("rank") for g in GaLoreAdamW([vector], rank=2).param_groups] == [None]
    assert [g.get("rank") for g in GaLoreAdamW([matrix, vector]).param_groups] == [None]


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
def test_without_a_scale_a_projected_step_is_as_long_as_a_full_one(shape, proj_type):
    W = weight(*shape)
    moved = run(W.clone(), steps=1, rank=2, scale=None, proj_type=proj_type, eps=0.0) - W
    assert float(moved.norm()) == pytest.approx(1e-2 * math.sqrt(W.numel()), rel=1e-4)


def test_a_group_that_is_added_later_trains_in_the_backward_pass_too():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    optimizer = GaLoreAdamW(first.parameters(), lr=1e-2)
    optimizer.step_in_backward()
    optimizer.add_param_group({"params": list(second.parameters()), "rank": 2, "lr": 1e-3})
    before = second.weight.detach().clone()
    second(first(torch.ones(2, 4))).square().sum().backward()
    assert second.weight.grad is None
    assert float((second.weight.detach() - before).abs().max()) < 5e-3  # at its own rate
    assert not torch.equal(second.weight, before)
    optimizer.step()
    optimizer.release()
    second(torch.ones(2, 4)).sum().backward()
    assert second.weight.grad is not None


def test_a_gradient_that_comes_without_its_hook_is_used_in_step():
    """The output layer of a tied model writes into the gradient itself; without the embedding no hook follows."""
    model, twin = gpt2().train(), gpt2().train()
    optimizer = GaLoreAdamW(galore_groups(model, rank=2), lr=1e-2, eps=1e-8)
    optimizer.step_in_backward(model=model)
    reference = torch.optim.AdamW([twin.lm_head.weight], lr=1e-2, weight_decay=0.0)
    x = torch.randn(2, 7, 16)
    for m in (model, twin):
        m(inputs_embeds=x, labels=IDS).loss.backward()
    reference.step()
    optimizer.step()
    torch.testing.assert_close(model.lm_head.weight, twin.lm_head.weight, rtol=1e-4, atol=1e-6)
    assert model.lm_head.weight.grad is None


# --- models


@pytest.mark.parametrize("make", [lambda m: galore_groups(m, rank=2), OwLore])
def test_experts_in_one_parameter_are_named_and_refused_unless_frozen(make):
    model = mixtral()
    assert set(stacked_experts(model)) == {
        f"model.layers.{i}.mlp.experts.{w}" for i in (0, 1) for w in ("gate_up_proj", "down_proj")
    }
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        make(model)
    for p in stacked_experts(model).values():
        p.requires_grad_(False)
    make(model)


def test_models_without_experts_have_no_stacked_ones():
    assert not stacked_experts(llama())
    assert not stacked_experts(nn.ModuleList([nn.Sequential(nn.Conv1d(2, 2, 3))]))


@pytest.mark.parametrize("make", [lambda m: galore_groups(m, rank=2), OwLore])
def test_a_model_whose_own_matrices_are_all_frozen_is_refused_with_what_would_do(make):
    adapted = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"wrapped by PEFT.*LayerSampler"):
        make(adapted)
    model = llama()
    model.model.layers.requires_grad_(False)
    with pytest.raises(ValueError, match="they are frozen"):
        make(model)


def test_groups_hold_what_trains_and_nothing_else():
    model = llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    held = {id(p) for g in galore_groups(model, rank=2) for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "uniform", "dataloader": []}, "does not compute"),
        ({"mode": "uniform", "threshold": 5.0}, "does not compute"),
        ({"scores": [1.0, 1.0], "threshold": 5.0}, "does not compute"),
        ({"scores": [1.0, 1.0], "mode": "uniform"}, "reads no scores"),
        ({"max_norm": 1.0, "in_backward": False}, "clip before step"),
        ({"max_norm": -1.0}, "max_norm=-1"),
        ({"threshold": 0.0}, "threshold"),
    ],
)
def test_options_that_nothing_would_read_are_refused(options, match):
    model = llama()
    with pytest.raises(ValueError, match=match):
        OwLore(model, **options)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_not_projected_may_have_a_rate_of_its_own():
    model = llama()
    optimizer = OwLore(model, lr=1e-3, rest_lr=5e-2, scale=2.0, active=2, in_backward=False, eps=1e-12)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    backward(model)
    moving = model.lm_head.weight.grad.abs() > 1e-9
    optimizer.step()
    moved = (model.lm_head.weight - before["lm_head.weight"]).abs()[moving]
    torch.testing.assert_close(moved, torch.full_like(moved, 5e-2), rtol=1e-3, atol=0)
    name = "model.layers.0.mlp.up_proj.weight"
    W, R = dict(model.named_parameters())[name], optimizer.state[model.get_parameter(name)]["exp_avg"]
    assert float((W.detach() - before[name]).norm()) == pytest.approx(2.0 * 1e-3 * math.sqrt(R.numel()), rel=1e-2)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 5e-2]


# --- replicas, scaled losses, Trainer


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


@pytest.mark.parametrize("in_backward", [True, False])
def test_replicas_are_refused_when_made_and_before_a_weight_moves(in_backward, monkeypatch):
    model = llama()
    optimizer = OwLore(model, active=1, in_backward=in_backward)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def train():
        backward(model)
        optimizer.step()

    with pytest.raises(ValueError, match="one process, not in 2"):
        train()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"^OwLore runs in one process, not in 2"):
        OwLore(llama(), in_backward=in_backward)


@pytest.mark.usefixtures("two_processes")
def test_samplers_and_updates_in_the_backward_pass_refuse_replicas_and_plain_galore_takes_them():
    with pytest.raises(ValueError, match="sampling layers runs in one process"):
        LayerSampler(llama(), mode="uniform")
    optimizer = GaLoreAdamW(galore_groups(model := llama(), rank=2))
    with pytest.raises(ValueError, match=r"^updating in the backward pass runs in one process"):
        optimizer.step_in_backward()
    backward(model)
    optimizer.step()


def test_updates_in_the_backward_pass_refuse_replicas_that_come_later(monkeypatch):
    layer = nn.Linear(3, 3, bias=False)
    optimizer = GaLoreAdamW(layer.parameters())
    optimizer.step_in_backward()
    before = layer.weight.detach().clone()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"^updating in the backward pass runs in one process"):
        layer(torch.ones(2, 3)).sum().backward()
    assert torch.equal(layer.weight, before)


def test_a_sampler_in_trainer_refuses_replicas_that_come_later(monkeypatch):
    callback = LayerSampler(llama(), mode="uniform").callback()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"^sampling layers runs in one process"):
        callback.on_train_begin(None, None, None)


def test_a_scaled_loss_is_refused_before_a_weight_moves_and_served_in_step():
    model = llama()
    optimizer = OwLore(model, active=1)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match=r"GradScaler.*bfloat16"):
        scaler.scale(model(input_ids=IDS, labels=IDS).loss).backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    optimizer.release()
    plain = OwLore(model, active=1, in_backward=False)
    scaler.scale(model(input_ids=IDS, labels=IDS).loss).backward()
    scaler.step(plain)
    scaler.update()
    assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    del scaler
    gc.collect()


def trainer(model, optimizer, tmp_path, **options):
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}] * 2
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None), callbacks=[optimizer.callback()]
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, r"max_grad_norm=1\.0.*max_grad_norm=0.*max_norm"),
        ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2"),
    ],
)
@pytest.mark.parametrize("kind", ["galore", "owlore"])
def test_trainer_settings_that_would_do_nothing_are_refused(options, match, kind, tmp_path):
    model = llama().train()
    optimizer = OwLore(model) if kind == "owlore" else GaLoreAdamW(galore_groups(model, rank=2))
    optimizer.step_in_backward()
    with pytest.raises(ValueError, match=match):
        trainer(model, optimizer, tmp_path, **options).train()


def test_a_released_optimiser_is_not_trained_with_again(tmp_path):
    model = llama().train()
    optimizer = OwLore(model, in_backward=False)
    train = trainer(model, optimizer, tmp_path).train  # clipping works where updates are in step
    train()
    with pytest.raises(ValueError, match="make a new one"):
        train()


# --- state


def trained(steps=3, **options):
    model = llama().train()
    optimizer = GaLoreAdamW(galore_groups(model, rank=2, update_gap=2), lr=1e-2, **options)
    for _ in range(steps):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("flat", [False, True])
def test_what_torchs_distributed_checkpoints_keep_continues_exactly(flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(svd="random")
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    twin = copy.deepcopy(model)
    other = GaLoreAdamW(galore_groups(twin, rank=2, update_gap=2), lr=1e-2, svd="random")
    set_optimizer_state_dict(twin, other, copy.deepcopy(saved), options=options)
    for m, o in ((model, optimizer), (twin, other)):
        for _ in range(3):
            backward(m)
            o.step()
            o.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_seed_travels_with_the_state():
    model, optimizer = trained(svd="random", seed=3)
    twin = copy.deepcopy(model)
    other = GaLoreAdamW(galore_groups(twin, rank=2, update_gap=2), lr=1e-2, svd="random", seed=4)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        for _ in range(2):
            backward(m)
            o.step()
            o.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_state_of_another_optimiser_or_shape_is_refused_and_nothing_is_loaded():
    model, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    groups = galore_groups(model)
    adamw = torch.optim.AdamW(groups)
    with pytest.raises(ValueError, match=r"another optimiser.*update_gap, scale, proj_type"):
        optimizer.load_state_dict(adamw.state_dict())
    other = nn.ParameterList([nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5))])
    mine = GaLoreAdamW([{"params": [other[0]], "rank": 2}, {"params": [other[1]]}])
    for shape, match in (((3, 5), "parameter 0 does not fit"), ((5, 3), "parameter 1 does not fit")):
        theirs = GaLoreAdamW(
            [{"params": [nn.Parameter(torch.ones(shape))], "rank": 2}, {"params": [nn.Parameter(torch.ones(4))]}]
        )
        for g in theirs.param_groups:
            g["params"][0].grad = torch.ones_like(g["params"][0])
        theirs.step()
        with pytest.raises(ValueError, match=match):
            mine.load_state_dict(theirs.state_dict())
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()


def test_owlores_state_without_blocks_or_without_their_moments_is_refused():
    model = llama().train()
    optimizer = OwLore(model, lr=1e-2, active=1, interval=5)
    for _ in range(2):
        backward(model)
        optimizer.step()
    state = optimizer.state_dict()
    plain = copy.deepcopy(state)
    del plain["param_groups"][0]["sampler"]
    with pytest.raises(ValueError, match="not OwLore's"):
        optimizer.load_state_dict(plain)
    sleepy = copy.deepcopy(state)
    index = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for p in optimizer.sampler.own[optimizer.sampler.active_layers[0]]:
        del sleepy["state"][index[id(p)]]
    with pytest.raises(ValueError, match="no moments of the blocks"):
        optimizer.load_state_dict(sleepy)
    bigger = copy.deepcopy(state)
    bigger["param_groups"][0]["sampler"]["probabilities"] = [0.5, 0.5, 0.0]
    with pytest.raises(ValueError, match="of 3 blocks, the model has 2"):
        optimizer.load_state_dict(bigger)
