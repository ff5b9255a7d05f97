import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.spectral import StreamingSVD, principal_angles

D, K = 24, 4


def rows(n=400, d=D, seed=0, offset=3.0):
    """Rows with a clear gap after the K-th direction, off centre."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    scale = torch.cat([torch.linspace(6, 4, K), torch.full((d - K,), 0.3)])
    return (torch.randn(n, d, generator=g) * scale) @ basis.T + offset


def leading(X, center):
    X = X.double() - (X.double().mean(0) if center else 0)
    return torch.linalg.svd(X, full_matrices=False)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("engine", "angle"), [("exact", 1e-3), ("incremental", 1e-2)])
def test_stream_recovers_the_subspace_of_the_whole_matrix(engine, angle, center):
    X = rows()
    stream = StreamingSVD(K, engine=engine, center=center)
    for batch in X.split(37):
        stream.partial_fit(batch)
    S, V = stream.components()
    _, s, vh = leading(X, center)
    assert principal_angles(V.T, vh[:K].T).max() < angle
    torch.testing.assert_close(S, s[:K], rtol=1e-4, atol=1e-4)
    total = s.square().sum()
    torch.testing.assert_close(stream.explained_variance_ratio(), s[:K].square() / total, rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.booleans())
def test_exact_engine_does_not_depend_on_the_batches(cuts, center):
    X = rows(200)
    whole = StreamingSVD(K, center=center).partial_fit(X)
    pieces, start = StreamingSVD(K, center=center), 0
    for cut in [*cuts, 200]:
        pieces.partial_fit(X[start : start + cut])
        start += cut
    torch.testing.assert_close(pieces.components()[0], whole.components()[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_merging_two_streams_equals_one_stream(engine, center):
    X = rows()
    X[200:] += 2.0  # the two halves have different means
    one = StreamingSVD(K, engine=engine, center=center).partial_fit(X)
    two = StreamingSVD(K, engine=engine, center=center).partial_fit(X[:200])
    two.merge(StreamingSVD(K, engine=engine, center=center).partial_fit(X[200:]))
    torch.testing.assert_close(two.mean, X.double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two.components()[0], one.components()[0], rtol=1e-3, atol=1e-3)
    assert two.total_variance == pytest.approx(one.total_variance, rel=1e-4)
    assert principal_angles(one.components()[1].T, two.components()[1].T).max() < 1e-2


def test_one_batch_equals_the_svd_of_the_centred_batch():
    X = rows(50)
    S, V = StreamingSVD(3).partial_fit(X).components()
    _, s, vh = leading(X, center=True)
    torch.testing.assert_close(S, s[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(V.double().abs(), vh[:3].abs(), rtol=1e-3, atol=1e-3)


def test_large_mean_does_not_cost_the_variance_its_digits():
    X = rows(offset=1e4)
    S, _ = StreamingSVD(K).partial_fit(X).components()
    torch.testing.assert_close(S, leading(X, center=True)[1][:K], rtol=1e-3, atol=0)


def test_forgetting_favours_recent_rows():
    old, new = rows(seed=1, offset=0), rows(seed=2, offset=0)
    keeps, forgets = StreamingSVD(K), StreamingSVD(K, forget=0.01)
    for stream in (keeps, forgets):
        stream.partial_fit(old).partial_fit(new)
    target = leading(new, center=True)[2][:K].T
    assert principal_angles(forgets.components()[1].T, target).max() < 0.1
    assert principal_angles(keeps.components()[1].T, target).max() > 0.3


def test_agrees_with_incremental_pca_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.decomposition")
    X = rows(600)
    theirs = sklearn.IncrementalPCA(K, batch_size=100).fit(X.numpy())
    mine = StreamingSVD(K).partial_fit(X)
    assert principal_angles(mine.components()[1].T, torch.from_numpy(theirs.components_).T).max() < 1e-2


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match="forget=2"):
        StreamingSVD(2, forget=2)
    with pytest.raises(ValueError, match="no rows yet"):
        StreamingSVD(2).components()
    with pytest.raises(ValueError, match="5 components need at least 5 rows"):
        StreamingSVD(5).partial_fit(rows(3)).components()
    with pytest.raises(ValueError, match="width 7"):
        StreamingSVD(2).partial_fit(rows(9)).partial_fit(torch.randn(4, 7))
