"""Caption loss and tokenizer of the small CLIP."""

import torch
from torch.nn import functional as F

from rankwise.jobs.pretrain import models
from rankwise.jobs.pretrain.models import CaptionLoss, accuracy, caption_tokenizer, vit

CLASSES = ["cat", "dog"]


def test_the_tokenizer_knows_the_captions_words_whole_and_spells_any_other():
    tokenizer = caption_tokenizer(CLASSES)
    assert tokenizer.tokenize("a backlit photo of a cat") == [
        f"{w}</w>" for w in ["a", "backlit", "photo", "of", "a", "cat"]
    ]
    for text in ("a xylophone, 3 km away: très-bien", "über 東"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_the_loss_is_clips_where_every_caption_is_one_images_own(monkeypatch):
    tokenizer = caption_tokenizer(CLASSES)
    model = models.clip(tokenizer, 8).eval()
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    monkeypatch.setattr(models, "in_looks", lambda x: (x, torch.zeros(2, dtype=torch.long)))
    monkeypatch.setattr(models, "captions", lambda classes, looks, labels: ["a cat", "a dog"])
    monkeypatch.setattr(models, "SMOOTHING", 0.0)
    encoded = tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt")
    theirs = model(pixel_values=models.normalised(images), **encoded, return_loss=True).loss
    torch.testing.assert_close(CaptionLoss(tokenizer, CLASSES)(model, images, labels), theirs)


def test_images_that_share_a_caption_are_all_its_own(monkeypatch):
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0], [1.0, 0.0]])

    class Model:
        def __call__(self, **_):
            return type("Out", (), {"logits_per_image": logits})

    monkeypatch.setattr(models, "in_looks", lambda x: (x, torch.zeros(3, dtype=torch.long)))
    monkeypatch.setattr(models, "captions", lambda *_: ["a cat", "a dog", "a cat"])
    monkeypatch.setattr(models, "SMOOTHING", 0.0)
    found = CaptionLoss(caption_tokenizer(CLASSES), CLASSES)(Model(), torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 0]))
    rows, columns = F.log_softmax(logits, 1), F.log_softmax(logits, 0)
    to_caption = -(rows[0, 0] + rows[1, 1] + rows[2, 0]) / 3
    to_image = -((columns[0, 0] + columns[2, 0]) / 2 + columns[1, 1]) / 2
    torch.testing.assert_close(found, (to_caption + to_image) / 2)


def test_accuracy_counts_what_is_named_right():
    model = vit(CLASSES, 8)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([1.0, 0.0])
    images = torch.zeros(10, 8, 8, 3, dtype=torch.uint8)
    assert accuracy(model, images, torch.tensor([0] * 7 + [1] * 3)) == 70
