"""Drift and the bound on forgetting, beside full matrices and a loss whose Lipschitz constant is known."""

import pytest
import torch
from torch import nn

from rankwise.continual import drift_of, forgetting_bound


def factors(seed, rank=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 5, generator=g), torch.randn(4, rank, generator=g)


def test_drift_is_the_norm_of_the_sum_over_tasks():
    tasks = [{"a": factors(0), "b": factors(1)}, {"a": factors(2, 3), "b": (torch.zeros(0, 5), torch.zeros(4, 0))}]
    sums = {"a": torch.zeros(4, 5), "b": torch.zeros(4, 5)}
    for task, found in zip(tasks, drift_of(tasks, ["one", "two"]), strict=True):
        own = {n: B @ A for n, (A, B) in task.items()}
        for name in sums:
            sums[name] += own[name]
        assert found.norm == pytest.approx(torch.cat([*own.values()]).norm().item(), rel=1e-5)
        assert found.drift == pytest.approx(torch.cat([*sums.values()]).norm().item(), rel=1e-5)
        assert found.norm <= found.bound
        assert found.rank == sum(len(A) for A, _ in task.values()) / 2


def test_the_bound_of_a_rank_one_change_is_its_size():
    (found,) = drift_of([{"a": factors(0, 1)}], ["one"])
    assert found.bound == pytest.approx(found.norm, rel=1e-5)


def test_both_sides_of_a_quadratic_loss_are_known():
    H = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    w = nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
    delta = torch.tensor([0.3, 0.1, -0.2])
    before = w.detach().clone()
    found = forgetting_bound(lambda: 0.5 * w @ H @ w, {"w": w}, {"w": delta})
    gradient = (H @ before).norm()
    smooth = (H @ delta).norm() / delta.norm()  # of a quadratic loss, at every point of the way
    after = before + delta
    assert found.forgetting == pytest.approx((0.5 * after @ H @ after - 0.5 * before @ H @ before).item(), abs=1e-6)
    assert found.gradient == pytest.approx(gradient.item(), rel=1e-6)
    assert found.smoothness == pytest.approx(smooth.item(), rel=1e-5)
    assert found.bound == pytest.approx((gradient * delta.norm() + smooth / 2 * delta.norm() ** 2).item(), rel=1e-5)
    assert found.forgetting <= found.bound
    assert torch.equal(w, before)


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_for_a_network(seed):
    torch.manual_seed(seed)
    net, x, y = (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        torch.randn(20, 4),
        torch.randint(0, 3, (20,)),
    )
    net.requires_grad_(False)
    weights = {n: p for n, p in net.named_parameters() if "weight" in n}
    deltas = {n: 0.3 * torch.randn_like(p) for n, p in weights.items()}
    found = forgetting_bound(lambda: nn.functional.cross_entropy(net(x), y), weights, deltas, points=8)
    assert found.forgetting <= found.bound
    assert not any(p.requires_grad for p in net.parameters())


def test_no_change_forgets_nothing():
    w = nn.Parameter(torch.ones(2))
    found = forgetting_bound(lambda: w.square().sum(), {"w": w}, {"w": torch.zeros(2)})
    assert (found.forgetting, found.norm, found.bound) == (0, 0, 0)
    with pytest.raises(ValueError, match="points=0"):
        forgetting_bound(lambda: w.sum(), {"w": w}, {"w": w}, points=0)
