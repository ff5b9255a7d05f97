"""What a student is shown: shuffled tiles, parts, mirrored, mixed."""

from itertools import permutations

import numpy as np
import pytest
import torch

from rankwise.vision import Views
from rankwise.vision.distilled.views import cropped, mixed, shuffled


def rng(seed=0):
    return np.random.default_rng(seed)


def test_of_two_by_two_tiles_four_of_the_24_orders_occur():
    quarters = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    found = shuffled(quarters.expand(200, 3, 4, 4), 2, rng())
    orders = {tuple(x[0, ::2, ::2].flatten().int().tolist()) for x in found}
    assert orders == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}
    assert orders < set(permutations(range(4)))


@pytest.mark.parametrize("size", [7, 8])
def test_shuffling_moves_pixels_and_loses_none(size):
    pixels = torch.rand(5, 3, size, size)
    found = shuffled(pixels, 2, rng())
    assert torch.equal(found.flatten(1).sort(1).values, pixels.flatten(1).sort(1).values)


def test_the_whole_picture_unmirrored_is_the_picture():
    pixels = torch.rand(3, 3, 8, 8)
    parts = cropped(pixels, (1.0, 1.0), False, FullAspect())
    torch.testing.assert_close(parts, pixels)


class FullAspect:
    """Draws the middle of every range: the whole area, an aspect of 1."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(size, (low + high) / 2)


def test_half_of_the_pictures_are_mirrored_and_none_where_left_and_right_differ():
    ramp = torch.linspace(0, 1, 8).expand(400, 3, 8, 8)
    for flip, low, high in ((True, 0.4, 0.6), (False, 0.0, 0.0)):
        found = cropped(ramp, (1.0, 1.0), flip, rng())
        falling = (found[:, 0, 4, 0] > found[:, 0, 4, -1]).float().mean()
        assert low <= falling <= high


def test_a_mixed_picture_is_a_rectangle_of_another_and_the_share_says_how_large():
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 10).clone()
    for seed in range(10):
        view = mixed(pixels, 1.0, rng(seed))
        for i in range(6):
            own = (view.pixels[i, 0] == i).float().mean()
            if view.other[i] != i:
                assert float(own) == pytest.approx(view.share)
            assert set(view.pixels[i].unique().tolist()) <= {float(i), float(view.other[i])}
    assert torch.equal(pixels[3], torch.full((3, 10, 10), 3.0))  # what was given stays


def test_the_seed_decides_a_view():
    pixels = torch.rand(4, 3, 8, 8)
    one, two, other = (Views(tiles=2)(pixels, rng(s)) for s in (0, 0, 1))
    assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(one.pixels, other.pixels)
    assert torch.equal(Views(scale=(1, 1), flip=False, cutmix=0)(pixels, rng()).pixels, pixels)


@pytest.mark.parametrize(
    "bad", [{"scale": (0.0, 1.0)}, {"scale": (0.6, 0.5)}, {"scale": (0.5, 1.1)}, {"tiles": 0}, {"cutmix": -1.0}]
)
def test_what_is_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Views(**bad)
