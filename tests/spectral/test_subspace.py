import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import orthogonality_error, principal_angles, procrustes, projection, subspace_overlap


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


def test_procrustes_recovers_a_rotation():
    A = torch.randn(20, 4, dtype=torch.float64)
    R = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    found, residual = procrustes(A, A @ R)
    torch.testing.assert_close(found, R)
    assert residual < 1e-10


def test_mismatched_bases_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        principal_angles(torch.randn(3, 2), torch.randn(4, 2))
