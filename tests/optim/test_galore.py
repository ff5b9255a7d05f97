import copy
import math

import pytest
import torch
from galore_torch import GaLoreAdamW as Reference
from torch import nn

from rankwise.optim import GaLoreAdamW, galore_groups
from rankwise.optim.galore import leading_basis, sides, stochastic_round
from rankwise.spectral import orthogonality_error
from small_models import gpt2, llama


def gradients(shape, steps, seed=0):
    """A drifting low-rank signal and noise, as training gives."""
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(shape[0], 6, generator=g), torch.randn(6, shape[1], generator=g)
    for _ in range(steps):
        A = A + 0.1 * torch.randn(A.shape, generator=g)
        yield A @ B + 0.3 * torch.randn(shape, generator=g)


def run(optimizer, p, grads):
    for g in grads:
        p.grad = g.clone().to(p.dtype)
        optimizer.step()
    return p.detach()


def weight(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)])
def test_equals_galore_torch_step_by_step_over_refreshes(proj_type, shape):
    # eps is inside the bias correction there and outside here: tiny, so that it decides nothing
    ours, theirs = weight(*shape), weight(*shape)
    settings = {"rank": 4, "update_proj_gap": 100, "scale": 0.25, "proj_type": proj_type}
    mine = GaLoreAdamW([{"params": [ours], **settings}], lr=1e-2, eps=1e-12, svd="full")
    reference = Reference([{"params": [theirs], **settings}], lr=1e-2, eps=1e-12, no_deprecation_warning=True)
    for step, g in enumerate(gradients(shape, 300)):
        ours.grad, theirs.grad = g.clone(), g.clone()
        mine.step()
        reference.step()
        if proj_type == "full" and step == 0:
            # projected on both sides the first gradient is diagonal: the signs beside it are those of rounding errors
            ours.data.copy_(theirs.data)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(ours, weight(*shape))


def test_full_rank_every_step_is_adamw_on_the_rotated_gradient():
    p, shape = weight(12, 8), (12, 8)
    optimizer = GaLoreAdamW([p], lr=1e-2, rank=8, scale=1.0, update_gap=1, on_refresh="reset", eps=1e-8)
    start = p.detach().clone()
    g = next(gradients(shape, 1))
    p.grad = g.clone()
    optimizer.step()
    Q = optimizer.state[p]["right"]
    torch.testing.assert_close(g @ Q.T @ Q, g, rtol=1e-5, atol=1e-5)  # the basis is a rotation
    rotated = nn.Parameter(start @ Q.T)
    adamw = torch.optim.AdamW([rotated], lr=1e-2, weight_decay=0.0, eps=1e-8)
    rotated.grad = g @ Q.T
    adamw.step()
    torch.testing.assert_close(p.detach(), rotated.detach() @ Q, rtol=1e-5, atol=1e-5)


def test_without_rank_it_is_torchs_adamw():
    a, b = weight(6, 5), weight(6, 5)
    run(GaLoreAdamW([a], lr=1e-2, weight_decay=0.1, eps=1e-8), a, gradients((6, 5), 20))
    run(torch.optim.AdamW([b], lr=1e-2, weight_decay=0.1, eps=1e-8), b, gradients((6, 5), 20))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_without_memory_the_update_is_the_sign_in_the_subspace():
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = GaLoreAdamW([p], lr=0.1, rank=1, scale=0.5, betas=(0.0, 0.0), eps=0.0, svd="full")
    p.grad = torch.diag(torch.tensor([3.0, -2.0]))
    optimizer.step()
    # the leading right direction is e1: R = (3, 0), sign(R) = (1, 0/0); the second row has no gradient in it
    assert p[0, 0].item() == pytest.approx(-0.05)
    assert p[0, 1].item() == 0


