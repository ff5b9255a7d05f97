import math

import pytest
import torch

from rankwise.bench.shared.denoisers import Perceptrons, train_perceptrons
from rankwise.dynamics import MoLRGDenoiser, low_rank_mixture


def test_members_share_nothing_and_one_alone_is_the_same():
    net = Perceptrons(3, 5, 8, torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(3, 4, 5)
    whole = net(x, 0.7)
    torch.testing.assert_close(net.member(1)(x[1:2], 0.7), whole[1:2])
    other = x.clone()
    other[0] += 1
    torch.testing.assert_close(net(other, 0.7)[1:], whole[1:])


def test_noise_of_a_row_is_taken_by_row():
    net = Perceptrons(1, 5, 8, torch.ones(1))
    x = torch.randn(1, 2, 5)
    both = net(x, torch.tensor([[0.1, 2.0]]))
    torch.testing.assert_close(both[:, :1], net(x[:, :1], 0.1))
    torch.testing.assert_close(both[:, 1:], net(x[:, 1:], 2.0))


def test_without_noise_rows_stay_as_they_are():
    net = Perceptrons(1, 5, 8, torch.ones(1))
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(net(x, 1e-6), x, atol=1e-4, rtol=0)


def test_a_trained_one_comes_near_the_least_error():
    sample = low_rank_mixture(10, 2, samples=1500)
    net = train_perceptrons([sample.X[:1000], sample.X[:1000]], hidden=64, steps=600, batch=64)
    clean = sample.X[1000:].float()
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    least = (MoLRGDenoiser.from_bases(sample.bases)(noisy.double(), 0.3) - clean).square().mean().detach()
    for out in net(noisy.expand(2, -1, -1), 0.3):
        assert float((out - clean).square().mean() / least) == pytest.approx(1, abs=0.6)


def test_the_noise_of_training_reaches_the_levels_that_are_judged():
    data = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    seen = []

    class Seeing(Perceptrons):
        def forward(self, x, sigma):
            seen.append(sigma / self.spread[..., 0])
            return super().forward(x, sigma)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankwise.bench.shared.denoisers.Perceptrons", Seeing)
        train_perceptrons([data, 7 * data], hidden=4, steps=20, batch=50, levels=(0.05, 20.0))
    levels = torch.cat(seen).log()
    low, high = math.log(0.05), math.log(20.0)
    assert low <= float(levels.min()) < low + 0.1
    assert high - 0.1 < float(levels.max()) <= high + 1e-5
    assert float(levels.mean()) == pytest.approx((low + high) / 2, abs=0.15)  # 5 deviations of the mean of 2,000
