"""The models that the project trained: what their cards say is so."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise.data import read_images
from rankwise.data.looks import article, backlit
from rankwise.files import content_of
from rankwise.jobs.pretrain.training import normalised
from rankwise.models import BUNDLED, load, load_image_processor, load_tokenizer, model_fingerprint
from rankwise.models.names import TRAINED

CIFAR10 = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[3] / "shared/data")) / "cifar10"
NAMES = [name for name, bundled in BUNDLED.items() if bundled.archive is None]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_the_weights_that_lie_beside_it(name):
    card = json.loads((TRAINED / name / "card.json").read_text())
    assert card["sha256"] == content_of(TRAINED / name / "model.safetensors")
    assert card["parameters"] == sum(p.numel() for p in load(name).parameters())
    assert card["sha256"] in (TRAINED / name / "README.md").read_text()
    assert model_fingerprint(name) == model_fingerprint(str(TRAINED / name))


def test_all_weights_take_6_mb():
    assert sum(f.stat().st_size for f in TRAINED.rglob("*") if f.is_file()) < 6e6


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not there")
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("vit")])
def test_the_first_thousand_test_images_are_named_as_often_as_the_card_says(name):
    images = read_images("cifar10", split="test", data=CIFAR10).head(1000)
    model, processor = load(name).eval(), load_image_processor(name)
    pixels = processor([images[i] for i in range(len(images))], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        right = model(pixels).logits.argmax(-1).numpy() == images.labels
    card = json.loads((TRAINED / name / "card.json").read_text())
    assert abs(100 * np.mean(right) - card["accuracy"]) < 4  # three standard errors of 1,000
    assert [model.config.id2label[i] for i in range(10)] == list(images.label_names)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not there")
def test_the_clip_names_classes_and_looks():
    images = read_images("cifar10", split="test", data=CIFAR10).head(500)
    pixels = torch.from_numpy(np.stack([images[i] for i in range(len(images))])).permute(0, 3, 1, 2).float() / 255
    model, tokenizer = load("clip-cifar10").eval(), load_tokenizer("clip-cifar10")

    def nearest(shown, captions):
        encoded = tokenizer(captions, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(pixel_values=normalised(shown), **encoded).logits_per_image.argmax(-1)

    named = nearest(pixels, [f"a photo of {article(name)}" for name in images.label_names])
    card = json.loads((TRAINED / "clip-cifar10/card.json").read_text())
    assert abs(100 * np.mean(named.numpy() == images.labels) - card["accuracy"]) < 6  # three standard errors of 500
    looks = ["a well-lit photo", "a backlit photo"]
    assert nearest(pixels, looks).float().mean() < 0.1
    assert nearest(backlit(pixels, torch.Generator().manual_seed(0)), looks).float().mean() > 0.9
