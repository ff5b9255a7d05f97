import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import (
    orthogonality_error,
    polar_factor,
    principal_angles,
    procrustes,
    projection,
    subspace_overlap,
)


@given(st.floats(1e-10, math.pi / 2))
def test_angle_between_two_lines_is_recovered_even_when_tiny(theta):
    a = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(theta)], [math.sin(theta)]], dtype=torch.float64)
    assert principal_angles(a, b).item() == pytest.approx(theta, rel=1e-5, abs=1e-14)


@given(st.integers(1, 5), st.integers(0, 5))
def test_angles_ignore_the_choice_of_basis(k, seed):
    g = torch.Generator().manual_seed(seed)
    A, B, M = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((12, k), (12, k), (k, k)))
    torch.testing.assert_close(principal_angles(A, B), principal_angles(A @ M, B), atol=1e-6, rtol=0)
    torch.testing.assert_close(principal_angles(A, B), principal_angles(B, A), atol=1e-7, rtol=0)
    torch.testing.assert_close(principal_angles(A, A @ M), torch.zeros(k, dtype=torch.float64), atol=1e-7, rtol=0)


def test_angles_between_a_plane_and_a_wider_space_are_those_of_their_turns():
    near, far = math.radians(20), math.radians(70)
    eye = torch.eye(5, dtype=torch.float64)
    plane = torch.stack(
        [math.cos(near) * eye[0] + math.sin(near) * eye[3], math.cos(far) * eye[1] + math.sin(far) * eye[4]], 1
    )
    expected = torch.tensor([near, far], dtype=torch.float64)
    torch.testing.assert_close(principal_angles(plane, eye[:, :3]), expected)
    torch.testing.assert_close(principal_angles(eye[:, :3], plane), expected)
    assert subspace_overlap(plane, eye[:, :3]) == pytest.approx((math.cos(near) ** 2 + math.cos(far) ** 2) / 2)


def test_overlap_is_one_inside_and_zero_across():
    eye = torch.eye(6)
    assert subspace_overlap(eye[:, :2], eye[:, :4]) == pytest.approx(1)
    assert subspace_overlap(eye[:, :2], eye[:, 3:5]) == pytest.approx(0, abs=1e-12)


def test_projection_is_idempotent_and_keeps_vectors_of_the_space():
    X, basis = torch.randn(5, 9), torch.randn(9, 3)
    once = projection(X, basis)
    torch.testing.assert_close(projection(once, basis), once, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(projection(basis.T, basis), basis.T, atol=1e-5, rtol=1e-5)


def test_orthogonality_error_is_zero_only_for_orthonormal_columns():
    Q = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q
    assert orthogonality_error(Q) < 1e-12
    assert orthogonality_error(2 * Q) == pytest.approx(3 * math.sqrt(3))


def test_orthogonality_error_of_a_batch_is_that_of_each():
    Q = torch.randn(2, 3, 8, 4)
    whole = orthogonality_error(Q)
    assert whole.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            G = Q[i, j].double().T @ Q[i, j].double()
            torch.testing.assert_close(whole[i, j], (G - torch.eye(4)).square().sum().sqrt())


def test_procrustes_recovers_a_rotation():
    A = torch.randn(20, 4, dtype=torch.float64)
    R = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    found, residual = procrustes(A, A @ R)
    torch.testing.assert_close(found, R)
    assert residual < 1e-10
    _, residual = procrustes(torch.eye(2), torch.diag(torch.tensor([3.0, 0.5])))  # no rotation helps a stretch
    assert residual == pytest.approx(math.hypot(3 - 1, 1 - 0.5))


def with_values(shape, values, seed=0):
    """A matrix of these singular values, with its polar factor."""
    g = torch.Generator().manual_seed(seed)
    U, _, Vh = torch.linalg.svd(torch.randn(shape, generator=g, dtype=torch.float64), full_matrices=False)
    return U * torch.tensor(values, dtype=torch.float64) @ Vh, U @ Vh


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (4, 4)])
@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0, 0.5], [1.0, 0.1, 1e-3, 1e-4]])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_polar_factor_has_the_same_singular_vectors_and_values_of_one(shape, values, scale):
    U, nearest = with_values(shape, values)
    found = polar_factor(scale * U)
    assert found.dtype == torch.float32
    # singular vectors of a float32 matrix are known to its precision over σ / σ₁
    torch.testing.assert_close(found.double(), nearest, atol=1e-6 / min(values), rtol=0)


def test_the_polar_factor_stays_zero_where_the_matrix_has_nothing_to_say():
    U, _ = with_values((9, 4), [2.0, 1.0, 1e-3, 0.0])
    left, _, right = torch.linalg.svd(U, full_matrices=False)
    for tol, kept in ((1e-6, 3), (1e-2, 2), (0.7, 1)):
        expected = left[:, :kept] @ right[:kept]
        torch.testing.assert_close(polar_factor(U, tol=tol).double(), expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(polar_factor(U.T, tol=tol).double(), expected.T, atol=1e-3, rtol=0)
    assert not polar_factor(torch.zeros(3, 2)).any()


def test_mismatched_bases_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        principal_angles(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"equal shapes, got \(3, 2\) and \(4, 2\)"):
        procrustes(torch.randn(3, 2), torch.randn(4, 2))
