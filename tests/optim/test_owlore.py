import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from rankwise.optim import LayerSampler, OwLore
from small_models import bert, gpt2, llama


def decoder(layers=6):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    return LlamaForCausalLM(config).train()


def batch(seed=0):
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def steps(model, optimizer, first, last):
    for i in range(first, last):
        model(**batch(i)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def blocks_of(model):
    return [{n: p.detach().clone() for n, p in layer.named_parameters()} for layer in model.model.layers]


@pytest.mark.parametrize("in_backward", [True, False])
def test_frozen_blocks_do_not_move_a_bit_even_with_weight_decay(in_backward):
    model = decoder()
    optimizer = OwLore(model, lr=1e-2, active=2, interval=4, rank=4, weight_decay=0.1, in_backward=in_backward)
    for start in range(0, 12, 4):
        active, before = optimizer.sampler.active_layers, blocks_of(model)
        embedding = model.model.embed_tokens.weight.detach().clone()
        steps(model, optimizer, start, start + 4)
        for i, (old, new) in enumerate(zip(before, blocks_of(model), strict=True)):
            moved = [not torch.equal(old[n], new[n]) for n in old]
            assert all(moved) if i in active else not any(moved), (i, active)
        assert not torch.equal(embedding, model.model.embed_tokens.weight)


def test_sleeping_blocks_hold_neither_gradient_nor_state():
    model = decoder()
    optimizer = OwLore(model, active=2, interval=2, rank=4)
    most = 0
    for start in range(0, 12, 2):
        steps(model, optimizer, start, start + 2)
        for layer in model.model.layers:
            for p in layer.parameters():
                assert p.grad is None
                if not p.requires_grad:
                    assert p not in optimizer.state
        most = max(most, optimizer.state_bytes())
    kept = OwLore(other := decoder(), active=2, interval=2, rank=4, keep_state=True)
    steps(other, kept, 0, 12)
    assert kept.state_bytes() > most


@pytest.mark.parametrize("stop", [5, 7, 8])
def test_resuming_within_and_at_an_interval_is_exact(stop):
    options = {"lr": 1e-2, "active": 2, "interval": 4, "rank": 4, "update_gap": 3}
    whole = decoder()
    steps(whole, OwLore(whole, **options), 0, 14)
    first = decoder()
    optimizer = OwLore(first, **options)
    steps(first, optimizer, 0, stop)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(first.state_dict())
    second = decoder()
    second.load_state_dict(weights)
    resumed = OwLore(second, **options, scores=[1.0, 9.0, 1.0, 1.0, 1.0, 1.0])  # the state knows the right ones
    resumed.load_state_dict(saved)
    steps(second, resumed, stop, 14)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_long_interval_over_all_blocks_is_galore():
    from rankwise.optim import GaLoreAdamW, galore_groups

    a, b = decoder(), decoder()
    owlore = OwLore(a, lr=1e-2, active=6, interval=100, rank=4, svd="full", scale=0.5)
    galore = GaLoreAdamW(galore_groups(b, rank=4), lr=1e-2, update_gap=100, scale=0.5, svd="full")
    steps(a, owlore, 0, 5)
    steps(b, galore, 0, 5)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_it_wires_itself_to_decoders_conv1d_and_encoders(make):
    model = make().train()
    optimizer = OwLore(model, active=1, interval=1)
    ids = torch.randint(0, 50, (3, 9))
    labels = torch.tensor([0, 1, 0]) if make is bert else ids
    for _ in range(3):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    assert len(optimizer.sampler.active_layers) == 1


def test_rank_zero_with_uniform_draws_is_lisa():
    model = decoder()
    optimizer = OwLore(model, rank=0, mode="uniform", active=2)
    steps(model, optimizer, 0, 2)
    inside = model.model.layers[optimizer.sampler.active_layers[0]].mlp.up_proj.weight
    assert optimizer.state[inside]["exp_avg"].shape == inside.shape


def trainer(model, tmp_path, optimizer, callback, **options):
    rows = [{"input_ids": batch(i)["input_ids"][0], "labels": batch(i)["input_ids"][0]} for i in range(12)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=6,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **{"max_grad_norm": 0.0, **options},
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None), callbacks=[callback])


def test_it_trains_in_transformers_trainer(tmp_path):
    model = decoder()
    before = blocks_of(model)
    optimizer = OwLore(model, lr=1e-2, active=2, interval=2, rank=4)
    drawn = []
    optimizer.sampler.draw = lambda draw=optimizer.sampler.draw: drawn.append(draw())
    trainer(model, tmp_path, optimizer, optimizer.callback()).train()
    assert len(drawn) == 3
    assert sum(not torch.equal(a["mlp.up_proj.weight"], b["mlp.up_proj.weight"])
               for a, b in zip(before, blocks_of(model), strict=True)) >= 2  # fmt: skip
    assert all(p.requires_grad for p in model.parameters())


def test_accumulation_with_updates_in_the_backward_pass_is_refused(tmp_path):
    model = decoder()
    optimizer = OwLore(model, active=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2"):
        trainer(model, tmp_path, optimizer, optimizer.callback(), gradient_accumulation_steps=2).train()


def test_the_sampler_alone_serves_any_optimiser_in_trainer(tmp_path):
    model = decoder()
    sampler = LayerSampler(model, mode="uniform", active=2, interval=2)
    trainer(model, tmp_path, torch.optim.AdamW(model.parameters()), sampler.callback()).train()
    assert sampler.steps == 6
    assert all(p.requires_grad for p in model.parameters())


def test_models_without_blocks_or_linear_layers_are_named():
    with pytest.raises(ValueError, match="layers_attribute"):
        OwLore(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="no linear layer"):
        OwLore(nn.Sequential(nn.Embedding(4, 4)), mode="uniform")


def test_too_many_active_blocks_are_named():
    with pytest.raises(ValueError, match=r"active=9 is outside 1\.\.6"):
        OwLore(decoder(), active=9)


def test_the_rank_is_a_sixteenth_of_the_width_unless_told():
    assert OwLore(llama(), in_backward=False).param_groups[0]["rank"] == 1  # of 16
    wide = OwLore(bert(hidden=64), in_backward=False)
    assert wide.param_groups[0]["rank"] == 4
    assert OwLore(llama(), rank=3, in_backward=False).param_groups[0]["rank"] == 3


def test_a_tied_embedding_gets_its_gradient_in_one_buffer_until_release():
    model = gpt2().train()
    optimizer = OwLore(model)
    assert type(model.lm_head) is not nn.Linear
    optimizer.release()
    assert type(model.lm_head) is nn.Linear