def test_the_update_lies_in_the_span_of_the_basis():
    for shape in ((20, 8), (8, 20)):
        p = weight(*shape)
        before = p.detach().clone()
        optimizer = GaLoreAdamW([p], lr=1.0, rank=3, svd="subspace")
        run(optimizer, p, gradients(shape, 1))
        change, state = p.detach() - before, optimizer.state[p]
        Q = state.get("right", state.get("left"))
        change = change if "right" in state else change.T
        residual = change - change @ Q.T @ Q
        assert residual.norm() / change.norm() < 1e-5


@pytest.mark.parametrize(("shape", "side", "size"), [((30, 10), "right", 10), ((10, 30), "left", 10)])
def test_the_smaller_side_is_projected_and_state_has_the_promised_size(shape, side, size):
    p, r = weight(*shape), 4
    optimizer = GaLoreAdamW([p], rank=r)
    run(optimizer, p, gradients(shape, 1))
    state = optimizer.state[p]
    assert state[side].shape == (r, size)
    other = max(shape)
    counters = state["step"].nbytes + state["captured"].nbytes
    assert optimizer.state_bytes() == 4 * (r * size + 2 * r * other) + counters
    assert orthogonality_error(state[side].T) < 1e-5


def test_refreshes_happen_at_multiples_of_the_gap(monkeypatch):
    import rankwise.optim.galore as module

    steps, p = [], weight(9, 6)
    optimizer = GaLoreAdamW([p], rank=2, update_gap=3)
    monkeypatch.setattr(
        module,
        "leading_basis",
        lambda *a, **k: (steps.append(int(optimizer.state[p]["step"])), leading_basis(*a, **k))[1],
    )
    run(optimizer, p, gradients((9, 6), 8))
    assert steps == [0, 3, 6]


@pytest.mark.parametrize("shape", [(600, 240), (240, 600)])
def test_the_subspace_refresh_captures_what_the_svd_captures(shape):
    G = next(gradients(shape, 1, seed=5)) + torch.randn(shape) * 0.5
    G = G.T if shape[0] < shape[1] else G
    Q, share = leading_basis(G, 12, start=None, svd="subspace", seed=1)
    best, exact = leading_basis(G, 12, start=None, svd="full", seed=1)
    assert float(share / exact) > 0.98
    held = float((G @ Q.T).square().sum() / G.square().sum())
    assert float(share) - 1e-6 <= held == pytest.approx(float(share), rel=1e-3)
    warm, again = leading_basis(G, 12, start=Q, svd="subspace", seed=2)
    assert again >= share - 1e-6
    assert ((warm * Q).sum(1) > -1e-6).all()  # signs follow the old basis
    assert float((G @ best.T).square().sum() / G.square().sum()) >= float(share) - 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_directions_are_orthonormal_drawn_by_the_seed_and_told_by_what_they_hold(side):
    G = torch.randn(12, 9)
    Q, share = leading_basis(G, 3, side=side, svd="random", seed=1)
    assert Q.shape == (3, 12 if side == "left" else 9)
    assert orthogonality_error(Q.T) < 1e-5
    inside = Q @ G if side == "left" else G @ Q.T
    assert float(share) == pytest.approx(float(inside.square().sum() / G.square().sum()), rel=1e-5)
    assert share < leading_basis(G, 3, side=side, svd="full")[1] - 0.05
    assert torch.equal(leading_basis(G, 3, side=side, svd="random", seed=1)[0], Q)
    assert not torch.equal(leading_basis(G, 3, side=side, svd="random", seed=2)[0], Q)


def test_a_refresh_is_one_power_iteration_from_the_old_basis(monkeypatch):
    import rankwise.optim.galore as module

    asked, real = [], module.truncated_svd
    monkeypatch.setattr(module, "truncated_svd", lambda *a, **k: (asked.append(k), real(*a, **k))[1])
    p = weight(60, 40)
    run(GaLoreAdamW([p], rank=2, update_gap=1), p, gradients((60, 40), 2))
    assert [k["max_power_iterations"] for k in asked] == [1, 1]
    assert [k["method"] for k in asked] == ["randomized"] * 2
    assert asked[0]["start"] is None
    assert asked[1]["start"].shape == (2, 40)


