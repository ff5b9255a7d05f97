"""What S2-LoRA adds to an optimiser's step, in any loop and any Trainer."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from rankwise.tuning import S2LoraConfig
from rankwise.tuning.s2lora import S2LoraLayer
from small_models import bert, randomise

R = 3
ROWS = [{"input_ids": torch.arange(i, i + 6) % 50, "labels": i % 2} for i in range(16)]


def make(seed=0, **options):
    torch.manual_seed(seed)
    return randomise(get_peft_model(bert(), S2LoraConfig(r=R, task_type="SEQ_CLS", **options)))


def coefficients(model):
    return [m.s2lora_lambda["default"] for m in model.modules() if isinstance(m, S2LoraLayer)]


def trained(model, folder, *, optim="sgd", steps=1, batch=8, trainer=Trainer, loss=None, **options):
    args = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=options.pop("learning_rate", 1e-2),
        per_device_train_batch_size=batch,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim=optim,
        use_cpu=True,
        report_to=[],
        save_strategy=options.pop("save_strategy", "no"),
        disable_tqdm=True,
        seed=0,
        **options,
    )
    run = trainer(model, args, train_dataset=ROWS, compute_loss_func=loss)
    run._get_train_sampler = lambda *a: torch.utils.data.SequentialSampler(ROWS)
    run.train()
    return model


def assert_same(one, other):
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4, msg=name)


def gram_gradient(P, mu=0.1):
    """``∂ μ ‖PᵀP - I‖² / r²`` in closed form."""
    return 4 * mu / P.shape[1] ** 2 * P @ (P.T @ P - torch.eye(P.shape[1]))


@pytest.mark.parametrize("side", ["s2lora_P", "s2lora_Q"])
def test_orthogonality_term_is_its_closed_form_gradient_added_once_a_step(side):
    model = make(sparsity=0.0)
    factor = getattr(model.base_model, side)["default"]["16x16"]
    before = factor.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    own = before if side == "s2lora_P" else before.T
    expected = gram_gradient(own) if side == "s2lora_P" else gram_gradient(own).T
    torch.testing.assert_close(before - factor.detach(), expected, atol=1e-5, rtol=1e-4)


def mean_over_all(outputs, labels, num_items_in_batch=None):
    """The task's loss as a Trainer that accumulates wants it: over the items of the whole batch."""
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def test_accumulated_batches_count_the_regulariser_once(tmp_path):
    whole = trained(make(), tmp_path, batch=8, loss=mean_over_all)
    parts = trained(make(), tmp_path, batch=2, gradient_accumulation_steps=4, loss=mean_over_all)
    assert_same(whole, parts)


def test_label_smoothing_keeps_the_regulariser(tmp_path):
    on, off = (
        trained(make(orthogonality=mu), tmp_path, label_smoothing_factor=0.1).base_model.s2lora_P["default"]["16x16"]
        for mu in (0.1, 0.0)
    )
    P = make().base_model.s2lora_P["default"]["16x16"].detach()
    torch.testing.assert_close(off - on, 1e-2 * gram_gradient(P), atol=1e-6, rtol=1e-3)


def test_a_loss_function_of_ones_own_keeps_the_regulariser(tmp_path):
    assert_same(trained(make(), tmp_path, loss=mean_over_all), trained(make(), tmp_path))


