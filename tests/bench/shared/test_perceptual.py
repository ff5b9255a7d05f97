"""Perceptual distance: nothing for the same, more for more, and windows that see what they should."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from rankwise.bench.shared.perceptual import _features, _network, perceptual_distance


@pytest.fixture(scope="module")
def photograph():
    return load_sample_image("china.jpg")[:128, :192]


def test_the_same_picture_is_at_no_distance_and_order_does_not_matter(photograph):
    dark = (photograph * 0.4).astype(np.uint8)
    assert perceptual_distance(photograph, photograph) == 0
    assert perceptual_distance(photograph, dark) == pytest.approx(perceptual_distance(dark, photograph), rel=1e-6)


def test_more_noise_less_light_and_another_place_are_further_away(photograph):
    noise = np.random.default_rng(0).normal(size=photograph.shape)
    noisy = [np.clip(photograph + s * noise, 0, 255).astype(np.uint8) for s in (5, 20, 60)]
    darker = [(photograph * x).astype(np.uint8) for x in (0.8, 0.4, 0.1)]
    for series in (noisy, darker):
        distances = [perceptual_distance(photograph, p) for p in series]
        assert distances == sorted(distances)
        assert distances[0] > 0
    elsewhere = load_sample_image("flower.jpg")[:128, :192]
    assert perceptual_distance(photograph, elsewhere) > perceptual_distance(photograph, noisy[0])


def test_every_window_is_a_picture_of_the_network_as_it_expects_it(photograph):
    pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    seen = _features(pixels)
    network, mean, std = _network()
    own = pixels[:, :, 32:64, 64:96]  # second row, third of six columns
    with torch.no_grad():
        states = network(pixel_values=(own - mean) / std, output_hidden_states=True).hidden_states
    expected = torch.nn.functional.normalize(states[1][0, 1:], dim=-1)
    torch.testing.assert_close(seen[0][6 + 2], expected, atol=1e-5, rtol=1e-4)
    assert len(seen) == network.config.num_hidden_layers


def test_other_shapes_are_refused(photograph):
    with pytest.raises(ValueError, match="one shape is needed"):
        perceptual_distance(photograph, photograph[:, :128])
    with pytest.raises(ValueError, match="sides of 64"):
        perceptual_distance(photograph[:96], photograph[:96])
