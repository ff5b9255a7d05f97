"""What an optimiser changes in a model it gives back, and copies of model and optimiser are whole."""

import copy
import gc
import io
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2LMHeadModel

from rankwise.optim import GaLoreAdamW, LayerSampler, OwLore, galore_groups
from small_models import gpt2, llama

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def backward(model):
    model(input_ids=IDS, labels=IDS).loss.backward()


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(model, before):
    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def owlore(model, **options):
    return OwLore(model, **{"lr": 1e-2, "active": 1, "interval": 2, "rank": 2, **options})


def galore(model):
    optimizer = GaLoreAdamW(galore_groups(model, rank=2), lr=1e-2)
    optimizer.step_in_backward(model=model)
    return optimizer


MAKERS = pytest.mark.parametrize("make", [owlore, galore])


def assert_untouched(model, trained):
    """A backward pass moves nothing, leaves every gradient, and the tied modules have their own classes."""
    before = weights(model)
    backward(model)
    assert same(model, before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert type(model.lm_head) is nn.Linear
    assert type(model.transformer.wte) is nn.Embedding


@MAKERS
def test_after_release_a_backward_pass_moves_nothing_and_keeps_the_gradients(make):
    model = gpt2().train()
    names = {n for n, _ in model.named_parameters()}
    optimizer = make(model)
    backward(model)
    optimizer.step()
    optimizer.release()
    assert not optimizer.updates_in_backward
    assert_untouched(model, names)
    before = weights(model)
    optimizer.step()  # a plain step now
    assert not same(model, before)


@MAKERS
def test_an_optimiser_that_nobody_holds_any_more_has_released_its_model(make):
    model = gpt2().train()
    names = {n for n, _ in model.named_parameters()}
    optimizer = make(model)
    backward(model)
    optimizer.step()
    del optimizer
    gc.collect()
    assert_untouched(model, names)


@pytest.mark.parametrize("second", [owlore, galore])
def test_a_second_optimiser_on_a_held_model_is_refused_by_name_and_welcome_after_release(second):
    model = gpt2().train()
    first = owlore(model)
    with pytest.raises(ValueError, match=r"call its release\(\) first"):
        second(model)
    first.release()
    backward(model)
    assert model.lm_head.weight.grad is not None
    model.zero_grad()
    second(model).release()


def test_an_optimiser_whose_making_fails_leaves_the_model_as_it_was():
    model = gpt2().train()
    holder = GaLoreAdamW(list(model.parameters()))
    holder.step_in_backward()
    with pytest.raises(ValueError, match="another GaLoreAdamW updates these parameters"):
        owlore(model)
    holder.release()
    assert all(p.requires_grad for p in model.parameters())
    owlore(model).release()


def test_release_thaws_exactly_what_trained_before():
    model = llama().train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    model.lm_head.weight.requires_grad_(False)
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    optimizer = owlore(model)
    frozen = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    for _ in range(4):  # two draws
        backward(model)
        optimizer.step()
        assert not model.model.layers[0].self_attn.q_proj.weight.requires_grad
    assert torch.equal(frozen, model.model.layers[0].self_attn.q_proj.weight)
    optimizer.release()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == before


def test_a_sampler_on_a_peft_model_leaves_the_base_frozen():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear")).train()
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    sampler = LayerSampler(model, mode="uniform", active=1, interval=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(4):
        backward(model)
        optimizer.step()
        sampler.step()
    sampler.release()
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(base)


def test_blocks_that_the_user_froze_are_never_drawn():
    model = llama()
    model.model.layers[0].requires_grad_(False)
    sampler = LayerSampler(model, [5.0, 1.0], interval=1)
    for _ in range(20):
        sampler.step()
        assert sampler.active_layers == [1]
    assert sampler.probabilities.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"active=2 is outside 1\.\.1"):
        LayerSampler(copy.deepcopy(model), [5.0, 1.0], active=2)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be drawn"):
        LayerSampler(model, [5.0, 1.0])


def test_a_released_sampler_draws_no_more():
    model = llama()
    sampler = LayerSampler(model, mode="uniform", active=1, interval=1)
    sampler.release()
    assert not sampler.step()
    assert all(p.requires_grad for p in model.parameters())


def copied(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return {"deepcopy": copy.deepcopy(model), "pickle": torch.load(buffer, weights_only=False)}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_a_model_with_tied_weights_reads_its_own_and_is_plain(way):
    model = gpt2().train()
    optimizer = owlore(model)
    other = copied(model)[way]
    assert type(other.lm_head) is nn.Linear
    assert type(other.transformer.wte) is nn.Embedding
    assert other.lm_head.weight is other.transformer.wte.weight is not model.lm_head.weight
    expected = other(IDS).logits
    with torch.no_grad():
        model.lm_head.weight.zero_()
    torch.testing.assert_close(other(IDS).logits, expected, rtol=0, atol=0)
    plain = gpt2().train()
    for m in (other, plain):
        m.requires_grad_(True)
        backward(m)
    torch.testing.assert_close(other.lm_head.weight.grad, plain.lm_head.weight.grad)
    optimizer.release()
    assert isinstance(GPT2LMHeadModel(model.config), GPT2LMHeadModel)


@pytest.mark.parametrize("make", [lambda m: owlore(m, in_backward=False), owlore])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_model_and_optimiser_copied_together_train_on_alike(make, way):
    model = gpt2().train()
    optimizer = make(model)
    for _ in range(3):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    twin, other = way((model, optimizer))
    assert not other.updates_in_backward  # hooks are not copied
    for _ in range(3):
        for m, o in ((model, optimizer), (twin, other)):
            backward(m)
            o.step()
            o.zero_grad()
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # the tied gradient is summed in another order
    assert other.sampler.active_layers == optimizer.sampler.active_layers
    other.release()
    assert all(p.requires_grad for p in twin.parameters())
    assert not all(p.requires_grad for p in model.parameters())


def test_a_copied_galore_keeps_its_settings():
    layer = nn.Linear(6, 4).bfloat16()
    optimizer = GaLoreAdamW(layer.parameters(), rank=2, max_skipped=3, stochastic_rounding=True, seed=5)
    other = copy.deepcopy(optimizer)
    assert (other.max_skipped, other.stochastic_rounding, other.skipped) == (3, True, 0)
    assert other.param_groups[0]["seed"] == 5
