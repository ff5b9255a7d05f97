from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from rankwise.optim import MODES, LayerSampler, sampling_probabilities
from small_models import llama


class Stack(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3)) for _ in range(n))
        self.head = nn.Linear(3, 2)


def test_inclusion_frequencies_are_those_of_successive_draws():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.5])
    sampler = LayerSampler(Stack(5), scores, active=2, interval=1, seed=3)
    p = sampler.probabilities.numpy()
    pairs = {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in permutations(range(5), 2) if a < b}
    seen = dict.fromkeys(pairs, 0)
    n = 20_000
    for _ in range(n):
        seen[tuple(sampler.draw())] += 1
    assert sum(pairs.values()) == pytest.approx(1)
    result = chisquare(list(seen.values()), n * np.array(list(pairs.values())))
    assert result.pvalue > 1e-3


def test_only_the_drawn_blocks_and_what_is_in_no_block_train():
    model = Stack(6)
    sampler = LayerSampler(model, mode="uniform", active=2, interval=3)
    for _ in range(7):
        trains = [all(p.requires_grad for p in layer.parameters()) for layer in model.layers]
        assert [i for i, t in enumerate(trains) if t] == sampler.active_layers
        assert model.head.weight.requires_grad
        sampler.step()
    sampler.release()
    assert all(p.requires_grad for p in model.parameters())


def test_draws_come_every_interval():
    sampler = LayerSampler(Stack(8), mode="uniform", active=2, interval=3)
    assert [sampler.step() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_a_frozen_block_holds_no_gradient():
    model = Stack(4)
    sampler = LayerSampler(model, mode="uniform", active=1, interval=1)
    x = torch.ones(2, 3)
    for layer in model.layers:
        x = layer(x)
    model.head(x).sum().backward()
    sampler.draw()
    for i, layer in enumerate(model.layers):
        if i not in sampler.active_layers:
            assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("owl", [0.1, 0.2, 0.7]),
        ("owl_reverse", [0.6 / 1.1, 0.5 / 1.1, 0.0]),
        ("uniform", [1 / 3] * 3),
        ("increase", [1 / 6, 2 / 6, 3 / 6]),
        ("decrease", [3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_distributions(mode, expected):
    p = sampling_probabilities(mode, Stack(3).layers, [1.0, 2.0, 7.0] if mode.startswith("owl") else None)
    torch.testing.assert_close(p, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=4e-6)
    assert (p > 0).all()


def test_the_norm_mode_follows_the_weights():
    model = Stack(3)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            for q in layer.parameters():
                q.fill_(i + 1.0)
    p = sampling_probabilities("norm", model.layers)
    torch.testing.assert_close(p, torch.tensor([1, 2, 3], dtype=torch.float64) / 6)


def test_blocks_without_outliers_can_still_be_drawn():
    sampler = LayerSampler(Stack(5), [0.0, 0.0, 1.0, 0.0, 0.0], active=4)
    assert len(set(sampler.active_layers)) == 4
    LayerSampler(Stack(3), [0.0, 0.0, 0.0], active=3)


def test_state_continues_the_same_draws():
    a, b = (
        LayerSampler(Stack(9), mode="uniform", interval=2),
        LayerSampler(Stack(9), mode="uniform", interval=2, seed=7),
    )
    for _ in range(3):
        a.step()
    b.load_state_dict(a.state_dict())
    drawn = []
    for _ in range(9):
        a.step()
        b.step()
        drawn.append((a.active_layers, b.active_layers))
    assert all(x == y for x, y in drawn)


def test_by_default_fifteen_per_cent_of_the_blocks_and_at_least_two():
    assert LayerSampler(Stack(32), mode="uniform").active == 5
    assert LayerSampler(Stack(4), mode="uniform").active == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"active": 7, "mode": "uniform"}, "active=7 is outside 1..6"),
        ({"mode": "owl"}, "outlier_scores"),
        ({"mode": "owls", "scores": [1] * 6}, "did you mean owl"),
        ({"scores": [1.0] * 5}, "6 finite"),
        ({"scores": [1.0] * 5 + [float("nan")]}, "6 finite"),
        ({"mode": "uniform", "interval": 0}, "interval=0"),
        ({"mode": "uniform", "seed": -1}, "seed=-1"),
        ({"mode": "uniform", "scores": [1.0] * 6}, "reads no scores"),
        ({"mode": "uniform", "layers_attribute": "layer"}, "did you mean layers"),
    ],
)
def test_bad_input_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        LayerSampler(Stack(6), **options)


def test_a_model_without_blocks_asks_for_their_name():
    with pytest.raises(ValueError, match="layers_attribute"):
        LayerSampler(nn.Sequential(nn.Linear(2, 2)), mode="uniform")


def test_modes_are_all_drawable_on_a_decoder():
    for mode in MODES:
        scores = [1.0, 3.0] if mode.startswith("owl") else None
        assert len(LayerSampler(llama(), scores, mode=mode, active=1).active_layers) == 1


def test_weights_that_are_not_finite_have_no_norm_to_sample_by():
    model = Stack(3)
    model.layers[1][0].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf in block 1"):
        LayerSampler(model, mode="norm")


def test_what_is_no_state_of_a_sampler_is_named():
    sampler = LayerSampler(Stack(3), mode="uniform")
    with pytest.raises(ValueError, match="it has no seed, draws"):
        sampler.load_state_dict({"steps": 1, "active": [0], "probabilities": [1.0, 0.0, 0.0]})
