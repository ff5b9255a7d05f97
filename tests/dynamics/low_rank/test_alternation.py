import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from rankwise.dynamics import low_rank_mixture, subspace_error
from rankwise.dynamics.low_rank import alternation
from rankwise.dynamics.low_rank.alternation import k_subspaces, leading, residuals, starts, turned

G = torch.Generator().manual_seed(0)
X = torch.randn(50, 12, generator=G, dtype=torch.float64)


def trace(U, scatter):
    return sum(float((u.mT @ S @ u).trace()) for u, S in zip(U, scatter, strict=True))


def test_squared_distances_are_those_of_projections():
    bases = torch.stack([torch.linalg.qr(torch.randn(12, 3, generator=G, dtype=torch.float64)).Q for _ in range(4)])
    means = torch.randn(2, 2, 12, generator=G, dtype=torch.float64)
    U = bases.view(2, 2, 12, 3)
    left = residuals(X, U, means)
    for r in range(2):
        for k in range(2):
            c = X - means[r, k]
            np.testing.assert_allclose(left[r, :, k], (c - c @ U[r, k] @ U[r, k].mT).square().sum(1))


def test_an_orthogonal_step_never_lowers_what_the_subspaces_hold():
    scatter = [A.mT @ A for A in X.split([20, 18, 12])]
    U = turned(torch.randn(1, 3, 12, 2, generator=G, dtype=torch.float64), (2, 2, 2), orthogonal=True)
    held = [trace(U[0], scatter)]
    for _ in range(30):
        U = turned(torch.stack([S @ u for S, u in zip(scatter, U[0], strict=True)])[None], (2, 2, 2), orthogonal=True)
        stacked = torch.cat(list(U[0]), 1)
        np.testing.assert_allclose(stacked.mT @ stacked, np.eye(6), atol=1e-12)
        held.append(trace(U[0], scatter))
    assert (np.diff(held) > -1e-9).all()
    assert held[-1] > held[0] + 1


def test_a_step_for_itself_never_lowers_it_either_and_ends_at_the_eigenvectors():
    S = X.mT @ X
    U = turned(torch.randn(1, 1, 12, 3, generator=G, dtype=torch.float64), (3,))
    held = [trace(U[0], [S])]
    for _ in range(400):
        U = turned((S @ U[0, 0])[None, None], (3,))
        held.append(trace(U[0], [S]))
    assert (np.diff(held) > -1e-9).all()
    assert held[-1] == pytest.approx(float(torch.linalg.eigvalsh(S)[-3:].sum()))


def test_unused_columns_are_zero_and_the_others_orthonormal():
    U = turned(torch.randn(1, 2, 12, 3, generator=G, dtype=torch.float64), (1, 3))
    assert not U[0, 0, :, 1:].any()
    np.testing.assert_allclose(U[0, 0, :, :1].mT @ U[0, 0, :, :1], [[1.0]])
    np.testing.assert_allclose(U[0, 1].mT @ U[0, 1], np.eye(3), atol=1e-12)


def test_starts_hold_the_row_that_they_were_drawn_from():
    U = starts(X, (2, 3), 5, generator=torch.Generator().manual_seed(1))
    left = residuals(X, U)
    assert (left.amin(1) < 1e-10).all()  # of each start and cluster, the nearest row


def test_groups_of_restarts_change_nothing_but_the_draws(monkeypatch):
    made = low_rank_mixture(12, 2, n_clusters=2, samples=20, noise=0.01)
    whole = k_subspaces(made.X, (2, 2), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(alternation, "AT_ONCE", 1)
    parts = k_subspaces(made.X, (2, 2), generator=torch.Generator().manual_seed(0))
    assert len(whole.restarts) == len(parts.restarts) == 10
    assert parts.residual == pytest.approx(whole.residual)


def test_an_empty_cluster_begins_anew_where_rows_fit_worst():
    made = low_rank_mixture(12, 2, n_clusters=2, samples=20)
    U = torch.stack([made.bases[0], torch.eye(12).double()[:, :2]])
    far = residuals(made.X, U[None])[0, :, 0]
    labels = torch.zeros(40, dtype=torch.long)
    now, _ = alternation._turned_to(
        made.X, labels, U, torch.zeros(2, 12).double(), far, (2, 2), affine=False, orthogonal=False
    )
    assert subspace_error([now[1]], [made.bases[1]])[0] < 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_scale_of_the_rows_is_too_small_or_too_large(scale):
    made = low_rank_mixture(12, 2, n_clusters=2, samples=20, noise=0.01)
    found, plain = (k_subspaces(s * made.X, (2, 2), generator=torch.Generator().manual_seed(0)) for s in (scale, 1.0))
    assert subspace_error(found.bases, plain.bases).max() < 1e-3
    assert found.residual / scale**2 == pytest.approx(plain.residual, rel=1e-3)


def test_directions_that_rows_leave_open_are_the_old_ones():
    R = torch.from_numpy(ortho_group.rvs(6, random_state=0))
    U = leading(R[:1] * 3, R.T[:, 1:4])
    np.testing.assert_allclose(U.mT @ U, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(abs(U[:, 0] @ R[0]), 1)
    np.testing.assert_array_equal(leading(R[:0], R.T[:, :2]), R.T[:, :2])


def test_fewer_rows_than_dimensions_leave_the_objective_flat():
    rows = X[:2]
    V = torch.linalg.qr(rows.T).Q
    fill = torch.linalg.qr(torch.cat([V, torch.randn(12, 4, generator=G, dtype=torch.float64)], 1)).Q[:, 2:]
    one, other = (torch.cat([V, fill[:, k : k + 2]], 1) for k in (0, 2))
    assert subspace_error([one], [other])[0] > 1
    assert float((rows @ one).square().sum()) == pytest.approx(float((rows @ other).square().sum()))
