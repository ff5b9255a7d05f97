"""Squares that a teacher names best, and pictures made of them; the update of their pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.vision.distilled.tiles import (
    as_bytes,
    best_squares,
    chosen,
    random_squares,
    scaled,
    shrunk,
    sides,
    tiled,
)
from rankwise.vision.distilled.update import lost, updated


def test_the_lowest_square_of_each_picture_stays_and_the_lowest_pictures_come_first():
    losses = torch.tensor([[3.0, 2.0], [1.0, 4.0], [9.0, 0.5]])  # 3 pictures x 2 squares
    rows, columns = chosen(losses, 2)
    assert rows.tolist() == [2, 1]
    assert columns.tolist() == [1, 0]


def test_among_equals_the_first_stays():
    rows, columns = chosen(torch.ones(4, 3), 3)
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [0, 0, 0]


@given(st.integers(1, 40), st.integers(1, 6))
def test_tiles_fill_the_side_and_the_first_ones_have_the_pixel_more(size, tiles):
    found = sides(size, tiles)
    assert sum(found) == size
    assert found == sorted(found, reverse=True)
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize(("size", "tiles"), [(8, 2), (7, 2), (9, 3), (8, 3), (6, 1)])
def test_the_first_squares_are_the_upper_left_tiles_row_by_row(size, tiles):
    greys = torch.arange(tiles * tiles * 2).float()  # two pictures: square k of picture i is number 2k + i
    squares = greys.view(-1, 1, 1, 1).expand(-1, 3, size, size)
    found = tiled(shrunk(squares, tiles))
    assert found.shape == (2, 3, size, size)
    ends = np.cumsum([0, *sides(size, tiles)])
    for i in range(2):
        for k in range(tiles * tiles):
            r, c = divmod(k, tiles)
            tile = found[i, :, ends[r] : ends[r + 1], ends[c] : ends[c + 1]]
            torch.testing.assert_close(tile, torch.full_like(tile, 2 * k + i))


def test_a_teacher_that_looks_for_white_chooses_the_white_squares():
    pictures = torch.zeros(6, 3, 8, 8)
    pictures[2], pictures[4] = 1.0, 0.9

    def teacher(x):
        white = x.mean((1, 2, 3))
        return torch.stack([-white, white], 1)

    found = best_squares(pictures, 1, teacher, crops=2, keep=2, rng=np.random.default_rng(0))
    assert found.mean((1, 2, 3)).tolist() == pytest.approx([1.0, 0.9])


def test_squares_are_of_the_picture_at_its_size_and_the_seed_decides():
    picture = torch.rand(3, 9, 12)
    one, two, other = (random_squares(picture, 5, np.random.default_rng(s)) for s in (0, 0, 1))
    assert one.shape == (5, 3, 9, 9)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert picture.min() <= one.min()
    assert one.max() <= picture.max()


def test_pixels_are_rounded_and_never_wrap():
    assert as_bytes(torch.tensor([-0.2, 0.0, 0.499 / 255, 0.6 / 255, 1.0, 1.3])).tolist() == [0, 0, 0, 1, 255, 255]


def test_what_lost_nothing_when_it_was_made_small_stays_as_it_is(convolutions):
    constant = torch.rand(4, 3, 1, 1)
    small, large = constant.expand(-1, -1, 4, 4), constant.expand(-1, -1, 8, 8)
    with torch.no_grad():
        assert float(lost(small, convolutions(large), convolutions, 8)) < 1e-10
    assert torch.allclose(updated(small, large, convolutions, steps=3), small, atol=1e-6)


def test_an_update_brings_tiles_nearer_to_their_squares_and_changes_pixels_alone(convolutions):
    before = {n: v.clone() for n, v in convolutions.state_dict().items()}
    large = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = scaled(large, 4, 4)
    found = updated(small, large, convolutions, steps=20)
    with torch.no_grad():
        goal = convolutions(large)
        assert lost(found, goal, convolutions, 8) < 0.7 * lost(small, goal, convolutions, 8)
    assert found.min() >= 0
    assert found.max() <= 1
    assert all(torch.equal(v, before[n]) for n, v in convolutions.state_dict().items())
    assert all(p.grad is None for p in convolutions.parameters())
