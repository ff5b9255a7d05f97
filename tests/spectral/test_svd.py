import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import (
    balanced_factors,
    leading_right_vectors,
    singular_values,
    spectrum_and_directions,
    truncated_eigh,
    truncated_svd,
)


def optimal_error(A, rank):
    s = torch.linalg.svdvals(A.double())
    return (s[..., rank:].square().sum(-1) / s.square().sum(-1)).sqrt()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.sampled_from(["gram", "full", "randomized"]))
def test_factors_are_orthonormal_and_error_is_what_is_left(m, n, seed, method):
    A = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    rank = max(1, min(m, n) // 2)
    svd = truncated_svd(A, rank, method=method)
    eye = torch.eye(rank)
    torch.testing.assert_close(svd.U.mT @ svd.U, eye, atol=2e-5, rtol=0)
    torch.testing.assert_close(svd.Vh @ svd.Vh.mT, eye, atol=2e-5, rtol=0)
    left = torch.linalg.matrix_norm(A - svd.U * svd.S @ svd.Vh) / torch.linalg.matrix_norm(A)
    torch.testing.assert_close(svd.error.float(), left, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (3, 25, 25)])
def test_gram_agrees_with_lapack(shape):
    A = torch.randn(shape)
    mine, theirs = truncated_svd(A, 5, method="gram"), torch.linalg.svd(A, full_matrices=False)
    torch.testing.assert_close(mine.S, theirs.S[..., :5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        mine.U * mine.S[..., None, :] @ mine.Vh,
        theirs.U[..., :5] * theirs.S[..., None, :5] @ theirs.Vh[..., :5, :],
        atol=1e-4,
        rtol=1e-4,
    )


def test_randomized_is_within_one_percent_of_optimal_on_a_flat_spectrum():
    A = torch.randn(4, 256, 200)
    svd = truncated_svd(A, 16, method="randomized")
    assert (svd.error <= 1.01 * optimal_error(A, 16)).all()


def test_randomized_recovers_an_exactly_low_rank_matrix():
    A = torch.randn(300, 8) @ torch.randn(8, 200)
    svd = truncated_svd(A, 8, method="randomized")
    torch.testing.assert_close(svd.U * svd.S @ svd.Vh, A, atol=1e-3, rtol=1e-4)


def test_batched_equals_one_by_one():
    A = torch.randn(3, 160, 150)
    batched = truncated_svd(A, 4, method="gram")
    for i in range(3):
        torch.testing.assert_close(batched.S[i], truncated_svd(A[i], 4, method="gram").S)


def test_rank_deficient_matrix_keeps_orthonormal_factors():
    A = torch.zeros(20, 10)
    A[0, 0] = 3.0
    svd = truncated_svd(A, 4, method="gram")
    torch.testing.assert_close(svd.U.mT @ svd.U, torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(svd.S, torch.tensor([3.0, 0, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    A = torch.randn(40, 30).to(dtype)
    assert truncated_svd(A, 3).S.dtype == torch.float32
    torch.testing.assert_close(truncated_svd(A, 3).S, torch.linalg.svdvals(A.float())[:3], atol=1e-4, rtol=1e-4)


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match=r"rank=9 is outside 1..4"):
        truncated_svd(torch.randn(4, 6), 9)
    with pytest.raises(ValueError, match="NaN"):
        truncated_svd(torch.full((4, 6), float("nan")), 2)
    with pytest.raises(ValueError, match="quick"):
        truncated_svd(torch.randn(4, 6), 2, method="quick")


def test_singular_values_agree_with_lapack():
    A = torch.randn(2, 30, 50)
    torch.testing.assert_close(singular_values(A), torch.linalg.svdvals(A.double()), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("d", [60, 700])
def test_truncated_eigh_agrees_with_the_full_decomposition(d):
    X = torch.randn(2 * d, d, dtype=torch.float64) * torch.linspace(2, 0.1, d, dtype=torch.float64)
    C = X.mT @ X
    values, vectors = truncated_eigh(C, 8)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(C).flip(0)[:8], rtol=1e-8, atol=0)
    torch.testing.assert_close(vectors @ C, values[:, None] * vectors, rtol=0, atol=float(values[0]) * 1e-6)


@pytest.mark.parametrize(("shape", "dtype", "tol"), [((80, 50), torch.float32, 2e-6), ((50, 80), torch.float64, 1e-9)])
def test_balanced_factors_reach_the_least_error_and_share_the_singular_values(shape, dtype, tol):
    A = torch.randn(shape, dtype=dtype)
    B, C = balanced_factors(A, 12)
    error = torch.linalg.matrix_norm((A - B @ C).double()) / torch.linalg.matrix_norm(A.double())
    torch.testing.assert_close(error, optimal_error(A, 12), atol=tol, rtol=0)
    root = torch.linalg.svdvals(A)[:12].sqrt()
    torch.testing.assert_close(B.norm(dim=0), root, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(C.norm(dim=1), root, atol=1e-4, rtol=1e-4)


def test_balanced_factors_of_a_deficient_matrix_are_finite_and_exact():
    A = torch.randn(30, 3) @ torch.randn(3, 20)
    B, C = balanced_factors(A, 8)
    assert torch.isfinite(B).all()
    torch.testing.assert_close(B @ C, A, atol=1e-4, rtol=1e-4)


def test_where_float32_eigenvalues_fail_float64_takes_over(monkeypatch):
    A = torch.randn(12, 8)
    expected, eigh, seen = leading_right_vectors(A, 3), torch.linalg.eigh, []

    def failing(G):
        seen.append(G.dtype)
        if G.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(G)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    V = leading_right_vectors(A, 3)
    assert seen[:2] == [torch.float32, torch.float64]
    assert V.dtype == torch.float32
    torch.testing.assert_close(V @ V.mT, expected @ expected.mT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40)])
@pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-6])
def test_one_eigenproblem_gives_the_values_of_a_float32_svd_and_its_directions(shape, smallest):
    U, _, Vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    S = torch.logspace(0, math.log10(smallest), 40, dtype=torch.float64)
    A = (U * S @ Vh).float()
    values, V = spectrum_and_directions(A)
    torch.testing.assert_close(values, torch.linalg.svdvals(A.double()), atol=1e-5, rtol=0)
    B, C = balanced_factors(A, 10, directions=V)
    error = torch.linalg.matrix_norm((A - B @ C).double()) / torch.linalg.matrix_norm(A.double())
    torch.testing.assert_close(error, optimal_error(A, 10), atol=2e-6, rtol=1e-5)
