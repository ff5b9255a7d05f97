"""Losses and weights against enumeration, closed forms and finite differences."""

import itertools
import math

import numpy as np
import pytest
import torch

from rankwise.ranking import list_log_probabilities, list_loss, relative_weights
from rankwise.ranking.dla import dual_losses

THREE = torch.ones(1, 3, dtype=torch.bool)


def random(shape=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=shape), rng.uniform(0.5, 3, size=shape)
    c = (rng.random(shape) < 0.4).astype(float)
    mask = np.arange(shape[1]) < rng.integers(2, shape[1] + 1, size=(shape[0], 1))
    c[:, 0] = 1
    return tuple(torch.as_tensor(a) for a in (z, c * mask, w, mask))


def one_list(name, z, c, w):
    """Sum and weight of a list, term by term."""
    n = len(z)
    if name == "softmax":
        p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
        return -sum(c[i] * w[i] * math.log(p[i]) for i in range(n)), sum(c[i] * w[i] for i in range(n))
    if name == "sigmoid":
        on = [-math.log(1 / (1 + math.exp(-v))) for v in z]
        off = [-math.log(1 - 1 / (1 + math.exp(-v))) for v in z]
        return sum(on[i] * w[i] if c[i] else off[i] for i in range(n)), n
    pairs = [(i, j) for i in range(n) for j in range(n) if c[i] > c[j]]
    return sum(w[i] * math.log(1 + math.exp(z[j] - z[i])) for i, j in pairs), sum(w[i] for i, _ in pairs)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "pairwise"])
@pytest.mark.parametrize("reduce", ["batch", "list"])
def test_losses_are_their_formulas_list_by_list_whatever_is_padded(name, reduce):
    z, c, w, mask = random()
    parts = [one_list(name, *(t[i][mask[i]].tolist() for t in (z, c, w))) for i in range(len(z))]
    if reduce == "batch":
        expected = sum(a for a, _ in parts) / sum(b for _, b in parts)
    else:
        taking = [a / b for a, b in parts if b > 0]
        expected = sum(taking) / len(taking)
    assert list_loss(z, c, w, mask, loss=name, reduce=reduce).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "pairwise"])
@pytest.mark.parametrize("reduce", ["batch", "list"])
def test_gradients_are_finite_differences_and_0_in_padding(name, reduce):
    z, c, w, mask = random(seed=1)
    z.requires_grad_()
    list_loss(z, c, w, mask, loss=name, reduce=reduce).backward()
    for i, j in itertools.product(range(4), range(6)):
        step = torch.zeros_like(z)
        step[i, j] = 1e-5
        up, down = (list_loss(z.detach() + s, c, w, mask, loss=name, reduce=reduce) for s in (step, -step))
        assert z.grad[i, j].item() == pytest.approx(float(up - down) / 2e-5, abs=1e-8)
    assert (z.grad[~mask] == 0).all()


def test_padding_is_as_a_shorter_list_for_both_softmaxes():
    z, mask = torch.randn(1, 5).double(), torch.tensor([[True] * 3 + [False] * 2])
    full = torch.ones(1, 3, dtype=torch.bool)
    assert torch.allclose(list_log_probabilities(z, mask)[:, :3], z[:, :3].log_softmax(-1))
    assert torch.allclose(relative_weights(z, mask)[:, :3], relative_weights(z[:, :3], full))
    assert (relative_weights(z, mask)[:, 3:] == 0).all()


@pytest.mark.parametrize(("name", "probability"), [("softmax", lambda z: z.softmax(-1)), ("sigmoid", torch.sigmoid)])
def test_weights_are_ratios_to_the_first_place_and_carry_no_gradient(name, probability):
    z = torch.randn(2, 3, requires_grad=True)
    w = relative_weights(z, THREE.expand(2, -1), loss=name)
    p = probability(z)
    assert torch.allclose(w, p[:, :1] / p)
    assert (w[:, 0] == 1).all()
    assert not w.requires_grad


def test_the_bound_cuts_larger_weights_and_is_inactive_above_the_largest():
    z = torch.tensor([[0.0, -1.0, -3.0]])
    free = relative_weights(z, THREE)
    assert relative_weights(z, THREE, max_weight=2.0).tolist() == [[1.0, 2.0, 2.0]]
    assert torch.equal(relative_weights(z, THREE, max_weight=float(free.max())), free)


