import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from rankwise.distributions.quantiles.metrics import pinball
from rankwise.distributions.quantiles.noncrossing import isotonic, monotone

G = torch.Generator().manual_seed(0)


def test_isotonic_equals_scikit_learn_row_by_row():
    Q = torch.randn(200, 23, generator=G, dtype=torch.float64)
    expected = [IsotonicRegression().fit_transform(np.arange(23), row) for row in Q.numpy()]
    np.testing.assert_allclose(isotonic(Q)[0], expected, atol=1e-12)


def test_ties_and_ordered_rows_stay():
    Q = torch.tensor([[1.0, 1, 2, 2], [0, 1, 2, 3], [2, 2, 1, 1]])
    np.testing.assert_allclose(isotonic(Q)[0], [[1, 1, 2, 2], [0, 1, 2, 3], [1.5, 1.5, 1.5, 1.5]])


@pytest.mark.parametrize("way", ["sort", "isotonic", "sweep"])
def test_gradient_equals_differences(way):
    Q = torch.randn(5, 9, generator=G, dtype=torch.float64, requires_grad=True)
    c = torch.randn(5, 9, generator=G, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: (c * monotone(q, way)).sum(), (Q,))


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["sort", "isotonic"]))
def test_sorting_and_projecting_never_increase_the_average_pinball_loss(seed, way):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 12))
    tau, q, y = np.sort(rng.uniform(0.01, 0.99, m)), rng.normal(size=(3, m)), rng.normal(size=3)
    fixed = monotone(torch.as_tensor(q), way).numpy()
    assert (pinball(y, fixed, tau).mean(1) <= pinball(y, q, tau).mean(1) + 1e-12).all()
    assert (np.diff(fixed, axis=1) >= -1e-12).all()


def test_sweep_keeps_the_median_and_orders_the_rest():
    Q = torch.tensor([[0.0, 3, 2, 1, 5]])
    np.testing.assert_allclose(monotone(Q, "sweep"), [[0, 2, 2, 2, 5]])
    np.testing.assert_allclose(monotone(Q, "sweep", middle=1), [[0, 3, 3, 3, 5]])


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="did you mean isotonic"):
        monotone(torch.zeros(1, 2), "isotonc")


def test_projections_of_many_rows_keep_shapes_and_types():
    Q = torch.randn(2, 3, 4, generator=G)
    for way in ("sort", "isotonic", "sweep"):
        found = monotone(Q, way)
        assert found.shape == Q.shape
        assert found.dtype == torch.float32
        rows = torch.stack([monotone(row[None], way)[0] for row in Q.reshape(-1, 4)])
        torch.testing.assert_close(found, rows.reshape(Q.shape))
    assert monotone(Q, "none") is Q
    assert isotonic(torch.zeros(0, 3))[0].shape == (0, 3)
    Q = torch.tensor([[3.0, 1.0, 2.0, 5.0], [1.0, 2.0, 2.0, 0.0]])
    projected, first = isotonic(Q)
    torch.testing.assert_close(projected, torch.tensor([[2.0, 2.0, 2.0, 5.0], [1.0, 4 / 3, 4 / 3, 4 / 3]]))
    assert first.tolist() == [[0, 0, 0, 3], [0, 1, 1, 1]]
    even = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    torch.testing.assert_close(monotone(even, "sweep"), torch.tensor([[0.0, 2.0, 2.0, 2.0]]))


def test_rows_in_blocks_are_projected_alike(monkeypatch):
    Q = torch.randn(11, 5, generator=G, dtype=torch.float64)
    whole = isotonic(Q)
    monkeypatch.setattr("rankwise.distributions.quantiles.noncrossing._ROWS", 4)
    for a, b in zip(isotonic(Q), whole, strict=True):
        torch.testing.assert_close(a, b)
