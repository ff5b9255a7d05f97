"""Plans, ranks and factors beside what can be counted by hand and what LAPACK finds."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.compression import Component, Plan, apply, compress, load, plan, to_dense, train_only
from rankwise.compression import directions as module
from rankwise.compression.accepted import content_of
from rankwise.compression.directions import (
    Decomposition,
    damped,
    decomposed,
    factors,
    in_groups,
    second_moments,
    weight_of,
)
from rankwise.compression.options import METHODS, check_options
from rankwise.compression.ranks import (
    Shares,
    Threshold,
    energy_spectrum,
    normalized_spectrum,
    owl_offsets,
    removal_order,
    top_spectrum,
)
from rankwise.models import linear_layers
from rankwise.models.low_rank import KEY, LowRankLinear, low_rank_layers
from small_models import bert, gpt2, llama

IDS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(4))
EVERYTHING = {"min_ratio": 0.0, "only_if_smaller": False}


def stack(*shapes, bias=True, dtype=torch.float32):
    """Linear layers ``(out, in)`` of random weights, one a block."""
    torch.manual_seed(0)
    layers = (nn.Linear(n, m, bias=bias, dtype=dtype) for m, n in shapes)
    return nn.ModuleDict({"h": nn.ModuleList(nn.ModuleDict({"fc": layer}) for layer in layers)})


# --- a plan's numbers


def component(name, shape, rank, low_rank, **more):
    n = min(shape)
    spectrum = torch.ones(n, dtype=torch.float64)
    return Component(name=name, shape=shape, rank=rank, full_rank=n, low_rank=low_rank, spectrum=spectrum, **more)


@pytest.mark.parametrize("wanted", [{"bytes": 0.7}, {"parameters": 0.6}, {"ratio": 0.5}])
def test_ranks_are_rounded_up_to_a_multiple_and_sizes_are_met_all_the_same(wanted):
    model = llama()
    free, by_four = (plan(model, min_ratio=0.0, multiple_of=m, **wanted) for m in (1, 4))
    full = {c.name: c.full_rank for c in free.components}
    assert all(c.rank % 4 == 0 or c.rank == full[c.name] for c in by_four.components)
    if "ratio" in wanted:
        assert [c.rank for c in by_four.components] == [min(-(-c.rank // 4) * 4, c.full_rank) for c in free.components]
        assert by_four.reduction <= free.reduction
    else:
        assert by_four.bytes <= wanted.get("bytes", 1) * by_four.bytes_before
        assert by_four.parameters <= wanted.get("parameters", 1) * by_four.parameters_before
    shapes = {tuple(p.shape) for p in apply(model, by_four).parameters()}
    assert all(min(s) % 4 == 0 or min(s) in full.values() for s in shapes if len(s) == 2)


def test_sizes_of_a_plan_are_those_counted_by_hand():
    low, dense = component("a", (10, 6), 2, True, item_size=2), component("b", (5, 8), 3, False)
    assert (low.parameters_before, low.parameters, low.bytes_before, low.bytes) == (60, 32, 120, 66)
    assert (dense.parameters_before, dense.parameters, dense.bytes_before, dense.bytes) == (40, 40, 160, 160)
    chosen = Plan(components=(low, dense), threshold=0.25, method="top", other_parameters=7, other_bytes=30)
    assert chosen.as_dict() == {
        "method": "top",
        "note": "",
        "threshold": 0.25,
        "reduction": pytest.approx(6 / 11),
        "applied_reduction": pytest.approx(4 / 11),
        "parameters_before": 107,
        "parameters": 79,
        "bytes_before": 310,
        "bytes": 256,
        "components": [
            {"name": "a", "shape": (10, 6), "rank": 2, "full_rank": 6, "low_rank": True, "item_size": 2,
             "parameters": 32},
            {"name": "b", "shape": (5, 8), "rank": 3, "full_rank": 5, "low_rank": False, "item_size": 4,
             "parameters": 40},
        ],
    }  # fmt: skip
    assert chosen.calibration == ()
    assert chosen.directions == {}
    assert "directions" not in repr(chosen)


# --- options


def test_defaults_are_those_that_the_documentation_names():
    check_options(ratio=0.5)
    check_options(parameters=0.5)
    check_options(bytes=1e6, min_ratio=0.0)
    model = llama()
    chosen = plan(model, ratio=0.5)
    told = plan(model, ratio=0.5, method="energy", min_ratio=0.5, only_if_smaller=True, target="auto")
    assert chosen.as_dict() == told.as_dict()
    assert len(chosen.components) == 14
    assert not all(c.low_rank for c in chosen.components)
    defaults = {n: p.default for n, p in inspect.signature(plan).parameters.items()}
    assert (defaults["max_batches"], defaults["memory"]) == (32, 2 * 2**30)
    assert inspect.signature(apply).parameters["memory"].default == 2 * 2**30


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is outside"),
        ({"ratio": 1.0}, "ratio=1.0 is outside"),
        ({"ratio": 1.5}, "ratio=1.5 is outside"),
        ({"parameters": 0.0}, "parameters=0.0"),
        ({"bytes": 0.0}, "bytes=0.0"),
        ({"bytes": float("inf")}, "bytes=inf"),
        ({"ratio": 0.5, "parameters": 0.5}, "given: ratio, parameters"),
        ({"parameters": 0.5, "bytes": 0.5}, "given: parameters, bytes"),
        ({"ratio": 0.5, "min_ratio": -0.1}, "min_ratio=-0.1"),
        ({"ratio": 0.5, "min_ratio": 1.0}, "min_ratio=1.0"),
        ({"ratio": 0.5, "multiple_of": 0}, "multiple_of=0"),
        ({"ratio": 0.5, "multiple_of": 2.5}, "multiple_of=2.5"),
        ({"ratio": 0.5, "multiple_of": True}, "multiple_of=True"),
        ({"ratio": 0.5, "multiple_of": "8"}, "multiple_of='8'"),
        ({"ratio": "50%"}, "ratio='50%' is no number; half is 0.5"),
        ({"bytes": "10MB"}, "bytes='10MB' is no number: a count, or below 1 a share"),
        ({"parameters": True}, "parameters=True is no number"),
        ({"ratio": 0.5, "min_ratio": None}, "min_ratio=None is no number"),
        ({"bytes": 0.5, "only_if_smaller": False}, "only_if_smaller=True"),
        ({"parameters": 0.5, "only_if_smaller": False}, "only_if_smaller=True"),
    ],
)
def test_options_out_of_range_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        check_options(**options)


def test_a_target_chooses_the_matrices_and_all_methods_are_served():
    model = llama()
    for method in METHODS:
        chosen = plan(model, ratio=0.5, method=method, target="attention", **EVERYTHING)
        assert [c.name.rsplit(".", 1)[1] for c in chosen.components] == ["q_proj", "k_proj", "v_proj", "o_proj"] * 2
        assert chosen.method == method
        assert math.isnan(chosen.threshold) == (method in ("uniform", "owl"))
    assert METHODS == ("energy", "top", "welore", "uniform", "owl")


def test_weights_that_are_sharded_or_of_one_byte_are_named_and_large_ones_whose_sum_overflows_served():
    model = llama()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight.device_mesh = object()
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj is sharded"):
        plan(model, ratio=0.5)
    del layer.weight.device_mesh
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj is quantised \(torch.float8_e4m3fn\)"):
        plan(model, ratio=0.5)
    layer.weight = nn.Parameter(torch.full((32, 16), 3e38))
    assert plan(model, ratio=0.5).components[4].name == "model.layers.0.mlp.gate_proj"


def test_a_model_that_says_it_is_compressed_is_not_compressed_again():
    model = llama()
    setattr(model.config, KEY, {"ranks": {}})
    with pytest.raises(ValueError, match="compressed already"):
        plan(model, ratio=0.5)
    model = llama()
    chosen = plan(model, ratio=0.6)
    apply(model, chosen)
    with pytest.raises(ValueError, match="compressed already"):
        apply(model, chosen)


# --- worth and ranks


def test_worth_at_the_edges_of_its_definitions():
    one = torch.tensor([3.0], dtype=torch.float64)
    for spectrum in (energy_spectrum, top_spectrum, normalized_spectrum):
        assert spectrum(one).tolist() == [1.0]
        assert spectrum(0 * one).tolist() == [0.0]
        assert spectrum(torch.tensor([0.4, 0.0])).tolist() == [1.0, 0.0]
    flat, sloping = torch.tensor([1.0, 1 - 1e-7], dtype=torch.float64), torch.tensor([2.0, 2 - 3e-6]).double()
    assert normalized_spectrum(flat).tolist() == [1.0, 1.0]
    assert normalized_spectrum(sloping).tolist() == [1.0, 0.0]


def test_directions_of_equal_worth_go_in_the_models_order():
    owner, values = removal_order([torch.ones(5), torch.ones(31), torch.ones(31)])
    assert owner.tolist() == [1] * 30 + [2] * 30 + [0] * 4
    assert values.tolist() == pytest.approx([1 / 31] * 60 + [1 / 5] * 4)
    assert removal_order([torch.ones(31)] * 3, "top")[0].tolist() == [0] * 30 + [1] * 30 + [2] * 30


def test_a_threshold_counts_what_went_and_says_what_the_next_direction_is_worth():
    given = Threshold(np.array([3, 2, 4]), np.array([2, 0, 2, 2]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert [given.ranks(k).tolist() for k in range(5)] == [[3, 2, 4], [3, 2, 3], [2, 2, 3], [2, 2, 2], [2, 2, 1]]
    assert [given.threshold(k) for k in range(5)] == [0.1, 0.2, 0.3, 0.4, 1.0]


def test_shares_are_rounded_and_leave_every_matrix_between_one_direction_and_all():
    given = Shares(np.array([10, 20, 3]), np.array([0.0, 0.1, 0.0]))
    assert given.ranks(11).tolist() == [round(10 * 22 / 33), round(20 * (22 / 33 + 0.1)), 2]
    assert given.ranks(33).tolist() == [1, 2, 1]
    assert given.ranks(0).tolist() == [10, 20, 3]
    assert math.isnan(given.threshold(5))


def test_owl_spreads_what_is_kept_by_eight_points_around_the_mean_in_the_order_of_outliers(monkeypatch):
    model = stack((4, 4), (4, 4), (4, 4))
    names = list(linear_layers(model))

    def scored(*scores):
        monkeypatch.setattr("rankwise.compression.ranks.outlier_scores", lambda m: torch.tensor(scores).double())
        return owl_offsets(model, names)

    assert scored(5.0, 1.0, 3.0).tolist() == pytest.approx([0.08, -0.08, 0.0])
    assert scored(0.0, 0.0, 2.0).tolist() == pytest.approx([-0.16 / 3, -0.16 / 3, 0.32 / 3])
    assert scored(2.0, 2.0, 2.0).tolist() == [0.0, 0.0, 0.0]
    assert owl_offsets(model, [*names, names[0], "other"]).tolist() == [0.0] * 5


# --- the plan of a target


def test_a_ratio_at_its_limit_leaves_one_direction_each_and_above_it_is_refused():
    model = stack((4, 4), (4, 4))
    assert [c.rank for c in plan(model, ratio=0.75, **EVERYTHING).components] == [1, 1]
    with pytest.raises(ValueError, match=r"ratio=0.9 leaves some matrix without a direction; at most 0\.7500"):
        plan(model, ratio=0.9, **EVERYTHING)


def test_the_number_of_directions_removed_is_the_ratio_rounded():
    model = stack((7, 5), (6, 9))
    for ratio in (0.05, 0.3, 0.5, 0.64):
        chosen = plan(model, ratio=ratio, **EVERYTHING)
        assert sum(c.full_rank - c.rank for c in chosen.components) == round(11 * ratio)


@pytest.mark.parametrize(("min_ratio", "only_if_smaller", "low"), [(0.5, False, False), (0.49, False, True),
                                                                  (0.49, True, False), (0.0, True, False)])  # fmt: skip
def test_a_matrix_that_loses_just_the_share_asked_for_or_saves_nothing_stays_dense(min_ratio, only_if_smaller, low):
    """4 × 4 at rank 2: half of the directions gone, and 2 (4 + 4) = 4 · 4 entries."""
    (c,) = plan(stack((4, 4)), ratio=0.5, min_ratio=min_ratio, only_if_smaller=only_if_smaller).components
    assert (c.rank, c.full_rank, c.low_rank) == (2, 4, low)


def sizes_by_removal(model, mark):
    """Of every number of removals: the size of the model, from LAPACK's singular values alone."""
    layers = [m.weight.detach().double() for m in linear_layers(model).values()]
    worth = [(S := torch.linalg.svdvals(W)).square() / S.square().sum() for W in layers]
    order = sorted((float(w[j]), i) for i, w in enumerate(worth) for j in range(1, len(w)))
    ranks, found = [min(W.shape) for W in layers], []
    other = sum(p.numel() for p in model.parameters()) - sum(W.numel() for W in layers)
    for k in range(len(order) + 1):
        size = other
        for W, r in zip(layers, ranks, strict=True):
            low = (min(W.shape) - r) / min(W.shape) > 0.5 and r * sum(W.shape) < W.numel()
            size += r * sum(W.shape) + mark if low else W.numel()
        found.append((size, list(ranks)))
        if k < len(order):
            ranks[order[k][1]] -= 1
    return found