def test_the_share_captured_is_told_by_the_parameters_number():
    p, q, bias = weight(30, 10), weight(10, 30), nn.Parameter(torch.ones(4))
    optimizer = GaLoreAdamW([{"params": [bias]}, {"params": [p, q], "rank": 3, "svd": "full"}])
    assert optimizer.captured_share() == {}
    grads = [next(gradients(x.shape, 1, seed=i)) for i, x in enumerate((p, q))]
    bias.grad, p.grad, q.grad = torch.ones(4), *grads
    optimizer.step()
    found = optimizer.captured_share()
    assert sorted(found) == [1, 2]
    for i, G in zip((1, 2), grads, strict=True):
        S = torch.linalg.svdvals(G)
        assert found[i] == pytest.approx(float(S[:3].square().sum() / S.square().sum()), rel=1e-5)


def test_rotated_moments_are_the_moments_of_the_rotated_gradient():
    """With a basis of full rank, carrying the mean over by rotation equals having gathered it in the new basis."""
    p, shape = weight(10, 4), (10, 4)
    optimizer = GaLoreAdamW([p], rank=4, update_gap=5, on_refresh="rotate", lr=0.0)
    grads = list(gradients(shape, 6))
    run(optimizer, p, grads)
    mean = torch.zeros(shape)
    for g in grads:
        mean = 0.9 * mean + 0.1 * g
    state = optimizer.state[p]
    torch.testing.assert_close(state["exp_avg"] @ state["right"], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["keep", "reset", "rotate"])
def test_refresh_modes_treat_the_moments_as_they_say(mode):
    p = weight(10, 6)
    optimizer = GaLoreAdamW([p], rank=2, update_gap=2, on_refresh=mode)
    run(optimizer, p, gradients((10, 6), 2))
    run(optimizer, p, gradients((10, 6), 1, seed=7))
    state = optimizer.state[p]
    assert state["age"] == (1 if mode == "reset" else 3)
    assert int(state["step"]) == 3
    if mode == "reset":
        R = next(gradients((10, 6), 1, seed=7)) @ state["right"].T
        torch.testing.assert_close(state["exp_avg"], 0.1 * R, rtol=1e-4, atol=1e-5)
    assert (state["exp_avg_sq"] >= 0).all()


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updating_in_the_backward_pass_changes_not_a_bit(make, dtype):
    ids = torch.randint(0, 50, (3, 9))
    models = [make().to(dtype).train(), make().to(dtype).train()]
    rounded = dtype == torch.bfloat16  # at random, by draws that do not depend on the order of the updates
    optimizers = [
        GaLoreAdamW(galore_groups(m, rank=4, update_gap=2), lr=1e-2, stochastic_rounding=rounded) for m in models
    ]
    optimizers[1].step_in_backward()
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(input_ids=ids, labels=ids).loss.backward()
            freed = all(p.grad is None for p in model.parameters())
            assert freed == (optimizer is optimizers[1])
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_tied_embeddings_are_one_parameter_updated_once():
    model = gpt2().train()
    assert model.lm_head.weight is model.transformer.wte.weight
    optimizer = GaLoreAdamW(galore_groups(model, rank=2), lr=1e-2)
    optimizer.step_in_backward()
    ids = torch.randint(0, 50, (2, 7))
    twin = gpt2().train()
    twin(input_ids=ids, labels=ids).loss.backward()
    expected = torch.optim.AdamW([twin.transformer.wte.weight], lr=1e-2, weight_decay=0, eps=1e-6)
    expected.step()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert int(optimizer.state[model.lm_head.weight]["step"]) == 1
    torch.testing.assert_close(model.lm_head.weight, twin.lm_head.weight, rtol=1e-5, atol=1e-6)


