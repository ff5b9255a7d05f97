import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rankwise.optim import GaLoreAdamW, galore_groups
from rankwise.optim.tied import gather_in_place
from small_models import gpt2, llama


def tied_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=True,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).train()


IDS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [tied_llama, lambda: gpt2().train()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_numbers(make, dtype):
    plain, gathered = make().to(dtype), make().to(dtype)
    gather_in_place(gathered)
    for model in (plain, gathered):
        model(input_ids=IDS, labels=IDS).loss.backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
    for a, b in zip(plain.parameters(), gathered.parameters(), strict=True):
        assert b.grad.layout == torch.strided
        torch.testing.assert_close(a.grad, b.grad, **tolerance)


def test_gradients_accumulate_over_passes_and_under_autocast():
    plain, gathered = tied_llama(), tied_llama()
    gather_in_place(gathered)
    for model in (plain, gathered):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
    torch.testing.assert_close(
        gathered.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=2e-2, atol=2e-3
    )  # bfloat16 products


def test_undone_it_is_as_before():
    model = tied_llama()
    gather_in_place(model)()
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding
    model.model.embed_tokens(IDS).sum().backward()
    assert not model.lm_head.weight.grad.is_sparse


def test_models_that_tie_nothing_are_left_alone():
    model = llama()
    gather_in_place(model)
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding


def test_the_embeddings_part_comes_sparse_and_the_heads_into_the_gradient_itself():
    model = tied_llama()
    gather_in_place(model)
    W = model.lm_head.weight
    model.model.embed_tokens(IDS).sum().backward()
    assert W.grad.is_sparse
    W.grad = None
    kept = model.lm_head(torch.ones(2, 16)).sum()
    W.grad = buffer = torch.full_like(W, 3.0)
    kept.backward()
    assert W.grad is buffer
    torch.testing.assert_close(buffer, torch.full_like(W, 3.0 + 2.0))


def test_the_optimiser_updates_a_tied_weight_once_with_the_whole_gradient():
    model, twin = tied_llama(), tied_llama()
    optimizer = GaLoreAdamW(galore_groups(model, rank=2), lr=1e-2)
    optimizer.step_in_backward(model=model)
    reference = torch.optim.AdamW([twin.lm_head.weight], lr=1e-2, weight_decay=0, eps=1e-6)
    twin(input_ids=IDS, labels=IDS).loss.backward()
    reference.step()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert int(optimizer.state[model.lm_head.weight]["step"]) == 1
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.lm_head.weight, twin.lm_head.weight, rtol=1e-4, atol=1e-5)


def test_the_model_still_saves_and_loads(tmp_path):
    model = gpt2()
    gather_in_place(model)
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
