import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from rankwise.dynamics.low_rank.mixture import expectation_maximisation, free, information, maximised, paying, pooled

G = torch.Generator().manual_seed(0)
X = torch.randn(90, 7, generator=G, dtype=torch.float64) * torch.tensor([5.0, 4, 3, 1, 1, 0.5, 0.5])
SHARES = torch.rand(90, 2, generator=G, dtype=torch.float64).softmax(1)


def expected(model, shares):
    return float((shares * model.log_joint(X)).sum())


def test_noise_is_the_maximum_given_the_spectra():
    values = [
        torch.tensor([9.0, 4.0]).double(),
        torch.tensor([0.5, 0.1]).double(),
    ]  # the second lies below the noise of the first
    totals, counts, D = [9 + 4 + 2 * 2.0, 0.6 + 2 * 0.05], torch.tensor([30.0, 50.0]), 4

    def cost(s):
        out = 0.0
        for e, t, n in zip(values, totals, counts.tolist(), strict=True):
            lam = e.clamp(min=s)
            out += n * float(lam.log().sum() + (e / lam).sum() + (D - 2) * math.log(s) + (t - e.sum()) / s)
        return out

    best = minimize_scalar(cost, bounds=(1e-3, 9), method="bounded", options={"xatol": 1e-10}).x
    assert pooled(values, totals, counts, D, 0.0) == pytest.approx(best, rel=1e-5)
    assert pooled(values, totals, counts, D, 5.0) == 5.0


def test_a_step_of_maximisation_is_a_maximum():
    model = maximised(X, SHARES, (2, 1), affine=True, floor=1e-12)
    best = expected(model, SHARES)
    for factor in (0.99, 1.01):
        for change in ("noise", "means", "variances", "weights"):
            other = maximised(X, SHARES, (2, 1), affine=True, floor=1e-12)
            if change == "noise":
                other.noise *= factor
            elif change == "variances":
                other.variances[0] = other.variances[0] * factor
            elif change == "means":
                other.means = other.means + 0.1 * (factor - 1)
            else:
                other.weights = (other.weights * torch.tensor([factor, 1.0])) / (
                    other.weights * torch.tensor([factor, 1.0])
                ).sum()
            assert expected(other, SHARES) < best
    for _ in range(10):
        other = maximised(X, SHARES, (2, 1), affine=True, floor=1e-12)
        other.bases[0] = torch.linalg.qr(other.bases[0] + 0.05 * torch.randn(7, 2, generator=G, dtype=torch.float64)).Q
        assert expected(other, SHARES) < best


def test_means_are_zero_through_the_origin():
    assert not maximised(X, SHARES, (1, 1), affine=False, floor=0.0).means.any()


def test_a_direction_pays_while_its_gain_exceeds_the_price_of_its_numbers():
    n, D, noise = 100, 5, 1.0
    e = torch.tensor([3.0, 2.0, 1.05, 1.0])  # and one more of 1
    (d,) = paying([e], [float(e.sum()) + 1.0], torch.tensor([100.0]), n, D, 0.0)

    def criterion(d):
        s = (float(e.sum()) + 1.0 - float(e[:d].sum())) / (D - d)
        log_l = -0.5 * n * (float(e[:d].log().sum()) + (D - d) * math.log(s) + D)
        return -2 * log_l + free(D, d) * math.log(n)

    assert d == min(range(4), key=criterion)
    assert noise == 1.0


def test_free_numbers_are_those_of_a_covariance():
    assert free(5, 4) + 1 == 5 * 6 // 2  # four directions and one noise of five: every covariance
    assert free(5, 0) == 0
    model = expectation_maximisation(X, SHARES, (2, 1), affine=True)
    assert model.parameters(affine=True) == (7 * 2 - 1) + 7 + 14 + 1 + 1  # bases and variances, means, weight, noise
    assert information(model, 90, affine=True) == pytest.approx(
        -2 * float(model.log_joint(X).logsumexp(1).sum()) + model.parameters(affine=True) * math.log(90)
    )


def test_noise_free_rows_have_a_floor():
    line = torch.randn(40, 1, generator=G, dtype=torch.float64) @ torch.ones(1, 3, dtype=torch.float64)
    model = expectation_maximisation(line, torch.ones(40, 1, dtype=torch.float64), (1,))
    assert 0 < model.noise < 1e-6
    assert np.isfinite(model.path).all()
