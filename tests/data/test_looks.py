"""Looks of photographs, and the captions that name them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from rankwise.data.looks import (
    LOOKS,
    NAMES,
    PLAIN,
    article,
    backlit,
    blurry,
    captions,
    faded,
    in_looks,
    noisy,
    pixelated,
)


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_keeps_shape_and_range_and_is_decided_by_its_generator(name, images):
    one, again = (LOOKS[name](images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert one.shape == images.shape
    assert torch.equal(one, again)
    assert one.min() >= 0
    assert one.max() <= 1
    assert (one - images).abs().mean() > 0.02


def test_light_falls_and_rises_with_the_look():
    grey = torch.full((50, 3, 32, 32), 0.5)
    middle, corner = (slice(None), slice(None), 16, 16), (slice(None), slice(None), 0, 0)
    behind = backlit(grey)
    assert (behind[middle] < 0.25).all()
    assert (behind[corner] > 0.55).all()
    assert (LOOKS["dark"](grey) < 0.15).all()
    assert (LOOKS["overexposed"](grey) > 0.9).all()


def test_blur_is_a_gaussian_filter_of_a_width_between_1_and_1_6(images):
    blurred = blurry(images, torch.Generator().manual_seed(3))
    drawn = torch.rand(6, generator=torch.Generator().manual_seed(3)) * 0.6 + 1
    for image, seen, width in zip(images, blurred, drawn, strict=True):
        wanted = gaussian_filter(image.numpy(), (0, float(width), float(width)), mode="mirror", radius=(0, 4, 4))
        np.testing.assert_allclose(seen, wanted, atol=1e-5)


def test_grain_has_the_strength_that_was_drawn():
    grey = torch.full((4, 3, 64, 64), 0.5)
    grain = noisy(grey, torch.Generator().manual_seed(0)) - grey
    draw = torch.Generator().manual_seed(0)
    torch.randn(grey.shape, generator=draw)
    wanted = torch.rand(4, generator=draw) * 0.1 + 0.1
    torch.testing.assert_close(grain.flatten(1).std(1), wanted, rtol=0.03, atol=0)
    assert grain.mean().abs() < 0.005


def test_colour_goes_contrast_shrinks_and_blocks_are_means(images):
    grey = LOOKS["black and white"](images)
    red, green, blue = images.unbind(1)
    torch.testing.assert_close(grey[:, 2], 0.299 * red + 0.587 * green + 0.114 * blue)
    shrunk = faded(images).flatten(1).std(1) / images.flatten(1).std(1)
    assert ((shrunk > 0.25) & (shrunk < 0.45)).all()
    blocks = pixelated(images)
    torch.testing.assert_close(blocks[:, :, 5, 9], images[:, :, 4:8, 8:12].mean((2, 3)))


def test_half_of_a_batch_stays_as_it_was_and_each_index_names_what_was_done(images):
    many = images.repeat(200, 1, 1, 1)
    changed, which = in_looks(many, torch.Generator().manual_seed(0))
    same = (changed == many).flatten(1).all(1)
    assert torch.equal(same, which == 0)
    assert abs(same.float().mean() - 0.5) < 0.04
    assert set(which.tolist()) == set(range(len(NAMES)))
    grey = which == NAMES.index("black and white")
    assert torch.equal(changed[grey, 0], changed[grey, 1])


def test_captions_of_a_batch_have_one_form_and_are_true():
    looks, labels = torch.tensor([0, 1, 4]), torch.tensor([1, 0, 1])
    seen = {tuple(captions(["dog", "airplane"], looks, labels, torch.Generator().manual_seed(s))) for s in range(60)}
    backlit_dog, blurry_plane = "a backlit photo of a dog", "a blurry photo of an airplane"
    assert seen == {
        *((f"a {plain} photo of an airplane", backlit_dog, blurry_plane) for plain in PLAIN),
        ("a photo of an airplane", "a photo of a dog", "a photo of an airplane"),
        *((f"a {plain} photo", "a backlit photo", "a blurry photo") for plain in PLAIN),
    }
    assert article("overexposed") == "an overexposed"
