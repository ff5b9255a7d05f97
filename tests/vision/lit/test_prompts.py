"""Learned rows through a CLIP's own text tower."""

import pytest
import torch

from rankwise.models import load, load_tokenizer
from rankwise.vision.lit.prompts import LearnedPrompts, encoded, sixteen
from small_models import clip as small_clip

TOKENS = [47, 3, 3, 3, 48]  # first, words, last


@pytest.fixture(scope="module")
def clip():
    return small_clip()


def test_at_the_start_they_are_what_the_stock_tower_makes_of_the_tokens(clip):
    padded = torch.tensor([[*TOKENS, 49, 49]])
    with torch.no_grad():
        stock = clip.get_text_features(input_ids=padded, attention_mask=torch.tensor([[1] * 5 + [0] * 2])).pooler_output
        ours = LearnedPrompts.starting(clip, TOKENS)(clip)
    assert torch.allclose(ours[0], torch.nn.functional.normalize(stock[0], dim=0), atol=1e-6)
    assert torch.equal(ours[0], ours[1])


def test_the_bundled_clip_reads_sixteen_words_as_its_own_processor_would():
    model, tokens = load("clip-cifar10").eval(), sixteen(load_tokenizer("clip-cifar10"))
    assert len(tokens) == 18
    with torch.no_grad():
        stock = model.get_text_features(input_ids=torch.tensor([tokens])).pooler_output[0]
        ours = LearnedPrompts.starting(model, tokens)(model)[0]
    assert torch.allclose(ours, torch.nn.functional.normalize(stock, dim=0), atol=1e-5)


def test_gradients_reach_all_rows_up_to_the_last_token_and_none_beyond(clip):
    rows = torch.randn(2, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoded(clip, rows, 4).square().mul(torch.arange(8.0)).sum(), rows)
    assert bool((gradient[:, :5].abs().amax(-1) > 0).all())
    assert float(gradient[:, 5:].abs().max()) == 0


def test_the_prompts_are_the_only_parameters(clip):
    prompts = LearnedPrompts.starting(clip, TOKENS)
    assert [tuple(p.shape) for p in prompts.parameters()] == [(2, 5, 16)]
    assert clip.text_model.embeddings.token_embedding.weight.data_ptr() != prompts.rows.data_ptr()


def test_positions_are_added(clip):
    rows = torch.randn(1, 5, 16)
    with torch.no_grad():
        moved = encoded(clip, rows[:, [0, 2, 1, 3, 4]], 4)
        assert not torch.allclose(encoded(clip, rows, 4), moved, atol=1e-4)


def test_features_have_unit_length(clip):
    assert torch.allclose(LearnedPrompts.starting(clip, TOKENS)(clip).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("tokens", "said"), [([1] * 17, "17 tokens"), ([1, 2], "2 tokens"), ([1, 50, 2], "token 50")])
def test_tokens_that_the_tower_cannot_read_are_refused(clip, tokens, said):
    with pytest.raises(ValueError, match=said):
        LearnedPrompts.starting(clip, tokens)


def test_a_tokenizer_that_splits_the_word_is_refused():
    with pytest.raises(ValueError, match="5 tokens of this tokenizer"):
        sixteen(lambda text: {"input_ids": [1, 2, 3, 4, 5]})
