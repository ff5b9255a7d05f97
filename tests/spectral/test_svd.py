import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import (
    balanced_factors,
    leading_right_vectors,
    principal_angles,
    singular_values,
    spectrum_and_directions,
    symmetric_eigh,
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


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (3, 25, 25), (4, 30, 20), (4, 20, 30)])
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


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_randomized_factors_and_their_error_belong_together_after_any_number_of_iterations(iterations):
    A = torch.randn(200, 150)
    svd = truncated_svd(A, 10, method="randomized", max_power_iterations=iterations)
    left = torch.linalg.matrix_norm(A - svd.U * svd.S @ svd.Vh) / torch.linalg.matrix_norm(A)
    assert svd.error == pytest.approx(float(left), abs=1e-5)
    torch.testing.assert_close(svd.Vh @ svd.Vh.mT, torch.eye(10), atol=1e-5, rtol=0)


def test_randomized_error_falls_with_iterations_until_the_next_round_promises_less_than_the_tolerance():
    A = torch.randn(500, 400)
    errors = [float(truncated_svd(A, 10, max_power_iterations=n, tol=0.0).error) for n in range(8)]
    assert all(b < a for a, b in itertools.pairwise(errors))
    for tol in (1e-2, 1e-3):
        gains = [(a**2 - b**2, b**2) for a, b in itertools.pairwise(errors)]
        promised = {i + 1: b[0] * min(b[0] / a[0], 1) / b[1] for i, (a, b) in enumerate(itertools.pairwise(gains), 1)}
        last = next(i for i, gain in promised.items() if gain <= tol)
        assert gains[0][0] > tol * gains[0][1]  # not after the first round already
        stopped = truncated_svd(A, 10, max_power_iterations=7, tol=tol).error
        assert stopped == pytest.approx(errors[last], abs=1e-6)


def few_rows():
    """Matrices of few directions: sums of noise, exact zeros around a diagonal or a block, equal rows; a batch."""
    noisy = torch.randn(400, 3) @ torch.randn(3, 350)
    diagonal, block = torch.zeros(400, 350), torch.zeros(400, 350)
    diagonal[range(3), range(3)] = torch.tensor([1.0, 0.5, 0.1])
    block[7:27, 11:16] = torch.randn(20, 5)
    repeated = torch.arange(4.0).repeat(400, 88)[:, :350]
    return {"noisy": noisy, "diagonal": diagonal, "block": block, "repeated": repeated, "zero": torch.zeros(400, 350),
            "batch": torch.stack([torch.randn(400, 350), diagonal, block])}  # fmt: skip


def test_float64_is_orthonormal_to_float64s_digits():
    U, _, Vh = torch.linalg.svd(torch.randn(300, 300, dtype=torch.float64))
    S = torch.full((300,), 3e-5, dtype=torch.float64)
    S[:6] = 1
    svd = truncated_svd(U * S @ Vh, 8, method="randomized")
    torch.testing.assert_close(svd.U.mT @ svd.U, torch.eye(8, dtype=torch.float64), atol=1e-13, rtol=0)


