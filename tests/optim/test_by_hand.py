"""Optimisers and samplers beside what is computed by hand, and every default that the documentation names."""

import copy
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rankwise.models.outliers import outlier_scores
from rankwise.optim import MODES, GaLoreAdamW, LayerSampler, OwLore, galore_groups, sampling_probabilities
from rankwise.optim.galore import back, leading_basis, project, sides, stochastic_round
from rankwise.optim.groups import trained_parameters
from rankwise.optim.held import Holders, refuse_loss_scaling, undo_of
from rankwise.optim.tied import gather_in_place
from rankwise.optim.trainer import _check_arguments
from small_models import gpt2, llama

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def backward(model):
    model(input_ids=IDS, labels=IDS).loss.backward()


def weight(*shape, seed=9, dtype=torch.float32):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


class Stack(nn.Module):
    def __init__(self, n, d=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(d, d)) for _ in range(n))
        self.head = nn.Linear(d, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


# --- groups


def test_meta_parameters_are_named_with_their_shape():
    with pytest.raises(ValueError, match=r"a parameter of shape \(3, 4\) is on the meta device; float32, float64"):
        GaLoreAdamW([nn.Parameter(torch.empty(3, 4, device="meta"))])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        GaLoreAdamW([nn.Parameter(torch.ones(3, 4, dtype=dtype))], rank=4)


def test_a_models_groups_are_its_matrices_and_the_rest_where_there_is_one():
    bare = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(4, 3, bias=False)])})
    (group,) = galore_groups(bare, rank=2, update_gap=7)
    assert (group["rank"], group["update_gap"], len(group["params"])) == (2, 7, 1)
    model = Stack(2)
    matrices, rest = galore_groups(model, rank=2)
    assert [id(p) for p in matrices["params"]] == [id(layer[0].weight) for layer in model.layers]
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters()} - {id(p) for p in matrices["params"]}
    assert set(rest) == {"params"}


def test_under_an_adapter_the_base_matrices_that_train_are_projected_and_the_thin_ones_are_not():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules="all-linear"))
    model.requires_grad_(True)
    matrices, rest = trained_parameters(model)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(matrices) == 14
    assert all(names[id(p)].endswith("base_layer.weight") for p in matrices)
    assert {names[id(p)].split(".")[-2] for p in rest if "lora" in names[id(p)]} == {"default"}
    assert len(matrices) + len(rest) == len(names)


@pytest.mark.parametrize(
    ("group", "match"),
    [
        ({"rank": 2, "proj_type": "lefft"}, "did you mean left"),
        ({"rank": 2, "proj_type": "ful"}, "did you mean full"),
        ({"rank": 2, "proj_type": "st"}, "did you mean std"),
        ({"rank": 2, "proj_type": "reverse-std"}, "did you mean reverse_std"),
        ({"rank": 2, "on_refresh": "rotat"}, "did you mean rotate"),
        ({"rank": 2, "on_refresh": "kep"}, "did you mean keep"),
        ({"rank": 2, "on_refresh": "rest"}, "did you mean reset"),
        ({"rank": 2, "svd": "randm"}, "did you mean random"),
        ({"rank": 2, "svd": "subspac"}, "did you mean subspace"),
        ({"rank": 2, "svd": "fulll"}, "did you mean full"),
        ({"eps": -1.0}, "eps=-1"),
        ({"eps": math.inf}, "eps=inf"),
        ({"weight_decay": math.inf}, "weight_decay=inf"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (0.9, 0.9, 0.9)}, "betas"),
        ({"rank": 2, "scale": -1.0}, "scale=-1"),
        ({"rank": 2, "scale": math.inf}, "scale=inf"),
        ({"rank": 2, "update_gap": 1.5}, "update_gap=1.5"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"rnak": 2}, "did you mean rank"),
        ({"lrr": 2}, "did you mean lr"),
        ({"epss": 2}, "did you mean eps"),
        ({"weight_decy": 2}, "did you mean weight_decay"),
        ({"stepss": 2}, "did you mean steps"),
        ({"seeds": 2}, "did you mean seed"),
        ({"beta": 2}, "did you mean betas"),
        ({"rank": 2, "scal": 2}, "did you mean scale"),
        ({"rank": 2, "proj_typ": 2}, "did you mean proj_type"),
        ({"rank": 2, "on_refrsh": 2}, "did you mean on_refresh"),
        ({"rank": 2, "svdd": 2}, "did you mean svd"),
        *(({k: 1}, f"{k}=1 is of projected groups") for k in ("update_gap", "scale", "proj_type", "on_refresh", "svd")),
    ],
)
def test_every_option_of_a_group_and_each_of_its_values_is_known_by_name(group, match):
    with pytest.raises(ValueError, match=match):
        GaLoreAdamW([{"params": [weight(3, 3)], **group}])


