"""Rich or lazy: kernels against loops of autograd, measures against what they must be, every option and refusal."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import small_models
from rankwise.bench.speed.rich_lazy import Held
from rankwise.dynamics import RateRNN, alignment, laziness, tangent_kernel
from rankwise.dynamics.rich_lazy import kernels
from rankwise.dynamics.rich_lazy.measures import kernel_target


def jacobian(model, x, params, out=None):
    """Row by row, by autograd."""
    flat = (out or (lambda m, v: m(v)))(model, x).reshape(-1)
    rows = [torch.autograd.grad(v, params, retain_graph=True, allow_unused=True) for v in flat]
    return torch.stack([
        torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(row, params, strict=True)])
        for row in rows
    ])  # fmt: skip


def mlp(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


def moved(model, scale=0.3, seed=1):
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += scale * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
    return other


@pytest.fixture
def x():
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Tied(nn.Module):
    """A weight used by its layer and outside of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) @ self.a.weight)


class TimeMajor(nn.Module):
    """A layer that is given (time, batch, width): inputs do not come first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 5).double(), nn.Linear(5, 2).double()

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.reshape(len(x), 2, 2).transpose(0, 1)))).sum(0)


class Twice(nn.Module):
    """One layer called twice, then written into in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.b(self.a(self.a(x).relu_()).mul_(2).tanh())