def test_conv1d_is_projected_on_its_own_shape():
    model = gpt2()
    groups = galore_groups(model, rank=3)
    assert model.transformer.h[0].attn.c_attn.weight in set(groups[0]["params"])
    assert all(p.dim() == 2 for p in groups[0]["params"])
    inside = {id(p) for g in groups for p in g["params"]}
    assert inside == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("gap", [3, 100])
def test_resuming_in_the_middle_of_an_interval_is_exact(gap):
    grads = list(gradients((12, 7), 10))
    whole = run(GaLoreAdamW([p := weight(12, 7)], rank=3, update_gap=gap, lr=1e-2), p, grads)
    first, p = GaLoreAdamW([q := weight(12, 7)], rank=3, update_gap=gap, lr=1e-2), q
    run(first, p, grads[:5])
    second = GaLoreAdamW([r := nn.Parameter(p.detach().clone())], rank=3, update_gap=gap, lr=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(run(second, r, grads[5:]), whole)


def test_float32_state_of_bfloat16_weights_survives_loading():
    p = nn.Parameter(torch.randn(8, 4).bfloat16())
    first = GaLoreAdamW([p], rank=2)
    run(first, p, gradients((8, 4), 2))
    second = GaLoreAdamW([p], rank=2)
    second.load_state_dict(first.state_dict())
    assert second.state[p]["exp_avg_sq"].dtype == torch.float32
    assert torch.equal(second.state[p]["exp_avg_sq"], first.state[p]["exp_avg_sq"])


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_are_updated_in_float32_and_rounded_once_piece_by_piece(dtype, chunk, monkeypatch):
    monkeypatch.setattr("rankwise.optim.galore._CHUNK", chunk)
    p = nn.Parameter(torch.randn(6, 5).to(dtype))
    optimizer = GaLoreAdamW([p], lr=1e-2, weight_decay=0.1, eps=1e-8)
    M, V, W = torch.zeros(6, 5), torch.zeros(6, 5), p.detach().clone()
    for step in (1, 2, 3):
        p.grad = torch.randn(6, 5).to(dtype)
        g = p.grad.float()
        M, V = 0.9 * M + 0.1 * g, 0.999 * V + 0.001 * g * g
        N = (M / (1 - 0.9**step)) / ((V / (1 - 0.999**step)).sqrt() + 1e-8)
        W = ((1 - 1e-2 * 0.1) * W.float() - 1e-2 * N).to(dtype)
        optimizer.step()
        # the same but for the last bit, where float32 rounds in another order
        torch.testing.assert_close(p.detach(), W, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert int(optimizer.state[p]["step"]) == optimizer.param_groups[0]["steps"] == 3
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], M, rtol=1e-5, atol=1e-7)


def test_stochastic_rounding_is_unbiased_and_lands_on_neighbours():
    x = torch.full((40_000,), 1 + 0.25 * 2**-7)  # a quarter of the way between two bfloat16 numbers
    rounded = torch.cat([stochastic_round(x, seed) for seed in range(3)]).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    share = float((rounded > 1).float().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(rounded))
    assert torch.equal(stochastic_round(-x, 0), -stochastic_round(x, 0))