def test_options_reach_to_their_ends():
    ends = {"lr": 0.0, "eps": 0.0, "weight_decay": 0.0, "betas": (0.0, 0.0), "update_gap": 1, "seed": 0, "scale": None}
    for rank in (1, 5):
        group = GaLoreAdamW([{"params": [weight(3, 5)], "rank": rank, **ends}]).param_groups[0]
        assert {k: group[k] for k in ends} == ends
    labelled = {"name": "mine", "param_names": ["w"], "initial_lr": 0.1, "differentiable": False}
    group = GaLoreAdamW([{"params": [weight(3, 5)], **labelled}]).param_groups[0]
    assert {k: group[k] for k in labelled} == labelled


def test_a_list_of_groups_is_not_changed_by_the_optimiser():
    given = [{"params": [weight(3, 3)], "rank": 2, "update_proj_gap": 5}]
    kept = {k: v for k, v in given[0].items() if k != "params"}
    assert GaLoreAdamW(given).param_groups[0]["update_gap"] == 5
    assert {k: v for k, v in given[0].items() if k != "params"} == kept


def test_a_group_that_is_refused_later_leaves_the_numbers_as_they_were():
    first, second = weight(3, 3), weight(3, 3, seed=1)
    optimizer = GaLoreAdamW([first], rank=2)
    with pytest.raises(ValueError, match="rank=9"):
        optimizer.add_param_group({"params": [second], "rank": 9})
    optimizer.add_param_group({"params": [second], "rank": 1})
    first.grad, second.grad = torch.ones(3, 3), torch.ones(3, 3)
    optimizer.step()
    assert sorted(optimizer.captured_share()) == [0, 1]
    assert optimizer.state[second]["right"].shape == (1, 3)


# --- GaLore's mathematics


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_projecting_and_going_back_are_products_with_the_bases(shape):
    G = torch.randn(*shape, dtype=torch.float64)
    L, R = torch.randn(2, shape[0], dtype=torch.float64), torch.randn(2, shape[1], dtype=torch.float64)
    for left, right in ((L, None), (None, R), (L, R)):
        expected = G if left is None else L @ G
        expected = expected if right is None else expected @ R.T
        N = project(G, left, right)
        torch.testing.assert_close(N, expected)
        A, B = back(N, left, right)
        outer = N if right is None else N @ R
        torch.testing.assert_close(A @ B, outer if left is None else L.T @ outer)
    assert project(G, None, None) is G
    tall = shape[0] >= shape[1]
    assert sides(shape, "std") == (not tall, tall)
    assert sides(shape, "reverse_std") == (tall, not tall)


@pytest.mark.parametrize("svd", ["subspace", "full"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (60, 50)])
def test_the_basis_is_the_leading_singular_vectors_with_the_share_they_hold(shape, side, svd):
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=g)).Q
    V = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=g)).Q
    S = 2.0 ** -torch.arange(min(shape))
    G = U * S @ V.T
    Q, share = leading_basis(G, 3, side=side, svd=svd, seed=1)
    exact = (V if side == "right" else U)[:, :3].T
    torch.testing.assert_close((Q @ exact.T).abs(), torch.eye(3), rtol=0, atol=2e-3)
    assert float(share) == pytest.approx(float(S[:3].square().sum() / S.square().sum()), abs=1e-4)
    assert Q.is_contiguous()
    everything, whole = leading_basis(G, 999, side=side, svd=svd)
    assert len(everything) == min(shape)
    assert float(whole) == pytest.approx(1, abs=1e-5)
    if svd == "subspace":
        turned = leading_basis(G, 3, side=side, start=-Q)[0]
        assert ((turned * Q).sum(1) < -0.9).all()
        other = leading_basis(G, 2, side=side, start=Q)[0]  # a start of another rank is no reason for signs
        assert other.shape == (2, Q.shape[1])


