"""Views against closed forms, the standard library's colours, and the steps written out one by one."""

import colorsys
import math

import pytest
import torch
import torch.nn.functional as F

from rankwise.continual import Augmentation
from rankwise.continual.augmentation import (
    blurred,
    brightened,
    contrasted,
    grey,
    normal,
    raised,
    sampled,
    saturated,
    turned_hue,
    uniform,
)

NOTHING = {
    "brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "gamma": (1, 1), "hue": (0, 0), "degrees": 0,
    "shift": 0, "zoom": (1, 1), "blur": (1e-3, 1e-3), "flip": 0, "noise": 0,
}  # fmt: skip


def pictures(n=3, height=12, width=16):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_views_that_change_nothing_are_the_pictures():
    x = pictures()
    torch.testing.assert_close(Augmentation(**NOTHING)(x, 2, generator=seeded()), x.expand(2, -1, -1, -1, -1))


def test_a_seed_decides_every_draw_and_views_differ():
    x = pictures()
    one, same, other = (Augmentation()(x, 3, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.shape == (3, *x.shape)
    assert one.min() >= 0
    assert one.max() <= 1


def test_a_view_is_one_draw_for_all_its_pictures():
    x = pictures(1).expand(4, -1, -1, -1)
    view = Augmentation(noise=0)(x, 1, generator=seeded())[0]
    torch.testing.assert_close(view, view[:1].expand_as(view))


@pytest.mark.parametrize("by", [-0.06, 0.0, 0.03, 1 / 3, 0.9])
def test_hues_are_turned_as_the_standard_library_turns_them(by):
    x = pictures(1, 8, 8)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.5, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    found = turned_hue(x, by)
    for i, j in [(0, 0), (0, 1), (0, 2), *((a, b) for a in range(1, 8) for b in range(8))]:
        h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
        expected = torch.tensor(colorsys.hsv_to_rgb((h + by) % 1, s, v))
        torch.testing.assert_close(found[0, :, i, j], expected, atol=1e-5, rtol=0)


def test_colours_follow_their_formulas():
    x = pictures()
    luma = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(grey(x)[:, 0], luma)
    torch.testing.assert_close(brightened(x, 1.4), (1.4 * x).clamp(0, 1))
    torch.testing.assert_close(raised(x, 0.7), x**0.7)
    mean = luma.mean((1, 2))[:, None, None, None]
    torch.testing.assert_close(contrasted(x, 1.3), (1.3 * x - 0.3 * mean).clamp(0, 1))
    torch.testing.assert_close(saturated(x, 0.5), 0.5 * x + 0.5 * luma[:, None])


def _where(x, row, column):
    """The value at a place, bilinear, the edge going on beyond the border; by loops."""
    height, width = x.shape
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for r, wr in ((top, 1 - (row - top)), (top + 1, row - top)):
        for c, wc in ((left, 1 - (column - left)), (left + 1, column - left)):
            total += wr * wc * float(x[min(max(r, 0), height - 1), min(max(c, 0), width - 1)])
    return total


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_view_turned_shifted_zoomed_and_flipped_is_the_inverse_map_read_bilinearly(flip):
    x = pictures(1, 8, 10)
    options = NOTHING | {"degrees": 15, "shift": 0.25, "zoom": (0.9, 1.1), "flip": flip}
    augmentation = Augmentation(**options)
    found = augmentation(x, 1, generator=seeded(3))[0, 0]
    generator = seeded(3)
    augmentation._coloured(x, generator)
    turn = math.radians(-15 + 30 * float(torch.rand(1, generator=generator)))
    zoom = 0.9 + 0.2 * float(torch.rand(1, generator=generator))
    down, along = (round(s * (-0.25 + 0.5 * float(torch.rand(1, generator=generator)))) for s in (8, 10))
    for row in range(8):
        for column in range(10):
            a, b = (column - 4.5) * (-1 if flip else 1) - along, row - 3.5 - down
            # the inverse of a turn by `turn` and a scale by `zoom`
            back = (math.cos(turn) * a + math.sin(turn) * b) / zoom, (-math.sin(turn) * a + math.cos(turn) * b) / zoom
            expected = _where(x[0, 1], back[1] + 3.5, back[0] + 4.5)
            assert float(found[1, row, column]) == pytest.approx(expected, abs=2e-5)


def test_the_rim_is_what_lies_beyond_the_border():
    x = pictures(2, 6, 6)[None]
    same = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(sampled(x, same, rim=2)[0], F.pad(x[0], (2, 2, 2, 2), mode="replicate"))


@pytest.mark.parametrize("sigma", [0.001, 0.3, 0.5])
def test_a_blur_is_the_product_of_two_gaussians_of_five_taps(sigma):
    x = pictures(2, 9, 11)[None]
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2)
    kernel = (taps / taps.sum())[:, None] * (taps / taps.sum())
    expected = F.conv2d(x[0].flatten(0, 1)[:, None], kernel[None, None]).view(2, 3, 5, 7)
    torch.testing.assert_close(blurred(x, torch.tensor([sigma]))[0], expected, atol=1e-6, rtol=1e-5)


def test_noise_has_the_standard_deviation_asked_for():
    x = torch.full((4, 3, 32, 32), 0.5)
    seen = Augmentation(**NOTHING | {"noise": 0.005})(x, 4, generator=seeded())
    assert float((seen - x).std()) == pytest.approx(0.005, rel=5 / (2 * seen.numel()) ** 0.5)  # 5 standard errors


def test_draws_come_from_the_generator_alone():
    torch.manual_seed(0)
    a = normal(torch.empty(5), seeded()), uniform(torch.empty(5), seeded())
    torch.manual_seed(1)
    b = normal(torch.empty(5), seeded()), uniform(torch.empty(5), seeded())
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert uniform(torch.empty(5, dtype=torch.bfloat16), seeded()).dtype == torch.float32
