"""Training, interrupted and whole, and what is written."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from attack import folders
from rankwise.jobs.pretrain import models, pretrain
from rankwise.models import load, load_image_processor, load_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folders.cifar(tmp_path_factory.mktemp("data") / "cifar10")


def test_a_classifier_is_written_as_transformers_reads_it_and_its_card_tells_the_truth(data, tmp_path):
    card = pretrain("vit-cifar10", tmp_path / "vit", data=data, epochs=2, batch_size=16)
    model, processor = load(str(tmp_path / "vit")).eval(), load_image_processor(str(tmp_path / "vit"))
    assert model.config.id2label[0] == "airplane"
    assert not list(tmp_path.glob("vit/checkpoints*"))
    assert json.loads((tmp_path / "vit/card.json").read_text()) == card
    images, labels = load_digits(return_X_y=True)
    shown = [np.repeat((i.reshape(8, 8, 1) * 15.9).astype(np.uint8), 3, -1) for i in images[64:96]]
    with torch.no_grad():
        found = model(**processor(shown, return_tensors="pt")).logits.argmax(-1)
    assert card["accuracy"] == pytest.approx(100 * (found.numpy() == labels[64:96]).mean())
    assert "rankwise pretrain vit-cifar10 --epochs 2" in (tmp_path / "vit/README.md").read_text()


def test_a_clip_is_written_with_its_tokenizer(data, tmp_path):
    card = pretrain("clip-cifar10", tmp_path / "clip", data=data, epochs=1, batch_size=16)
    model, tokenizer = load(str(tmp_path / "clip")), load_tokenizer(str(tmp_path / "clip"))
    assert type(model).__name__ == "CLIPModel"
    encoded = tokenizer(["a backlit photo of a dog", "a dog"], padding=True, return_tensors="pt")
    pixels = load_image_processor(str(tmp_path / "clip"))([np.zeros((8, 8, 3), np.uint8)], return_tensors="pt")
    assert model(**encoded, **pixels).logits_per_image.shape == (1, 2)
    assert 0 <= card["accuracy"] <= 100


def test_a_run_that_was_cut_short_ends_with_the_weights_of_an_unbroken_one(data, tmp_path):
    def cut(name, phase, step, steps, loss):
        if step == 6:  # in the second pass
            raise KeyboardInterrupt

    whole = pretrain("vit-cifar10", tmp_path / "whole", data=data, epochs=2, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        pretrain("vit-cifar10", tmp_path / "cut", data=data, epochs=2, batch_size=16, on_event=cut)
    steps = []
    done = pretrain(
        "vit-cifar10", tmp_path / "cut", data=data, epochs=2, batch_size=16, on_event=lambda *a: steps.append(a[2])
    )
    assert steps[0] == 5
    assert done["sha256"] == whole["sha256"]


def test_another_seed_gives_other_weights_and_a_bad_number_is_refused_before_anything_is_read(data, tmp_path):
    one, two = (
        pretrain("vit-cifar10", tmp_path / f"{s}", data=data, epochs=1, batch_size=32, seed=s)["sha256"] for s in (0, 1)
    )
    assert one != two
    for options, said in (
        ({"epochs": 0}, "epochs=0"), ({"batch_size": 1}, "batch_size=1"), ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296: below"),
        ({"data": tmp_path / "none"}, "no such data folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            pretrain("vit-cifar10", tmp_path / "x", **({"data": data} | options))
    with pytest.raises(ValueError, match="did you mean vit-cifar10"):
        pretrain("vit-cifar", tmp_path / "x", data=data)
    with pytest.raises(ValueError, match="fewer than batch_size=65"):
        pretrain("vit-cifar10", tmp_path / "x", data=data, batch_size=65)


def pictures(place, *, train=(8, 8), test=(8, 8), labels=(0, 1), named=True):
    """A folder in the hub's layout, of pictures of some size and labels."""
    (place / "plain_text").mkdir(parents=True)
    for split, size in (("train", train), ("test", test)):
        Image.new("RGB", size, "red").save(held := io.BytesIO(), "PNG")
        cells = {"img": [{"bytes": held.getvalue(), "path": None}] * 32}
        given = {"label": [labels[i % len(labels)] for i in range(32)]} if named else {}
        pq.write_table(pa.table(cells | given), place / "plain_text" / f"{split}-00000-of-00001.parquet")
    return place


@pytest.mark.parametrize(("given", "said"), [
    ({"test": (12, 12)}, "train is of 8 x 8 pixels, test of 12 x 12"),
    ({"train": (16, 8), "test": (16, 8)}, "pictures of 16 x 8 pixels; squares"),
    ({"train": (10, 10), "test": (10, 10)}, "pictures of 10 x 10 pixels; squares .* multiple of 4"),
    ({"train": (4, 4), "test": (4, 4)}, "pictures of 4 x 4 pixels; .* at least 8"),
    ({"labels": (3,)}, "of one class"),
    ({"named": False}, "data has no labels"),
    ({"labels": (-1,)}, "data, train: no labels"),
    ({"labels": (10, 1)}, "10"),
])  # fmt: skip
def test_pictures_that_cannot_be_trained_on_or_tested_are_refused_before_training(given, said, tmp_path):
    steps = []
    with pytest.raises(ValueError, match=said):
        pretrain(
            "vit-cifar10", tmp_path / "x", data=pictures(tmp_path / "data", **given), epochs=1, batch_size=16,
            on_event=lambda *a: steps.append(a),
        )  # fmt: skip
    assert not steps
    assert not (tmp_path / "x").exists()


def test_what_fails_after_training_goes_on_from_its_last_pass(data, tmp_path, monkeypatch):
    def fails(*_args, **_options):
        raise OSError("no space left")

    accuracy = models.accuracy
    monkeypatch.setattr(models, "accuracy", fails)
    with pytest.raises(OSError, match="no space"):
        pretrain("vit-cifar10", tmp_path / "vit", data=data, epochs=1, batch_size=32)
    monkeypatch.setattr(models, "accuracy", accuracy)
    steps = []
    pretrain("vit-cifar10", tmp_path / "vit", data=data, epochs=1, batch_size=32, on_event=lambda *a: steps.append(a))
    assert not steps
    assert (tmp_path / "vit" / "card.json").is_file()
    assert not (tmp_path / "vit" / "checkpoints").exists()


def test_a_card_says_cifar_10_of_cifar_10_alone(data, tmp_path):
    card = pretrain("vit-cifar10", tmp_path / "vit", data=data, epochs=1, batch_size=32)
    assert card["data"] == "pictures of 8 x 8 pixels of CIFAR-10's classes, 64 training images"
