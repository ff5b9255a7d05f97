import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, wasserstein_distance
from sklearn.decomposition import PCA
from torch.testing import assert_close

from rankwise.distributions.singular.networks import Ensemble, directions, sliced_wasserstein
from rankwise.spectral import principal_angles


def principal(seed: int = 0, n: int = 400, D: int = 4, q: int = 2):
    """Data, and a linear ensemble of one holding their maximum likelihood fit with its exact posterior as encoder."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, q, generator=g, dtype=torch.float64) @ torch.randn(q, D, generator=g, dtype=torch.float64)
    x = x + 0.3 * torch.randn(n, D, generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / n)
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[q:].mean()
    W = vectors[:, :q] * (values[:q] - noise).sqrt()  # Wᵀ W + σ² I is diagonal: so is the posterior's covariance
    net = Ensemble(1, q, D, ()).double()
    with torch.no_grad():
        net.decoder.weights[0][0] = W.T
        net.encoder.weights[0].zero_()
        net.encoder.weights[0][0, :, :q] = W / values[:q]
        net.encoder.biases[0][0, 0, q:] = (noise / values[:q]).log() / 2
        net.log_sigma.fill_(noise.log() / 2)
    covariance = W @ W.T + noise * torch.eye(D, dtype=torch.float64)
    return net, x, covariance


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained(x: torch.Tensor, q: int, *, steps: int = 400) -> Ensemble:
    """Linear fits to ``x (members, n, D)`` by a quasi-Newton method on the bound with fixed draws."""
    torch.manual_seed(0)
    net = Ensemble(len(x), q, x.shape[-1], ()).double()
    draws = normal(len(x), 8, x.shape[1], q)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=steps, history_size=30, line_search_fn="strong_wolfe")

    def minus_bound() -> torch.Tensor:
        optimizer.zero_grad()
        value = -net.bound(x, draws).mean(1).sum()
        value.backward()
        return value

    optimizer.step(minus_bound)
    return net.requires_grad_(False)


def test_linear_fits_are_the_principal_components_of_the_perturbed_data():
    _, x, _ = principal(n=500)
    levels = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    perturbed = x + levels[:, None, None] * normal(500, 4, seed=5)
    net = trained(perturbed, 2)
    for m, level in enumerate(levels.tolist()):
        exact = PCA(2).fit(perturbed[m])
        noise = exact.noise_variance_ * 499 / 500  # scikit-learn divides by n - 1
        assert_close(float((2 * net.log_sigma[m]).exp()), noise, rtol=0.02, atol=0)
        assert_close(noise, 0.09 + level**2, rtol=0.1, atol=0)  # σ̂² = σ₀² + σ̃²
        W = net.decoder.weights[0][m]
        assert float(principal_angles(W.T, torch.as_tensor(exact.components_.T)).max()) < 0.02
        covariance = W.T @ W + noise * torch.eye(4, dtype=torch.float64)
        assert_close(covariance, torch.as_tensor(exact.get_covariance()), rtol=0.02, atol=0.05)


def test_without_noise_or_perturbation_sigma_falls_without_bound():
    x = normal(200, 1) * torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    assert float(trained(x[None], 1).log_sigma.exp()) < 5e-3
    noisy = x + 0.2 * normal(200, 3, seed=1)
    assert_close(float(trained(noisy[None], 1).log_sigma.exp()), 0.2, rtol=0.1, atol=0)


@pytest.fixture
def curve():
    """An untrained network from one latent dimension, with a noise that quadrature resolves."""
    torch.manual_seed(0)
    net = Ensemble(2, 1, 3, (16, 16)).double()
    with torch.no_grad():
        net.log_sigma.copy_(torch.tensor([math.log(0.3), math.log(0.6)]))
        net.encoder.biases[-1][..., 1:] = 0.3  # wider than the prior: few draws suffice
    return net


def test_the_bound_with_the_exact_posterior_is_the_likelihood_for_any_number_of_draws():
    net, x, covariance = principal()
    exact = torch.as_tensor(multivariate_normal(cov=covariance.numpy()).logpdf(x.numpy()))
    for K in (1, 7):
        assert_close(net.bound(x[None], normal(1, K, len(x), 2))[0].detach(), exact)


def test_quadrature_of_a_linear_model_is_its_normal_density():
    net, x, covariance = principal()
    exact = torch.as_tensor(multivariate_normal(cov=covariance.numpy()).logpdf(x.numpy()))
    assert_close(net.quadrature(x[None, :50])[0].detach(), exact[:50], rtol=1e-6, atol=1e-6)


def test_quadrature_refuses_three_latent_dimensions():
    with pytest.raises(ValueError, match="latent_dim is 3"):
        Ensemble(1, 3, 4, ()).quadrature(torch.zeros(1, 2, 4))


def test_the_bound_grows_with_draws_towards_quadrature(curve):
    x = curve.decoder(normal(2, 40, 1)).detach() + 0.3 * normal(2, 40, 3, seed=1)
    exact = curve.quadrature(x, nodes=2000)
    found = [curve.bound(x.repeat(1, 200, 1), normal(2, K, 8000, 1)).mean(1) for K in (1, 4, 16, 256)]
    for less, more in pairwise(found):
        assert (less < more).all()
    assert (found[-1] < exact.mean(1) + 0.01).all()
    assert_close(found[-1], exact.mean(1), atol=0.05, rtol=0)


def test_without_gradients_the_forward_pass_is_the_same(curve):
    z = normal(2, 9, 1)
    with torch.no_grad():
        alone = curve.decoder(z)
    assert_close(alone, curve.decoder(z))


def test_the_loss_has_the_gradient_of_minus_the_bound_in_the_mean(curve):
    x = (curve.decoder(normal(2, 3, 1)).detach() + 0.3 * normal(2, 3, 3, seed=1)).repeat(1, 40_000, 1)
    curve.bound(x, normal(2, 4, x.shape[1], 1)).mean(1).sum().neg().backward()
    exact = [p.grad.clone() for p in curve.parameters()]
    curve.zero_grad()
    curve.loss(x, normal(2, 4, x.shape[1], 1), torch.Generator().manual_seed(0)).backward()
    for p, e in zip(curve.parameters(), exact, strict=True):
        scale = e.abs().max() + 1e-3
        assert_close(p.grad / scale, e / scale, atol=0.05, rtol=0)  # 120,000 draws: 1/350, times a few


def test_members_do_not_touch_each_other(curve):
    x, draws = normal(2, 6, 3), normal(2, 4, 6, 1)
    before = curve.bound(x, draws)
    x[0] += 5
    after = curve.bound(x, draws)
    assert_close(after[1], before[1])
    assert not torch.allclose(after[0], before[0])
    after[0].sum().backward()
    first, second = curve.decoder.weights[1].grad
    assert first.abs().max() > 0
    assert (second == 0).all()


def test_gradients_are_finite_at_the_floor_of_sigma():
    torch.manual_seed(0)
    net = Ensemble(1, 1, 3, (16,))
    with torch.no_grad():
        net.log_sigma.fill_(math.log(1e-3))
    net.loss(normal(1, 32, 3, dtype=torch.float32), normal(1, 16, 32, 1, dtype=torch.float32)).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 1000))
def test_one_dimensional_distance_is_scipys(n, m, seed):
    X, Y = normal(n, 1, seed=seed), normal(m, 1, seed=seed + 1) + 1
    found = sliced_wasserstein(X, Y, torch.ones(1, 1, dtype=torch.float64))
    assert_close(float(found), wasserstein_distance(X[:, 0], Y[:, 0]), rtol=1e-10, atol=1e-12)


def test_sliced_distance_of_a_shift_is_the_mean_projection_of_the_shift():
    axes = directions(3, 50, torch.Generator().manual_seed(0)).double()
    X, shift = normal(100, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert_close(axes.norm(dim=0), torch.ones(50, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert_close(sliced_wasserstein(X, X + shift, axes), (shift @ axes).abs().mean())
    assert_close(
        sliced_wasserstein(torch.stack([X, X + shift]), X, axes),
        torch.stack([X.sum() * 0, (shift @ axes).abs().mean()]),
    )