class Bare(nn.Module):
    """No linear layer at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.w)


MODELS = {
    "mlp": mlp,
    "in place": lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)).double(),
    "norm": lambda: nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)).double(),
    "tied": Tied,
    "time first": TimeMajor,
    "twice": Twice,
    "bare": Bare,
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), RateRNN(2, 5, 3)).double(),
    "turned": lambda: nn.Sequential(Conv1D(7, 4), nn.Tanh(), Conv1D(3, 7)).double(),
    "square and turned": lambda: nn.Sequential(Conv1D(4, 4), nn.Tanh(), Conv1D(4, 4)).double(),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(9, 2)
    ).double(),
}


@pytest.mark.parametrize("memory", [2**28, 4000, 1])
@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_is_that_of_a_loop_of_backward_passes(name, memory, x):
    torch.manual_seed(0)
    model = MODELS[name]()
    J = jacobian(model.eval(), x, list(model.parameters()))
    assert torch.allclose(tangent_kernel(model.train(), x, memory=memory), J @ J.T, atol=1e-10)
    assert all(m.training for m in model.modules())


def test_all_pairs_of_times_count_not_equal_times_alone():
    torch.manual_seed(0)
    net, x = RateRNN(2, 6, 3).double(), torch.randn(4, 5, 2, dtype=torch.float64)
    J = jacobian(net, x, [net.recurrent.weight])
    theta = tangent_kernel(net, x, params="recurrent")
    assert torch.allclose(theta, J @ J.T, atol=1e-12)
    H = torch.cat([torch.zeros(4, 1, 6).double(), net.hidden(x)[:, :-1]], 1)
    h = torch.einsum("nti,mti->nmt", H, H)
    deltas = []
    for n in range(4):
        states, outs, hidden = [], [], torch.zeros(1, 6).double()
        for t in range(5):
            z = net.recurrent(hidden)
            states.append(z)
            hidden = torch.relu(z + net.input(x[n : n + 1, t]))
            outs.append(net.readout(hidden))
        flat = torch.cat(outs).reshape(-1)
        deltas += [
            torch.stack([torch.zeros_like(s) if g is None else g for g, s in zip(
                torch.autograd.grad(v, states, retain_graph=True, allow_unused=True), states, strict=True)])[:, 0]
            for v in flat
        ]  # fmt: skip
    D = torch.stack(deltas)
    equal_times = (torch.einsum("itu,jtu->ijt", D, D) * h.repeat_interleave(15, 0).repeat_interleave(15, 1)).sum(-1)
    assert (equal_times - theta).abs().max() > 0.01 * theta.abs().max()


@pytest.mark.parametrize("memory", [2**28, 2**16, 2**13, 1])
def test_outputs_in_blocks_without_the_times_after_them_give_the_whole_kernel_in_less_memory(memory):
    torch.manual_seed(0)
    net, x = RateRNN(2, 20, 3).double(), torch.randn(5, 9, 2, dtype=torch.float64)
    J = jacobian(net, x, [net.recurrent.weight])
    assert torch.allclose(tangent_kernel(net, x, params="recurrent", memory=memory), J @ J.T, atol=1e-11)


def test_less_memory_is_held_where_less_is_allowed():
    torch.manual_seed(0)
    net, x = RateRNN(2, 100, 3), torch.randn(4, 16, 2)
    held = []
    for memory in (2**28, 2**19, 2**16):
        with Held() as counted:
            tangent_kernel(net, x, params="recurrent", memory=memory)
        held.append(counted.most)
    kernel, deltas = 4 * (4 * 48) ** 2, 4 * 4 * 48 * 16 * 100
    assert held[0] >= kernel + deltas
    assert held[1] <= held[0] - deltas + 2**19
    assert held[2] <= kernel + deltas / 3


@pytest.mark.parametrize("make", [small_models.bert, small_models.llama, small_models.gpt2])
def test_the_kernel_of_a_transformer_is_that_of_a_loop(make):
    model = make().double()
    ids = torch.randint(5, 50, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}

    def last(model, inputs):
        logits = model(**inputs).logits
        return logits if logits.dim() == 2 else logits[:, 0, :4]

    J = jacobian(model, inputs, list(model.parameters()), last)
    found = tangent_kernel(model, inputs, output_fn=last)
    assert torch.allclose(found, J @ J.T, rtol=1e-8, atol=1e-8 * float((J @ J.T).abs().max()))


def test_kernel_alignment_is_that_of_jacrev_and_of_a_sketch_within_its_error(x):
    before, after = mlp(), moved(mlp())
    exact = laziness(before, after, x).kernel_alignment
    sketched, jacs = [], []
    for net in (before, after):
        p = {n: v.detach() for n, v in net.named_parameters()}

        def f(p, net=net):
            return torch.func.functional_call(net, p, (x,))

        jac = torch.func.jacrev(f)(p)
        jacs.append(torch.cat([jac[n].reshape(18, -1) for n in p], 1))
        g = torch.Generator().manual_seed(0)
        draws = [{n: torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in p.items()} for _ in range(4000)]
        stacked = {n: torch.stack([d[n] for d in draws]) for n in p}
        S = torch.func.vmap(lambda t, f=f, p=p: torch.func.jvp(f, (p,), (t,))[1])(stacked).reshape(4000, -1)
        sketched.append(S.T @ S / 4000)
    assert exact == pytest.approx(alignment(*[J @ J.T for J in jacs]), abs=1e-12)
    assert exact == pytest.approx(alignment(*sketched), abs=0.02)


def test_without_training_nothing_moved(x):
    found = laziness(mlp(), mlp(), x, targets=torch.ones(6, 3))
    assert found.weight_change == found.relative_weight_change == 0
    assert found.representation_alignment == found.kernel_alignment == found.sign_similarity == 1
    assert found.kernel_target_alignment == found.kernel_target_alignment_before


def test_weight_change_is_that_of_the_weights_that_are_named(x):
    before, after = mlp(), mlp()
    with torch.no_grad():
        after[0].weight[0, 0] += 3
        after[2].bias[1] += 4
    assert laziness(before, after, x).weight_change == pytest.approx(5)
    first = laziness(before, after, x, params=r"^0\.weight$")
    assert first.weight_change == pytest.approx(3)
    assert first.relative_weight_change == pytest.approx(3 / before[0].weight.norm().item())
    assert laziness(before, after, x, params=["2.bias"]).weight_change == pytest.approx(4)


def test_alignments_do_not_change_with_the_scale_of_outputs(x):
    before, after = mlp(), moved(mlp())
    one = laziness(before, after, x)
    for scale in (1e-12, 7.0, 1e12):
        other = laziness(before, after, x, output_fn=lambda m, v, s=scale: s * m(v))
        assert other.kernel_alignment == pytest.approx(one.kernel_alignment, abs=1e-9)
    assert -1 <= one.kernel_alignment <= 1


def test_representations_may_be_rotated_but_inputs_may_not_change_places():
    torch.manual_seed(0)
    before, x = mlp(), torch.randn(9, 4, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q

    def hidden(m, v):
        return m[1](m[0](v)) @ m.turn

    after = moved(before)
    before.turn = torch.eye(7, dtype=torch.float64)
    after.turn = torch.eye(7, dtype=torch.float64)
    plain = laziness(before, after, x, representation_fn=hidden).representation_alignment
    after.turn = Q
    assert laziness(before, after, x, representation_fn=hidden).representation_alignment == pytest.approx(
        plain, abs=1e-12
    )
    K0, KT = (h @ h.T for h in (before[1](before[0](x)), after[1](after[0](x))))
    order = torch.tensor([3, 0, 1, 2, 8, 7, 6, 5, 4])
    assert alignment(K0, KT) == pytest.approx(plain, abs=1e-12)
    assert alignment(K0[order][:, order], KT) < plain - 1e-3


def test_representation_alignment_by_hand_centred_and_not():
    A, B = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert alignment(A, B) == pytest.approx(8 / np.sqrt(10 * 10))
    # H A H = [[.5, -.5], [-.5, .5]] and H B H = the doubled: aligned wholly
    assert alignment(A, B, center=True) == pytest.approx(1)


def test_the_default_representation_is_what_the_last_linear_layer_takes(x):
    before, after = mlp(), moved(mlp())
    named = laziness(before, after, x, representation_fn=lambda m, v: m[1](m[0](v)))
    assert laziness(before, after, x) == named


def test_equal_signs_count_zeros_as_a_sign_of_their_own():
    x = torch.eye(2)
    nets = [nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)) for _ in range(2)]
    with torch.no_grad():
        nets[0][0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))  # active, active; silent, silent
        nets[1][0].weight.copy_(torch.tensor([[2.0, -3.0], [-1.0, -1.0]]))  # active, silent; silent, silent
    assert laziness(*nets, x).sign_similarity == 0.75


def test_fewer_rows_enter_the_kernel_and_all_of_them_are_the_whole(x):
    before, after = mlp(), moved(mlp())
    whole = laziness(before, after, x)
    assert laziness(before, after, x, rows=6) == whole
    fewer = laziness(before, after, x, rows=2)
    J = [jacobian(m, x[:2], list(m.parameters())) for m in (before, after)]
    assert fewer.kernel_alignment == pytest.approx(alignment(*[j @ j.T for j in J]), abs=1e-12)
    assert fewer.representation_alignment == whole.representation_alignment


def test_a_kernel_that_is_the_target_is_aligned_with_it_wholly_and_classes_are_targets(x):
    y = torch.randn(5)
    assert kernel_target(torch.outer(y, y), y) == pytest.approx(1)
    assert kernel_target(torch.eye(5), y) == pytest.approx(1 / 5)
    before, after = mlp(), moved(mlp())
    classes = torch.tensor([0, 2, 1, 1, 0, 2])
    hot = torch.eye(3)[classes]
    by_class, by_hand = (laziness(before, after, x, targets=t).kernel_target_alignment for t in (classes, hot))
    J = jacobian(after, x, list(after.parameters()))
    K, v = J @ J.T, hot.reshape(-1).double()
    assert by_class == by_hand == pytest.approx(float(v @ K @ v / (v @ v * K.trace())))


def test_a_network_that_is_looked_at_stays_as_it_was(x):
    model = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5), nn.ReLU(), nn.Linear(7, 3)).double().train()
    model[0].weight.requires_grad_(False)
    (model(x).sum()).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state, hooks = torch.get_rng_state(), len(model[0]._forward_hooks) + len(model[0]._forward_pre_hooks)
    first = laziness(model, model, x, params="weight")
    assert first.kernel_alignment == pytest.approx(1)
    assert model.training
    assert [m.training for m in model] == [True] * 4
    assert not model[0].weight.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert hooks == len(model[0]._forward_hooks) + len(model[0]._forward_pre_hooks) == 0
    assert all(g is p.grad or torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    with torch.no_grad():
        assert laziness(model, model, x, params="weight") == first


def test_by_default_the_weights_count_that_are_trained(x):
    before, after = mlp(), moved(mlp())
    after[0].requires_grad_(False)
    assert laziness(before, after, x) == laziness(before, after, x, params=["2.weight", "2.bias"])


def test_low_precision_networks_are_measured_in_float32(x):
    before, after = (m.to(torch.bfloat16) for m in (mlp(), moved(mlp())))
    found = laziness(before, after, x.to(torch.bfloat16))
    assert tangent_kernel(before, x.to(torch.bfloat16)).dtype == torch.float32
    assert found.kernel_alignment == pytest.approx(
        laziness(before.double(), after.double(), x).kernel_alignment, abs=0.02
    )


def test_the_factored_route_serves_linear_layers_alone_and_only_where_it_is_right(x, monkeypatch):
    used = []
    monkeypatch.setattr(kernels, "_by_rows", lambda *a: used.append([p.shape for p in a[4]]))
    for name in ("mlp", "in place", "twice", "recurrent", "turned", "square and turned"):
        tangent_kernel(MODELS[name](), x)
    assert used == []
    for name in ("tied", "time first", "norm"):
        tangent_kernel(MODELS[name](), x)
    assert [len(u) for u in used] == [2, 4, 2]  # a whole layer whose weight is used elsewhere; all; the norm


@pytest.mark.parametrize("scale", [1e-20, 1.0, 3e15])
def test_a_kernel_is_aligned_with_itself_by_one_exactly(scale):
    for seed in range(20):
        H = scale * torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
        assert alignment(H @ H.T, H @ H.T) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activity_that_is_the_same_for_all_inputs_has_no_centred_alignment(dtype):
    before, after = mlp(dtype=dtype), moved(mlp(dtype=dtype))
    x = torch.linspace(-1, 1, 4, dtype=dtype).repeat(50, 1)
    with pytest.raises(ValueError, match="hidden activity is the same for all inputs at the start"):
        laziness(before, after, x, rows=3, center=True)
    assert laziness(before, after, x, rows=3).representation_alignment == pytest.approx(1)
    nearly = x + 1e-2 * torch.randn(50, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert -1 <= laziness(before, after, nearly, rows=3, center=True).representation_alignment < 1


def test_a_recurrent_layer_is_measured_without_cudnn_whose_gradients_are_of_training_alone(x):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.o = nn.GRU(2, 3, batch_first=True).double(), nn.Linear(3, 2).double()

        def forward(self, x):
            seen.append(torch.backends.cudnn.enabled)
            return self.o(self.g(x.reshape(-1, 2, 2))[0][:, -1])

    seen, had = [], torch.backends.cudnn.enabled
    torch.manual_seed(0)
    net = Gated()
    found = tangent_kernel(net, x)
    assert set(seen) == {False}
    assert torch.backends.cudnn.enabled == had
    J = jacobian(net, x, list(net.parameters()))
    assert torch.allclose(found, J @ J.T, atol=1e-10)


def test_networks_of_other_layers_are_refused_before_they_are_run(x):
    def unused(module, args):
        raise AssertionError("was run")

    longer, wider = mlp(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    longer.append(nn.Linear(3, 3).double())
    plain = mlp()
    for net in (longer, wider, plain):
        net.register_forward_pre_hook(unused)
    with pytest.raises(ValueError, match=r"weights of one network alone: 3\.bias, 3\.weight"):
        laziness(longer, plain, x)
    with pytest.raises(ValueError, match=r"0.weight is \(7, 4\) before and \(8, 4\) after"):
        laziness(plain, wider, x, params="weight")


DEAD = "no alignment is defined"
REFUSED = [
    (lambda b, a, x: laziness(b, a, x, params="nothing"), "nothing"),
    (lambda b, a, x: laziness(b, a, x, params="("), "no regular expression"),
    (lambda b, a, x: laziness(b, a, x, params=["0.wieght"]), "did you mean 0.weight"),
    (lambda b, a, x: laziness(b, a, x, params=[]), "names no parameter"),
    (lambda b, a, x: laziness(b, a, x[:0]), "at least 1"),
    (lambda b, a, x: laziness(b, a, {"input": x, "other": x[:1]}), "of one n"),
    (lambda b, a, x: laziness(b, a, x, rows=0), "rows=0"),
    (lambda b, a, x: laziness(b, a, x, rows=7), "rows=7"),
    (lambda b, a, x: laziness(b, a, x, memory=0), "memory=0"),
    (lambda b, a, x: laziness(b, a, x, targets=torch.ones(5)), "targets of shape"),
    (lambda b, a, x: laziness(b, a, x, targets=torch.tensor([0, 1, 2, 3, 0, 1])), "targets of shape"),
    (lambda b, a, x: laziness(b, a, x, output_fn=lambda m, v: m(v).sum()), "real"),
    (lambda b, a, x: laziness(b, a, x, output_fn=lambda m, v: "text"), "output_fn"),
    (lambda b, a, x: laziness(b, a, x * float("nan")), "NaN or Inf"),
    (lambda b, a, x: laziness(b, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double(), x), "before and"),
    (lambda b, a, x: laziness(b, nn.Sequential(nn.Linear(4, 3)).double(), x, params="weight"), "one network alone"),
    (lambda b, a, x: laziness(Bare(), Bare(), x), "representation_fn"),
    (lambda b, a, x: laziness(b, a, x, representation_fn=lambda m, v: torch.ones(5)), "hidden activity"),
    (lambda b, a, x: alignment(torch.eye(2), torch.eye(3)), "one shape"),
    (lambda b, a, x: alignment(torch.zeros(2, 2), torch.eye(2)), DEAD),
    (lambda b, a, x: laziness(b, a, x[:1]), "one row"),
    (lambda b, a, x: alignment(torch.ones(2, 2), torch.eye(2), center=True), DEAD),
]


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[s for _, s in REFUSED])
def test_bad_input_is_refused_by_name(call, said, x):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        call(mlp(), moved(mlp()), x)


def test_a_dead_network_and_weights_that_are_not_finite_are_named(x):
    dead = mlp()
    with torch.no_grad():
        dead[0].weight.zero_()
        dead[0].bias.fill_(-1)
    with pytest.raises(ValueError, match=r"hidden activity is zero .* at the start"):
        laziness(dead, mlp(), x)
    with pytest.raises(ValueError, match=r"tangent kernel is zero .* at the end"):
        laziness(mlp(), dead, x, params="0.weight", representation_fn=lambda m, v: v)
    with torch.no_grad():
        dead[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.bias has NaN"):
        laziness(dead, mlp(), x)


def test_too_many_rows_are_refused_before_they_are_made(x, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_ROWS", 17)
    with pytest.raises(ValueError, match="6 inputs of 3 outputs are 18 rows"):
        tangent_kernel(mlp(), x)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_a_recurrent_layer_that_takes_times_first_is_refused_and_one_that_takes_inputs_first_is_measured(kind):
    class Net(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.layer, self.head = kind(4, 6, batch_first=batch_first), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.layer(x)[0])

    torch.manual_seed(0)
    x = torch.randn(5, 3, 4)
    for params in (None, "weight_hh"):
        with pytest.raises(ValueError, match="batch_first=True"):
            laziness(Net(False), Net(False), x, params=params)
    before, after = Net(True), Net(True)
    kernels = []
    for net in (before, after):
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(y, list(net.parameters()), retain_graph=True)])
                for i in range(len(x)) for y in net(x[i : i + 1]).flatten()]  # fmt: skip
        kernels.append(torch.stack(rows) @ torch.stack(rows).mT)
    wanted = (kernels[0] * kernels[1]).sum() / kernels[0].norm() / kernels[1].norm()
    assert laziness(before, after, x).kernel_alignment == pytest.approx(float(wanted), abs=1e-5)


def test_targets_are_of_the_outputs_shape_or_classes_of_it_less_its_last_dimension():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(6, 5, 4)
    classes = torch.randint(3, (6, 5))
    by_class = laziness(net, net, x, targets=classes).kernel_target_alignment
    assert by_class == pytest.approx(
        laziness(net, net, x, targets=nn.functional.one_hot(classes, 3)).kernel_target_alignment
    )
    turned = {"output_fn": lambda model, x: model(x).transpose(1, 2)}  # classes second, as cross_entropy has them
    for wrong, options in ((classes[:, 0], {}), (classes.T, {}), (torch.randn(5, 6, 3), {}), (classes, turned)):
        with pytest.raises(ValueError, match="targets of shape"):
            laziness(net, net, x, targets=wrong, **options)
    with pytest.raises(ValueError, match="name classes 0 to 7"):
        laziness(net, net, x, targets=torch.arange(30).view(6, 5) % 8)


def test_inputs_that_inference_mode_made_are_measured():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.inference_mode():
        x = torch.randn(5, 4)
        found = laziness(net, net, x)
    assert found.kernel_alignment == pytest.approx(1.0)
    assert laziness(net, net, x) == found
