import copy
import math

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


@pytest.mark.parametrize("engine", ["exact", "incremental"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_what_a_stream_forgets_weighs_less_in_every_sum(engine, center, weight):
    old, new = rows(30, seed=1).double(), rows(20, seed=2, offset=-1.0).double()
    stream = StreamingSVD(K, engine=engine, center=center, forget=weight)
    stream.partial_fit(old).partial_fit(new)
    X, w = torch.cat([old, new]), torch.cat([torch.full((30,), weight), torch.ones(20)]).double()[:, None]
    assert stream.n_samples == pytest.approx(30 * weight + 20)
    mean = (w * X).sum(0) / w.sum()
    torch.testing.assert_close(stream.mean, mean)
    about = w.sqrt() * (X - mean if center else X)
    _, s, vh = torch.linalg.svd(about, full_matrices=False)
    values, vectors = stream.components()
    assert stream.total_variance == pytest.approx(float(s.square().sum()))
    # the incremental engine drops what lies behind its 2 K + 8 components
    torch.testing.assert_close(values, s[:K], rtol=1e-6 if engine == "exact" else 1e-3, atol=0)
    assert principal_angles(vectors.double().T, vh[:K].T).max() < 1e-2


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_sums_of_few_small_rows_are_exact(engine, center):
    X = 1e-3 * torch.randn(7, 5, dtype=torch.float64) + 1e-3
    one = StreamingSVD(2, engine=engine, center=center).partial_fit(X[:3]).partial_fit(X[3:])
    two = StreamingSVD(2, engine=engine, center=center).partial_fit(X[:3])
    two.merge(StreamingSVD(2, engine=engine, center=center).partial_fit(X[3:]))
    about = X - X.mean(0) if center else X
    for stream in (one, two):
        assert stream.n_samples == 7
        assert stream.total_variance == pytest.approx(float(about.square().sum()), rel=1e-6)
        torch.testing.assert_close(stream.components(5)[0], torch.linalg.svdvals(about), rtol=1e-5, atol=1e-12)
        V = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q.T
        assert stream.captured(V) == pytest.approx(float((about @ V.T).square().sum()), rel=1e-5)


def test_the_covariance_is_the_sum_of_outer_products():
    X = rows(40).double()
    about = X - X.mean(0)
    torch.testing.assert_close(StreamingSVD(K).partial_fit(X).covariance(), about.T @ about)
    torch.testing.assert_close(StreamingSVD(K, center=False).partial_fit(X).covariance(), X.T @ X)


@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_double_rows_keep_their_digits_and_half_rows_are_computed_in_float32(engine):
    Q = torch.linalg.qr(torch.randn(20, 6, dtype=torch.float64)).Q
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    X = Q * torch.logspace(0, -9, 6, dtype=torch.float64) @ turn  # a Gram matrix in float64 would lose the last ones
    stream = StreamingSVD(6, engine="incremental", center=False).partial_fit(X)
    torch.testing.assert_close(stream.components()[0], torch.logspace(0, -9, 6, dtype=torch.float64), rtol=1e-6, atol=0)
    half, X = StreamingSVD(K, engine=engine), rows(60).half()
    S, V = half.partial_fit(X).components()
    assert (S.dtype, V.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(S, leading(X, center=True)[1][:K], rtol=1e-5, atol=0)
    torch.testing.assert_close(V @ V.T, torch.eye(K), rtol=0, atol=1e-5)


def test_as_many_components_as_there_are_rows_can_be_asked_for_and_fewer_or_more_than_usual():
    X = rows(6)
    stream = StreamingSVD(2).partial_fit(X)
    exact = leading(X, center=True)[1]
    assert len(stream.components()[0]) == 2
    for k in (1, 3, 6):
        S, V = stream.components(k)
        assert (len(S), len(V)) == (k, k)
        torch.testing.assert_close(S[:5], exact[: min(k, 5)], rtol=1e-5, atol=0)
        torch.testing.assert_close(
            stream.explained_variance_ratio(k), S.square() / exact.square().sum(), rtol=1e-5, atol=1e-6
        )
    for k, data in ((7, X), (5, X[:, :4])):
        with pytest.raises(ValueError, match=f"{k} components need at least {k} rows and features"):
            StreamingSVD(2).partial_fit(data).components(k)


def test_the_incremental_engine_keeps_eight_more_than_twice_what_is_asked_for():
    stream = StreamingSVD(3, engine="incremental").partial_fit(rows(100))
    assert len(stream.components(14)[0]) == 14
    with pytest.raises(ValueError, match="15 components asked for, the incremental engine kept 14"):
        stream.components(15)


def test_auto_is_exact_up_to_4096_features():
    assert StreamingSVD(1).partial_fit(torch.ones(1, 4096)).engine == "exact"
    assert StreamingSVD(1).partial_fit(torch.ones(1, 4097)).engine == "incremental"


@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_an_empty_stream_takes_over_the_other_and_an_empty_one_changes_nothing(engine):
    full = StreamingSVD(K, engine=engine).partial_fit(rows())
    taken = StreamingSVD(K, engine=engine).merge(full)
    before = taken.components()[0]
    torch.testing.assert_close(before, full.components()[0])
    full.partial_fit(rows(seed=3))
    torch.testing.assert_close(StreamingSVD(K, engine=engine).merge(taken).components()[0], before)
    taken.merge(StreamingSVD(K)).partial_fit(rows()[:0])
    torch.testing.assert_close(taken.components()[0], before)


@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_a_restored_state_goes_on_as_the_stream_itself(engine):
    stream = StreamingSVD(K, engine=engine, center=False, forget=0.5).partial_fit(rows(seed=1))
    state = stream.state()
    stream.partial_fit(rows(seed=2))
    restored = StreamingSVD(1)
    restored.__dict__.update(state)
    restored.partial_fit(rows(seed=2))
    assert restored.n_samples == stream.n_samples
    assert restored.total_variance == stream.total_variance
    assert torch.equal(restored.components()[0], stream.components()[0])


@pytest.mark.parametrize("engine", ["exact", "incremental"])
def test_after_all_reduce_every_process_holds_the_whole(engine, monkeypatch):
    import torch.distributed as dist

    parts = rows(300).split(100)
    streams = [StreamingSVD(K, engine=engine).partial_fit(part) for part in parts]
    states = [s.state() for s in streams]

    def gather(into, mine):
        assert len(into) == 3
        assert mine["n_samples"] == 100
        into[:] = copy.deepcopy(states)

    assert streams[0].all_reduce() is streams[0]
    assert streams[0].n_samples == 100  # alone, there is nothing to add
    for name, value in (("is_available", True), ("is_initialized", True), ("get_world_size", 3)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    one = StreamingSVD(K, engine=engine).partial_fit(rows(300))
    for stream in streams:
        assert stream.all_reduce() is stream
        assert stream.n_samples == 300
        torch.testing.assert_close(stream.components()[0], one.components()[0], rtol=1e-3, atol=0)
    assert torch.equal(streams[0].components()[1], streams[2].components()[1])
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert streams[0].all_reduce().n_samples == 300


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
    with pytest.raises(ValueError, match="n_components=0; at least 1"):
        StreamingSVD(0)
    with pytest.raises(ValueError, match=r"forget=0 is outside \(0, 1\]"):
        StreamingSVD(2, forget=0)
    with pytest.raises(ValueError, match="engine='quick'; one of"):
        StreamingSVD(2, engine="quick")
    with pytest.raises(ValueError, match=r"rows of shape \(n, d\) are needed, got \(4,\)"):
        StreamingSVD(2).partial_fit(torch.randn(4))
    for bad in (math.nan, math.inf):
        for engine in ("exact", "incremental"):
            with pytest.raises(ValueError, match="NaN or Inf"):
                StreamingSVD(2, engine=engine).partial_fit(torch.full((4, 3), bad)).components()
    one = StreamingSVD(2).partial_fit(rows(9))
    for other in (StreamingSVD(2, center=False), StreamingSVD(2, engine="incremental")):
        with pytest.raises(ValueError, match="only streams of equal width, engine and centring"):
            one.merge(other.partial_fit(rows(9)))
    with pytest.raises(ValueError, match="only streams of equal width"):
        one.merge(StreamingSVD(2).partial_fit(torch.randn(9, 5)))
