"""Margins and sums by hand."""

import math

import pytest
import torch

from rankwise.vision.lit.losses import backlit_probability, hinge, identity_loss, rank_loss


def test_a_score_is_the_softmax_of_a_hundred_cosines_at_the_backlit_prompt():
    image, prompts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.62, 0.7846]])
    assert float(backlit_probability(image, prompts)) == pytest.approx(1 / (1 + math.exp(100 * 0.02)), rel=1e-4)


def test_with_prompts_swapped_a_score_is_its_complement():
    images, prompts = torch.nn.functional.normalize(torch.randn(5, 4), dim=1), torch.randn(2, 4)
    swapped = backlit_probability(images, prompts.flip(0), 3.0)
    assert torch.allclose(backlit_probability(images, prompts, 3.0), 1 - swapped, atol=1e-6)


def test_a_hinge_is_zero_from_its_margin_on_and_grows_by_what_is_missing():
    higher, lower = torch.tensor([0.8]), torch.tensor([0.3])
    assert float(hinge(higher, lower, 0.5)) == pytest.approx(0, abs=1e-7)
    assert float(hinge(higher, lower, 0.6)) == pytest.approx(0.1)
    assert float(hinge(lower, higher, 0.5)) == pytest.approx(1.0)


def test_the_mean_of_a_hinge_is_over_pictures_after_the_cut():
    assert float(hinge(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), 0.4)) == pytest.approx(0.2)


# S of the dark picture, of results, of the well-lit one; the sum by hand
BY_HAND = [
    (0.9, [], 0.1, 0.2),  # 1 - .8
    (0.9, [0.5], 0.1, 0.1 + 0.5 + 0.0),  # .9 - .8, .9 - .4, .2 - .4
    (0.9, [0.2], 0.1, 0.1 + 0.2 + 0.1),
    (0.9, [0.5, 0.45], 0.1, 0.1 + 0.5 + 0.05 + 0.0),  # the third: .1 - .05
    (0.9, [0.3, 0.4], 0.38, 0.38 + 0.3 + 0.2 + 0.08),  # .9 - .52, .9 - .6, .1 + .1, .1 - .02
]


@pytest.mark.parametrize(("dark", "results", "well", "total"), BY_HAND)
def test_margins_of_two_three_and_four_pictures(dark, results, well, total):
    found = rank_loss(torch.tensor([dark]), [torch.tensor([r]) for r in results], torch.tensor([well]))
    assert float(found) == pytest.approx(total, abs=1e-6)


def test_without_results_the_pull_never_ends_for_probabilities_below_one():
    dark, well = torch.tensor([0.99]), torch.tensor([0.01])
    assert float(rank_loss(dark, [], well)) > 0
    assert float(rank_loss(dark, [torch.tensor([0.05])], well)) == pytest.approx(0.16)


def test_more_than_two_results_are_refused():
    one = torch.tensor([0.5])
    with pytest.raises(ValueError, match="3 results"):
        rank_loss(one, [one] * 3, one)


def test_equal_pictures_have_no_identity_loss():
    stages = [torch.randn(3, 4, 5), torch.randn(3, 2)]
    assert float(identity_loss(stages, stages, [1.0, 0.5])) == 0


def test_an_identity_loss_is_a_weighted_sum_of_means_over_elements():
    source = [torch.zeros(2, 3), torch.zeros(2, 2, 2)]
    result = [torch.tensor([[1.0, 2, 3], [0, 0, 0]]), torch.full((2, 2, 2), 2.0)]
    assert float(identity_loss(result, source, [1.0, 0.5])) == pytest.approx(14 / 3 / 2 + 0.5 * 4)


def test_doubling_a_batch_by_copies_doubles_the_released_loss_and_leaves_ours():
    a, b = torch.randn(2, 6), torch.randn(2, 6)
    twice_a, twice_b = a.repeat(2, 1), b.repeat(2, 1)
    assert float(identity_loss([twice_a], [twice_b], [1.0])) == pytest.approx(float(identity_loss([a], [b], [1.0])))
    summed = float(identity_loss([a], [b], [1.0], summed=True))
    assert float(identity_loss([twice_a], [twice_b], [1.0], summed=True)) == pytest.approx(2 * summed)