def test_a_gradient_of_zeros_has_a_basis_and_holds_nothing_of_it():
    Q, share = leading_basis(torch.zeros(4, 3), 2, svd="random")
    torch.testing.assert_close(Q @ Q.T, torch.eye(2), rtol=0, atol=1e-6)
    assert float(share) == 0.0
    assert share.dtype == torch.float64


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_projected_step_is_adams_in_the_basis_written_out(shape, decay):
    p, lr = weight(*shape), 0.05
    optimizer = GaLoreAdamW([p], lr=lr, rank=2, update_gap=3, scale=0.7, weight_decay=decay, eps=1e-3, betas=(0.8, 0.9))
    W, M, V = p.detach().clone().double(), None, None
    for t in range(1, 8):
        G = torch.sin(weight(*shape, seed=t).detach())
        p.grad = G.clone()
        optimizer.step()
        state = optimizer.state[p]
        right = "right" in state
        Q = (state["right"] if right else state["left"]).double()
        R = G.double() @ Q.T if right else Q @ G.double()
        M = 0.2 * R if M is None else 0.8 * M + 0.2 * R
        V = 0.1 * R**2 if V is None else 0.9 * V + 0.1 * R**2
        N = (M / (1 - 0.8**t)) / ((V / (1 - 0.9**t)).sqrt() + 1e-3)
        W = W - lr * 0.7 * (N @ Q if right else Q.T @ N) - lr * decay * W
        torch.testing.assert_close(p.detach().double(), W, rtol=1e-4, atol=1e-5)
        assert int(state["step"]) == state["age"] == t