@pytest.mark.parametrize(("kind", "mark", "item"), [("parameters", 0, 1), ("bytes", 1, 4)])
@pytest.mark.parametrize("share", [0.45, 0.7, 0.9, 0.99])
def test_a_target_in_size_is_the_first_that_fits_of_all_numbers_of_removals(kind, mark, item, share):
    model = stack((24, 16), (10, 30), (17, 17))
    sizes = sizes_by_removal(model, mark)
    wanted = share * sizes[0][0] * item
    size, ranks = next(s for s in sizes if s[0] * item <= wanted)
    for given in (share, wanted):
        chosen = plan(model, **{kind: given})
        assert [c.rank for c in chosen.components] == ranks
        assert getattr(chosen, kind) == size * item
    assert getattr(chosen, f"{kind}_before") == sizes[0][0] * item
    least = sizes[-1][0] * item
    assert [c.rank for c in plan(model, **{kind: least}).components] == [1, 1, 1]
    said = f"the model has {sizes[0][0] * item:,}"
    for beyond, what in (
        (least - 1, "cannot be reached"),
        (sizes[0][0] * item, "takes nothing away"),
        (1, "cannot be reached"),
    ):
        with pytest.raises(ValueError, match=f"{kind}={beyond:,} {what}: {said}"):
            plan(model, **{kind: beyond})


