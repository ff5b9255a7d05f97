import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwise.spectral import (
    joined_polar,
    nearly_orthogonal_qr,
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


@given(st.integers(0, 20), st.floats(0, 2.5))
def test_polar_factor_by_eigenvalues_is_that_of_the_svd(seed, digits):
    g = torch.Generator().manual_seed(seed)
    L, _, Rh = torch.linalg.svd(torch.randn(30, 8, generator=g), full_matrices=False)
    polar = polar_factor(L * torch.logspace(0, -digits, 8) @ Rh)  # the condition number is 10 ** digits
    # a float32 eigenvalue is right to 1e-7 of the largest, those below 3e-4 of it are taken in float64
    torch.testing.assert_close(polar, L @ Rh, atol=1e-6 * 10**digits + 3e-4, rtol=0)
    torch.testing.assert_close(polar.mT @ polar, torch.eye(8), atol=3e-4, rtol=0)


@given(st.integers(0, 20), st.sampled_from([(60, 20, 15), (40, 20, 20), (64, 20, 1)]))
def test_two_bases_in_closed_form_have_the_polar_factor_of_a_float64_svd(seed, shape):
    d, p, q = shape
    g = torch.Generator().manual_seed(seed)
    A, B = (torch.linalg.qr(torch.randn(d, k, generator=g)).Q for k in (p, q))
    B[:, : q // 3] = torch.nn.functional.normalize(A[:, : q // 3] + 2e-3 * B[:, : q // 3], dim=0)  # nearly shared
    B = torch.linalg.qr(B).Q
    L, S, Rh = torch.linalg.svd(torch.cat([A, B], 1).double(), full_matrices=False)
    assume(S[-1] > 1e-5 * S[0])  # what is closer counts as one direction
    # the polar factor moves by what A and B lack in orthogonality (float32) over the smallest singular value (1e-3)
    torch.testing.assert_close(joined_polar([A, B]), (L @ Rh).float(), atol=2e-4, rtol=0)


def test_two_bases_in_closed_form_count_a_shared_direction_once_and_keep_zeros():
    A = torch.linalg.qr(torch.randn(12, 4)).Q
    B = torch.cat([A[:, :2], torch.zeros(12, 2)], 1)
    expected = polar_factor(torch.cat([A, B], 1))
    torch.testing.assert_close(joined_polar([A, B]), expected, atol=1e-4, rtol=0)
    assert float(joined_polar([A, B])[:, 6:].abs().max()) == 0


@pytest.mark.parametrize("shapes", [((30, 4), (30, 7)), ((30, 4), (30, 2), (30, 3)), ((6, 4), (6, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_joined_bases_have_the_polar_factor_of_their_columns_together(shapes, dtype):
    bases = [torch.linalg.qr(torch.randn(shape)).Q.to(dtype) for shape in shapes]
    found = joined_polar(bases)
    assert found.dtype == torch.float32
    tol = 2e-4 if dtype != torch.bfloat16 else 4e-3  # such bases are orthonormal to that
    torch.testing.assert_close(found, polar_factor(torch.cat([b.float() for b in bases], 1)), atol=tol, rtol=0)


def test_shared_directions_of_two_bases_are_halved_between_them_and_near_ones_kept():
    Q = torch.linalg.qr(torch.randn(20, 6, dtype=torch.float64)).Q
    A, B = Q[:, :3], Q[:, [0, 1, 4]].clone()
    for turn in (0.0, 1e-4, 1e-2, 0.3):  # of the second of both; the first is shared, the third orthogonal
        B[:, 1] = math.cos(turn) * Q[:, 1] + math.sin(turn) * Q[:, 5]
        found = joined_polar([A, B]).double()
        torch.testing.assert_close(found[:, 0], Q[:, 0] / 2**0.5, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[:, 3], Q[:, 0] / 2**0.5, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[:, [2, 5]], Q[:, [2, 4]], atol=1e-5, rtol=0)
        p, m = Q[:, 1] + B[:, 1], Q[:, 1] - B[:, 1]
        p, m = p / p.norm(), m / m.norm() if turn else m
        # the difference of two columns at an angle θ is known to float32's precision over θ
        tol = 1e-6 / turn if turn else 1e-5
        torch.testing.assert_close(found[:, 1], (p + m) / 2**0.5, atol=tol + 1e-5, rtol=0)
        torch.testing.assert_close(found[:, 4], (p - m) / 2**0.5, atol=tol + 1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [(20, 20, 20), (30, 30), (40, 20), (20, 40), (10, 15)])
@pytest.mark.parametrize("turn", [1e-3, 1e-2, 0.2])
def test_bases_that_nearly_share_directions_still_get_orthonormal_ones_and_the_nearest(sizes, turn):
    first = torch.linalg.qr(torch.randn(60, sizes[0], dtype=torch.float64)).Q
    bases = [first]
    for k in sizes[1:]:
        more = torch.cat(
            [first[:, : k // 2] + turn * torch.randn(60, k // 2) / 60**0.5, torch.randn(60, k - k // 2)], 1
        )
        bases.append(torch.linalg.qr(more).Q)
    bases = [b.float() for b in bases]
    L, S, Rh = torch.linalg.svd(torch.cat(bases, 1).double(), full_matrices=False)
    found = joined_polar(bases).double()
    torch.testing.assert_close(found.mT @ found, torch.eye(sum(sizes)).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, L @ Rh, atol=float(2e-6 / S[-1]) + 1e-5, rtol=0)
    X = torch.randn(sum(sizes), 7)
    torch.testing.assert_close(joined_polar(bases, times=X).double(), found @ X.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [(3, 5), (3, 0), (0, 0), (20, 20)])
def test_the_product_with_joined_bases_leaves_out_columns_of_zeros(sizes):
    bases = [torch.cat([torch.linalg.qr(torch.randn(30, k)).Q, torch.zeros(30, 2)], 1) for k in sizes]
    X = torch.randn(sum(sizes) + 4, 6)
    assert not joined_polar(bases)[:, sizes[0] : sizes[0] + 2].any()
    torch.testing.assert_close(joined_polar(bases, times=X), joined_polar(bases) @ X, atol=1e-4, rtol=0)


@pytest.mark.parametrize("last", [1.0, 0.1, 1e-3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_that_are_nearly_orthogonal_get_an_orthonormal_basis_of_their_span(last, dtype):
    Q = torch.linalg.qr(torch.randn(40, 9, dtype=torch.float64)).Q
    Y = Q + 0.02 * torch.randn(40, 9).double()
    Y[:, -1] = (1 - last) * Y[:, 0] + last * Q[:, -1]  # so much of it is new
    found, R = nearly_orthogonal_qr(Y.to(dtype))
    torch.testing.assert_close(found.mT @ found, torch.eye(9, dtype=dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close((found @ R).double(), Y, atol=1e-6, rtol=0)
    assert torch.equal(R, R.triu())


def test_mismatched_bases_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        principal_angles(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"equal shapes, got \(3, 2\) and \(4, 2\)"):
        procrustes(torch.randn(3, 2), torch.randn(4, 2))