def test_rotating_squares_the_change_of_basis_for_the_variance():
    p = weight(5, 4)
    optimizer = GaLoreAdamW([p], rank=2, update_gap=1, on_refresh="rotate", proj_type="full", betas=(0.5, 0.5), lr=0.0)
    for t in range(3):
        before = {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        p.grad = torch.sin(weight(5, 4, seed=t).detach())
        G = p.grad.clone()
        optimizer.step()
        state = optimizer.state[p]
        R = state["left"] @ G @ state["right"].T
        if t:
            L, T = state["left"] @ before["left"].T, state["right"] @ before["right"].T
            M, V = L @ before["exp_avg"] @ T.T, L.square() @ before["exp_avg_sq"] @ T.square().T
            torch.testing.assert_close(state["exp_avg"], 0.5 * M + 0.5 * R, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state["exp_avg_sq"], 0.5 * V + 0.5 * R**2, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(state["exp_avg"], 0.5 * R, rtol=1e-4, atol=1e-6)


def test_on_both_sides_the_share_told_is_the_smaller_one():
    p = weight(8, 5)
    optimizer = GaLoreAdamW([p], rank=2, proj_type="full", svd="random")
    p.grad = G = torch.sin(weight(8, 5, seed=1).detach())
    optimizer.step()
    state = optimizer.state[p]
    held = [float(X.square().sum() / G.square().sum()) for X in (state["left"] @ G, G @ state["right"].T)]
    assert optimizer.captured_share()[0] == pytest.approx(min(held), rel=1e-5)


def test_random_directions_and_rounding_are_other_ones_for_every_parameter_step_and_seed():
    def bases(seed, steps=1):
        p, q = weight(6, 4), weight(6, 4)
        optimizer = GaLoreAdamW([p, q], rank=2, svd="random", update_gap=1, seed=seed)
        for _ in range(steps):
            p.grad = q.grad = torch.ones(6, 4)
            optimizer.step()
        return [optimizer.state[x]["right"] for x in (p, q)]

    first = bases(0)
    assert torch.equal(first[0], bases(0)[0])
    for other in (first[1], bases(1)[0], bases(0, steps=2)[0]):
        assert not torch.allclose(first[0], other)
    x = torch.full((100,), 1 + 2**-9)
    assert not torch.equal(stochastic_round(x, 1), stochastic_round(x, 2))
    assert stochastic_round(torch.tensor([1.0, -2.0]), 0).tolist() == [1.0, -2.0]


def test_state_bytes_count_every_moment_basis_and_counter():
    plain, projected = weight(3, 2), weight(6, 4)
    optimizer = GaLoreAdamW([{"params": [plain]}, {"params": [projected], "rank": 2}])
    assert optimizer.state_bytes() == 0
    plain.grad, projected.grad = torch.ones(3, 2), torch.ones(6, 4)
    optimizer.step()
    moments = 2 * 6 + 2 * 12
    assert optimizer.state_bytes() == 4 * (moments + 2 * 4) + 4 + 4 + 8  # two steps in float32, a share in float64


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_closure_computes_the_gradients_and_its_loss_comes_back(in_backward):
    for make in (lambda m: GaLoreAdamW(m.parameters(), lr=0.1),
                 lambda m: OwLore(m, lr=0.1, rank=1, mode="uniform", active=2, in_backward=False)):  # fmt: skip
        model = Stack(2)
        optimizer = make(model)
        if in_backward:
            optimizer.step_in_backward()
        before = model.head.weight.detach().clone()

        def closure(model=model):
            assert torch.is_grad_enabled()
            loss = model(torch.ones(2, 3)).square().sum()
            loss.backward()
            return loss

        assert float(optimizer.step(closure).detach()) > 0
        assert not torch.equal(model.head.weight, before)
        assert optimizer.param_groups[0]["steps"] == 1
        assert optimizer.step() is None
        optimizer.release()


def test_counts_of_skipped_steps_are_saved_and_begin_anew_without_them():
    p = weight(3)
    optimizer = GaLoreAdamW([p], max_skipped=3)
    for _ in range(2):
        p.grad = torch.full((3,), math.nan)
        optimizer.step()
    state = optimizer.state_dict()
    assert state["counts"] == [2, 2]
    other = GaLoreAdamW([weight(3)], max_skipped=3)
    other.load_state_dict(copy.deepcopy(state))
    assert other.skipped == 2
    other.param_groups[0]["params"][0].grad = torch.full((3,), math.inf)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        other.step()
    del state["counts"]
    other.load_state_dict(state)
    assert other.skipped == 0
    other.param_groups[0]["params"][0].grad = torch.full((3,), math.inf)
    other.step()
    other.step()
    assert other.skipped == 2
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        other.step()


def test_gradients_whose_norm_is_beyond_their_own_type_are_clipped_too():
    p = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = GaLoreAdamW([p], lr=1.0, betas=(0.0, 0.0), eps=1.0)
    optimizer.step_in_backward(max_norm=2.0)
    (p * 6e4).sum().backward()  # of norm 1.2e5
    torch.testing.assert_close(p.detach(), torch.full((4,), -0.5, dtype=torch.float16))  # -1 / (1 + 1)


def test_one_bad_gradient_of_many_stops_the_whole_step_and_empty_ones_none():
    p, q, nothing = weight(3), weight(3, seed=1), nn.Parameter(torch.empty(0))
    optimizer = GaLoreAdamW([p, q, nothing], lr=0.1)
    before = p.detach().clone()
    p.grad, q.grad, nothing.grad = torch.ones(3), torch.tensor([1.0, math.inf, 1.0]), torch.empty(0)
    optimizer.step()
    assert torch.equal(p, before)
    q.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(p, before)
    assert (optimizer.skipped, optimizer.param_groups[0]["steps"]) == (1, 2)
    optimizer.zero_grad()
    nothing.grad = torch.empty(0)
    optimizer.step()
    assert optimizer.skipped == 1


# --- sampling


def test_defaults_of_the_sampler_are_those_that_the_documentation_names():
    defaults = {n: p.default for n, p in inspect.signature(LayerSampler).parameters.items()}
    told = {"scores": None, "mode": "owl", "active": None, "interval": 50, "seed": 0, "layers_attribute": None}
    assert {k: defaults[k] for k in told} == told
    assert MODES == ("owl", "owl_reverse", "uniform", "increase", "decrease", "norm")
    sampler = LayerSampler(Stack(3), [1.0, 1.0, 1.0])
    assert (sampler.interval, sampler.steps, sampler.draws, sampler.released) == (50, 0, 1, False)
    owlore = inspect.signature(OwLore).parameters
    assert {n: owlore[n].default for n in ("lr", "mode", "interval", "update_gap", "in_backward", "keep_state")} == {
        "lr": 3e-4, "mode": "owl", "interval": 50, "update_gap": 100, "in_backward": True, "keep_state": False,
    }  # fmt: skip


def test_no_probability_is_below_a_millionth_of_all():
    p = sampling_probabilities("owl", Stack(3).layers, [0.0, 3.0, 1.0])
    total = 1 + 1e-6
    assert p.tolist() == pytest.approx([1e-6 / total, 0.75 / total, 0.25 / total], rel=1e-9)
    assert p.dtype == torch.float64
    assert sampling_probabilities("owl", Stack(2).layers, [0.0, 0.0]).tolist() == [0.5, 0.5]
    assert sampling_probabilities("owl_reverse", Stack(2).layers, [2.0, 2.0]).tolist() == [0.5, 0.5]
    none = nn.ModuleList([nn.Identity(), nn.Linear(1, 1)])
    assert sampling_probabilities("norm", none).tolist() == pytest.approx([1e-6, 1 - 1e-6], abs=1e-9)


def test_norms_are_those_of_all_numbers_of_a_block():
    model = Stack(2)
    with torch.no_grad():
        model.layers[0][0].weight.fill_(1.0)
        model.layers[0][0].bias.fill_(3.0)
        model.layers[1][0].weight.fill_(-2.0)
        model.layers[1][0].bias.fill_(0.0)
    p = sampling_probabilities("norm", model.layers)
    a, b = math.sqrt(9 + 27), math.sqrt(36)
    assert p.tolist() == pytest.approx([a / (a + b), b / (a + b)])


def test_drawn_blocks_keep_their_gradients_and_all_others_lose_them():
    model = Stack(5)
    sampler = LayerSampler(model, mode="uniform", active=2)
    for _ in range(6):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        drawn = sampler.draw()
        assert drawn == sampler.active_layers == sorted(drawn)
        for i, layer in enumerate(model.layers):
            for p in layer.parameters():
                assert p.requires_grad == (i in drawn)
                assert (p.grad is not None) == (i in drawn)
        assert model.head.weight.grad is not None
    assert sampler.draws == 7


def test_draws_are_decided_by_the_seed_and_their_number():
    def draws(seed, n=12):
        sampler = LayerSampler(Stack(9), mode="uniform", active=2, seed=seed)
        return [sampler.active_layers, *(sampler.draw() for _ in range(n))]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len(set(map(tuple, draws(0)))) > 4


def test_a_samplers_state_is_plain_and_complete():
    sampler = LayerSampler(Stack(3), [1.0, 2.0, 5.0], active=1, interval=2, seed=4)
    sampler.step()
    state = sampler.state_dict()
    assert {k: state[k] for k in ("seed", "steps", "draws", "active")} == {
        "seed": 4, "steps": 1, "draws": 1, "active": sampler.active_layers,
    }  # fmt: skip
    assert state["probabilities"] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    other = LayerSampler(Stack(3), [7.0, 1.0, 1.0], active=1, interval=2, seed=9)
    other.load_state_dict(copy.deepcopy(state))
    assert other.state_dict() == state
    assert [all(p.requires_grad for p in b.parameters()) for b in other.layers] == [
        i in state["active"] for i in range(3)
    ]
    for key in state:
        with pytest.raises(ValueError, match=f"it has no {key}"):
            other.load_state_dict({k: v for k, v in state.items() if k != key})


def test_bounds_of_the_number_of_active_blocks_and_the_interval():
    for active in (1, 4):
        assert len(LayerSampler(Stack(4), mode="uniform", active=active, interval=1).active_layers) == active
    for active in (0, 5):
        with pytest.raises(ValueError, match=rf"active={active} is outside 1\.\.4"):
            LayerSampler(Stack(4), mode="uniform", active=active)
    assert LayerSampler(Stack(1), mode="uniform").active == 1
    assert LayerSampler(Stack(20), mode="uniform").active == 3
    with pytest.raises(
        ValueError, match=r"scores must be 2 finite, non-negative numbers, one a block; got \[1.0, -1.0\]"
    ):
        LayerSampler(Stack(2), [1.0, -1.0])


def test_a_released_sampler_has_all_blocks_that_trained_and_may_be_followed_by_another():
    model = Stack(3)
    model.layers[1].requires_grad_(False)
    sampler = LayerSampler(model, mode="uniform", active=1, interval=1)
    with pytest.raises(ValueError, match=r"another LayerSampler samples these blocks: call its release\(\) first"):
        LayerSampler(model, mode="uniform")
    sampler.release()
    assert (sampler.released, sampler.active_layers) == (True, [0, 2])
    again = LayerSampler(model, mode="uniform", active=1)
    assert again.active_layers != []
    assert not any(p.requires_grad for p in model.layers[1].parameters())


# --- OwLore


def test_outlier_scores_are_taken_of_the_data_at_the_threshold_and_of_the_list_asked_for():
    model = llama()
    data = [{"input_ids": IDS}]
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 40.0
    found = {}
    for name, options in {
        "data": {"dataloader": data, "threshold": 3.0},
        "weights": {"threshold": 3.0},
        "default": {"dataloader": data},
    }.items():
        optimizer = OwLore(copy.deepcopy(model), in_backward=False, **options)
        scores = outlier_scores(model, options.get("dataloader"), threshold=options.get("threshold", 13.0))
        expected = sampling_probabilities("owl", model.model.layers, scores)
        torch.testing.assert_close(optimizer.sampler.probabilities, expected)
        found[name] = expected
    assert not torch.allclose(found["data"], found["weights"])
    assert not torch.allclose(found["data"], found["default"])
    with pytest.raises(ValueError, match=r"did you mean model\.layers"):
        OwLore(model, layers_attribute="model.layer", in_backward=False)
    assert OwLore(model, layers_attribute="model.layers", in_backward=False).sampler.active == 2


def test_a_loaded_state_leaves_no_key_of_the_sampler_in_the_groups_and_the_state_given_as_it_was():
    model = llama().train()
    optimizer = OwLore(model, lr=1e-2, active=1, interval=5, in_backward=False)
    for _ in range(2):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
    state = optimizer.state_dict()
    assert "sampler" not in optimizer.param_groups[0]
    kept = copy.deepcopy(state["param_groups"])
    other = OwLore(llama().train(), active=1, interval=5, in_backward=False)
    other.load_state_dict(state)
    assert "sampler" not in other.param_groups[0]
    assert state["param_groups"] == kept
    assert other.sampler.state_dict() == optimizer.sampler.state_dict()
    assert other.param_groups[0]["lr"] == 1e-2


def test_the_rank_by_default_is_a_sixteenth_of_the_largest_smaller_side_and_one_at_least():
    for d, rank in ((3, 1), (31, 1), (32, 2), (50, 3)):
        optimizer = OwLore(Stack(2, d), mode="uniform", in_backward=False)
        assert optimizer.param_groups[0]["rank"] == rank
    whole = OwLore(Stack(2), mode="uniform", rank=0, in_backward=False)
    assert all("rank" not in g for g in whole.param_groups)
    assert whole.param_groups[1]["lr"] == 3e-4


# --- what is held, tied, and refused in Trainer


def test_holders_hold_until_they_give_back_or_are_gone():
    class Owner:
        pass

    held, (p, q), a, b = Holders("does this"), (weight(1), weight(1)), Owner(), Owner()
    held.take(a, [p])
    held.take(a, [p, q])
    with pytest.raises(ValueError, match=r"another Owner does this: call its release\(\) first"):
        held.take(b, [q])
    held.give_back(b)
    with pytest.raises(ValueError, match="another Owner"):
        held.take(b, [p])
    held.give_back(a)
    held.take(b, [q])
    held.give_back(b)
    held.take(a, [p])
    del a
    held.take(b, [p])


def test_what_undoes_is_called_once_when_closed_or_collected():
    class Owner:
        pass

    calls = []
    for closed in (True, False):
        owner = Owner()
        stack = undo_of(owner)
        stack.callback(calls.append, closed)
        if closed:
            stack.close()
        del owner
        assert calls == ([True] if closed else [True, False])


def test_a_scaler_that_is_switched_off_is_no_reason_to_refuse():
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    refuse_loss_scaling()
    live = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="enabled GradScaler"):
        refuse_loss_scaling()
    del scaler, live


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, None),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2"),
        ({"max_grad_norm": 0.5}, "max_grad_norm=0.5"),
        ({"fp16": True}, "fp16=True"),
        ({"world_size": 2}, "one process, not in 2"),
    ],
)
def test_arguments_of_a_trainer_that_need_all_gradients_at_once_are_refused_one_by_one(options, match):
    sound = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0, "fp16": False, "world_size": 1}
    arguments = SimpleNamespace(**(sound | options))
    if match is None:
        _check_arguments(arguments)
        return
    with pytest.raises(ValueError, match=match):
        _check_arguments(arguments)


