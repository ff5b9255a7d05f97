"""The encoder's features and its tuning: padding, chunks, the entropy of views."""

import numpy as np
import pytest
import torch

import small_models
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.continual.unlearning.views import entropy, tuned

TEXTS = ["a great film", "the number 3", "dull", "a quiet triumph of warmth the good bad poor fine film"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = small_models.saved(small_models.encoder(), tmp_path_factory.mktemp("encoder"))
    made = LayerEncoder(str(folder), max_length=8)
    made.tokenizer.add_special_tokens({"mask_token": "[CLS]"})  # of the small vocabulary
    return made


def test_states_are_means_over_a_texts_own_tokens_in_every_layer_but_the_embeddings(encoder):
    states, text = encoder(TEXTS[:1])
    batch = encoder.tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
    np.testing.assert_allclose(states[0], np.stack([h[0].mean(0).numpy() for h in hidden[1:]]), atol=1e-6)
    assert text.tolist() == [0]


def test_padding_changes_nothing(encoder):
    together = encoder(TEXTS[:3])[0]
    for i in range(3):
        np.testing.assert_allclose(together[i], encoder(TEXTS[i : i + 1])[0][0], atol=1e-6)


def test_a_long_text_comes_in_chunks(encoder):
    states, text = encoder(TEXTS)
    assert text.tolist() == [0, 1, 2, 3, 3]
    np.testing.assert_allclose(states[3], encoder(["a quiet triumph of warmth the"])[0][0], atol=1e-6)


def test_unknown_tokens_are_counted(encoder):
    assert encoder.unknown_share(["film film"]) == 0
    assert encoder.unknown_share(["фильм film"]) == pytest.approx(1 / 4)  # with [CLS] and [SEP]


def test_entropy_is_that_of_softmax_and_least_where_views_match_one_to_one():
    z1, z2 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.randn(3, 4)
    logits = (z1 @ z2.T).double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert entropy(z1, z2) == pytest.approx(float(-(p * np.log(p + 1e-5)).sum(1).mean()), abs=1e-5)
    apart = 50 * torch.eye(3)
    assert entropy(apart, apart) == pytest.approx(0, abs=1e-4)
    assert entropy(torch.zeros(3, 3), apart) == pytest.approx(np.log(3), abs=1e-3)
    assert entropy(z1, z2) > entropy(apart, apart)


def test_tuning_lowers_its_loss_and_leaves_the_encoder_alone(encoder):
    before = {n: p.clone() for n, p in encoder.model.named_parameters()}
    plain = encoder(TEXTS)[0]
    block = tuned(encoder, TEXTS * 3, steps=8, learning_rate=1e-2, seed=0)
    assert all(torch.equal(p, before[n]) for n, p in encoder.model.named_parameters())
    np.testing.assert_array_equal(encoder(TEXTS)[0], plain)
    assert {n.rpartition(".")[2] for n in block} == {"query", "key", "value"}
    assert np.abs(encoder(TEXTS, block)[0] - plain).max() > 1e-4
    again = tuned(encoder, TEXTS * 3, steps=8, learning_rate=1e-2, seed=0)
    assert all(torch.equal(block[n][1], again[n][1]) for n in block)
