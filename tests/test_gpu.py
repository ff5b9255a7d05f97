"""What only a GPU shows: run where torch sees one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from rankwise.continual.unlearning.blocks import acting
from rankwise.dynamics import alignment
from rankwise.models.loading import placed
from rankwise.spectral import power_law_fit, spectrum_and_directions, symmetric_eigh, truncated_svd
from rankwise.vision.distilled.start import least_squares
from rankwise.vision.distilled.tiles import chosen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.mark.parametrize("n", [60, 128, 400])
def test_eigenvalues_of_float32_are_as_exact_as_on_the_cpu(n):
    A = torch.randn(n, n, dtype=torch.float64)
    G = (A + A.mT).float()
    values, V = symmetric_eigh(G.cuda())
    exact = torch.linalg.eigvalsh(G.double())
    assert values.dtype == V.dtype == torch.float32
    torch.testing.assert_close(values.cpu().double(), exact, atol=1e-6 * float(exact.abs().max()), rtol=0)
    torch.testing.assert_close(V.mT @ V, torch.eye(n, device="cuda"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_directions_are_those_of_the_cpu_whatever_precision_products_may_have(precision):
    A = torch.randn(300, 200) * torch.arange(1, 201) ** -0.5
    torch.set_float32_matmul_precision(precision)
    try:
        mine, (values, V) = truncated_svd(A.cuda(), 10), spectrum_and_directions(A.cuda())
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = torch.linalg.svdvals(A.double())
    torch.testing.assert_close(values.cpu(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.S.cpu(), truncated_svd(A, 10).S, rtol=1e-5, atol=0)
    for rows in (mine.U.mT, mine.Vh, V.mT):
        torch.testing.assert_close(rows.double() @ rows.double().mT, torch.eye(len(rows)).double().cuda(), atol=1e-5,
                                   rtol=0)  # fmt: skip


def test_a_power_laws_exponent_is_that_of_the_cpu():
    u = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    assert power_law_fit(u.cuda() ** -0.5, n_tests=5) == power_law_fit(u**-0.5, n_tests=5)


def test_what_is_small_is_aligned_with_itself():
    H = 1e-19 * torch.randn(7, 3, device="cuda")
    assert alignment(H @ H.T, H @ H.T) == 1


def test_squares_are_chosen_and_answers_fitted_where_they_lie():
    losses, last = torch.rand(20, 4), torch.rand(20, 4) < 0.2
    for mine, known in zip(chosen(losses.cuda(), 5, last=last.cuda()), chosen(losses, 5, last=last), strict=True):
        assert torch.equal(mine, known)
    x, taught, rows = torch.randn(40, 6), torch.randn(40, 3), torch.randn(3, 6)
    found, known = least_squares(x.cuda(), taught.cuda(), rows.cuda(), 2), least_squares(x, taught, rows, 2)
    np.testing.assert_allclose(*((up @ down).cpu().numpy() for down, up in (found, known)), atol=1e-5)
    assert found[0].is_cuda


def test_blocks_act_where_their_layers_lie():
    layer, x, (A, B) = torch.nn.Linear(5, 3), torch.randn(2, 5), (torch.randn(2, 5), torch.randn(3, 2))
    expected = layer(x) + 0.5 * x @ A.mT @ B.mT
    layer.to("cuda")
    with acting({"l": layer}, [{"l": (A, B)}], torch.ones(1, 1), scaling=0.5):
        found = layer(x.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-4)


def test_threads_do_not_load_its_linear_algebra_at_once():
    lines = "import torch; from rankwise.spectral import each, symmetric_eigh\n"
    lines += "G = [torch.eye(40, device='cuda') for _ in range(16)]\n"
    lines += "print(len(list(each(symmetric_eigh, G, workers=8))))"
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["16"]


def test_commands_compute_there():
    assert placed(torch.nn.Linear(2, 3)).weight.is_cuda
