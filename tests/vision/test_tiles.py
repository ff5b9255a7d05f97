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
    shows_nothing,
    shrunk,
    sides,
    spread,
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


def dark(x):
    """A teacher that is the surer of class 1 the less it sees."""
    black = -x.mean((1, 2, 3))
    return torch.stack([-black, black], 1)


def cornered(count=8, size=16, seed=0):
    """Black pictures with something in a corner, which many of their squares lack."""
    pictures = torch.zeros(count, 3, size, size)
    pictures[..., : size // 2, : size // 2] = torch.rand(
        count, 3, size // 2, size // 2, generator=torch.Generator().manual_seed(seed)
    )
    return pictures


def by_the_published_rule(pictures, teacher, *, crops, keep, seed):
    """RDED's choice, written once more: the surest square of each picture, the surest of those first."""
    rng = np.random.default_rng(seed)
    drawn = torch.stack([random_squares(p, crops, rng) for p in pictures])
    losses = torch.stack([-teacher(squares).log_softmax(1)[:, 1] for squares in drawn])
    least, columns = losses.min(1)
    return torch.stack([drawn[i, columns[i]] for i in sorted(range(len(drawn)), key=lambda i: float(least[i]))[:keep]])


def test_a_black_square_never_wins_where_another_shows_something():
    pictures = cornered()
    options = {"crops": 20, "keep": 5}
    empty = best_squares(pictures, 1, dark, rng=np.random.default_rng(0), empty=True, **options)
    assert spread(empty).max() == 0  # as published: nothing but black
    found = best_squares(pictures, 1, dark, rng=np.random.default_rng(0), **options)
    assert spread(found).min() >= 0.25 * spread(pictures).min() > 0


def test_pictures_without_a_square_that_shows_something_come_last_in_their_class():
    pictures = cornered(4)
    pictures[:2] = 0
    found = best_squares(pictures, 1, dark, crops=12, keep=3, rng=np.random.default_rng(0))
    assert (spread(found) > 0).tolist() == [True, True, False]


def test_of_pictures_of_one_colour_the_published_squares_stay():
    pictures = torch.rand(5, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 9, 9)
    options = {"crops": 3, "keep": 5}
    ours, theirs = (
        best_squares(pictures, 1, dark, rng=np.random.default_rng(0), empty=e, **options) for e in (False, True)
    )
    assert ours.shape == (5, 3, 9, 9)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_with_empty_squares_the_choice_is_the_published_one(seed):
    pictures = cornered(seed=seed)
    found = best_squares(pictures, 1, dark, crops=4, keep=6, rng=np.random.default_rng(seed), empty=True)
    assert torch.equal(found, by_the_published_rule(pictures, dark, crops=4, keep=6, seed=seed))


def test_where_every_square_shows_something_the_choice_is_the_published_one():
    pictures = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = best_squares(pictures, 1, dark, crops=4, keep=4, rng=np.random.default_rng(3))
    assert torch.equal(found, by_the_published_rule(pictures, dark, crops=4, keep=4, seed=3))


def test_what_comes_last_is_still_in_order_and_counted():
    losses = torch.tensor([[0.1, 0.3], [0.2, 0.4], [0.9, 0.8]])
    last = torch.tensor([[True, True], [True, False], [True, True]])
    rows, columns = chosen(losses, 3, last=last)
    assert rows.tolist() == [1, 0, 2]
    assert columns.tolist() == [1, 0, 1]


def test_a_square_shows_nothing_below_a_quarter_of_its_pictures_spread():
    checked = torch.tensor([0.0, 1.0]).repeat(4, 2).expand(1, 3, 4, 4)  # spread 1/2
    squares = torch.stack([0.5 + share * (checked[0] - 0.5) for share in (0.0, 0.24, 0.26, 1.0)])[None]
    assert shows_nothing(squares, checked).tolist() == [[True, True, False, False]]
    tinted = torch.tensor([0.1, 0.5, 0.9]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)  # a colour is no sight
    assert shows_nothing(tinted, checked).tolist() == [[True]]


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
