import math

import matplotlib
import numpy as np
import pytest
import torch

from rankwise.dynamics import PhaseTransition, low_rank_mixture, phase_transition, recovery_threshold, subspace_error
from rankwise.dynamics.low_rank import recovery
from rankwise.spectral import principal_angles

matplotlib.use("Agg")


def doubled(sample, seed):
    return [2 * U for U in sample.bases]


@pytest.mark.parametrize("angle", [90.0, 60.0, 10.0])
def test_subspaces_have_the_angles_asked_for(angle):
    sample = low_rank_mixture(20, 3, n_clusters=3, samples=4, angle=angle, noise=0.1)
    for i in range(3):
        torch.testing.assert_close(sample.bases[i].mT @ sample.bases[i], torch.eye(3).double())
        for j in range(i):
            got = principal_angles(sample.bases[i], sample.bases[j]).rad2deg()
            torch.testing.assert_close(got, torch.full((3,), angle).double(), atol=1e-6, rtol=0)
        own = (sample.X - sample.noise)[sample.labels == i]
        torch.testing.assert_close(own @ sample.bases[i] @ sample.bases[i].mT, own)


def test_coefficients_have_variance_one_and_noise_its_deviation():
    sample = low_rank_mixture(20, 3, samples=5000, noise=0.2)
    inside = (sample.X - sample.noise) @ sample.bases[0]
    assert float(inside.var()) == pytest.approx(1, rel=0.03)
    assert float(sample.noise.std()) == pytest.approx(0.2, rel=0.03)


def test_errors_are_of_matched_subspaces():
    A, B = low_rank_mixture(12, 2, n_clusters=2, samples=1).bases
    near = torch.linalg.qr(A + 0.1 * torch.ones_like(A)).Q
    sines = principal_angles(near, A).sin()
    got = subspace_error([B, near], [A, B])
    np.testing.assert_allclose(got, [math.sqrt(2 * float(sines.square().sum())), 0], atol=1e-7)
    with pytest.raises(ValueError, match="1 subspaces found and 2"):
        subspace_error([A], [A, B])


@pytest.mark.parametrize("estimator", ["pca", "k-subspaces", "em"])
def test_success_is_a_step_at_as_many_rows_as_dimensions(estimator):
    found = phase_transition(estimator, dims=np.array([2, 5, 8]), samples=[1, 2, 4, 5, 7, 8, 9], seeds=3)
    for d, row in zip(found.dims, found.success, strict=True):
        np.testing.assert_array_equal(row, [float(d <= N) for N in found.samples])


def test_several_subspaces_are_found_from_a_little_more():
    found = phase_transition("k-subspaces", n_clusters=2, dims=[3], samples=[2, 5], seeds=3)
    np.testing.assert_array_equal(found.success, [[0, 1]])


def test_the_denoiser_learns_where_rows_suffice(monkeypatch):
    monkeypatch.setattr(recovery, "STEPS", 200)
    found = phase_transition("denoiser", features=12, dims=[2], samples=[1, 8], seeds=1)
    np.testing.assert_array_equal(found.success, [[0, 1]])


def test_noisy_rows_are_within_the_bounds_order():
    for N in (10, 40, 160):
        sample = low_rank_mixture(48, 4, samples=N, noise=0.05, seed=N)
        U = torch.linalg.svd(sample.X, full_matrices=False).Vh[:4].mT
        bound = float(sample.noise.norm()) / (math.sqrt(N) - math.sqrt(3))
        assert subspace_error([U], sample.bases)[0] < 3 * bound


def test_a_planted_threshold_is_found():
    rng = np.random.default_rng(0)
    ratio = (np.arange(2, 16)[None] / np.arange(2, 9)[:, None]).ravel()
    hits = rng.binomial(10, 1 / (1 + np.exp(-(ratio - 3.0) / 0.3)))
    assert recovery_threshold(ratio, hits, np.full(ratio.size, 10)) == pytest.approx(3.0, abs=0.2)
    assert recovery_threshold([1, 2], [0, 0], [5, 5]) == math.inf
    assert recovery_threshold([1, 2], [5, 5], [5, 5]) == 1
    with pytest.raises(ValueError, match="successes from 0 to trials"):
        recovery_threshold([1.0], [6], [5])


def test_the_grid_is_drawn_with_its_threshold():
    from matplotlib.figure import Figure

    errors = np.where(np.arange(1, 5)[None, :, None] >= np.array([2, 3])[:, None, None], 0.0, 1.0).repeat(2, 2)
    found = PhaseTransition(name="toy", dims=[2, 3], samples=[1, 2, 3, 4], errors=errors)
    ax = found.plot(Figure().subplots())
    assert "toy" in ax.get_title()
    assert 0.66 < found.threshold <= 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: low_rank_mixture(10, 6, n_clusters=2), "need 12 features"),
        (lambda: low_rank_mixture(10, 5, n_clusters=2, angle=45.0), "need 15 features"),
        (lambda: low_rank_mixture(10, 2, angle=0.0), "angle"),
        (lambda: low_rank_mixture(10, 2, noise=-1.0), "noise"),
        (lambda: phase_transition("kmeans"), "estimator"),
        (lambda: phase_transition("pca", seeds=0), "at least one"),
        (lambda: phase_transition("pca", seeds=[0, 1]), "whole numbers"),
        (lambda: phase_transition("pca", dims=[2.5]), "whole numbers"),
        (lambda: phase_transition("pca", samples=[2, 3.5]), "whole numbers"),
        (lambda: phase_transition(doubled, dims=[2], samples=[4], seeds=1), "not orthonormal"),
        (lambda: phase_transition("pca", dims=[30], n_clusters=2), "need 60"),
    ],
)
def test_what_is_not_accepted_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_tolerance_that_nothing_meets_is_refused():
    for wrong in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            phase_transition("pca", dims=[2], samples=[2], seeds=1, tolerance=wrong)


def test_seeds_of_numpy_are_seeds():
    assert torch.equal(low_rank_mixture(8, 2, seed=np.int64(3)).X, low_rank_mixture(8, 2, seed=3).X)
