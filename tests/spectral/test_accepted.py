"""What every numeric function takes: any finite scale is served, NaN and complex entries are refused by name."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from rankwise.spectral import (
    StreamingSVD,
    balanced_factors,
    effective_rank,
    explained_variance,
    gram,
    hill_index,
    leading_right_vectors,
    orthogonality_error,
    outlier_ratio,
    polar_factor,
    principal_angles,
    procrustes,
    projection,
    singular_values,
    spectrum_and_directions,
    stable_rank,
    symmetric_eigh,
    truncated_eigh,
    truncated_svd,
)
from rankwise.spectral.accepted import exact_products

MATRIX = torch.randn(12, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
S = torch.linalg.svdvals(MATRIX)
LEFT = S[3:].square().sum().sqrt() / S.square().sum().sqrt()
SCALES = [1e-40, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e35]
METHODS = ["gram", "full", "randomized"]

OF_MATRICES = {
    "truncated_svd": lambda A: truncated_svd(A, 2),
    "leading_right_vectors": lambda A: leading_right_vectors(A, 2),
    "spectrum_and_directions": spectrum_and_directions,
    "balanced_factors": lambda A: balanced_factors(A, 2),
    "singular_values": singular_values,
    "symmetric_eigh": lambda A: symmetric_eigh(A[:8]),
    "truncated_eigh": lambda A: truncated_eigh(A[:8], 2),
    "principal_angles": lambda A: principal_angles(A[:, :2], A[:, 2:]),
    "projection": lambda A: projection(A.mT, A),
    "procrustes": lambda A: procrustes(A, A),
    "polar_factor": polar_factor,
    "outlier_ratio": outlier_ratio,
}


@pytest.mark.parametrize("name", OF_MATRICES)
def test_nan_is_refused_by_the_name_of_the_function(name):
    A = MATRIX.clone()
    A[3, 2] = float("nan")
    with pytest.raises(ValueError, match=rf"^{name}: .*NaN or Inf"):
        OF_MATRICES[name](A)


def test_nan_in_the_other_matrix_is_refused_too():
    A = torch.full((12, 8), float("nan"), dtype=torch.float64)
    for call in (principal_angles, projection, procrustes):
        given = (A.mT, MATRIX) if call is projection else (MATRIX, A)
        with pytest.raises(ValueError, match=rf"^{call.__name__}: .*NaN or Inf"):
            call(*given)


@pytest.mark.parametrize("name", [*OF_MATRICES, "orthogonality_error", "StreamingSVD"])
def test_complex_entries_are_refused_by_name_and_integers_too(name):
    extra = {"orthogonality_error": orthogonality_error, "StreamingSVD": StreamingSVD(2).partial_fit}
    call = (OF_MATRICES | extra)[name]
    if name != "polar_factor":  # which rounds to float32 by its contract
        with pytest.raises(ValueError, match=rf"^{name}: .*complex128.*real and the imaginary"):
            call(MATRIX.to(torch.complex128))
        with pytest.raises(ValueError, match=rf"^{name}: .*int64.*cast"):
            call(MATRIX.long())


def test_complex_spectra_are_refused():
    with pytest.raises(ValueError, match="real, got"):
        effective_rank(torch.ones(3, dtype=torch.complex128))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_values_and_error_are_right_at_every_scale(scale, method):
    A = (MATRIX * scale).float()
    found = truncated_svd(A, 3, method=method)
    torch.testing.assert_close(found.S.double() / scale, S[:3], rtol=1e-3 if scale < 1e-37 else 2e-5, atol=0)
    # at 1e-40 float32 has five digits left
    assert float(found.error) == pytest.approx(float(LEFT), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("method", METHODS)
def test_float64_at_the_ends_of_its_range_too(scale, method):
    found = truncated_svd(MATRIX * scale, 3, method=method)
    torch.testing.assert_close(found.S / scale, S[:3], rtol=1e-9, atol=0)
    assert float(found.error) == pytest.approx(float(LEFT), rel=1e-9)


def test_each_matrix_of_a_batch_has_a_scale_of_its_own():
    A = torch.stack([MATRIX * 1e-25, MATRIX, MATRIX * 1e25, torch.zeros_like(MATRIX)]).float()
    found = truncated_svd(A, 3, method="gram")
    torch.testing.assert_close(found.error[:3], LEFT.expand(3), rtol=1e-5, atol=0)
    assert found.error[3] == 0
    torch.testing.assert_close(found.S[2].double() * 1e-25, S[:3], rtol=1e-5, atol=0)


def test_a_singular_value_beyond_float32_is_refused_not_infinite():
    with pytest.raises(ValueError, match="singular values"):
        truncated_svd(torch.full((50, 50), 3e38), 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_an_exactly_low_rank_matrix_is_what_is_really_left(method):
    g = torch.Generator().manual_seed(0)
    A = torch.randn(40, 3, generator=g) @ torch.randn(3, 30, generator=g)
    found = truncated_svd(A, 3, method=method)
    left = torch.linalg.matrix_norm(A.double() - (found.U.double() * found.S.double()) @ found.Vh.double())
    assert float(found.error) == pytest.approx(float(left / torch.linalg.matrix_norm(A.double())), rel=1e-6)
    assert found.error < 2e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_spectra_directions_and_factors_do_not_mind_the_scale(scale):
    A = (MATRIX * scale).float()
    values, V = spectrum_and_directions(A)
    torch.testing.assert_close(values / scale, S, rtol=1e-4, atol=0)
    torch.testing.assert_close(V.mT @ V, torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(singular_values(A) / scale, S, rtol=1e-5, atol=0)
    B, C = balanced_factors(A, 3)
    left = torch.linalg.matrix_norm(A.double() / scale - (B.double() / scale) @ C.double())
    assert float(left) == pytest.approx(float(S[3:].square().sum().sqrt()), rel=1e-4)
    Q = polar_factor(A)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_directions_of_float64_matrices_stay_float64(scale):
    for A in (MATRIX, MATRIX.mT):
        values, V = spectrum_and_directions(scale * A)
        torch.testing.assert_close(values / scale, S, rtol=1e-12, atol=0)
        tall = A if A.shape[0] > A.shape[1] else A.mT
        torch.testing.assert_close((tall @ V).norm(dim=0), S, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e200])
def test_shape_of_a_spectrum_does_not_depend_on_its_scale(scale):
    for measure in (effective_rank, stable_rank, explained_variance, hill_index):
        torch.testing.assert_close(measure(S * scale), measure(S), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_streams_keep_rows_whose_squares_float32_cannot_hold(scale, engine):
    rows = (MATRIX * scale).float()
    found = StreamingSVD(3, center=False, engine=engine).partial_fit(rows[:5]).partial_fit(rows[5:]).components()[0]
    torch.testing.assert_close(found / scale, S[:3], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: truncated_svd(torch.ones(3), 1), r"shape \(3,\)"),
        (lambda: truncated_svd(torch.ones(0, 3), 1), r"shape \(0, 3\)"),
        (lambda: balanced_factors(MATRIX, 9), r"rank=9 is outside 1\.\.8"),
        (lambda: balanced_factors(MATRIX, 0), r"rank=0 is outside 1\.\.8"),
        (lambda: leading_right_vectors(MATRIX, 0), r"rank=0 is outside 1\.\.8"),
        (lambda: spectrum_and_directions(torch.ones(2, 3, 4)), "^spectrum_and_directions: one matrix with"),
        (lambda: balanced_factors(torch.ones(2, 4, 3), 1), "^balanced_factors: one matrix with"),
        (lambda: leading_right_vectors(torch.ones(2, 4, 3), 1), "^leading_right_vectors: one matrix with"),
        (lambda: polar_factor(torch.ones(2, 2, 2)), "^polar_factor: one matrix with"),
    ],
)
def test_shapes_and_ranks_out_of_range_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_one_value_has_no_tail_and_no_value_no_variance():
    assert torch.isnan(hill_index(torch.tensor([4.0])))
    assert explained_variance(torch.zeros(3)).tolist() == [0, 0, 0]
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0


def test_products_are_exact_within_and_the_process_has_its_setting_again():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen = exact_products(lambda: matmul.fp32_precision)
    nested = exact_products(lambda: (seen(), matmul.fp32_precision))
    try:
        matmul.fp32_precision = "tf32"
        assert nested() == ("ieee", "ieee")
        with pytest.raises(ValueError, match="rank=9"):
            truncated_svd(torch.eye(3), 9)
        assert matmul.fp32_precision == "tf32"
        matmul.fp32_precision = "ieee"
        assert seen() == "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = before


def test_a_threads_products_stay_exact_while_another_thread_ends():
    matmul, inside, begun, ended = torch.backends.cuda.matmul, Event(), Event(), Event()
    before = matmul.fp32_precision

    @exact_products
    def first():
        inside.set()
        assert begun.wait(10)

    @exact_products
    def second():
        begun.set()
        assert ended.wait(10)
        return matmul.fp32_precision

    try:
        matmul.fp32_precision = "tf32"
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(first)
            assert inside.wait(10)
            two = pool.submit(second)
            one.result()
            ended.set()
            assert two.result() == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_a_setting_that_follows_the_general_one_follows_it_again():
    general = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        assert exact_products(lambda: torch.backends.cuda.matmul.fp32_precision)() == "ieee"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = general


def test_what_is_guarded_compiles_as_a_whole():
    A = torch.randn(9, 4)
    torch.testing.assert_close(torch.compile(gram, fullgraph=True, backend="eager")(A), A.mT @ A)
