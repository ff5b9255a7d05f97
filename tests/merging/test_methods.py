"""Each method against its formula, its limits and its symmetries."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.bench.speed.merging import full_svds
from rankwise.merging import METHODS, LowRank, rewarded_soup
from rankwise.merging.methods.averaging import simplex
from rankwise.merging.methods.masks import balance
from rankwise.merging.methods.singular import adaptive_ranks, dense_share, orthogonal_sum, outlier_weighted
from rankwise.merging.methods.sparse import dropped, dropped_by_rank, largest, middle
from rankwise.merging.registry import checked_options, find

FULL = {"density": 1.0, "rank": "uniform", "weighting": "none", "kappa": 0.0, "t": 1.0}
MANY = sorted(n for n in METHODS if METHODS[n].most is None)  # those that take any number of experts


def models(T=3, shape=(20, 14), seed=0, size=0.1):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g)
    return base, [base + size * torch.randn(shape, generator=g) for _ in range(T)]


def run(name, base, experts, *, dtype=torch.float32, seed=0, **options):
    method = find(name)
    if name == "slerp":
        options = {"t": 0.4} | options
    given_options = checked_options(method, options, len(experts))
    extra = {"seed": seed} if method.seeded else {}
    return method.function(base, experts, dtype=dtype, **given_options, **extra)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"model_stock", "consensus"}))
def test_one_expert_with_nothing_dropped_is_that_expert(name):
    base, (expert,) = models(1)
    options = {k: v for k, v in FULL.items() if k in METHODS[name].parameters}
    torch.testing.assert_close(run(name, base, [expert], **options), expert, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "model_stock", "ties", "pcb"])
def test_identical_experts_give_the_expert(name):
    base, (expert,) = models(1)
    options = {k: v for k, v in FULL.items() if k in METHODS[name].parameters}
    torch.testing.assert_close(run(name, base, [expert] * 3, **options), expert, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in MANY if not METHODS[n].seeded])
@settings(max_examples=30)
@given(seed=st.integers(0, 100))
def test_the_order_of_experts_does_not_matter(name, seed):
    base, (a, b, c) = models(seed=seed)
    # a random square U has a condition number of up to 1e3, and an orthonormalisation loses as many digits
    tol = 1e-3 if "tsvm" in name else 2e-6
    torch.testing.assert_close(run(name, base, [a, b, c]), run(name, base, [c, a, b]), atol=tol, rtol=1e-3)


def some(name, **more):
    """A base, and as many experts as the method takes."""
    base, experts = models(**more)
    return base, experts[: METHODS[name].most]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bfloat16_inputs_are_their_float32_values_and_the_result_is_rounded_once(name):
    base, experts = some(name)
    base, experts = base.bfloat16(), [e.bfloat16() for e in experts]
    narrow = run(name, base, experts, dtype=torch.bfloat16)
    wide = run(name, base.float(), [e.float() for e in experts])
    assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"linear"}))
def test_equal_to_the_base_adds_nothing(name):
    base, experts = some(name)
    torch.testing.assert_close(run(name, base, [base.clone() for _ in experts]), base, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (1,), (1, 1), (3, 1), (2, 3, 4)])
def test_tensors_of_any_shape_are_merged_those_without_entries_too(name, shape):
    base, experts = some(name, shape=shape)
    options = {"matrix": len(shape) >= 2 and min(shape) > 1} if METHODS[name].matrix else {}
    method = find(name)
    given_options = checked_options(method, {"t": 0.5} if name == "slerp" else {}, len(experts)) | options
    if method.seeded:
        given_options["seed"] = 0
    merged = method.function(base, experts, dtype=torch.float32, **given_options)
    assert merged.shape == base.shape
    assert merged.isfinite().all()


@pytest.mark.parametrize("name", [n for n in MANY if "density" in METHODS[n].parameters])
def test_an_expert_of_density_zero_adds_nothing(name):
    base, (a, b, _) = models()
    plain = {"normalize": False} if "normalize" in METHODS[name].parameters else {}
    alone, both = (run(name, base, [a, b][: len(d)], density=d, **plain) for d in ([0.6], [0.6, 0.0]))
    if name == "pcb":  # its weights compare experts, so those of the first differ
        moved = (both - base).abs() > 1e-6
        assert moved.sum() == int(0.6 * base.numel())
        torch.testing.assert_close(both[moved], a[moved], atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-6)


def test_an_expert_of_density_zero_may_come_first_and_has_no_norm_to_restore():
    base, (a, b, _) = models()
    both = run("pcb", base, [a, b], density=[0.0, 0.6])
    moved = (both - base).abs() > 1e-6
    assert moved.sum() == int(0.6 * base.numel())
    torch.testing.assert_close(both[moved], b[moved], atol=1e-5, rtol=1e-5)
    for name in ("ties", "dare_linear", "della_linear", "breadcrumbs"):
        assert torch.equal(run(name, base, [a], density=0.0, rescale="l1"), base)


def test_a_share_too_small_for_one_entry_keeps_the_winner():
    base, (a, _, _) = models()
    assert ((run("pcb", base, [a], density=1e-9) - base).abs() > 1e-6).sum() == 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_functions_own_defaults_are_the_registered_ones(name):
    method = METHODS[name]
    own = {k: p.default for k, p in inspect.signature(method.function).parameters.items() if p.default is not p.empty}
    for key in set(own) & set(method.parameters):
        assert own[key] == method.parameters[key].default, key


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "breadcrumbs"])
def test_a_function_called_by_itself_adds_what_it_keeps(name):
    base, experts = models()
    lists = {k: [p.default] * 3 for k, p in METHODS[name].parameters.items() if p.per_model}
    alone = METHODS[name].function(base, experts, dtype=torch.float32, **lists)
    torch.testing.assert_close(alone, run(name, base, experts))


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].seeded])  # others draw by the block
def test_small_blocks_change_nothing(name, monkeypatch):
    base, experts = some(name)
    whole = run(name, base, experts)
    monkeypatch.setattr("rankwise.merging.methods.entries.BLOCK", 40)
    torch.testing.assert_close(run(name, base, experts), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "breadcrumbs", "tsvm", "rtsvm", "consensus", "pcb"])
def test_scaling_every_task_vector_scales_the_result(name):
    base, experts = models()
    scaled = [base + 3 * (e - base) for e in experts]
    once, thrice = run(name, base, experts) - base, run(name, base, scaled) - base
    torch.testing.assert_close(thrice, 3 * once, atol=1e-4, rtol=1e-3)


def test_task_arithmetic_takes_low_rank_task_vectors_without_making_them_dense():
    base, _ = models()
    low = [LowRank(B=torch.randn(20, 3), A=torch.randn(3, 14), scale=0.5) for _ in range(2)]
    dense = [base + x.dense() for x in low]
    for name in ("task_arithmetic", "tsvm"):
        got, expected = run(name, base, low), run(name, base, dense)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        assert run(name, base, low, dtype=torch.bfloat16).dtype == torch.bfloat16
    mixed = run("task_arithmetic", base, [low[0], dense[1]], weight=[1.0, 0.5])
    torch.testing.assert_close(mixed, base + low[0].dense() + 0.5 * low[1].dense(), atol=1e-5, rtol=1e-5)


def test_low_rank_svd_is_that_of_the_product():
    low = LowRank(B=torch.randn(20, 3), A=torch.randn(3, 14), scale=0.5)
    svd = low.svd(3)
    torch.testing.assert_close(svd.U * svd.S @ svd.Vh, low.dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(low.svd(2).S, torch.linalg.svdvals(low.dense())[:2], atol=1e-5, rtol=1e-5)


def test_a_low_rank_task_vector_is_the_product_times_its_scale():
    B, A = torch.randn(5, 2), torch.randn(2, 4)
    torch.testing.assert_close(LowRank(B=B, A=A).dense(), B @ A)
    torch.testing.assert_close(LowRank(B=B, A=A, scale=0.25).dense(), B @ A / 4)


# averaging


def test_task_arithmetic_adds_weighted_task_vectors_or_their_weighted_mean():
    base, (a, b, _) = models()
    added = 2 * (a - base) + 3 * (b - base)
    for options, expected in (
        ({}, added),
        ({"scale": 0.5}, added / 2),
        ({"normalize": True}, added / 5),
        ({"normalize": True, "scale": 0.5}, added / 10),
    ):
        torch.testing.assert_close(run("task_arithmetic", base, [a, b], weight=[2.0, 3.0], **options), base + expected)
    opposed = run("task_arithmetic", base, [a, b], weight=[1.0, -1.0], normalize=True)
    torch.testing.assert_close(opposed, base + a - b)  # weights that sum to zero have no mean


def test_weights_that_sum_to_zero_are_refused():
    with pytest.raises(ValueError, match="sum to zero"):
        checked_options(find("linear"), {"weight": [1.0, -1.0]}, 2)
    checked_options(find("linear"), {"weight": [1.0, -1.0], "normalize": False}, 2)


def test_model_stock_ratio_is_that_of_the_cosine():
    base = torch.zeros(1, 4)
    a, b = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.6, 0.8, 0, 0]])  # cosine 0.6
    r = 2 * 0.6 / (1 + 0.6)
    torch.testing.assert_close(run("model_stock", base, [a, b]), r * (a + b) / 2, atol=1e-6, rtol=1e-6)


def test_model_stock_by_rows_is_model_stock_of_each_row():
    base, experts = models()
    whole = run("model_stock", base, experts, filter_wise=True)
    for i in range(len(base)):
        row = run("model_stock", base[i : i + 1], [e[i : i + 1] for e in experts])
        torch.testing.assert_close(whole[i : i + 1], row, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_experts_whose_plane_holds_the_base_leave_the_base_to_model_stock(filter_wise):
    base = models(1, (3, 2))[0]
    turns = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0.3, 0.3 + 2 * math.pi / 3, 0.3 - 2 * math.pi / 3)]
    # of different lengths, so that their mean is not the base
    opposing = [base + turns[0], base - 2 * turns[0]]
    around = [base + size * turn for size, turn in zip((1.0, 2.0, 3.0), turns, strict=True)]
    for experts in (opposing, around):
        torch.testing.assert_close(run("model_stock", base, experts, filter_wise=filter_wise), base, atol=1e-5, rtol=0)


def test_the_simplex_grid_is_complete_and_the_soup_finds_its_best_point():
    grid = list(simplex(3, 4))
    assert len(grid) == len(set(grid)) == 15
    assert all(abs(sum(w) - 1) < 1e-12 and min(w) >= 0 for w in grid)
    best, score = rewarded_soup(lambda w: -abs(w[0] - 0.5) - abs(w[1] - 0.25), 3)
    assert best == (0.5, 0.25, 0.25)
    assert score == 0


# thinning


@given(st.floats(0.05, 1.0), st.integers(0, 10))
def test_ties_keeps_exactly_the_largest_share(share, seed):
    base, (expert,) = models(1, seed=seed)
    thin, tau = largest(base, expert, share), expert - base
    kept = tau if thin is None else thin(tau.clone(), slice(None))
    count = max(1, int(share * tau.numel()))
    assert int((kept != 0).sum()) == count
    assert kept.abs().sum() == pytest.approx(float(tau.abs().flatten().topk(count).values.sum()), rel=1e-5)


@given(st.floats(0.05, 0.95), st.floats(0.0, 0.5), st.integers(0, 5))
def test_breadcrumbs_drop_the_largest_then_the_smallest(share, gamma, seed):
    base, (expert,) = models(1, seed=seed)
    tau = expert - base
    kept = middle(base, expert, share, gamma)(tau.clone(), slice(None))
    n = tau.numel()
    count, top = int(share * n), min(int(gamma * n), n - int(share * n))
    order = tau.abs().flatten().argsort(descending=True)
    expected = torch.zeros(n)
    expected[order[top : top + count]] = tau.flatten()[order[top : top + count]]
    torch.testing.assert_close(kept.flatten(), expected)


def test_breadcrumbs_without_outliers_is_the_largest_share():
    base, experts = models()
    crumbs = run("breadcrumbs", base, experts, density=0.3, gamma=0.0)
    thin = [largest(base, e, 0.3) for e in experts]
    expected = base + sum(t(e - base, slice(None)) for t, e in zip(thin, experts, strict=True))
    torch.testing.assert_close(crumbs, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_dropping_keeps_the_expectation(name):
    base, experts = models(2, shape=(6, 50), size=1.0)
    draws = torch.stack([run(name, base, experts, density=0.5, seed=s) for s in range(300)])
    expected = base + sum(e - base for e in experts)
    error = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5).clamp(min=1e-6)
    assert error.abs().mean() < 1.2  # of a normal: 0.8
    assert error.abs().max() < 5


def test_della_keeps_large_entries_more_often():
    tau = torch.arange(1.0, 101.0).repeat(2000, 1)
    kept = (dropped_by_rank(0.5, 0.2, "none", (0,))(tau.clone(), slice(0, 2000)) != 0).float().mean(0)
    expected = torch.linspace(0.3, 0.7, 100)
    assert (kept - expected).abs().max() < 0.06
    assert abs(float(kept.mean()) - 0.5) < 0.01


def test_draws_depend_on_the_seed_alone():
    tau = torch.ones(4, 50)
    once, again, other = (dropped(0.5, "none", (s,))(tau.clone(), slice(0, 4)) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "breadcrumbs", "ties"])
def test_l1_rescaling_restores_the_norm_of_one_expert(name):
    base, (expert,) = models(1)
    base = torch.zeros_like(base)
    got = run(name, base, [expert], density=0.4, rescale="l1")
    assert float(got.abs().sum()) == pytest.approx(float(expert.abs().sum()), rel=1e-5)


def test_epsilon_that_leaves_the_unit_interval_is_named():
    with pytest.raises(ValueError, match=r"density=0.9 ± epsilon=0.15"):
        checked_options(find("della"), {"density": 0.9}, 2)
    for density in (0.0, 1.0):
        checked_options(find("della"), {"density": density}, 2)  # nothing is drawn


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].seeded])
def test_no_two_seeds_experts_or_blocks_share_a_mask(name, monkeypatch):
    monkeypatch.setattr("rankwise.merging.methods.entries.BLOCK", 64)
    base = torch.zeros(8, 64)  # a block a row
    tau = torch.arange(1.0, 65.0).repeat(8, 1)
    masks = set()
    for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**64):
        for i in range(3):
            experts = [base.clone() for _ in range(3)]
            experts[i] = tau
            kept = run(name, base, experts, density=0.5, seed=seed, normalize=False) != 0
            masks |= {tuple(row.tolist()) for row in kept}
    assert len(masks) == 6 * 3 * 8


@pytest.mark.parametrize("name", ["dare_ties", "della", "breadcrumbs_ties"])
def test_with_nothing_dropped_sign_election_is_that_of_ties(name):
    base, experts = models()
    for options in ({"normalize": False}, {"normalize": True}, {"election": "count"}):
        options = {"density": 1.0, "normalize": True, **options}
        torch.testing.assert_close(run(name, base, experts, **options), run("ties", base, experts, **options))


def test_the_sign_is_elected_by_sum_or_by_count_and_those_who_agree_are_averaged():
    base = torch.zeros(1, 3)
    a, b, c = torch.tensor([[2.0, 1.0, 4.0]]), torch.tensor([[2.0, -1.0, -1.0]]), torch.tensor([[-5.0, 0.0, -2.0]])
    options = {"density": 1.0, "weight": [1.0, 1.0, 2.0]}
    # w τ = (2, 2, -10), (1, -1, 0), (4, -1, -4): a sum of zero counts as plus, as does a count
    assert run("ties", base, [a, b, c], **options)[0].tolist() == pytest.approx([-5.0, 1.0, -5 / 3])
    assert run("ties", base, [a, b, c], election="count", **options)[0].tolist() == pytest.approx([2.0, 1.0, -5 / 3])
    assert run("ties", base, [a, b, c], normalize=False, **options)[0].tolist() == pytest.approx([-10.0, 1.0, -5.0])


# masks


def test_consensus_keeps_what_two_experts_claim():
    base = torch.zeros(1, 4)
    a, b, c = (torch.tensor([row]) for row in ([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.1, -0.1]))
    got = run("consensus", base, [a, b, c], kappa=0.5)
    assert got.tolist() == [[3.0, 0.0, 0.0, pytest.approx(1.9)]]


def test_pcb_weighs_entries_by_the_formula():
    _, taus = models(3, shape=(3, 4))
    tau, flat = taus[0], [t.flatten() for t in taus]
    intra = torch.softmax(3 * (flat[0] ** 2) / (flat[0] ** 2).max(), 0) * 12
    inter = sum(torch.softmax(flat[0] * f / (flat[0] * f).abs().max(), 0) * 12 for f in flat)
    torch.testing.assert_close(balance(tau, taus).flatten(), intra * inter, atol=1e-5, rtol=1e-5)


# singular vectors


def reference_tsvm(base, experts):
    """By full SVDs, as the equations are written."""
    k = min(base.shape) // len(experts)
    U, S, V = [], [], []
    for e in experts:
        u, s, vh = torch.linalg.svd((e - base).double(), full_matrices=False)
        U.append(u[:, :k]), S.append(s[:k]), V.append(vh[:k])
    pu, _, qu = torch.linalg.svd(torch.cat(U, 1), full_matrices=False)
    pv, _, qv = torch.linalg.svd(torch.cat(V), full_matrices=False)
    return base.double() + pu @ qu @ torch.diag(torch.cat(S)) @ pv @ qv


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (24, 24), (37, 20)])
def test_tsvm_is_that_offull_svds(shape):
    base, experts = models(3, shape=shape)
    mine, theirs = run("tsvm", base, experts), reference_tsvm(base, experts)
    assert float((mine - theirs).norm() / (theirs - base).norm()) < 1e-4


def test_more_experts_than_dimensions_keep_one_direction_each():
    base, experts = models(5, shape=(6, 4))
    tops = [torch.linalg.svd(e - base, full_matrices=False) for e in experts]
    one_each = orthogonal_sum([(U[:, :1] * S[:1], Vh[:1]) for U, S, Vh in tops])
    torch.testing.assert_close(run("tsvm", base, experts), base + one_each, atol=1e-3, rtol=1e-3)


def test_disjoint_singular_subspaces_are_summed_exactly():
    base = torch.randn(12, 12)
    Q = torch.linalg.qr(torch.randn(12, 12)).Q
    P = torch.linalg.qr(torch.randn(12, 12)).Q
    taus = [Q[:, 4 * i : 4 * i + 4] @ torch.diag(torch.rand(4) + 0.1) @ P[:, 4 * i : 4 * i + 4].T for i in range(3)]
    got = run("tsvm", base, [base + t for t in taus])
    torch.testing.assert_close(got, base + sum(taus), atol=1e-5, rtol=1e-5)


def test_shared_directions_count_once_and_bring_nothing_arbitrary():
    base, (expert,) = models(1, shape=(18, 12))
    U, S, Vh = torch.linalg.svd(expert - base, full_matrices=False)
    torch.testing.assert_close(run("tsvm", base, [expert] * 3), base + U[:, :4] * S[:4] @ Vh[:4], atol=1e-4, rtol=1e-4)


def test_tsvm_of_as_many_directions_as_dimensions_is_that_of_float64_svds():
    base, experts = models(3, shape=(300, 240))  # the joined bases are square: conditions of 1e3 and more
    mine = run("tsvm", base, experts) - base
    exact = full_svds(base.double(), [e.double() for e in experts]) - base
    assert (mine - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("shape", [(160, 160), (200, 140), (140, 200)])
@pytest.mark.parametrize("fall", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("T", [2, 3])
def test_the_merged_task_vector_has_the_singular_values_that_each_expert_kept(shape, fall, T):
    falling = torch.arange(1, shape[1] + 1) ** -fall
    taus = [torch.randn(shape) * falling for _ in range(T)]  # they lean towards the same directions
    kept = torch.cat([torch.linalg.svdvals(t.double())[: min(shape) // T] for t in taus]).sort(descending=True).values
    merged = run("tsvm", torch.zeros(shape), taus)
    torch.testing.assert_close(torch.linalg.svdvals(merged.double())[: len(kept)], kept, rtol=1e-4, atol=1e-6)
    if fall < 1:  # else their bases nearly coincide: float32 of what is merged leaves no digits of the difference
        exact = reference_tsvm(torch.zeros(shape), taus)
        assert float((merged - exact).norm() / exact.norm()) < 5e-4


def test_an_expert_that_is_the_base_adds_no_direction():
    base, (expert,) = models(1, shape=(18, 12))
    U, S, Vh = torch.linalg.svd(expert - base, full_matrices=False)
    got = run("tsvm", base, [expert, base.clone()])
    torch.testing.assert_close(got, base + U[:, :6] * S[:6] @ Vh[:6], atol=1e-4, rtol=1e-4)


def test_rtsvm_with_its_parts_off_is_tsvm():
    base, experts = models()
    off = run("rtsvm", base, experts, weighting="none", rank="uniform")
    torch.testing.assert_close(off, run("tsvm", base, experts), atol=1e-6, rtol=1e-6)
    for part in ({"weighting": "none"}, {"rank": "uniform"}):
        assert not torch.allclose(run("rtsvm", base, heavy(base, experts), **part), off, atol=1e-4)


def test_a_method_is_found_by_its_later_name_too():
    assert find("resm") is METHODS["rtsvm"]
    assert len({m.name for m in METHODS.values()}) == len(METHODS)


def heavy(base, experts):
    """Experts whose task vectors differ in outliers and in how many entries they use."""
    out = []
    for i, e in enumerate(experts):
        tau = e - base
        tau[:, : 3 * i] = 0
        tau[i::4, 5] *= 30
        out.append(base + tau)
    return out


def shares(taus, *, rows=False, outlier=3.0):
    """The share of ‖τ‖₁ in entries beyond mean + 3 deviations, by loops over numpy."""
    found = []
    for tau in taus:
        size = tau.abs().numpy().astype("float64")
        at = size > size.mean() + outlier * size.std()
        found.append((size * at).sum(1) / size.sum(1) if rows else (size * at).sum() / size.sum())
    return found


def test_outlier_weights_follow_the_share_that_outliers_carry():
    base, experts = models(3, shape=(30, 40))
    taus = [e - base for e in heavy(base, experts)]
    o = shares(taus)
    for tau, got, own in zip(taus, outlier_weighted(taus, "tensor"), o, strict=True):
        torch.testing.assert_close(got, tau * 3 * (1 + own) / sum(1 + x for x in o), atol=1e-6, rtol=1e-5)
    o = shares(taus, rows=True)
    for tau, got, own in zip(taus, outlier_weighted(taus, "row"), o, strict=True):
        weight = torch.tensor(3 * (1 + own) / sum(1 + x for x in o)).float()
        torch.testing.assert_close(got, tau * weight[:, None], atol=1e-6, rtol=1e-5)
    at = [t.abs() > t.abs().mean() + 3 * t.abs().std(correction=0) for t in taus]
    for tau, got, own, where in zip(taus, outlier_weighted(taus, "entries"), shares(taus), at, strict=True):
        weight = 3 * (1 + own) / sum(1 + x for x in shares(taus))
        torch.testing.assert_close(got, torch.where(where, tau * weight, tau), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weighting", ["tensor", "row", "entries"])
def test_outlier_weights_have_no_scale_and_are_one_for_experts_that_are_alike(weighting):
    torch.manual_seed(0)
    sizes = (1.0, 100.0, 1e-9)
    taus = [size * torch.randn(384, 384) for size in sizes]
    scaled = outlier_weighted(taus, weighting)
    weights = [(w / t)[t.abs() > 0.1 * size] for w, t, size in zip(scaled, taus, sizes, strict=True)]
    assert (
        float(torch.cat([w.flatten() for w in weights]).std())
        < {"tensor": 2e-3, "row": 0.02, "entries": 2e-3}[weighting]
    )


def test_a_row_or_a_tensor_without_outliers_keeps_its_say():
    plain, spiked = torch.full((4, 50), 0.01), torch.full((4, 50), 0.01)
    spiked[0, 0] = 1.0
    for weighting in ("tensor", "row"):
        light, heavy_one = outlier_weighted([plain, spiked], weighting)
        assert float((light / plain).min()) > 0.6
        torch.testing.assert_close(light / plain + heavy_one / spiked, torch.full((4, 50), 2.0))


def test_ranks_follow_how_dense_a_task_vector_is():
    torch.manual_seed(0)
    dense, sparse = torch.randn(40, 40), torch.randn(40, 40)
    sparse[:, :30] = 0
    half = float((sparse.abs() >= 0.1 * sparse.std(correction=0)).sum()) / 1600
    assert dense_share(sparse, 0.1) == pytest.approx(half)
    assert adaptive_ranks([dense, sparse], "share", 1.0) == [int(20 * dense_share(x)) for x in (dense, sparse)]
    assert abs(adaptive_ranks([dense, dense], "share")[0] - 0.317 * 20) < 1  # of a normal: what is beyond one deviation
    ranks = adaptive_ranks([dense, sparse], "expert", 0.1)
    assert sum(ranks) == 40
    assert ranks[0] > 2.5 * ranks[1] >= 2.5
    assert adaptive_ranks([dense, sparse], "uniform") == [20, 20]


def test_an_outlier_is_beyond_the_deviation_of_the_whole():
    tau = torch.zeros(3, 4)
    tau[0, 0] = 1.0  # mean 0.083, deviation 0.276, or 0.289 if it were a sample's
    plain = torch.ones(3, 4)
    for outlier, weight in ((3.2, 4 / 3), (3.4, 1.0)):
        assert float(outlier_weighted([tau, plain], "tensor", outlier)[0][0, 0]) == pytest.approx(weight)


def test_ranks_by_layer_are_surveyed_only_where_asked_for_and_given_by_the_merge():
    base, experts = models(2, shape=(12, 8))
    survey = METHODS["rtsvm"].survey
    dense = [dense_share(e - base, 0.5) for e in experts]
    assert survey(base, experts, rank="layer", epsilon=0.5) == pytest.approx(sum(dense) / 2)
    assert survey(base, experts, rank="share", epsilon=0.5) is None
    with pytest.raises(ValueError, match="use merge"):
        run("rtsvm", base, experts, rank="layer")
    options = {"dtype": torch.float32, "weight": [1.0, 1.0]}
    by_layer = METHODS["rtsvm"].function(base, experts, rank="layer", layer_rank=4, **options)
    torch.testing.assert_close(by_layer, METHODS["rtsvm"].function(base, experts, rank="uniform", **options))


def test_ranks_by_layer_spend_tsvms_budget_where_task_vectors_are_dense():
    rations = METHODS["rtsvm"].rations
    ranks = [r["layer_rank"] for r in rations([(0.4, 60, 3), (0.2, 60, 3), (0.3, 30, 3)])]
    exact = [50 * d * n / 45 for d, n in ((0.4, 60), (0.2, 60), (0.3, 30))]
    assert ranks == [round(k) for k in exact]
    assert abs(sum(ranks) - 50) <= len(ranks)
    assert rations([(0.9, 60, 3), *[(1e-9, 60, 3)] * 2])[0]["layer_rank"] == 40  # at most twice TSVM's
    assert [r["layer_rank"] for r in rations([(0.5, 2, 3), (0.5, 60, 3)])] == [1, round(21 * 60 / 62)]
    assert rations([(0.9, 60, 3), (1e-9, 60, 3)])[1]["layer_rank"] == 1
    assert [r["layer_rank"] for r in rations([(0.0, 60, 3)] * 2)] == [20, 20]


def test_a_share_of_tsvms_rank_keeps_the_leading_directions_alone():
    base, (expert,) = models(1, shape=(18, 12))
    U, S, Vh = torch.linalg.svd(expert - base, full_matrices=False)
    expected = base + U[:, :4] * S[:4] @ Vh[:4]
    torch.testing.assert_close(run("tsvm", base, [expert], share=0.34), expected, atol=1e-4, rtol=1e-4)


# arcs


def test_slerp_walks_the_circle_at_constant_speed():
    base, expert = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for t, angle in ((0.0, 0.0), (1 / 3, torch.pi / 6), (1.0, torch.pi / 2)):
        got = run("slerp", base, [expert], t=t)
        angle = torch.tensor(angle)
        torch.testing.assert_close(got, torch.stack([angle.cos(), 2 * angle.sin()])[None], atol=1e-6, rtol=1e-6)


def test_slerp_of_parallel_or_opposite_models_is_the_straight_line():
    base, _ = models()
    torch.testing.assert_close(run("slerp", base, [2 * base], t=0.25), 1.25 * base)
    torch.testing.assert_close(run("slerp", base, [-base], t=0.25), 0.5 * base)


def test_passthrough_scales_what_it_passes():
    _base, (expert,) = models(1)
    assert torch.equal(run("passthrough", None, [expert]), expert)
    torch.testing.assert_close(run("passthrough", None, [expert], scale=0.5), 0.5 * expert)
    for scale in (1.0, 0.5):
        assert torch.equal(
            run("passthrough", None, [expert], scale=scale, dtype=torch.bfloat16), (scale * expert).bfloat16()
        )


def test_vectors_and_embeddings_get_the_mean():
    base, experts = models(3, shape=(9,))
    method = find("tsvm")
    got = method.function(base, experts, dtype=torch.float32, weight=[1.0] * 3, scale=0.5, matrix=False)
    torch.testing.assert_close(got, base + 0.5 * sum(e - base for e in experts) / 3)


def test_orthogonal_sum_of_one_piece_is_that_piece():
    U, S, Vh = torch.linalg.svd(torch.randn(9, 6), full_matrices=False)
    torch.testing.assert_close(orthogonal_sum([(U * S, Vh)]), U * S @ Vh, atol=1e-5, rtol=1e-5)


def test_what_lies_below_the_rounding_of_the_largest_is_no_direction():
    U, _, Vh = torch.linalg.svd(torch.randn(9, 6), full_matrices=False)
    kept = orthogonal_sum([(U[:, :2] * torch.tensor([100.0, 5e-3]), Vh[:2])])
    lost = orthogonal_sum([(U[:, :2] * torch.tensor([100.0, 5e-4]), Vh[:2])])
    torch.testing.assert_close(lost, 100 * U[:, :1] @ Vh[:1], atol=5e-5, rtol=0)
    torch.testing.assert_close(kept - lost, 5e-3 * U[:, 1:2] @ Vh[1:2], atol=1e-4, rtol=0)


def test_options_are_checked_by_name_range_and_length():
    ties = find("ties")
    with pytest.raises(ValueError, match="did you mean density"):
        checked_options(ties, {"densty": 0.2}, 2)
    with pytest.raises(ValueError, match=r"density=-0.1 is outside \[0, 1\]"):
        checked_options(ties, {"density": -0.1}, 2)
    with pytest.raises(ValueError, match="weight has 3 values for 2 experts"):
        checked_options(ties, {"weight": [1, 2, 3]}, 2)
    with pytest.raises(ValueError, match="true or false"):
        checked_options(ties, {"normalize": 1}, 2)
    with pytest.raises(ValueError, match="did you mean none"):
        checked_options(ties, {"rescale": "non"}, 2)
    with pytest.raises(ValueError, match="accepted: l1, none"):
        checked_options(ties, {"rescale": "expectation"}, 2)  # it keeps no expectation
    with pytest.raises(ValueError, match="karcher' is not built here"):
        find("karcher")
