"""The map on a bounded copy, brought to full size."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rankwise.vision.lit.illumination import bounded, fitted, illumination_of, luma, strips


def test_a_small_picture_is_seen_as_it_is_and_a_large_one_bounded_in_proportion():
    small = torch.rand(1, 3, 40, 60)
    assert bounded(small, 60) is small
    assert bounded(torch.rand(1, 3, 900, 300), 512).shape[-2:] == (512, 171)
    assert bounded(torch.rand(1, 3, 3000, 5), 100).shape[-2:] == (100, 1)


def test_a_map_that_is_affine_in_luma_is_brought_to_full_size_exactly():
    picture = torch.rand(1, 3, 30, 45)
    light = torch.cat([part for _, part in strips(picture, fitted(picture, 0.5 * luma(picture) + 0.2, epsilon=0.0))], 2)
    assert torch.allclose(light, 0.5 * luma(picture) + 0.2, atol=2e-4)


def test_windows_at_borders_are_cut_not_filled():
    constant = torch.full((1, 1, 20, 20), 0.7)
    a, b = fitted(torch.rand(1, 3, 20, 20), constant)
    assert torch.allclose(a, torch.zeros_like(a), atol=1e-3)
    assert torch.allclose(b, constant, atol=1e-3)


def test_the_fit_is_least_squares_in_every_window():
    """One window that covers the whole picture, against numpy's polynomial fit."""
    copy = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    light = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    a, b = fitted(copy, light, radius=5, epsilon=0.0)
    slope, level = np.polyfit(luma(copy).flatten().numpy(), light.flatten().numpy(), 1)
    assert float(a[0, 0, 2, 2]) == pytest.approx(slope)
    assert float(b[0, 0, 2, 2]) == pytest.approx(level)


def test_epsilon_smooths_where_luma_hardly_varies():
    copy, light = 0.5 + 0.001 * torch.rand(1, 3, 20, 20), torch.rand(1, 1, 20, 20)
    a, _ = fitted(copy, light, epsilon=0.1)
    assert float(a.abs().max()) < 0.05


@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_strips_of_any_height_are_the_whole(rows):
    picture, affine = torch.rand(1, 3, 131, 90), (torch.rand(1, 1, 33, 22), torch.rand(1, 1, 33, 22))
    whole = torch.cat([part for _, part in strips(picture, affine, rows=131)], 2)
    assert torch.equal(torch.cat([part for _, part in strips(picture, affine, rows=rows)], 2), whole)


def test_what_is_interpolated_is_what_torch_interpolates():
    picture, low = torch.rand(1, 3, 67, 41), torch.rand(1, 1, 20, 13)
    found = torch.cat([part for _, part in strips(picture, (torch.zeros_like(low), low))], 2)
    assert torch.allclose(found, F.interpolate(low, (67, 41), mode="bilinear", align_corners=False), atol=1e-6)


def test_edges_of_a_large_picture_stay_sharp():
    picture = torch.zeros(1, 3, 256, 256)
    picture[..., 128:] = 0.8
    light = illumination_of(picture, lambda x: 0.2 + 0.7 * luma(x), most=64)
    step = float(light[0, 0, 100, 130] - light[0, 0, 100, 125])
    assert step > 0.7 * 0.8 * 0.8
    blurred = F.interpolate(0.2 + 0.7 * luma(bounded(picture, 64)), (256, 256), mode="bilinear", align_corners=False)
    assert float(blurred[0, 0, 100, 130] - blurred[0, 0, 100, 125]) < step


def test_the_map_is_not_below_zero():
    picture, down = torch.rand(1, 3, 80, 80), torch.full((1, 1, 20, 20), -1.0)
    assert float(min(part.min() for _, part in strips(picture, (torch.zeros_like(down), down)))) == 0