def test_callbacks_check_only_what_updates_in_the_backward_pass_and_release_at_the_end():
    model = llama()
    optimizer = GaLoreAdamW(galore_groups(model, rank=2))
    arguments = SimpleNamespace(gradient_accumulation_steps=4, max_grad_norm=1.0, fp16=True, world_size=2)
    callback = optimizer.callback()
    callback.on_train_begin(arguments, None, None)
    callback.on_train_end(arguments, None, None)
    assert optimizer.released
    with pytest.raises(ValueError, match="this GaLoreAdamW was released after training"):
        callback.on_train_begin(arguments, None, None)
    sampler = LayerSampler(model, mode="uniform", active=1, interval=1)
    watch, draws = sampler.callback(), sampler.draws
    watch.on_train_begin(arguments, None, None)
    watch.on_step_end(arguments, None, None)
    assert (sampler.steps, sampler.draws) == (1, draws + 1)
    watch.on_train_end(arguments, None, None)
    with pytest.raises(ValueError, match="this LayerSampler was released"):
        watch.on_train_begin(arguments, None, None)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_a_tied_table_of_any_options_has_its_own_gradient(options):
    def make():
        torch.manual_seed(0)
        table, head = nn.Embedding(6, 4, **options), nn.Linear(4, 6, bias=False)
        head.weight = table.weight
        return nn.ModuleDict({"table": table, "head": head})

    ids, models = torch.tensor([[1, 3, 3, 5]]), (make(), make())
    undo = gather_in_place(models[1])
    for model in models:
        hidden = model["table"](ids)
        model["head"](hidden.clone()).square().sum().backward()
    torch.testing.assert_close(models[1]["table"].weight.grad, models[0]["table"].weight.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            models[1]["head"](models[1]["table"](ids)), models[0]["head"](models[0]["table"](ids))
        )
    for model in models:
        model.requires_grad_(False)
        x = torch.ones(1, 4, requires_grad=True)
        model["head"](x).sum().backward()
        torch.testing.assert_close(x.grad[0], model["table"].weight.sum(0))
        assert not model["table"](ids).requires_grad
    undo()
    assert (type(models[1]["table"]), type(models[1]["head"])) == (nn.Embedding, nn.Linear)


def test_heads_with_a_bias_and_subclasses_and_two_heads_are_left_alone():
    class Mine(nn.Linear):
        pass

    def tied(*heads):
        table = nn.Embedding(6, 4)
        for head in heads:
            head.weight = table.weight
        model = nn.ModuleDict({"table": table, **{str(i): h for i, h in enumerate(heads)}})
        gather_in_place(model)
        return [type(m) for m in (table, *heads)]

    assert tied(nn.Linear(4, 6)) == [nn.Embedding, nn.Linear]
    assert tied(Mine(4, 6, bias=False)) == [nn.Embedding, Mine]
    assert tied(nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)) == [nn.Embedding, nn.Linear, nn.Linear]


def test_the_gradient_passed_on_through_a_tied_head_is_that_of_the_linear_map_in_its_type():
    model = gpt2().train()
    gather_in_place(model)
    W = model.lm_head.weight
    x = torch.randn(2, 3, 16, requires_grad=True)
    upstream = torch.randn(2, 3, 50)
    model.lm_head(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ W.detach())
    torch.testing.assert_close(W.grad, torch.einsum("bto,bti->oi", upstream, x.detach()), rtol=1e-4, atol=1e-5)
