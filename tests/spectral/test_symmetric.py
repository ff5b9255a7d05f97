import pytest
import torch

from rankwise.spectral import gram, symmetric, symmetric_eigh

LAYOUTS = {
    "rows": lambda A: A,
    "columns": lambda A: A.mT,
    "every other": lambda A: A[:, ::2],
    "a part": lambda A: A[3:, 20:],
    "empty": lambda A: A[:0],
}


@pytest.fixture(params=[1, 2])
def threads(request):
    """One thread goes through SciPy's routines, several through torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gram_matrix_is_the_product_however_the_matrix_lies_in_memory(layout, dtype, threads):
    A = layout(torch.randn(310, 290, dtype=torch.float64).to(dtype))
    G = gram(A)
    torch.testing.assert_close(G, (A.double().mT @ A.double()).to(dtype), atol=1e-4, rtol=1e-5)
    assert G.dtype == dtype
    assert torch.equal(G, G.mT)


def test_a_gram_matrix_and_its_eigenvalues_can_be_differentiated():
    A = torch.randn(9, 150, dtype=torch.float64, requires_grad=True)
    symmetric_eigh(gram(A))[0].sum().backward()  # the trace, ‖A‖²
    torch.testing.assert_close(A.grad, 2 * A.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [60, 128, 201])
@pytest.mark.parametrize("leading", [None, 0, 1, 37])
def test_leading_eigenvectors_are_those_of_the_largest_values(n, dtype, leading, threads):
    A = torch.randn(n, n, dtype=torch.float64)
    G = (A + A.mT).to(dtype)
    before = G.clone()
    values, V = symmetric_eigh(G, leading=leading)
    assert torch.equal(G, before)
    exact, vectors = torch.linalg.eigh(G.double())
    tol = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(values.double(), exact, atol=10 * tol, rtol=0)
    k = n if leading is None else leading
    assert (values.dtype, V.dtype, V.shape) == (dtype, dtype, (n, k))
    torch.testing.assert_close(V.mT @ V, torch.eye(k, dtype=dtype), atol=tol, rtol=0)
    torch.testing.assert_close(G @ V, V * values[n - k :], atol=10 * tol, rtol=0)
    gap = exact.diff().min()
    torch.testing.assert_close(
        (vectors[:, n - k :] * V.double()).sum(0).abs(), torch.ones(k).double(), atol=tol / gap, rtol=0
    )


@pytest.mark.parametrize(
    "found", [None, lambda *arguments: arguments[-1].fill_(1)], ids=["no routine", "no convergence"]
)
def test_without_scipys_steps_torch_finds_the_same(monkeypatch, found):
    A = torch.randn(200, 150)
    expected = gram(A), *symmetric_eigh(A.mT @ A, leading=20)
    monkeypatch.setattr(symmetric, "_fortran", lambda library, name: found if library == "lapack" else None)
    G, values, V = gram(A), *symmetric_eigh(A.mT @ A, leading=20)
    torch.testing.assert_close(G, expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(values, expected[1], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(V @ V.mT, expected[2] @ expected[2].mT, atol=1e-3, rtol=0)


def test_scipys_threads_are_not_put_beside_torchs(monkeypatch, threads):
    called, routine = [], symmetric._fortran
    monkeypatch.setattr(symmetric, "_fortran", lambda *name: called.append(name) or routine(*name))
    symmetric_eigh(gram(torch.randn(200, 150)))
    assert bool(called) == (threads == 1)


@pytest.mark.parametrize("leading", [-1, 4])
def test_more_vectors_than_there_are_are_refused(leading):
    with pytest.raises(ValueError, match=rf"leading={leading} is outside 0\.\.3"):
        symmetric_eigh(torch.eye(3), leading=leading)
