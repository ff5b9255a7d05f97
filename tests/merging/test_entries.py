import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.merging.methods import entries
from rankwise.merging.methods.entries import as_rows, blocks, fuse, keep_at_least, magnitude_at, weighted_sum, widened


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 5))
def test_blocks_cover_every_row_once(rows, columns, seed):
    seen = [i for part in blocks(rows, columns) for i in range(rows)[part]]
    assert seen == list(range(rows))


@pytest.mark.parametrize("n", [500, 300_000])
@pytest.mark.parametrize("share", [1e-5, 0.01, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_selected_magnitude_is_that_of_a_full_sort(n, share, dtype):
    torch.manual_seed(0)
    base, expert = torch.randn(n // 10, 10).to(dtype), torch.randn(n // 10, 10).to(dtype)
    rank = max(1, int(share * n))
    sizes = (expert.float() - base.float()).abs().flatten().sort(descending=True).values
    assert magnitude_at(base, expert, rank) == float(sizes[rank - 1])


def test_selection_survives_a_sample_that_tells_nothing():
    base, expert = torch.zeros(400_000), torch.zeros(400_000)
    expert[:3] = torch.tensor([5.0, 4.0, 3.0])  # no sample finds these
    assert [magnitude_at(base, expert, k) for k in (1, 2, 3, 4)] == [5.0, 4.0, 3.0, 0.0]


def test_a_rank_outside_the_tensor_is_named():
    with pytest.raises(ValueError, match=r"outside 1\.\.4"):
        magnitude_at(torch.zeros(4), torch.ones(4), 5)


def test_keeping_includes_the_threshold_itself():
    tau = torch.tensor([[-0.3, 0.1, 0.3, 0.29999998]])
    assert keep_at_least(0.3)(tau, slice(0, 1)).tolist() == [[pytest.approx(-0.3), 0.0, pytest.approx(0.3), 0.0]]


def test_inputs_stay_as_they_were(monkeypatch):
    monkeypatch.setattr(entries, "BLOCK", 8)
    base, a, b = (torch.randn(6, 5) for _ in range(3))
    kept = [x.clone() for x in (base, a, b)]
    fuse(base, [a, b], [1.0, 0.5], [keep_at_least(0.5), None], dtype=torch.float32, elect="sum", normalize=True)
    weighted_sum([a, b], [0.5, 0.5], dtype=torch.float32)
    for x, y in zip((base, a, b), kept, strict=True):
        assert torch.equal(x, y)


@given(st.integers(0, 20), st.sampled_from([None, "sum", "count"]), st.booleans())
def test_fusing_in_blocks_equals_the_formula(seed, elect, normalize):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(7, 3, generator=g)
    experts = [base + torch.randn(7, 3, generator=g).round(decimals=1) for _ in range(3)]
    weights = [1.0, 0.5, 2.0]
    taus = torch.stack([w * (e - base) for e, w in zip(experts, weights, strict=True)])
    if elect is None:
        expected = taus.sum(0) / (sum(weights) if normalize else 1)
    else:
        ballot = taus.sum(0) if elect == "sum" else taus.sign().sum(0)
        agrees = taus.sign() == torch.where(ballot >= 0, 1.0, -1.0)
        expected = (taus * agrees).sum(0)
        if normalize:
            divisor = (torch.tensor(weights)[:, None, None] * agrees).sum(0)
            expected = expected / divisor.where(divisor != 0, 1.0)
    got = fuse(base, experts, weights, [None] * 3, dtype=torch.float32, elect=elect, normalize=normalize, scale=0.7)
    torch.testing.assert_close(got, base + 0.7 * expected, atol=1e-5, rtol=1e-5)


def test_nan_and_infinity_are_refused_but_large_sums_are_not():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or Inf"):
            widened(torch.tensor([[1.0, bad]]), slice(None))
    assert widened(torch.full((1, 4), 3e38), slice(None)).isfinite().all()


def test_task_vectors_are_taken_in_float32():
    base, expert = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()
    got = fuse(base, [expert], [0.5], [None], dtype=torch.float32)
    assert float(got) == 1 + 0.5 * 0.0078125


def test_scalars_and_empty_tensors_pass():
    for shape in ((), (0,), (0, 4)):
        base = torch.zeros(shape)
        assert fuse(base, [base + 1], [1.0], [None], dtype=torch.float32).shape == base.shape
    assert as_rows(torch.zeros(())).shape == (1, 1)