def test_a_constant_on_all_scores_changes_neither_loss_nor_weights():
    z, c, w, mask = random(seed=2)
    for name in ("softmax", "pairwise"):
        assert torch.allclose(list_loss(z, c, w, mask, loss=name), list_loss(z + 7, c, w, mask, loss=name))
    assert torch.allclose(relative_weights(z, mask), relative_weights(z + 7, mask))


def test_reductions_agree_where_every_list_has_the_same_weight_and_differ_otherwise():
    z, _, _, _ = random((5, 4), seed=3)
    mask, w = torch.ones(5, 4, dtype=torch.bool), torch.full((5, 4), 1.5)
    c = torch.zeros(5, 4).double()
    c[:, 1] = 1
    batch, by_list = (list_loss(z, c, w, mask, reduce=r) for r in ("batch", "list"))
    assert torch.allclose(batch, by_list)
    c[0] = 1
    batch, by_list = (list_loss(z, c, w, mask, reduce=r) for r in ("batch", "list"))
    assert not torch.allclose(batch, by_list)


@pytest.mark.parametrize("name", ["softmax", "pairwise"])
@pytest.mark.parametrize("reduce", ["batch", "list"])
def test_a_list_without_a_click_contributes_nothing(name, reduce):
    z, c, w, mask = random(seed=4)
    more = [torch.cat([t, t[:1]]) for t in (z, c, w, mask)]
    more[1][-1] = 0
    assert torch.allclose(list_loss(z, c, w, mask, loss=name, reduce=reduce),
                          list_loss(*more, loss=name, reduce=reduce))  # fmt: skip
    assert list_loss(z, torch.zeros_like(c), w, mask, loss=name, reduce=reduce) == 0


def test_swapping_ranker_and_examination_swaps_their_losses():
    f, _, _, mask = random(seed=5)
    g, c, _, _ = random(seed=6)
    rank, exam = dual_losses(f, g, c * mask, mask, max_weight=3.0)
    swapped = dual_losses(g, f, c * mask, mask, max_weight=3.0)
    assert (rank, exam) == (swapped[1], swapped[0])
    assert rank != exam


def test_each_loss_moves_its_own_model_alone():
    f, g = (torch.randn(1, 3, requires_grad=True) for _ in range(2))
    rank, exam = dual_losses(f, g, torch.tensor([[0.0, 1.0, 0.0]]), THREE)
    assert torch.autograd.grad(rank, [f, g], retain_graph=True, allow_unused=True)[1] is None
    assert torch.autograd.grad(exam, [f, g], allow_unused=True)[0] is None


def test_with_true_propensities_the_expected_gradient_is_that_of_full_information():
    """Every pattern of clicks on three documents, with its probability under the position-based model."""
    theta, relevant = torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([0.3, 0.8, 0.6]).double()
    z = torch.tensor([[0.2, -0.4, 0.1]]).double().requires_grad_()
    weights = (theta[0] / theta)[None]
    expected = torch.zeros(1, 3).double()
    for pattern in itertools.product((0.0, 1.0), repeat=3):
        c = torch.tensor([pattern]).double()
        chance = torch.where(c > 0, theta * relevant, 1 - theta * relevant).prod()
        if c.any():
            total = list_loss(z, c, weights, THREE) * (c * weights).sum()  # undivided
            expected += chance * torch.autograd.grad(total, z)[0]
    full = torch.autograd.grad(-theta[0] * (relevant * z.log_softmax(-1)).sum(), z)[0]
    assert torch.allclose(expected, full, atol=1e-12)
    naive = sum(
        torch.where(c > 0, theta * relevant, 1 - theta * relevant).prod()
        * torch.autograd.grad(list_loss(z, c, torch.ones(1, 3), THREE) * c.sum(), z)[0]
        for c in (torch.tensor([p]).double() for p in itertools.product((0.0, 1.0), repeat=3)) if c.any()
    )  # fmt: skip
    assert not torch.allclose(naive / naive.norm(), full / full.norm(), atol=1e-2)