def test_the_spectrum_of_every_matrix_is_lapacks_and_its_threshold_the_next_worth():
    model = stack((7, 5), (6, 9), dtype=torch.float64)
    chosen = plan(model, ratio=0.4, method="top", **EVERYTHING)
    worth = []
    for c, layer in zip(chosen.components, linear_layers(model).values(), strict=True):
        S = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(c.spectrum, S, rtol=1e-9, atol=1e-12)
        assert (c.shape, c.full_rank, c.item_size) == (tuple(layer.weight.shape), len(S), 8)
        worth += (S / S[0])[1:].tolist()
    assert chosen.threshold == pytest.approx(sorted(worth)[round(0.4 * 11)])
    assert chosen.other_parameters == 13
    assert chosen.other_bytes == 13 * 8


# --- factors


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (6, 6)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_decompositions_are_lapacks_with_and_without_directions(shape, calibrated):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(*shape, generator=g)
    X = torch.randn(4, shape[1], generator=g, dtype=torch.float64)
    seen = W.double() @ X.mT if calibrated else W.double()
    C = X.mT @ X if calibrated else None
    full = torch.zeros(6, dtype=torch.float64)
    S = torch.linalg.svdvals(seen)[:6]
    full[: len(S)] = S
    values, none = decomposed(W, C, vectors=False)
    assert none is None
    found = decomposed(W, C)
    for spectrum in (values, found.S):
        assert spectrum.dtype == torch.float64
        torch.testing.assert_close(spectrum, full, rtol=1e-6, atol=3e-6)
    V = found.V
    assert V.shape == (6, 6)
    assert V.dtype == torch.float32
    torch.testing.assert_close(V.mT @ V, torch.eye(6), rtol=1e-5, atol=1e-5)
    B, A = factors(W, 3, C, directions=V, calibrated=calibrated)
    error = torch.linalg.matrix_norm(
        (W.double() - B.double() @ A.double()) @ (X.mT if calibrated else torch.eye(shape[1]).double())
    )
    assert float(error) == pytest.approx(float(full[3:].square().sum().sqrt()), rel=1e-4)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_factors_lie_in_the_directions_that_are_given(shape, calibrated):
    g = torch.Generator().manual_seed(1)
    W = torch.randn(*shape, generator=g)
    V = torch.linalg.qr(torch.randn(6, 6, generator=g)).Q[:, :4]
    B, A = factors(W, 2, None, directions=V, calibrated=calibrated)
    V = V[:, :2]
    if shape[0] < shape[1]:
        expected = V @ V.mT @ W
    elif calibrated:  # directions are those of R in W = Q R
        Q, R = torch.linalg.qr(W.double())
        expected = (Q @ V.double() @ V.double().mT @ R).float()
    else:
        expected = W @ V @ V.mT
    torch.testing.assert_close((B @ A).float(), expected, rtol=1e-4, atol=1e-5)