def test_directions_stay_orthonormal_where_only_rounding_is_left_to_find():
    """What rounds after the third add is rounding, most of it along what was found already."""
    g = torch.Generator().manual_seed(0)
    for A in torch.randn(150, 60, 3, generator=g) @ torch.randn(150, 3, 50, generator=g):
        svd = truncated_svd(A, 8, method="randomized", tol=0.0)
        torch.testing.assert_close(svd.U.mT @ svd.U, torch.eye(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(svd.Vh @ svd.Vh.mT, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 5e8])
@pytest.mark.parametrize("name", few_rows())
def test_randomized_is_right_where_there_are_fewer_directions_than_asked(name, scale):
    A = scale * few_rows()[name]
    for rank in (8, 40):
        svd = truncated_svd(A, rank, method="randomized", tol=0.0)
        for rows in (svd.U.mT, svd.Vh):
            torch.testing.assert_close(
                rows @ rows.mT, torch.eye(rank).expand(*rows.shape[:-1], rank), atol=1e-5, rtol=0
            )
        S = torch.linalg.svdvals(A.double())[..., :rank]
        # values that are zero: rounding of products of 400 float32; a flat spectrum's own come in slowly
        rounding = 2**-23 * 400**0.5 * float(S.max())
        torch.testing.assert_close(svd.S.double(), S, rtol=0.05 if name == "batch" else 1e-5, atol=rounding)


def test_randomized_is_exact_once_its_blocks_span_the_smaller_side():
    A = torch.randn(40, 25)
    for rank in (10, 20):  # the last block is narrower
        svd = truncated_svd(A, rank, method="randomized", max_power_iterations=4, tol=0.0)
        torch.testing.assert_close(svd.error, optimal_error(A, rank), rtol=1e-5, atol=0)


def test_more_oversampling_and_another_seed_give_another_approximation():
    A = torch.randn(200, 150)
    one, wider, other = (
        truncated_svd(A, 10, max_power_iterations=0, **options) for options in ({}, {"oversample": 60}, {"seed": 1})
    )
    assert wider.error < one.error
    assert one.error != other.error
    assert torch.equal(one.U, truncated_svd(A, 10, max_power_iterations=0).U)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_randomized_start_near_the_wanted_directions_needs_no_iteration(batch):
    A = torch.randn(*batch, 160, 8) @ torch.randn(*batch, 8, 150) + 0.05 * torch.randn(*batch, 160, 150)
    known = torch.linalg.svd(A, full_matrices=False).Vh
    best, drawn = optimal_error(A, 8), truncated_svd(A, 8, method="randomized", max_power_iterations=0).error
    # all of them, more than there is room for, half of them: then random directions find the rest
    for rows, share in ((8, 0.01), (30, 0.01), (4, 0.9)):
        svd = truncated_svd(
            A, 8, method="randomized", start=known[..., :rows, :], max_power_iterations=0, oversample=10
        )
        assert (svd.error - best <= share * (drawn - best)).all()


def test_randomized_defaults_are_those_documented():
    A = torch.randn(200, 150)
    for tol in (0.0, 2e-3):
        spelled = truncated_svd(A, 10, oversample=8, max_power_iterations=6, tol=tol, seed=0)
        assert torch.equal(truncated_svd(A, 10, **({"tol": tol} if tol == 0 else {})).U, spelled.U)


def test_auto_is_randomized_for_few_directions_of_a_large_matrix_and_exact_otherwise():
    A = torch.randn(136, 140)
    for size, rank, method in ((136, 17, "randomized"), (136, 18, "gram"), (129, 1, "randomized"), (128, 1, "gram")):
        auto = truncated_svd(A[:size], rank)
        assert torch.equal(auto.U, truncated_svd(A[:size], rank, method=method).U)
    # the Gram matrix would keep half of float64's digits
    tiny = truncated_svd(torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64)), 2)
    assert tiny.S.tolist() == pytest.approx([1, 1e-12])


@pytest.mark.parametrize("method", ["gram", "full", "randomized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_the_dtype_of_the_computation(method, dtype):
    for A in (torch.randn(12, 9, dtype=dtype), torch.zeros(12, 9, dtype=dtype)):
        svd = truncated_svd(A, 3, method=method)
        assert {svd.U.dtype, svd.S.dtype, svd.Vh.dtype} == {dtype}
        assert svd.error.dtype == torch.float64


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
    with pytest.raises(ValueError, match=r"rank=0 is outside 1..4"):
        truncated_svd(torch.randn(6, 4), 0)
    with pytest.raises(ValueError, match="start has rows of 4 entries for matrices of 6 columns"):
        truncated_svd(torch.randn(4, 6), 2, method="randomized", start=torch.randn(1, 4))
    for rank in (0, 5):
        with pytest.raises(ValueError, match=rf"rank={rank} is outside 1..4"):
            truncated_eigh(torch.eye(4), rank)


def test_singular_values_agree_with_lapack():
    for shape in ((2, 30, 50), (2, 50, 30)):
        A = torch.randn(shape)
        torch.testing.assert_close(singular_values(A), torch.linalg.svdvals(A.double()), atol=1e-9, rtol=1e-9)
    deficient = singular_values(torch.diag(torch.tensor([2.0, 0.5, 0.0])))
    torch.testing.assert_close(deficient, torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64))
    tiny = singular_values(torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64)))
    assert tiny.tolist() == pytest.approx([1, 1e-12])


