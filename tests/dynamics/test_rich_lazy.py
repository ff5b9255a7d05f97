"""Starts of a rank, the solved case of two linear layers, tasks, ensembles of recurrent networks, and the callback."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import small_models
from rankwise.dynamics import (
    LazinessCallback,
    RateRNN,
    RichLazyExperiment,
    effective_rank,
    expected_kernel_alignment,
    laziness,
    linear_flow,
    low_rank_init,
    structured_init,
    tangent_kernel,
)
from rankwise.dynamics.rich_lazy.experiment import Ensemble, points
from rankwise.dynamics.rich_lazy.measures import alignment
from rankwise.dynamics.rich_lazy.networks import drawn, states
from rankwise.dynamics.rich_lazy.tasks import TASKS, task


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("norm", ["fro", "op", "radius"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_start_has_its_rank_and_keeps_the_norm_that_is_named(norm, dtype):
    W = gaussian(3, 20, 20, dtype=dtype)
    sizes = {
        "fro": lambda M: np.linalg.norm(M, axis=(-2, -1)),
        "op": lambda M: np.linalg.svd(M, compute_uv=False)[..., 0],
        "radius": lambda M: np.abs(np.linalg.eigvals(M)).max(-1),
    }
    for rank in (1, 5, 20):
        low = low_rank_init(W, rank, norm=norm)
        assert low.dtype == dtype
        assert np.linalg.matrix_rank(low.double().numpy(), tol=1e-4).tolist() == [rank] * 3
        assert sizes[norm](low.double().numpy()) == pytest.approx(sizes[norm](W.double().numpy()), rel=1e-5)
    assert torch.equal(low_rank_init(W, 20, norm=norm), W)


def test_equal_norm_truncation_by_hand_raises_the_top_singular_value():
    W = torch.diag(torch.tensor([4.0, 3.0]))
    assert torch.allclose(low_rank_init(W, 1), torch.diag(torch.tensor([5.0, 0.0])))
    assert torch.allclose(low_rank_init(W, 1, norm="op"), torch.diag(torch.tensor([4.0, 0.0])))


@pytest.mark.parametrize("kind", ["gaussian", "dale", "types", "chains"])
def test_a_structure_keeps_the_norm_and_repeats(kind):
    W = gaussian(60, 60, dtype=torch.float32) / 60**0.5
    found = structured_init(W, kind, seed=3)
    assert found.dtype == W.dtype
    assert float(found.norm()) == pytest.approx(float(W.norm()), rel=1e-5)
    assert torch.equal(found, structured_init(W, kind, seed=3))
    assert torch.equal(found, W) == (kind == "gaussian")


@pytest.mark.parametrize("kind", ["dale", "types", "chains"])
@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_a_structure_of_very_large_and_very_small_weights_is_that_of_ordinary_ones(kind, scale):
    W = gaussian(20, 20, dtype=torch.float32)
    found = structured_init(W * scale, kind, seed=np.int64(1))
    torch.testing.assert_close(found.double() / scale, structured_init(W, kind, seed=1).double(), rtol=1e-5, atol=1e-7)


def test_a_rank_may_be_a_number_of_numpy():
    W = gaussian(6, 5)
    assert torch.equal(low_rank_init(W, np.int64(2)), low_rank_init(W, 2))


def test_under_dales_law_units_excite_or_inhibit_and_get_as_much_of_both():
    found = structured_init(gaussian(1000, 1000), "dale")
    assert bool((found[:, :800] >= 0).all())
    assert bool((found[:, 800:] <= 0).all())
    excited, inhibited = found[:, :800].sum(), -found[:, 800:].sum()
    assert float(inhibited / excited) == pytest.approx(1, abs=0.02)  # of 200,000 entries: 4 errors


def test_types_of_units_have_one_spread_for_each_pair_of_types():
    W = gaussian(80, 80)
    ratio = (structured_init(W, "types", seed=1) / W).view(4, 20, 4, 20)
    assert torch.allclose(ratio, ratio[:, :1, :, :1].expand_as(ratio))
    assert len(ratio[:, 0, :, 0].flatten().unique()) == 16


def test_weights_in_a_row_of_a_chain_correlate_by_a_quarter():
    W = structured_init(gaussian(400, 400), "chains")
    into, out_of = W.mean(1), W.mean(0)  # of unit j: over its sources, over its targets
    by_hand = float((into * out_of).mean() / W.var())
    assert by_hand == pytest.approx(0.25, abs=0.05)  # 400 squares of normal numbers: 0.25 √(2/400) = 0.018 each
    plain = gaussian(400, 400)
    assert abs(float((plain.mean(1) * plain.mean(0)).mean() / plain.var())) < 0.01


def test_chains_do_not_run_along_the_matrix_that_the_same_seed_drew():
    W = gaussian(400, 400, dtype=torch.float32)
    found = structured_init(W, "chains", seed=0).mean(1)
    for drawn_first in (W[0], W[:, 0]):
        assert abs(float(torch.corrcoef(torch.stack([found, drawn_first]))[0, 1])) < 0.25  # 5 errors of 1/√400


def test_an_experiment_starts_from_the_structure_that_is_named():
    how = {"task": "match", "units": 12, "ranks": (12,), "seeds": 1, "steps": 1, "probes": 8, "rows": 4}
    made = RichLazyExperiment(structure="dale", **how)
    (_, _, _, W), (_, _, _, plain) = (e._starts(task("match"))[0] for e in (made, RichLazyExperiment(**how)))
    assert bool((W[:, :10] >= 0).all())
    assert bool((W[:, 10:] <= 0).all())
    assert float(W.norm()) == pytest.approx(float(plain.norm()), rel=1e-5)


def test_effective_ranks_by_hand():
    assert effective_rank(torch.eye(5), kind="abs-eig") == 1
    one = torch.outer(torch.ones(5), torch.arange(1.0, 6.0))
    assert float(effective_rank(one, kind="abs-eig")) == pytest.approx(1 / 5)
    for kind in ("participation", "stable"):
        assert float(effective_rank(one, kind=kind)) == pytest.approx(1)
        assert float(effective_rank(torch.eye(5), kind=kind)) == pytest.approx(5)
    D = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    assert float(effective_rank(D)) == pytest.approx(36 / 18)
    assert float(effective_rank(D, kind="stable")) == pytest.approx(6 / 4)
    assert float(effective_rank(D, kind="abs-eig")) == pytest.approx(4 / 6)
    assert effective_rank(torch.stack([D, 1e-30 * D])).tolist() == pytest.approx([2, 2])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: low_rank_init(torch.eye(3), 4), "rank=4"),
        (lambda: structured_init(torch.eye(6), "dales"), "did you mean dale"),
        (lambda: structured_init(torch.eye(4), "types"), "at least 5 units"),
        (lambda: structured_init(torch.ones(6, 5), "types"), "connections"),
        (lambda: structured_init(torch.zeros(6, 6), "dale"), "not all zero"),
        (lambda: structured_init(torch.full((6, 6), math.nan), "gaussian"), "finite numbers"),
        (lambda: structured_init(torch.ones(6, 6, dtype=torch.int64), "chains"), "floating dtype"),
        (lambda: RichLazyExperiment(structure="chain"), "did you mean chains"),
        (lambda: RichLazyExperiment(structure="dale", aligned=True), "leave structure='dale' out"),
        (lambda: low_rank_init(torch.eye(3), 0), "rank=0"),
        (lambda: low_rank_init(torch.eye(3), 1.0), "rank=1.0"),
        (lambda: low_rank_init(torch.eye(3), 1, norm="frob"), "did you mean fro"),
        (lambda: low_rank_init(torch.ones(3, 2), 1, norm="radius"), "no spectral radius"),
        (lambda: low_rank_init(torch.tensor([[0.0, 2.0], [0.5, 0.0]]), 1, norm="radius"), "of zero"),
        (lambda: low_rank_init(torch.zeros(3, 3), 1), "of zero"),
        (lambda: low_rank_init(torch.full((2, 2), float("nan")), 2), "NaN"),
        (lambda: effective_rank(torch.zeros(2, 2)), "no effective rank"),
        (lambda: effective_rank(torch.zeros(2, 2), kind="abs-eig"), "no effective rank"),
        (lambda: effective_rank(torch.ones(2, 3), kind="abs-eig"), "no eigenvalues"),
        (lambda: effective_rank(torch.eye(2), kind="entropy"), "kind"),
        (lambda: effective_rank(torch.ones(3)), "matrices"),
        (lambda: effective_rank(torch.eye(2) * 1j, kind="abs-eig"), "complex64: a real"),
        (lambda: effective_rank(np.eye(2)), "ndarray: a real torch.Tensor"),
        (lambda: structured_init(np.eye(8), "dale"), "ndarray: a real torch.Tensor"),
        (lambda: low_rank_init(np.eye(8), 1), "ndarray: a real torch.Tensor"),
        (lambda: expected_kernel_alignment(torch.eye(3) * 1j, torch.ones(3)), "complex64: a real"),
        (lambda: expected_kernel_alignment(torch.ones(3, 2), torch.ones(2)), "are needed"),
        (lambda: expected_kernel_alignment(torch.ones(3, 2), torch.ones(3), target=torch.zeros(2)), "not zero"),
        (lambda: expected_kernel_alignment(torch.zeros(3, 2), torch.ones(3)), "no effective rank"),
        (lambda: linear_flow(torch.ones(3, 2), torch.ones(3), torch.ones(2), step=0), "step=0"),
        (lambda: RateRNN(3, 0, 2), "sizes"),
        (lambda: RateRNN(3, 2, 2, alpha=0), "alpha"),
        (lambda: RichLazyExperiment(units=10, ranks=(1, 11)), "ranks"),
        (lambda: RichLazyExperiment(units=10, ranks=(1, 1)), "each once"),
        (lambda: RichLazyExperiment(units=10, ranks=(), seeds=1), "ranks"),
        (lambda: RichLazyExperiment(task="desicion"), "did you mean decision"),
        (lambda: RichLazyExperiment(seeds=0), "seeds"),
        (lambda: RichLazyExperiment(seeds=(1, 1)), "seeds"),
        (lambda: RichLazyExperiment(gain=0.0), "gain"),
        (lambda: RichLazyExperiment(momentum=1.0), "momentum"),
        (lambda: RichLazyExperiment(rows=33, probes=32), "rows=33"),
        (lambda: RichLazyExperiment(rows=1, probes=1), "probes=1"),
        (lambda: RichLazyExperiment(norm="nuclear"), "norm"),
        (lambda: RichLazyExperiment(target="class"), "target"),
        (lambda: LazinessCallback(torch.ones(2, 2), every=0), "every=0"),
        (lambda: LazinessCallback(torch.ones(2, 2), points=3), "points=3"),
    ],
)
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ------------------------------------------------------------------------------------------------- two linear layers


def trained(W1, w2, target, scale):
    """Kernels before and after gradient flow from a small start, on whitened inputs: ``(…, d, d)``."""
    W, w = linear_flow(scale * W1, scale * w2, target, time=30, step=0.05)

    def kernel(W, w):
        return W.mT @ W + w.square().sum(-1)[..., None, None] * torch.eye(W.shape[-1], dtype=W.dtype)

    return kernel(W1, w2), kernel(W, w)


@pytest.mark.parametrize("rho", [0.0, 0.01, 1.0])
def test_the_closed_form_is_what_gradient_flow_gives_over_forty_tasks(rho):
    d, tasks, found, told = 12, 40, [], []
    targets = torch.nn.functional.normalize(gaussian(tasks, d, seed=9), dim=-1)
    for rank in (1, 3, 12):
        W1 = torch.stack([low_rank_init(gaussian(60, d, seed=s), rank) for s in range(tasks)])
        w2 = torch.nn.functional.normalize(gaussian(tasks, 60, seed=7), dim=-1)
        w2 = math.sqrt(rho) * torch.linalg.matrix_norm(W1)[:, None] * w2
        begin, end = trained(W1, w2, targets, 1e-5)
        found.append(np.mean([alignment(a, b) for a, b in zip(begin, end, strict=True)]))
        told.append(np.mean([expected_kernel_alignment(a, b) for a, b in zip(W1, w2, strict=True)]))
        one = [expected_kernel_alignment(a, b, target=t) for a, b, t in zip(W1, w2, targets, strict=True)]
        assert one == pytest.approx([alignment(a, b) for a, b in zip(begin, end, strict=True)], abs=5e-3)
    assert found == pytest.approx(told, abs=0.02)
    assert sorted(told) == told
    assert (told[2] - told[0] < 0.1) == (rho == 1)  # the effect is almost gone


def test_the_published_check_values_are_reproduced():
    W = torch.linalg.qr(gaussian(60, 12)).Q  # PR is the rank exactly
    one = torch.eye(60, dtype=W.dtype)[0]
    for rho, wanted in ((0.0, (0.2797, 0.4845, 0.9690)), (1.0, (0.939, 0.960, 0.969))):
        values = [
            expected_kernel_alignment(M, math.sqrt(rho) * torch.linalg.matrix_norm(M) * one)
            for M in (W[:, :r] @ torch.eye(12, dtype=W.dtype)[:r] for r in (1, 3, 12))
        ]
        assert values == pytest.approx(wanted, abs=1e-3)


def test_a_start_along_the_task_with_a_readout_of_its_size_is_wholly_lazy():
    u, beta = gaussian(30), gaussian(8, seed=1)
    W1 = torch.outer(u, beta)
    w2 = u / u.norm() * torch.linalg.matrix_norm(W1)
    assert expected_kernel_alignment(W1, w2, target=beta) == pytest.approx(1, abs=1e-12)
    begin, end = trained(W1, w2, beta / beta.norm(), 1e-4)
    assert alignment(begin, end) == pytest.approx(1, abs=1e-4)
    random = expected_kernel_alignment(torch.outer(u, gaussian(8, seed=5)), w2, target=beta)
    assert random < 0.99


def test_gradient_flow_keeps_its_invariant_and_learns_the_task():
    W1, w2, beta = 0.1 * gaussian(10, 4), 0.1 * gaussian(10, seed=1), gaussian(4, seed=2)
    W, w = linear_flow(W1, w2, beta, time=30, step=0.01)
    before, after = (A @ A.T - torch.outer(a, a) for A, a in ((W1, w2), (W, w)))
    assert torch.allclose(before, after, atol=1e-6)
    assert torch.allclose(w @ W, beta, atol=1e-6)


def test_the_flow_is_that_of_small_steps_of_gradient_descent():
    W1, w2, beta = gaussian(5, 3) / 3, gaussian(5, seed=1) / 3, gaussian(3, seed=2)
    W, w = W1.clone().requires_grad_(), w2.clone().requires_grad_()
    for _ in range(20_00):
        gW, gw = torch.autograd.grad(0.5 * (w @ W - beta).square().sum(), (W, w))
        W, w = ((p - 5e-4 * g).detach().requires_grad_() for p, g in ((W, gW), (w, gw)))
    found = linear_flow(W1, w2, beta, time=1.0)
    assert torch.allclose(found[0], W, atol=2e-3)
    assert torch.allclose(found[1], w, atol=2e-3)


def test_the_kernel_of_the_theory_is_that_of_the_network():
    W1, w2 = gaussian(6, 4), gaussian(6, seed=1)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(W1)
        net[1].weight.copy_(w2[None])
    wanted = W1.T @ W1 + w2.square().sum() * torch.eye(4, dtype=W1.dtype)
    assert torch.allclose(tangent_kernel(net, torch.eye(4, dtype=W1.dtype)), wanted)


# -------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", ["decision", "match", "context"])
def test_trials_have_eight_steps_and_one_answer_that_can_be_read_off(name):
    of = task(name)
    x, y = of.draw(4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, 8, of.inputs)
    assert (y[:, :-1] == 0).all()
    assert set(y[:, -1].tolist()) == {1, 2}
    assert (y[:, -1] == 1).double().mean() == pytest.approx(0.5, abs=0.03)
    assert (x[:, -1, 0] == 0).all()
    answer = y[:, -1] == 1
    if name == "decision":
        assert (x[:, :-1, 0] == 1).all()
        evidence = x[:, :-1, 1] - x[:, :-1, 2]
        assert evidence[answer].mean() == pytest.approx(0.192, abs=0.01)  # mean coherence
        assert x[:, :-1, 1].mean() == pytest.approx(0.5, abs=0.01)
        assert (x[:, 1, 1] - x[:, 0, 1]).std() == pytest.approx(0.1 * math.sqrt(2), abs=0.005)
    elif name == "match":
        assert (x[:, 1:-2, 1:] == 0).all()
        same = (x[:, 0, 1:] * x[:, -2, 1:]).sum(-1) > 0.5
        assert (same == answer).double().mean() > 0.99
    else:
        assert (x[:, 2:-1, 1:5] == 0).all()
        pair = (x[:, -1, 6] == 1).long()
        first = x[:, :2].mean(1)
        evidence = first.gather(1, (1 + 2 * pair)[:, None]) - first.gather(1, (2 + 2 * pair)[:, None])
        assert evidence[answer].mean() == pytest.approx(0.70 / 3, abs=0.02)
        other = first.gather(1, (3 - 2 * pair)[:, None]) - first.gather(1, (4 - 2 * pair)[:, None])
        assert other[answer].mean() == pytest.approx(0, abs=0.02)


def test_digits_are_rows_and_training_and_probing_digits_are_different():
    of = task("smnist")
    (x, y), (p, _) = of.draw(300, torch.Generator().manual_seed(0)), of.probe(300, torch.Generator().manual_seed(0))
    assert x.shape == (300, 28, 28)
    assert y.shape == (300, 28)
    assert x.max() <= 1
    seen = {tuple(v.flatten().tolist()) for v in x}
    assert not seen & {tuple(v.flatten().tolist()) for v in p}
    assert of.last
    assert not any(t.last for n, t in TASKS.items() if n != "smnist")


# ---------------------------------------------------------------------------------------------------------- ensembles


def quick(**options):
    sizes = {"units": 16, "ranks": (1, 4, 16), "seeds": 2, "steps": 60, "probes": 40, "rows": 6, "points": 3}
    return RichLazyExperiment(**(sizes | options))


def test_there_is_no_bias_anywhere():
    assert [n for n, _ in RateRNN(3, 5, 2).named_parameters()] == ["input.weight", "recurrent.weight", "readout.weight"]


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_many_networks_at_once_are_each_alone_and_the_equation_written_out(alpha):
    torch.manual_seed(0)
    nets = [RateRNN(3, 5, 2, alpha=alpha) for _ in range(3)]
    x = torch.randn(3, 4, 6, 3)
    U, W = (torch.stack([getattr(n, k).weight for n in nets]) for k in ("input", "recurrent"))
    together = states(x, U, W, alpha=alpha)
    for i, net in enumerate(nets):
        assert torch.allclose(together[i], net.hidden(x[i]), atol=1e-6)
        h = torch.zeros(4, 5)
        for t in range(6):
            h = torch.relu((1 - alpha) * h + alpha * (h @ W[i].T + x[i, :, t] @ U[i].T))
        assert torch.allclose(together[i, :, -1], h, atol=1e-5)
        assert torch.allclose(net(x[i])[:, -1], h @ net.readout.weight.T, atol=1e-5)


def test_the_batch_trains_every_network_as_a_loop_would():
    how = quick(task="match", seeds=(4, 7), steps=30)
    nets = Ensemble(task("match"), how._starts(task("match")), how)
    alone = nets.net(4)  # seed 7, rank 4
    batches = Ensemble(task("match"), how._starts(task("match")), how)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.003, momentum=0.9)
    for _ in range(30):
        x, y = (part[1] for part in batches._batch())
        batches.step += 1
        loss = nn.functional.cross_entropy(alone(x).reshape(-1, 3), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nets.train(30, lambda *_: None)
    assert torch.allclose(nets.W[4], alone.recurrent.weight, atol=1e-6)
    assert torch.allclose(nets.V[4], alone.readout.weight, atol=1e-6)
    assert not torch.allclose(nets.W[4], how._starts(task("match"))[4][3], atol=1e-4)


def test_the_loss_of_digits_is_that_of_the_last_step_alone():
    how = quick(task="smnist", ranks=(16,), seeds=1, batch_size=4, steps=3)
    of = task("smnist")
    nets = Ensemble(of, how._starts(of), how)
    x, y = nets._batch()
    last = nn.functional.cross_entropy(nets.net(0)(x[0])[:, -1], y[0, :, -1])
    assert nets.losses(x, y).item() == pytest.approx(last.item(), rel=1e-5)
    assert how.run()[-1]["step"] == 3


def test_ranks_share_everything_but_the_recurrent_start():
    starts = quick()._starts(task("decision"))
    for (told, U, V, W), (_, U0, V0, W0) in zip(starts[:3], [starts[2]] * 3, strict=True):
        assert torch.equal(U, U0)
        assert torch.equal(V, V0)
        assert float(W.norm()) == pytest.approx(float(W0.norm()), rel=1e-5)
        assert torch.linalg.matrix_rank(W, rtol=1e-4) == told["rank"]
    assert float(starts[2][3].std()) == pytest.approx(1.25 / 4, rel=0.2)
    assert not torch.equal(starts[0][1], starts[3][1])


def test_an_experiment_draws_nothing_from_whoever_runs_it_and_its_rows_say_what_they_are_of():
    before = torch.get_rng_state()
    how = {"task": "match", "units": 10, "steps": 2, "probes": 8, "rows": 4, "batch_size": 4, "structure": "dale"}
    rows = RichLazyExperiment(ranks=np.array([1, 5]), seeds=np.int64(2), **how).run()
    assert torch.equal(torch.get_rng_state(), before)
    assert {(r["structure"], r["aligned"], r["output_scale"]) for r in rows} == {("dale", False, 1.0)}
    assert {(r["seed"], r["rank"]) for r in rows} == {(0, 1), (0, 5), (1, 1), (1, 5)}
    with pytest.raises(ValueError, match=r"ranks=.*whole numbers"):
        RichLazyExperiment(ranks=(1.5,), **how)


def test_weights_and_trials_of_all_seeds_are_drawn_apart():
    how = RichLazyExperiment(task="match", units=10, ranks=(10,), seeds=4, steps=2, probes=8, rows=4)
    nets = Ensemble(task("match"), how._starts(task("match")), how)
    streams = [g.initial_seed() for g in nets.generators]
    assert min(streams) >= 2**28  # beyond the seeds that people give


def test_seeds_repeat_exactly_and_do_not_depend_on_their_company():
    both, again = quick().run(), quick().run()
    assert both == again
    alone = quick(seeds=(1,)).run()
    of_one = [r for r in both if r["seed"] == 1]
    for a, b in zip(alone, of_one, strict=True):
        assert a["kernel_alignment"] == pytest.approx(b["kernel_alignment"], abs=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_every_network_has_a_row_for_every_point_and_starts_lazy():
    rows, steps = quick().run(), points(60, 3)
    assert steps == [0, 50, 60]
    assert len(rows) == 6 * 3
    for r in rows:
        if r["step"] == 0:
            assert r["kernel_alignment"] == pytest.approx(1)
            assert r["representation_alignment"] == pytest.approx(1)
            assert r["weight_change"] == 0
            assert r["sign_similarity"] == 1
        else:
            assert r["weight_change"] > 0
    assert {r["note"] for r in rows} == {""}
    assert points(10_000, 6) == [0, 50, 188, 707, 2659, 10_000]
    assert points(10, 1) == [0]
    assert points(10, 2) == [0, 10]


def test_the_measures_are_those_of_two_modules():
    how = quick(ranks=(4,), seeds=1)
    of = task("decision")
    nets = Ensemble(of, how._starts(of), how)
    before = nets.net(0)
    rows = nets.trained(lambda *_: None)
    found = laziness(
        before, nets.net(0), nets.x[0], params="recurrent", rows=6, targets=nets.y[0][:6],
        representation_fn=lambda net, x: net.hidden(x)[:, -1],
    ).as_dict()  # fmt: skip
    assert {k: rows[-1][k] for k in found if k in rows[-1]} == pytest.approx(
        {k: v for k, v in found.items() if k in rows[-1]}
    )


def test_with_ever_smaller_rates_all_ranks_are_lazy():
    rows = quick(learning_rate=1e-7).run()
    assert min(r["kernel_alignment"] for r in rows) > 0.9999
    assert min(r["representation_alignment"] for r in rows) > 0.9999


def test_a_larger_readout_makes_learning_lazier():
    ends = {}
    for scale in (1.0, 8.0):
        rows = quick(output_scale=scale, steps=300, learning_rate=0.02 / scale**2, seeds=4).run()
        ends[scale] = np.mean([r["kernel_alignment"] for r in rows if r["step"] == 300])
    assert ends[8.0] > ends[1.0]


def test_an_aligned_start_points_where_the_first_training_went_at_the_same_norm():
    how, plain = quick(aligned=True, ranks=(2,)), quick(ranks=(16,))
    of = task("decision")
    first = Ensemble(of, plain._starts(of), plain)
    start = first.W.detach().clone()
    first.train(60, lambda *_: None)
    for i, (told, _, _, W) in enumerate(how._starts(of)):
        change = (first.W[i] - start[i]).detach().numpy()
        u, s, v = np.linalg.svd(change)
        wanted = (u[:, :2] * s[:2]) @ v[:2]
        wanted *= np.linalg.norm(start[i].numpy()) / np.linalg.norm(wanted)
        assert W.numpy() == pytest.approx(wanted, abs=1e-4)
        assert told["rank"] == 2


def test_activity_that_grows_without_bound_is_told_with_its_step_and_leaves_the_others_alone():
    rows = quick(learning_rate=1e6, seeds=1).run()
    last = [r for r in rows if r["step"] == 60]
    assert all(math.isnan(r["kernel_alignment"]) for r in last)
    assert all(r["note"].startswith("at step 60: ") for r in last)


# ----------------------------------------------------------------------------------------------------------- callback


def batch(n=8):
    ids = torch.randint(5, 50, (n, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def train(callback, tmp_path, steps, **options):
    from transformers import Trainer, TrainingArguments

    model = small_models.bert()
    rows = [{"input_ids": row, "labels": int(i % 2)} for i, row in enumerate(batch(16)["input_ids"])]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    start = copy.deepcopy(model)
    Trainer(model, args, train_dataset=rows, callbacks=[callback] if callback else []).train()
    return start, model


def test_the_callback_records_from_the_start_and_ends_with_what_two_models_give(tmp_path):
    callback = LazinessCallback(batch(), every=2, params="query|value")
    start, end = train(callback, tmp_path, 5)
    assert [r["step"] for r in callback.history] == [0, 2, 4, 5]
    assert callback.history[0]["kernel_alignment"] == pytest.approx(1)
    found = laziness(start, end, batch(), params="query|value").as_dict()
    assert {k: v for k, v in callback.history[-1].items() if k != "step"} == pytest.approx(found)
    assert callback.history[-1]["kernel_alignment"] < 1


def test_the_callback_leaves_the_training_as_it_was(tmp_path):
    _, plain = train(None, tmp_path, 4)
    _, watched = train(LazinessCallback(batch(), every=1), tmp_path, 4)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_records_are_thinned_so_that_memory_does_not_grow():
    model, callback = small_models.bert(), LazinessCallback(batch(), every=1, points=6, params="query")
    for step in range(200):
        if step % callback.every == 0:
            callback.record(model, step=step)
        assert len(callback.history) <= 6
    steps = [r["step"] for r in callback.history]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert callback.every >= 32
    assert steps[-1] >= 150


def test_a_start_whose_kernel_is_zero_is_refused_when_training_begins():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(net[1].weight)
    callback = LazinessCallback(torch.ones(2, 4), params="0.weight")
    with pytest.raises(ValueError, match="tangent kernel is zero"):
        callback.on_train_begin(None, type("S", (), {"global_step": 0})(), None, model=net)


def test_drawn_weights_are_those_that_torch_and_the_paper_start_with():
    U, V, W = drawn(task("context"), 400, seed=3)
    assert U.abs().max() <= 1 / math.sqrt(7)
    assert U.abs().max() > 0.95 / math.sqrt(7)
    assert V.abs().max() <= 1 / 20
    assert float(W.std()) == pytest.approx(1 / 20, rel=0.02)
