"""A CLIP's image tower as it sees pictures in [0, 1]."""

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.data import read_images
from rankwise.models import load, load_image_processor
from rankwise.vision.lit.towers import ImageTower, ResNetStages, open_clip_stages, resized
from small_models import clip as small_clip


@pytest.fixture(scope="module")
def tower():
    processor = load_image_processor("clip-cifar10")
    return ImageTower(load("clip-cifar10").eval(), processor.image_mean, processor.image_std)


@pytest.mark.parametrize("side", [32, 50, 96])
def test_preparation_is_the_processors_up_to_its_rounding_to_bytes(tower, side):
    rng = np.random.default_rng(side)
    picture = np.asarray(rng.integers(64, 192, (side, side, 3)), np.uint8)  # no overshoot is cut off
    theirs = load_image_processor("clip-cifar10")(picture, return_tensors="pt")["pixel_values"]
    ours = tower.prepared(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    assert float((ours - theirs).abs().max()) <= 1.01 / 255 / 0.2435  # one of 255 steps, in units of the deviation


def test_features_are_those_of_the_stock_model(tower):
    pictures = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        stock = tower.clip.get_image_features(pixel_values=tower.prepared(pictures)).pooler_output
        assert torch.allclose(tower(pictures).features, nn.functional.normalize(stock, dim=1), atol=1e-6)


def test_gradients_reach_every_pixel(tower):
    pictures = torch.rand(1, 3, 40, 56, requires_grad=True)
    (gradient,) = torch.autograd.grad(tower(pictures).features[0, 0], pictures)
    assert bool((gradient.abs().sum(1) > 0).all())


def test_stages_are_five_evenly_spaced_layers_the_embedded_patches_first():
    clip = small_clip(layers=8)
    tower = ImageTower(clip, (0.5,) * 3, (0.5,) * 3)
    assert tower.kept == [0, 2, 4, 6, 8]
    pixels = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        stages = tower(pixels).stages
        seen = clip.vision_model(pixel_values=tower.prepared(pixels), output_hidden_states=True).hidden_states
    for stage, i in zip(stages, tower.kept, strict=True):
        h = seen[i]
        expected = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(stage, expected, atol=1e-5)


def test_a_batch_is_what_its_pictures_are_one_by_one(tower):
    pictures = torch.rand(4, 3, 48, 48)
    with torch.no_grad():
        whole = tower(pictures).features
        single = torch.cat([tower(p[None]).features for p in pictures])
    assert torch.allclose(whole, single, atol=1e-5)


def test_without_antialiasing_pictures_are_made_smaller_otherwise():
    picture = torch.rand(1, 3, 64, 64)
    ours, theirs = (resized(picture, 16, antialias=a) for a in (True, False))
    assert float(ours.std()) < float(theirs.std())
    assert torch.equal(resized(picture, 64), picture)


class _Visual(nn.Module):
    """What open-clip's ResNets are made of, with known sums."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer1 = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1)
        self.layer2, self.layer3, self.layer4 = (nn.Conv2d(4, 4, 2, stride=2) for _ in range(3))


def test_a_resnets_stages_are_its_stem_and_its_four_layers():
    visual = _Visual()
    stages = ResNetStages(visual, 32)(torch.rand(2, 3, 40, 40))
    assert [tuple(s.shape[-2:]) for s in stages] == [(16, 16), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert torch.allclose(stages[1], visual.layer1(stages[0]))


def test_a_module_without_stages_is_refused():
    with pytest.raises(ValueError, match="Linear has no stem"):
        ResNetStages(nn.Linear(1, 1))


def test_a_resnet_needs_its_weights_named():
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match="RN101/openai"):
        open_clip_stages("RN101")


def test_real_pictures_can_be_seen(tower):
    digits = read_images("digits", split="train")
    with torch.no_grad():
        found = tower(torch.from_numpy(np.stack([digits[0], digits[1]])).permute(0, 3, 1, 2).float() / 255)
    assert found.features.shape == (2, 96)
