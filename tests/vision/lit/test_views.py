"""Augmentation as affine maps."""

import pytest
import torch

from rankwise.vision.lit.views import NETWORK_ZOOM, drawn, moved


def test_flips_and_transposition_are_exact():
    picture = torch.rand(1, 3, 9, 9)
    for linear, expected in (
        ([[1.0, 0], [0, -1]], picture.flip(2)),
        ([[0.0, 1], [1, 0]], picture.transpose(2, 3)),
        ([[1.0, 0], [0, 1]], picture),
    ):
        maps = torch.tensor([[[*row, 0.0] for row in linear]])
        assert torch.allclose(moved(picture, maps), expected, atol=1e-5)


def test_beyond_the_border_a_picture_is_reflected():
    picture = torch.rand(1, 3, 8, 8)
    out = moved(picture, torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]]]))  # half as large
    assert float(out.min()) >= float(picture.min()) - 1e-6
    assert float(out[..., 0, 0].sum()) > 0


def test_shares_of_what_is_drawn_are_as_said():
    maps = drawn(4000, NETWORK_ZOOM, torch.Generator().manual_seed(0))[:, :, :2]
    zoom = torch.linalg.det(maps).abs().sqrt()
    assert float((zoom - 1).abs().gt(1e-4).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(zoom.min()) >= 1 / 1.3 - 1e-4
    assert float(zoom.max()) <= 1 / 0.7 + 1e-4
    straight = ((maps.abs() < 1e-6).sum((1, 2)) == 2).float().mean()
    assert float(straight) == pytest.approx(0.7, abs=0.03)
    mirrored = torch.linalg.det(maps) < 0
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_seed_decides_every_draw():
    first, again, other = (drawn(5, NETWORK_ZOOM, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
