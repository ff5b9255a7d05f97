"""Losses beside the published formula with masked columns, and accuracies by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipConfig, SiglipModel, T5Config, T5EncoderModel, T5Model

from rankwise.continual import Classifier, ImageText, LanguageModel, SentenceText, objective_for
from rankwise.continual.objectives import two_way_loss
from small_models import bert, clip, gpt2, llama, vit


class Words:
    """A tokenizer: each class name is one number between the start and the end."""

    def __call__(self, texts, **options):
        ids = torch.tensor([[47, int("".join(c for c in t if c.isdigit())), 48] for t in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def published(logits, labels, seen, current):
    """Image CE over all columns with seen ones at -∞; text CE with rows of all classes, seen ones without targets."""
    masked = logits.clone()
    masked[:, :seen] = float("-inf")
    image = F.cross_entropy(masked, labels + seen)
    targets = torch.zeros(seen + current, len(logits))
    targets[labels + seen, torch.arange(len(labels))] = 1
    text = -(targets * F.log_softmax(logits.mT, 1)).sum(1).mean()
    return image + text


@pytest.mark.parametrize("seen", [0, 2, 5])
def test_the_two_way_loss_is_the_published_one_with_seen_classes_masked(seen):
    logits, labels = torch.randn(6, seen + 3), torch.tensor([0, 2, 1, 1, 0, 2])
    found = two_way_loss(logits[:, seen:], labels, all_classes=seen + 3)
    torch.testing.assert_close(found, published(logits, labels, seen, 3))


def test_normalised_the_text_term_is_a_mean_over_pictures_whatever_was_seen():
    model, batch = clip(), {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 1, 0])}
    losses = {n: ImageText(tokenizer=Words(), normalise_text_loss=n) for n in (False, True)}
    few, many = ([losses[n].loss(model, batch, ["1", "2"], seen).item() for n in (False, True)] for seen in (0, 6))
    assert few[1] == many[1]
    assert few[0] > many[0]
    logits = losses[True].logits(model, batch, ["1", "2"])
    to_image = F.cross_entropy(logits, batch["labels"]) - few[1]
    assert to_image.item() == pytest.approx(
        F.log_softmax(logits, 0)[[0, 1, 2, 3], batch["labels"]].mean().item(), abs=1e-5
    )


def test_pictures_and_captions_are_those_of_the_model():
    model = clip()
    batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 1, 0])}
    words = Words()(["a photo of a 5", "a photo of a 7"])
    expected = model(pixel_values=batch["pixel_values"], **words).logits_per_image
    torch.testing.assert_close(ImageText(tokenizer=Words()).logits(model, batch, ["5", "7"]), expected)


def test_masked_classes_get_no_gradient_and_no_columns():
    model, labels = vit(), torch.tensor([0, 1])
    model.config.label2id = {str(i): i for i in range(5)}
    batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": labels}
    Classifier().loss(model, batch, ["3", "1"], 2).backward()
    rows = model.classifier.weight.grad.abs().sum(1)
    assert (rows > 0).tolist() == [False, True, False, True, False]


def test_a_classifier_without_classes_uses_all_outputs():
    model, batch = bert(), {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor([1, 0])}
    expected = F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"])
    torch.testing.assert_close(Classifier().loss(model, batch, (), 0), expected)


def test_answers_are_chosen_among_all_classes():
    class Fixed(nn.Module):
        config = type("", (), {"label2id": {"a": 0, "b": 1, "c": 2}})

        def forward(self, x):
            return type("", (), {"logits": x})

    batch = {"x": torch.tensor([[1.0, 5, 3], [4, 1, 9], [2, 1, 0]]), "labels": torch.tensor([0, 0, 1])}
    right = Classifier().right
    assert right(Fixed(), batch, ["b", "a"], ["a", "b"]).tolist() == [True, False, True]
    assert right(Fixed(), batch, ["b", "a"], ["c", "b", "a"]).tolist() == [True, False, True]
    assert right(Fixed(), batch, ["c", "a"], ["a", "b", "c"]).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="unknown class 'd'"):
        right(Fixed(), batch, ["a", "d"], ["a", "b"])
    with pytest.raises(ValueError, match="unknown class 'd'"):
        Classifier().loss(Fixed(), batch, ["a", "d"], 0)


def test_a_sentence_encoder_averages_over_tokens_that_are_no_padding():
    model = bert().bert
    ids, mask = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 1, 1, 0]])
    objective = SentenceText(tokenizer=Words())
    hidden = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(
        objective.items(model, {"input_ids": ids, "attention_mask": mask}), hidden[:, :3].mean(1)
    )
    logits = objective.logits(model, {"input_ids": ids, "attention_mask": mask}, ["1", "2"])
    assert logits.abs().max() <= 20.0001


def test_a_language_model_is_judged_on_the_tokens_that_are_asked():
    model, ids = gpt2(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    said = model(ids).logits.argmax(-1)
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 3] = said[0, 1], (said[1, 2] + 1) % 50
    assert LanguageModel().right(model, {"input_ids": ids, "labels": labels}, (), ()).tolist() == [True, False]


def test_the_objective_follows_from_the_models_class():
    found = {
        type(m).__name__: type(objective_for(m, Words())).__name__
        for m in (clip(), bert(), bert().bert, vit(), gpt2(), llama())
    }
    assert found == {
        "CLIPModel": "ImageText", "BertForSequenceClassification": "Classifier", "BertModel": "SentenceText",
        "ViTForImageClassification": "Classifier", "GPT2LMHeadModel": "LanguageModel",
        "LlamaForCausalLM": "LanguageModel",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no objective for a Linear"):
        objective_for(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="pass its tokenizer"):
        objective_for(clip())


def test_a_caption_that_is_too_long_is_named():
    class Long(Words):
        def __call__(self, texts, **options):
            ids = torch.ones(len(texts), 40, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": ids}

    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"caption of '1' has 40 tokens; the model reads up to 16"):
        ImageText(tokenizer=Long()).loss(clip(), batch, ["1"], 0)
    with pytest.raises(ValueError, match="up to 32"):
        SentenceText(tokenizer=Long()).names(bert().bert, ["1"])


def test_models_that_read_no_texts_and_those_with_a_decoder_are_no_sentence_encoders():
    t5 = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    for model in (vit().vit, T5Model(t5)):
        with pytest.raises(ValueError, match=f"no objective for a {type(model).__name__}"):
            objective_for(model, Words())
    assert isinstance(objective_for(T5EncoderModel(t5), Words()), SentenceText)


def test_a_tower_whose_captions_must_be_padded_is_refused_by_name():
    side = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = SiglipModel(SiglipConfig(text_config={"vocab_size": 9} | side, vision_config={"image_size": 32} | side))
    with pytest.raises(ValueError, match="no objective for a SiglipModel"):
        objective_for(model, Words())


def test_a_classifier_refuses_one_class_alone_whose_loss_is_zero():
    model = vit()
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="one class alone, 'LABEL_1'"):
        Classifier().loss(model, batch, ["LABEL_1"], 0)


@pytest.mark.parametrize("kind", [ImageText, SentenceText])
def test_a_template_takes_the_class_once_and_other_braces_as_they_are(kind):
    seen = []

    class Heard(Words):
        def __call__(self, texts, **options):
            seen.extend(texts)
            return super().__call__(texts)

    model = clip() if kind is ImageText else bert().bert
    kind(tokenizer=Heard(), template="{x} of {} {").names(model, ["1", "{2}"])
    assert seen == ["{x} of 1 {", "{x} of {2} {"]
    for template in ("no place", "{} and {}"):
        with pytest.raises(ValueError, match=r"needs \{\} once"):
            kind(tokenizer=Heard(), template=template)


def test_two_towers_one_of_which_has_no_pooler_are_refused_by_name():
    from transformers import BertConfig, BertModel, VisionTextDualEncoderModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sees = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False)
    reads = BertModel(BertConfig(vocab_size=50, **sizes))
    with pytest.raises(ValueError, match="a VisionTextDualEncoderModel whose ViTModel has no pooler: pass objective="):
        objective_for(VisionTextDualEncoderModel(vision_model=sees, text_model=reads), tokenizer=object())