def test_a_model_without_task_type_is_regularised_too():
    plain = get_peft_model(bert(), S2LoraConfig(r=R))
    plain.load_state_dict({k: v for k, v in make().state_dict().items() if "modules_to_save" not in k}, strict=False)
    P = plain.base_model.s2lora_P["default"]["16x16"]
    before = P.detach().clone()
    plain(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    task = P.grad.clone()
    torch.optim.SGD(plain.parameters(), lr=1.0).step()
    torch.testing.assert_close(before - P.detach(), task + gram_gradient(before), atol=1e-4, rtol=1e-3)


def test_a_stock_trainer_moves_coefficients_at_ten_times_the_rate_without_decay(tmp_path):
    still, model = (make(sparsity=0.0, orthogonality=0.0) for _ in "ab")
    batch = {k: torch.stack([torch.as_tensor(r[k]) for r in ROWS[:8]]) for k in ROWS[0]}
    still(**batch).loss.backward()
    trained(model, tmp_path, learning_rate=1.0, weight_decay=0.5)  # gradients here are about 1e-5
    moves = [old.detach() - new.detach() for old, new in zip(coefficients(still), coefficients(model), strict=True)]
    torch.testing.assert_close(moves, [10.0 * c.grad for c in coefficients(still)], atol=1e-7, rtol=1e-4)
    assert max(float(m.abs().max()) for m in moves) > 1e-4


def test_a_stock_trainer_reaches_exact_zeros_and_the_penalty_does_not(tmp_path):
    def zeros(**options):
        model = get_peft_model(bert(), S2LoraConfig(r=R, task_type="SEQ_CLS", **options))
        trained(model, tmp_path, optim="adamw_torch", learning_rate=5e-3, steps=8, batch=4)
        return float((torch.stack(coefficients(model)) == 0).float().mean())

    assert zeros(sparsity=0.9) > 0.05
    assert zeros(sparsity=0.9, l1="penalty") == 0


def test_a_step_shrinks_by_the_rate_that_the_scheduler_gave():
    model = make(sparsity=0.5, orthogonality=0.0)
    c = coefficients(model)[0]
    with torch.no_grad():
        c.copy_(torch.tensor([2.0, 0.04, -1.0]))
    c.grad = torch.zeros(R)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    optimizer.step()
    torch.testing.assert_close(c.detach(), torch.tensor([1.75, 0.0, -0.75]))  # η = 10 · 0.05, γ' = 0.5


def test_default_sparsity_holds_coefficients_at_zero_that_only_noise_moves():
    def found(**options):
        model = get_peft_model(bert(hidden=32), S2LoraConfig(r=16, **options))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        g = torch.Generator().manual_seed(0)
        for _ in range(150):
            for c in coefficients(model):
                c.grad = torch.randn(16, generator=g)
                c.grad[:8] += 1.0  # signal in half of them
            optimizer.step()
        return torch.stack(coefficients(model)).detach()

    assert (found()[:, :8] != 0).all()
    assert (found()[:, 8:] == 0).float().mean() > 0.3
    assert (found(sparsity=1e-3) != 0).all()


def test_penalty_is_the_subgradient_of_the_mean_size():
    model = make(l1="penalty", sparsity=0.7, orthogonality=0.0)
    before = [c.detach().clone() for c in coefficients(model)]
    for c in coefficients(model):
        c.grad = torch.zeros(R)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for old, c in zip(before, coefficients(model), strict=True):
        torch.testing.assert_close(old - c.detach(), 0.1 * 10 * 0.7 * old.sign() / (12 * R))


def test_groups_and_state_are_the_owners_between_steps():
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    groups = optimizer.param_groups
    known = [id(p) for p in groups[0]["params"]]
    model(input_ids=torch.ones(2, 4, dtype=torch.long), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert optimizer.param_groups is groups
    assert len(groups) == 1
    assert [id(p) for p in groups[0]["params"]] == known
    again = torch.optim.AdamW(model.parameters(), lr=1e-3)
    again.load_state_dict(optimizer.state_dict())
    assert all(c in again.state for c in coefficients(model))


def test_a_step_that_raises_leaves_nothing_behind():
    class Broken(torch.optim.SGD):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise RuntimeError("out of memory")
            return super().step(closure)

    model = make(sparsity=0.0, orthogonality=0.0)
    c = coefficients(model)[0]
    before = c.detach().clone()
    c.grad = torch.ones(R)
    optimizer = Broken(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    torch.testing.assert_close(before - c.detach(), torch.full((R,), 1.0))
    assert len(optimizer.param_groups) == 1


def test_a_closure_is_followed_by_the_terms():
    one, other = make(), make()
    ids, labels = torch.ones(2, 4, dtype=torch.long), torch.tensor([0, 1])
    one.eval()(input_ids=ids, labels=labels).loss.backward()
    torch.optim.SGD(one.parameters(), lr=0.1).step()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)

    def closure():
        loss = other.eval()(input_ids=ids, labels=labels).loss
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert_same(one, other)


def test_an_optimizer_around_another_applies_the_terms_once():
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, {})
            self.param_groups = inner.param_groups

        def step(self, closure=None):
            return self.inner.step(closure)

    one, other = make(), make()
    for m, wrap in ((one, lambda o: o), (other, Around)):
        for p in m.parameters():
            p.grad = torch.ones_like(p) * 1e-2
        wrap(torch.optim.SGD(m.parameters(), lr=0.1)).step()
    assert_same(one, other)


def test_a_loss_scaler_that_leaves_unscaling_to_the_step_scales_the_terms():
    one, other = make(sparsity=0.0), make(sparsity=0.0)
    for m in (one, other):
        for p in m.parameters():
            p.grad = torch.ones_like(p) * 1e-2
    options = {"lr": 1e-2, "momentum": 0.0, "fused": True}
    torch.optim.SGD(one.parameters(), **options).step()
    optimizer = torch.optim.SGD(other.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    for p in other.parameters():
        p.grad *= 8.0
    scaler.step(optimizer)
    assert_same(one, other)


def test_a_copy_of_a_model_is_trained_with_the_terms_too():
    model = make()
    twin = copy.deepcopy(model)
    for m in (model, twin):
        m(input_ids=torch.ones(2, 4, dtype=torch.long), labels=torch.tensor([0, 1])).loss.backward()
        torch.optim.SGD(m.parameters(), lr=0.1).step()
    assert_same(model, twin)
    assert twin.base_model.s2lora_P["default"]["16x16"] is not model.base_model.s2lora_P["default"]["16x16"]


def test_inactive_adapters_are_left_alone():
    model = make()
    model.add_adapter("other", S2LoraConfig(r=2, task_type="SEQ_CLS"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "other" in n}
    model(input_ids=torch.ones(2, 4, dtype=torch.long), labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = dict(model.named_parameters())
    assert before
    assert all(torch.equal(p, after[n]) for n, p in before.items())


def test_other_models_steps_are_left_alone():
    make()
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    torch.optim.SGD([w], lr=0.5).step()
    assert torch.equal(w.detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_engines_that_step_on_copies_are_refused(monkeypatch, engine):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    model = make()
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType[engine])
    with pytest.raises(RuntimeError, match=f"which {engine} has not"):
        model.train()
    model.eval()


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_with_the_double_batch(tmp_path):
    import subprocess
    import sys

    code = f"""
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
sys.path.insert(0, r"{__file__.rpartition("/tuning/")[0]}")
from peft import get_peft_model
from rankwise.tuning import S2LoraConfig
from small_models import bert, randomise
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
model = randomise(get_peft_model(bert(), S2LoraConfig(r=3, task_type="SEQ_CLS"))).train()
wrapped = model
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=world)
    wrapped = DDP(model)
ids = (torch.arange(24).view(4, 6) * 7) % 50
labels = torch.tensor([0, 1, 1, 0])
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for _ in range(3):
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    wrapped(input_ids=ids[mine], labels=labels[mine]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
if rank == 0:
    torch.save({{n: p.detach() for n, p in model.named_parameters() if p.requires_grad}}, folder + f"/{{world}}.pt")
"""
    for world in (1, 2):
        runs = [
            subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(r), str(world), str(tmp_path)])
            for r in range(world)
        ]
        assert all(run.wait(300) == 0 for run in runs)
    one, two = (torch.load(tmp_path / f"{w}.pt", weights_only=True) for w in (1, 2))
    for name, p in one.items():
        torch.testing.assert_close(two[name], p, atol=1e-6, rtol=1e-5, msg=name)