def test_tiny_updates_of_bfloat16_weights_move_them_on_average_only_with_stochastic_rounding():
    def mean_after(stochastic):
        p = nn.Parameter(torch.ones(64, 64).bfloat16())
        optimizer = GaLoreAdamW([p], lr=2e-5, stochastic_rounding=stochastic)
        for _ in range(50):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return float(p.detach().float().mean())

    assert mean_after(False) == 1.0
    assert mean_after(True) == pytest.approx(1 - 50 * 2e-5, abs=3e-4)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_gradient_with_nan_is_skipped_counted_and_in_the_end_an_error(in_backward):
    layer = nn.Linear(6, 4)
    optimizer = GaLoreAdamW([{"params": [layer.weight], "rank": 2}, {"params": [layer.bias]}], max_skipped=3)
    if in_backward:
        optimizer.step_in_backward()
    before = [p.detach().clone() for p in layer.parameters()]

    def step(value):
        layer(torch.full((2, 6), value)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def broken():
        (layer(torch.ones(2, 6)) * float("nan")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    broken()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert optimizer.skipped == 1
    step(1.0)
    assert not torch.equal(before[0], layer.weight)
    assert torch.isfinite(layer.weight).all()
    broken()
    broken()
    assert optimizer.skipped == 3
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        broken()


def test_two_backward_passes_in_one_step_are_refused():
    layer = nn.Linear(6, 4)
    optimizer = GaLoreAdamW([{"params": [layer.weight], "rank": 2}])
    optimizer.step_in_backward()
    layer(torch.ones(2, 6)).sum().backward()
    with pytest.raises(RuntimeError, match="accumulation"):
        layer(torch.ones(2, 6)).sum().backward()


def test_clipping_in_the_backward_pass_is_a_tensor_at_a_time():
    layer = nn.Linear(3, 2, bias=False)
    optimizer = GaLoreAdamW(layer.parameters(), betas=(0.0, 0.0), lr=1.0, eps=1.0)
    optimizer.step_in_backward(max_norm=0.5)
    before = layer.weight.detach().clone()
    (10 * layer(torch.ones(1, 3))).sum().backward()
    g = torch.full((2, 3), 0.5 / math.sqrt(6))  # ten everywhere, clipped to norm 0.5
    torch.testing.assert_close(before - layer.weight.detach(), g / (g + 1), rtol=1e-4, atol=1e-6)


def test_clipping_leaves_what_is_short_enough_as_it_is():
    layer = nn.Linear(3, 2, bias=False)
    optimizer = GaLoreAdamW(layer.parameters(), betas=(0.0, 0.0), lr=1.0, eps=1.0)
    optimizer.step_in_backward(max_norm=5.0)
    before = layer.weight.detach().clone()
    layer(torch.full((1, 3), 0.5)).sum().backward()
    torch.testing.assert_close(before - layer.weight.detach(), torch.full((2, 3), 0.5 / 1.5))


def test_learning_rate_schedules_reach_the_updates():
    layer = nn.Linear(4, 4, bias=False)
    optimizer = GaLoreAdamW([{"params": [layer.weight], "rank": 2}], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.step_in_backward()
    moved = []
    for _ in range(2):
        before = layer.weight.detach().clone()
        layer(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        schedule.step()
        moved.append(not torch.equal(before, layer.weight))
    assert moved == [True, False]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaLoreAdamW([weight(4, 6)], rank=0), "rank=0 is outside 1..6"),
        (lambda: GaLoreAdamW([weight(4, 6)], rank=7), "rank=7 is outside 1..6"),
        (lambda: GaLoreAdamW([{"params": [weight(4)], "rank": 2}]), "only matrices"),
        (lambda: GaLoreAdamW([weight(4, 6)], rank=2, proj_type="rigth"), "did you mean right"),
        (lambda: GaLoreAdamW([weight(4, 6)], rank=2, update_gap=0), "update_gap=0"),
        (lambda: GaLoreAdamW([{"params": [weight(4, 6)]}], rank=2), "each group its own"),
        (lambda: GaLoreAdamW([weight(4, 6)], lr=-1), "lr=-1"),
        (lambda: GaLoreAdamW([]), "empty parameter list"),
        (lambda: galore_groups(nn.Sequential(nn.Conv2d(1, 1, 3)), rank=2), "no linear layer"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_sides_follow_the_projection_type():
    assert [sides((3, 2), t) for t in ("std", "reverse_std", "left", "right", "full")] == [
        (False, True),
        (True, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert sides((2, 3), "std") == (True, False)