def test_damping_adds_a_millionth_of_the_norm_in_place_and_the_identity_to_nothing():
    C = torch.diag(torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64))
    found = damped(C)
    assert found is C
    assert C.diagonal().tolist() == pytest.approx([3 + 5e-6, 4 + 5e-6, 5e-6], rel=1e-12)
    tiny = damped(torch.diag(torch.tensor([3e-9, 4e-9], dtype=torch.float64)))
    assert tiny.diagonal().tolist() == pytest.approx([3e-9 + 5e-15, 4e-9 + 5e-15], rel=1e-12)
    assert torch.equal(damped(torch.zeros(2, 2).double()), torch.eye(2).double())


def test_weights_are_read_as_out_by_in_in_single_precision_at_least():
    conv = gpt2().transformer.h[0].attn.c_attn
    assert torch.equal(weight_of(conv), conv.weight.detach().mT)
    for dtype, read in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        W = weight_of(nn.Linear(3, 2, dtype=dtype))
        assert (W.dtype, W.shape, W.requires_grad) == (read, (2, 3), False)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_second_moments_are_means_over_all_rows_of_all_batches(make):
    model, rows = make(), {}
    layers = linear_layers(model)
    g = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(0, 50, (1, 3), generator=g)} for _ in range(40)]
    hooks = [
        m.register_forward_pre_hook(lambda m, args, n=n: rows.setdefault(n, []).append(args[0].flatten(0, -2)))
        for n, m in layers.items()
    ]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    found = second_moments(model, layers, data)
    assert list(found) == list(layers)
    for name, C in found.items():
        X = torch.cat(rows[name]).double()
        expected = X.mT @ X / 120
        expected += 1e-6 * torch.linalg.matrix_norm(expected) * torch.eye(len(expected))
        assert C.dtype == torch.float64
        torch.testing.assert_close(C, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_directions_are_kept_where_those_of_all_layers_fit(monkeypatch):
    model = stack((9, 6), (4, 7))
    exactly = 4 * (6**2 + 4**2)
    for limit, kept in ((exactly, True), (exactly - 1, False)):
        monkeypatch.setattr(module, "_KEEP", limit)
        chosen = plan(model, ratio=0.5, **EVERYTHING)
        shapes = {n: tuple(V.shape) for n, V in chosen.directions.items()}
        low = {c.name: (c.full_rank, c.rank) for c in chosen.components if c.low_rank}
        assert shapes == (low if kept else {})


@pytest.mark.parametrize("calibrated", [False, True])
def test_applying_a_plan_takes_the_directions_it_holds_and_runs_no_model(calibrated):
    model = llama()
    data = {"calibrate": [{"input_ids": IDS}]} if calibrated else {}
    chosen = plan(model, ratio=0.6, target="mlp", **EVERYTHING, **data)
    g = torch.Generator().manual_seed(0)
    turned = {n: torch.linalg.qr(torch.randn(V.shape, generator=g)).Q for n, V in chosen.directions.items()}
    weights = {n: m.weight.detach().clone() for n, m in linear_layers(model).items()}
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    apply(model, replace(chosen, directions=turned))
    found = low_rank_layers(model)
    assert set(found) == set(turned)
    for name, V in turned.items():
        W, low = weights[name], found[name].weight.detach()
        if W.shape[0] < W.shape[1]:
            expected = V @ V.mT @ W
        elif calibrated:
            Q, R = torch.linalg.qr(W.double())
            expected = (Q @ V.double() @ V.double().mT @ R).float()
        else:
            expected = W @ V @ V.mT
        torch.testing.assert_close(low, expected, rtol=1e-3, atol=1e-5)


def test_names_of_the_matrices_are_told_before_their_spectra_and_their_factors():
    model, told = llama(), []

    def progress(names, what):
        told.append((what, list(names)))
        return names

    chosen = plan(model, ratio=0.5, progress=progress)
    apply(model, chosen, progress=progress)
    low = [c.name for c in chosen.components if c.low_rank]
    assert told == [("spectra", [c.name for c in chosen.components]), ("factors", low)]


def test_calibration_reads_the_batches_asked_for_and_no_more():
    data = [{"input_ids": torch.full((1, 2), i)} for i in range(40)]
    for options, n in (({}, 32), ({"max_batches": 3}, 3)):
        rest = iter(data)
        chosen = plan(llama(), ratio=0.5, target="attention", calibrate=rest, **options)
        assert [int(b["input_ids"][0, 0]) for b in chosen.calibration] == list(range(n))
        assert int(next(rest)["input_ids"][0, 0]) == n


def test_groups_hold_one_layer_at_least_and_none_of_nothing():
    layers = {f"l{i}": nn.Linear(d, 3) for i, d in enumerate((10, 5, 5, 10))}
    assert [list(g) for g in in_groups(layers, 1)] == [["l0"], ["l1"], ["l2"], ["l3"]]
    assert [list(g) for g in in_groups(layers, 1200)] == [["l0", "l1", "l2"], ["l3"]]
    assert [list(g) for g in in_groups(layers, 1199)] == [["l0", "l1"], ["l2", "l3"]]
    assert list(in_groups({}, 100)) == []
    assert Decomposition._fields == ("S", "V")


# --- the model afterwards


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_configuration_notes_ranks_and_which_layers_were_conv1d_until_it_is_dense_again(make):
    model = make()
    apply(model, plan(model, ratio=0.01, min_ratio=0.9))
    assert not hasattr(model.config, KEY)  # nothing was factorised
    chosen = compress(model, ratio=0.6)
    ranks = {c.name: c.rank for c in chosen.components if c.low_rank}
    assert getattr(model.config, KEY) == {"ranks": ranks, "conv1d": list(ranks) if make is gpt2 else []}
    assert to_dense(model) is model
    assert not hasattr(model.config, KEY)
    assert not low_rank_layers(model)
    assert to_dense(model) is model


def test_layers_keep_their_mode_their_bias_and_the_biases_owner():
    for mode in (True, False):
        model = stack((8, 8), (8, 8)).train(mode)
        biases = [m.bias for m in linear_layers(model).values()]
        compress(model, ratio=0.6, **EVERYTHING)
        for low, bias in zip(low_rank_layers(model).values(), biases, strict=True):
            assert low.training == low.A.training == mode
            assert low.B.bias is bias
    bare = stack((8, 8), bias=False)
    compress(bare, ratio=0.6, **EVERYTHING)
    assert next(iter(low_rank_layers(bare).values())).B.bias is None


@pytest.mark.parametrize("which", ["lrc", "n-lrc", "all"])
def test_what_trains_is_named_and_everything_else_is_frozen(which):
    model = llama()
    compress(model, ratio=0.5)
    low = {f"{n}.{f}.weight" for n in low_rank_layers(model) for f in "AB"}
    dense = {f"{n}.weight" for n in linear_layers(model)} - low
    names = [n for n, _ in model.named_parameters()]
    wanted = {"lrc": low, "n-lrc": dense, "all": set(names)}[which]
    model.requires_grad_(False)
    found = train_only(model, which)
    assert found == [n for n in names if n in wanted]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted
    if which == "lrc":
        assert set(train_only(model)) == low


def test_a_part_that_is_not_there_or_unknown_is_named():
    with pytest.raises(ValueError, match="nothing to train as 'lrc': the model has 0 low-rank and 14 dense"):
        train_only(llama())
    with pytest.raises(ValueError, match="nothing to train as 'n-lrc': the model has 0 low-rank"):
        train_only(llama(), "n-lrc")
    model = stack((8, 8))
    compress(model, ratio=0.6, **EVERYTHING)
    with pytest.raises(ValueError, match="nothing to train as 'n-lrc': the model has 1 low-rank and 0 dense"):
        train_only(model, "n-lrc")
    with pytest.raises(ValueError, match="did you mean lrc"):
        train_only(model, "lr")


def test_a_plan_prints_as_a_table_without_spectra():
    chosen = plan(stack((24, 16), (10, 30)), ratio=0.5)
    shown = str(chosen).splitlines()
    assert repr(chosen) == str(chosen)
    assert shown[0].split() == ["h.0.fc", "24x16", f"{chosen.components[0].rank}", "of", "16", stored(chosen, 0)]
    assert shown[1].split() == ["h.1.fc", "10x30", f"{chosen.components[1].rank}", "of", "10", stored(chosen, 1)]
    assert f"{chosen.parameters:,} of {chosen.parameters_before:,} parameters" in shown[2]
    assert "tensor" not in repr(chosen.components[0])


def stored(chosen, at):
    return "factors" if chosen.components[at].low_rank else "dense"


def test_whole_numbers_of_numpy_are_multiples_too():
    by_numpy, by_ours = (plan(llama(), ratio=0.5, multiple_of=m) for m in (np.int64(4), 4))
    assert [c.rank for c in by_numpy.components] == [c.rank for c in by_ours.components]
    assert type(by_numpy.components[0].rank) is int


def test_what_a_weight_is_by_content_tells_dtypes_shapes_and_single_bits_apart():
    W = torch.arange(6.0).reshape(2, 3)
    nearly = W.clone()
    nearly[1, 2] = torch.nextafter(nearly[1, 2], torch.tensor(9.0))
    others = [W.reshape(3, 2), W.double(), W.bfloat16(), nearly, W.flip(0), torch.zeros(2, 3), -torch.zeros(2, 3)]
    assert len({content_of(w) for w in [W, *others]}) == 8
    assert content_of(W.mT.contiguous().mT) == content_of(nn.Parameter(W)) == content_of(W.clone())


@pytest.mark.parametrize("kind", ["classifier", "encoder", "decoder"])
def test_every_kind_of_model_is_loaded_as_what_it_was(kind, tmp_path):
    model = {"classifier": bert, "encoder": lambda: bert().bert, "decoder": llama}[kind]()
    if kind == "classifier":
        model.classifier, model.num_labels, model.config.num_labels = nn.Linear(16, 4), 4, 4
    compress(model, ratio=0.6)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(model) or type(again).__name__ == type(model).__name__
    with torch.no_grad():
        for a, b in zip(again(IDS)[0], model(IDS)[0], strict=True):
            assert torch.equal(a, b)
    assert load(tmp_path, dtype=torch.float64).dtype == torch.float64
    assert again.dtype == torch.float32


def test_a_checkpoint_of_another_kind_of_model_is_refused_by_its_class(tmp_path):
    import json

    model = llama()
    compress(model, ratio=0.6)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = json.loads(file.read_text())
    for architectures, match in ((["LlamaForQuestions"], "holds a LlamaForQuestions, which is no llama of"),
                                 (["BertForMaskedLM"], "holds a BertForMaskedLM, which is no llama of transformers"),
                                 (["os"], "holds a os"),
                                 ([], "holds a model without a class")):  # fmt: skip
        file.write_text(json.dumps({**told, "architectures": architectures}))
        with pytest.raises(ValueError, match=match):
            load(tmp_path)


def test_only_layers_of_a_plan_in_place_are_changed_and_no_others():
    model = llama()
    before = {n: m for n, m in model.named_modules() if not list(m.children())}
    chosen = compress(model, ratio=0.5)
    low = {c.name for c in chosen.components if c.low_rank}
    assert {n for n, m in model.named_modules() if isinstance(m, LowRankLinear)} == low
    after = dict(model.named_modules())
    assert all(after[n] is m for n, m in before.items() if n not in low)