@pytest.mark.parametrize("d", [60, 700])
def test_truncated_eigh_agrees_with_the_full_decomposition(d):
    X = torch.randn(2 * d, d, dtype=torch.float64) * torch.linspace(2, 0.1, d, dtype=torch.float64)
    C = X.mT @ X
    values, vectors = truncated_eigh(C, 8)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(C).flip(0)[:8], rtol=1e-8, atol=0)
    torch.testing.assert_close(vectors @ C, values[:, None] * vectors, rtol=0, atol=float(values[0]) * 1e-6)


def decaying(d, base, seed=0):
    """A symmetric matrix with the eigenvalues ``base ** i``, and those."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    values = base ** torch.arange(d, dtype=torch.float64)
    return (Q * values) @ Q.T, values


@pytest.fixture
def solved(monkeypatch):
    """The sizes of the eigenproblems that LAPACK is given."""
    eigh, sizes = torch.linalg.eigh, []

    def watched(G):
        sizes.append(G.shape[-1])
        return eigh(G)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    return sizes


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_truncated_eigh_of_a_decaying_spectrum_needs_no_eigenproblem_of_full_size(solved, scale):
    C, expected = decaying(600, 0.7)
    values, vectors = truncated_eigh(scale * C, 6)
    assert solved == [4 * 16]  # one round of depth 4 with a block of 10 more than wanted
    torch.testing.assert_close(values, scale * expected[:6], rtol=1e-9, atol=0)
    residual = (vectors @ C - expected[:6, None] * vectors).norm(dim=1)
    assert residual.max() <= 1e-6
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_every_pair_of_truncated_eigh_reaches_the_tolerance_however_slow_the_decay(scale):
    C, expected = decaying(600, 0.99)
    values, vectors = truncated_eigh(scale * C, 20)
    residual = (vectors @ C - vectors * values[:, None] / scale).norm(dim=1)
    assert residual.max() <= 1.01e-6
    torch.testing.assert_close(values, scale * expected[:20], rtol=1e-9, atol=0)


def test_truncated_eigh_takes_the_full_eigenproblem_where_that_is_less_work(solved):
    for d, rank in ((512, 2), (600, 66)):  # a small matrix; 8 (rank + 10) columns for 600 rows
        C, expected = decaying(d, 0.9)
        torch.testing.assert_close(truncated_eigh(C, rank)[0], expected[:rank], rtol=1e-7, atol=1e-13)
        assert solved.pop() == d
        assert not solved


def test_truncated_eigh_falls_back_to_the_full_eigenproblem_after_so_many_rounds(solved):
    C, expected = decaying(600, 0.999)
    values, _ = truncated_eigh(C, 4, tol=0.0, max_restarts=3)
    assert solved == [4 * 14] * 3 + [600]
    torch.testing.assert_close(values, expected[:4], rtol=1e-9, atol=0)


def test_a_start_near_the_wanted_eigenvectors_saves_truncated_eigh_its_rounds(solved):
    C, expected = decaying(600, 0.99)
    truncated_eigh(C, 8)
    drawn = len(solved)
    known = torch.linalg.eigh(C)[1].flip(1).mT
    for rows in (8, 12):
        solved.clear()
        values, _ = truncated_eigh(C, 8, start=known[:rows])
        assert len(solved) < drawn
        torch.testing.assert_close(values, expected[:8], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("d", "rank"), [(4, 1), (4, 4), (600, 1)])
def test_truncated_eigh_clamps_what_is_below_zero(d, rank):
    C = -torch.eye(d, dtype=torch.float64)
    values, vectors = truncated_eigh(C, rank)
    assert values.tolist() == [0.0] * rank
    assert vectors.shape == (rank, d)


def test_symmetric_eigh_keeps_the_precision_it_is_given():
    for dtype in (torch.float32, torch.float64):
        values, vectors = symmetric_eigh(torch.diag(torch.tensor([2.0, 1.0], dtype=dtype)))
        assert values.dtype == vectors.dtype == dtype
        assert values.tolist() == [1, 2]


@pytest.mark.parametrize("rank", [5, 40, 79])
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_leading_directions_are_those_of_a_float64_svd_even_where_values_nearly_coincide(rank, gap):
    U, _, Vh = torch.linalg.svd(torch.randn(120, 80, dtype=torch.float64), full_matrices=False)
    A = (U * (1 - gap * torch.arange(80)) @ Vh).float()
    V = leading_right_vectors(A, rank)
    assert V.dtype == torch.float32
    assert principal_angles(V, torch.linalg.svd(A.double()).Vh[:rank].mT).max() < 2e-8 / gap
    torch.testing.assert_close(V.mT @ V, torch.eye(rank), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("shape", "dtype", "tol"), [((80, 50), torch.float32, 2e-6), ((50, 80), torch.float64, 1e-9)])
def test_balanced_factors_reach_the_least_error_and_share_the_singular_values(shape, dtype, tol):
    A = torch.randn(shape, dtype=dtype)
    B, C = balanced_factors(A, 12)
    error = torch.linalg.matrix_norm((A - B @ C).double()) / torch.linalg.matrix_norm(A.double())
    torch.testing.assert_close(error, optimal_error(A, 12), atol=tol, rtol=0)
    root = torch.linalg.svdvals(A)[:12].sqrt()
    torch.testing.assert_close(B.norm(dim=0), root, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(C.norm(dim=1), root, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_balanced_factors_project_on_the_directions_they_are_given(shape):
    A = torch.randn(shape, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    smaller = Vh.mT if shape[0] > shape[1] else U
    B, C = balanced_factors(A, 3, directions=smaller.flip(1).float())
    torch.testing.assert_close(B @ C, U[:, -3:] * S[-3:] @ Vh[-3:], atol=1e-5, rtol=0)
    assert B.dtype == torch.float64


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


@pytest.mark.parametrize("smallest", [1e-3, 1e-6])
@pytest.mark.parametrize("flat", [False, True])
def test_small_singular_values_are_right_to_their_own_digits_and_directions_stay_orthonormal(smallest, flat):
    U, _, Vh = torch.linalg.svd(torch.randn(60, 40, dtype=torch.float64), full_matrices=False)
    S = torch.logspace(0, math.log10(smallest), 40, dtype=torch.float64)
    if flat:  # one large value and many small ones
        S[1:] = smallest
    A = (U * S @ Vh).float()
    values, V = spectrum_and_directions(A)
    assert values.dtype == torch.float64
    assert V.dtype == torch.float32
    exact = torch.linalg.svdvals(A.double())
    torch.testing.assert_close(values, exact, atol=0, rtol=1e-3)
    torch.testing.assert_close(V.mT @ V, torch.eye(40), atol=5e-6, rtol=0)
    torch.testing.assert_close((A.double() @ V.double()).norm(dim=0), exact, atol=1e-6, rtol=0)


def test_a_stack_is_taken_apart_at_random_as_each_of_its_matrices_is():
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, *shape, generator=g, dtype=torch.float64) for shape in ((40, 4), (4, 30)))
    A = left @ right
    found = truncated_svd(A, 4, method="randomized")
    torch.testing.assert_close(found.U * found.S[..., None, :] @ found.Vh, A)  # of rank 4: nothing is lost
    torch.testing.assert_close(found.S, torch.linalg.svdvals(A)[..., :4])
