from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rankwise.dynamics import MoLRGDenoiser, intrinsic_dimension, leading_directions, low_rank_mixture
from rankwise.dynamics.low_rank import jacobians

G = torch.Generator().manual_seed(0)


def linear(values, n=None):
    n = n or len(values)
    U, V = (torch.linalg.qr(torch.randn(n, len(values), generator=G, dtype=torch.float64)).Q for _ in range(2))
    J = U @ torch.diag(torch.tensor(values).double()) @ V.mT
    return lambda x, sigma: x @ J.mT


def whole(denoiser, point, *told, **condition):
    """The oracle: values and right singular vectors of the whole Jacobian at one point, by reverse differentiation."""

    def one(p):
        return denoiser(p[None], *told, **condition)[0]

    J = torch.autograd.functional.jacobian(one, point).detach()
    _, S, V = torch.linalg.svd(J.reshape(point.numel(), -1))
    return S, V


def rank_of(S, energy=0.99):
    held = S.double().square().cumsum(0)
    return int((held <= energy**2 * held[-1]).sum()) + 1 if held[-1] > 0 else 0


def both(denoiser, x, sigma, **condition):
    """Ranks, values and directions."""
    ranks = intrinsic_dimension(denoiser, x, sigma, **condition).tolist()
    return ranks, *leading_directions(denoiser, x, sigma, k=2, passes=30, **condition)


def test_the_rule_is_of_roots_of_energies_as_by_hand():
    x = torch.randn(1, 3, dtype=torch.float64)
    assert intrinsic_dimension(linear([1, 0.1, 0.01]), x, 1.0).tolist() == [1]  # √1 / √1.0101 = .995
    assert intrinsic_dimension(linear([1, 0.1, 0.01]), x, 1.0, energy=0.996).tolist() == [2]
    assert intrinsic_dimension(linear([1.0, 1.0, 1.0]), x, 1.0).tolist() == [3]
    assert intrinsic_dimension(lambda x, sigma: 0 * x, x, 1.0).tolist() == [0]


@pytest.mark.parametrize("active", [5, 23, 70])
def test_products_give_the_rank_that_the_whole_jacobian_gives(active, monkeypatch):
    n, x = 300, torch.randn(2, 300, dtype=torch.float64)
    values = [1.0 / (1 + 0.02 * i) for i in range(active)] + [0.003] * (n - active)
    f = linear(values)
    some = intrinsic_dimension(f, x, 1.0)
    monkeypatch.setattr(jacobians, "EXACT", 1000)
    assert some.tolist() == intrinsic_dimension(f, x, 1.0).tolist()


def test_few_directions_of_many_cost_few_products():
    seen = []

    def counted(x, sigma):
        seen.append(len(x))
        return linear_map(x, sigma)

    linear_map = linear([1.0] * 4, 1000)
    assert intrinsic_dimension(counted, torch.randn(1, 1000, dtype=torch.float64), 1.0).tolist() == [4]
    assert sum(seen) <= 2 * 16 + 8


def test_the_optimal_denoiser_keeps_the_subspaces_that_are_active():
    data = low_rank_mixture(48, 4, n_clusters=3, samples=5)
    model = MoLRGDenoiser.from_bases(data.bases)
    at = data.X[::5] + 0.05 * torch.randn(3, 48, generator=G, dtype=torch.float64)
    assert intrinsic_dimension(model, at, 0.05).tolist() == [4, 4, 4]
    assert (intrinsic_dimension(model, 100 * at, 30.0) <= 12 + 3).all()  # and those of the weights' own slopes


def test_control_isotropic_rows_keep_every_direction():
    U = torch.eye(30).double()
    assert intrinsic_dimension(MoLRGDenoiser.from_bases([U]), torch.randn(1, 30).double(), 0.5).tolist() == [30]


def test_a_module_of_pictures_with_labels_and_a_noise_each():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.embed = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(2, 1)

        def forward(self, x, sigma, label):
            return self.conv(x).tanh() * self.embed(label)[:, :, None, None] / (1 + sigma.view(-1, 1, 1, 1))

    torch.manual_seed(0)
    net = Net().double().eval()
    net.embed.weight.data = torch.tensor([[1.0], [0.0]]).double()
    x, sigma = torch.randn(2, 1, 6, 6).double(), torch.tensor([0.1, 0.5]).double()
    ranks = intrinsic_dimension(net, x, sigma, label=torch.tensor([0, 1]))
    assert ranks[0] > 20
    assert ranks[1] == 0  # that label's output is constant


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"energy": 1.0}, "energy"),
        ({"start": 0}, "start"),
        ({"x": torch.zeros(3)}, "batch"),
        ({"denoiser": lambda x, sigma: x[:, :2]}, "equal shapes"),
        ({"denoiser": lambda x, sigma: x * torch.nan}, "NaN"),
    ],
)
def test_what_is_not_accepted_is_refused_by_name(options, said):
    told = {"denoiser": lambda x, sigma: x, "x": torch.zeros(1, 3), "sigma": 1.0} | options
    with pytest.raises(ValueError, match=said):
        intrinsic_dimension(**told)


def test_points_and_levels_that_do_not_fit_are_refused():
    for x, sigma, said in (
        (torch.ones(3, 5).long(), 0.3, "torch.int64"),
        (torch.ones(3, 5).numpy(), 0.3, "float32"),
        (torch.ones(3, 5), torch.ones(2), "2 entries for 3 points"),
    ):
        with pytest.raises(ValueError, match=said):
            intrinsic_dimension(lambda x, sigma: x, x, sigma)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("n", "fall"),
    [
        (300, lambda i: 1 / i),
        (300, lambda i: 0.9**i),
        (300, lambda i: 0.95**i),
        (300, lambda i: i**-1.5),
        (600, lambda i: 1 / i),
        (600, lambda i: (1 + i / 10) ** -2),
        (120, lambda i: 0.8**i),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ranks_of_spectra_that_fall_smoothly_are_exact(n, fall, seed, dtype):
    g = torch.Generator().manual_seed(7)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q for _ in range(2))
    S = torch.tensor([fall(i) for i in range(1, n + 1)]).double()
    J = ((U * S) @ V.mT).to(dtype)
    f, x = lambda x, sigma: x @ J.mT, torch.zeros(1, n, dtype=dtype)
    exact = rank_of(whole(f, x[0], 1.0)[0])
    assert intrinsic_dimension(f, x, 1.0, seed=seed).tolist() == [exact]


@pytest.mark.parametrize("measure", [intrinsic_dimension, leading_directions])
@pytest.mark.parametrize(
    ("options", "said"),
    [({name: value}, f"{name}=") for name in ("seed", "batch_size") for value in (None, 1.5, True, "a")]
    + [({"batch_size": 0}, "batch_size=0")],
)
def test_options_of_both_that_are_no_whole_numbers_are_refused(measure, options, said):
    with pytest.raises(ValueError, match=said):
        measure(lambda x, sigma: x, torch.zeros(1, 3), 1.0, **options)


@pytest.mark.parametrize(
    ("options", "said"), [({"start": v}, "start=") for v in (4.5, True, None)] + [({"energy": "a"}, "energy='a'")]
)
def test_options_of_ranks_that_are_no_numbers_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        intrinsic_dimension(lambda x, sigma: x, torch.zeros(1, 3), 1.0, **options)


def test_numpys_numbers_are_taken_as_pythons():
    f, x = linear([1.0, 0.5, 0.2], 120), torch.zeros(1, 120).double()
    one = np.int64(1)
    given = intrinsic_dimension(
        f, x, np.float64(1), start=16 * one, batch_size=64 * one, seed=one, energy=np.float64(0.9)
    )
    assert given.tolist() == intrinsic_dimension(f, x, 1.0, seed=1, energy=0.9).tolist()
    _, directions = leading_directions(f, x, 1.0, k=2 * one, passes=3 * one, seed=one)
    assert torch.equal(directions, leading_directions(f, x, 1.0, k=2, passes=3, seed=1)[1])


# -------------------------------------------------------------------------------------------------- kinds of denoisers


class Attentive(nn.Module):
    """Two tokens of four numbers each: as any transformer, by torch's own layers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, sigma):
        tokens = x.unflatten(1, (2, 4))
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(tokens, tokens, tokens, need_weights=False)[0].flatten(1)
        return self.layer(tokens).flatten(1)


def attention(tokens):
    heads = tokens[:, None]  # fused for four dimensions alone
    return F.scaled_dot_product_attention(heads, 2 * heads, heads)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["function", "attention", "encoder"])
def test_fused_attention_is_differentiated_and_left_as_it_was(kind, frozen):
    torch.manual_seed(0)
    layer = {
        "function": attention,
        "attention": nn.MultiheadAttention(4, 2, batch_first=True),
        "encoder": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    }[kind]
    net = Attentive(layer).double().eval().requires_grad_(not frozen)
    x = torch.randn(2, 8, generator=G, dtype=torch.float64)
    switches = torch.backends.mha.get_fastpath_enabled, torch.backends.cuda.flash_sdp_enabled
    before = [switch() for switch in switches]
    ranks, values, directions = both(net, x, 1.0)
    assert [switch() for switch in switches] == before
    for b in range(2):
        S, V = whole(net, x[b], 1.0)
        assert ranks[b] == rank_of(S)
        assert torch.allclose(values[b], S[:2], rtol=1e-6)
        kept = (directions[b] @ V.mT * S).norm(dim=1)  # ‖J v‖, also where values coincide
        assert torch.allclose(kept, S[:2], rtol=1e-6)


def test_a_module_is_evaluated_in_eval_mode_and_its_modes_are_put_back():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).double()
    net[1].running_mean.fill_(0.3)
    net[1].eval()
    denoiser = Told(net)
    x = torch.randn(2, 8, generator=G, dtype=torch.float64)
    kept = net[1].running_mean.clone()
    ranks, values, _ = both(denoiser, x, 1.0)
    assert [m.training for m in (denoiser, net, *net)] == [True, True, True, False, True]
    assert torch.equal(net[1].running_mean, kept)
    S, _ = whole(denoiser.eval(), x[0], 1.0)
    assert ranks == [rank_of(S)] * 2
    assert torch.allclose(values, S[:2].expand(2, 2), rtol=1e-6)


class Told(nn.Module):
    """Of a network that is not told the noise."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, sigma):
        return self.net(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [12, 120])
def test_points_of_half_precision_are_taken_and_values_are_float32(dtype, n):
    values = [4.0, 2.0, 1.0, *[0.001] * (n - 3)]
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=G, dtype=torch.float64)).Q for _ in range(2))
    J = ((U * torch.tensor(values).double()) @ V.mT).to(dtype)
    x = torch.randn(2, n, generator=G).to(dtype)
    ranks, found, directions = both(lambda x, sigma: x @ J.mT, x, 1.0)
    S, R = whole(lambda x: x @ J.double().mT, x[0].double())
    assert ranks == [rank_of(S)] * 2
    assert (found.dtype, directions.dtype) == (torch.float32, dtype)
    assert torch.allclose(found.double(), S[:2].expand(2, 2), rtol=0.01)
    assert torch.allclose((directions.double() * R[:2]).sum(2).abs(), torch.ones(2, 2).double(), atol=0.01)


def test_halves_that_a_denoiser_computes_in_float32_are_taken_too():
    J = torch.diag(torch.tensor([2.0, 1.0, 0.01]))
    ranks, found, _ = both(lambda x, sigma: x.float() @ J, torch.zeros(1, 3).bfloat16(), 1.0)
    assert ranks == [2]
    assert torch.allclose(found, torch.tensor([[2.0, 1.0]]), rtol=0.01)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("n", [12, 120])
def test_the_callers_mode_does_not_matter(mode, n):
    f = linear([3.0, 2.0, 1.0], n)

    def denoiser(x, sigma, scale, told):
        return f(x, sigma) * scale[:, None] * (x * told["y"]).cos() * told["all"]

    def data():
        g = torch.Generator().manual_seed(3)
        x, y = torch.randn(2, 2, n, generator=g, dtype=torch.float64)
        return {
            "x": x,
            "sigma": torch.ones(2).double(),
            "scale": torch.ones(2).double(),
            "told": {"y": y, "all": y[0] + 3},
        }

    expected = both(denoiser, **data())
    with mode():
        found = both(denoiser, **data())
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    with torch.inference_mode():
        given = data()
    assert both(denoiser, **given)[0] == expected[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("measure", "n"), [(intrinsic_dimension, 120), (leading_directions, 120), (leading_directions, 3)]
)
def test_a_denoiser_that_lets_no_gradient_through_is_refused(measure, n, mode):
    with pytest.raises(ValueError, match="no_grad"):
        measure(mode()(lambda x, sigma: 2 * x), torch.ones(1, n), 1.0)


def test_few_inputs_in_inference_mode_are_refused_rather_than_called_constant():
    with pytest.raises(ValueError, match="inference_mode"):
        intrinsic_dimension(torch.inference_mode()(lambda x, sigma: 2 * x), torch.ones(1, 3), 1.0)
    assert intrinsic_dimension(torch.no_grad()(lambda x, sigma: 2 * x), torch.ones(1, 3), 1.0).tolist() == [3]


@pytest.mark.parametrize("n", [3, 120])
def test_a_denoiser_that_is_constant_keeps_nothing(n):
    ranks, values, _ = both(lambda x, sigma: torch.ones_like(x), torch.zeros(2, n), 1.0)
    assert ranks == [0, 0]
    assert values.tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("measure", [intrinsic_dimension, leading_directions])
@pytest.mark.parametrize("wrapped", [lambda x: (x,), lambda x: SimpleNamespace(sample=x)])
def test_outputs_that_are_no_tensor_are_refused_by_their_type(measure, wrapped):
    with pytest.raises(ValueError, match=r"(tuple|SimpleNamespace): a tensor is needed; wrap it"):
        measure(lambda x, sigma: wrapped(x), torch.ones(1, 3), 1.0)


@pytest.mark.parametrize("n", [90, 200])
def test_no_more_copies_than_a_batch_are_given_at_once_and_results_agree(n):
    seen, f = [], linear([1 / i for i in range(1, n + 1)])

    def denoiser(x, sigma, label):
        seen.append(len(x))
        assert len(label) == len(x)
        return f(x, sigma) * label[:, None]

    x, label = torch.zeros(2, n).double(), torch.tensor([1.0, 2.0]).double()
    expected = both(denoiser, x, 1.0, label=label, batch_size=1000)
    assert max(seen) > 7
    seen.clear()
    found = both(denoiser, x, 1.0, label=label, batch_size=7)
    assert max(seen) == 7
    assert found[0] == expected[0]
    assert torch.allclose(found[1], expected[1])
    assert torch.allclose(found[2], expected[2], atol=1e-6)


def test_copies_are_256_at_most_unless_told():
    seen = []

    def denoiser(x, sigma):
        seen.append(len(x))
        return x

    assert intrinsic_dimension(denoiser, torch.zeros(1, 600), 1.0).tolist() == [589]
    assert max(seen) == 256


# ---------------------------------------------------------------------------------------------------- noise, conditions


def scaled(x, sigma, told):
    """A few slopes that differ from row to row by what is told."""
    width = len(x[0])
    weights = torch.arange(1, width + 1, device=x.device).to(x)
    return x * torch.exp(-weights * told.reshape(len(told), -1)[:, :1])


Pair = namedtuple("Pair", ["name", "sizes"])


@pytest.mark.parametrize("kind", ["array", "mapping", "nested", "tuple", "list", "named"])
@pytest.mark.parametrize("B", [2, 10])  # 10 = k + 8: as many rows as directions, where they were confused
def test_conditions_are_taken_by_row_however_they_come(kind, B):
    slopes = torch.linspace(0.1, 2.0, B).double()
    made, read = {
        "array": (slopes.numpy(), lambda c: c),
        "mapping": ({"sizes": slopes, "name": "b"}, lambda c: c["sizes"]),
        "nested": ({"all": [{"sizes": slopes.numpy()}]}, lambda c: c["all"][0]["sizes"]),
        "tuple": ((slopes, None), lambda c: c[0]),
        "list": ([None, slopes[:, None]], lambda c: c[1]),
        "named": (Pair("b", slopes), lambda c: c.sizes),
    }[kind]
    x = torch.randn(B, 20, generator=G, dtype=torch.float64)
    ranks, values, directions = both(lambda x, sigma, told: scaled(x, sigma, read(told)), x, 1.0, told=made)
    for b in range(B):
        S, _ = whole(scaled, x[b], 1.0, slopes[b : b + 1])
        assert ranks[b] == rank_of(S)
        assert torch.allclose(values[b], S[:2])
    assert directions.shape == (B, 2, 20)


@pytest.mark.parametrize(
    "made", [torch.Tensor.numpy, torch.Tensor.tolist, list, lambda s: s, lambda s: s[:, None, None], lambda s: s.half()]
)
def test_a_noise_a_point_is_taken_by_row_however_it_comes(made):
    sigma = torch.linspace(0.125, 1.25, 10).double()
    x = torch.randn(10, 2, 8, generator=G, dtype=torch.float64)
    given, dims = made(sigma), set()

    def denoiser(x, sigma):
        dims.add(sigma.dim())
        assert len(sigma) == len(x)
        return scaled(x.flatten(1), None, sigma.double()).view_as(x)

    ranks, values, _ = both(denoiser, x, given)
    assert dims == {given.dim() if isinstance(given, torch.Tensor) else 1}
    for b in range(10):
        S, _ = whole(denoiser, x[b], sigma[b : b + 1])
        assert ranks[b] == rank_of(S)
        assert torch.allclose(values[b], S[:2], rtol=1e-2 if getattr(given, "dtype", None) == torch.half else 1e-8)


def test_floats_of_arrays_and_lists_get_the_dtype_of_the_points_and_whole_numbers_stay_whole():
    seen = []

    def denoiser(x, sigma, label):
        seen.append((sigma.dtype, label.dtype))
        return x

    intrinsic_dimension(denoiser, torch.zeros(2, 3), [0.1, 0.2], label=np.array([3, 4]))
    intrinsic_dimension(denoiser, torch.zeros(2, 3), [500, 20], label=np.array([0.5, 0.1]))
    assert set(seen) == {(torch.float32, torch.int64), (torch.int64, torch.float32)}


@pytest.mark.parametrize("sigma", [torch.tensor(0.5), np.array(0.5), np.float32(0.5), 0.5])
def test_one_noise_for_all_is_passed_on_as_one(sigma):
    seen = []

    def denoiser(x, sigma):
        seen.append(torch.as_tensor(sigma).dim())
        return x * sigma

    ranks, values, _ = both(denoiser, torch.zeros(2, 3), sigma)
    assert set(seen) == {0}
    assert ranks == [3, 3]
    assert torch.allclose(values, torch.tensor(0.5))


@pytest.mark.parametrize("measure", [intrinsic_dimension, leading_directions])
@pytest.mark.parametrize("sigma", [[0.1, 0.2], np.ones(2), torch.ones(2, 1, 1), torch.ones(1)])
def test_noise_for_another_number_of_points_is_refused(measure, sigma):
    with pytest.raises(ValueError, match=f"sigma has {len(sigma)} entries for 3 points"):
        measure(lambda x, sigma: x, torch.ones(3, 5), sigma)


def test_arrays_of_words_are_refused():
    with pytest.raises(ValueError, match="numbers are needed"):
        intrinsic_dimension(lambda x, sigma, text: x, torch.ones(2, 3), 1.0, text=np.array(["a", "b"]))


def test_points_are_not_written_to_by_a_denoiser_that_works_in_place():
    x = torch.ones(1, 1).double()
    assert intrinsic_dimension(lambda x, sigma: x.mul_(2), x, 1.0).tolist() == [1]
    assert x.tolist() == [[1.0]]


# ---------------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("n", [12, 150])
def test_leading_directions_are_the_right_singular_vectors_of_the_whole_jacobian(n):
    values = [3.0, 2.0, 1.2, *[0.3] * (n - 3)]
    f, x = linear(values), torch.randn(2, n, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda one: f(one[None], 1.0)[0], x[0])
    _, S, V = torch.linalg.svd(J)
    found, directions = leading_directions(f, x, 1.0, k=3, passes=8)
    assert directions.shape == (2, 3, n)
    assert torch.allclose(found, S[:3].expand(2, 3), rtol=1e-6)
    assert torch.allclose((directions[0] * V[:3]).sum(1).abs(), torch.ones(3).double(), atol=1e-6)
    assert torch.allclose(directions @ directions.mT, torch.eye(3).double().expand(2, 3, 3), atol=1e-9)
    assert (directions.gather(2, directions.abs().argmax(2, keepdim=True)) > 0).all()


def test_an_edit_along_a_leading_direction_stays_in_the_subspace_and_one_across_is_undone():
    data = low_rank_mixture(40, 3, n_clusters=2, samples=4)
    model, (U, _) = MoLRGDenoiser.from_bases(data.bases), data.bases
    x = 5 * data.X[:1]  # of the first subspace, so far out that no other has a weight
    values, directions = leading_directions(model, x, 0.1, k=3)
    assert torch.allclose(directions[0] @ U @ U.mT, directions[0], atol=1e-6)
    assert torch.allclose(values, torch.full((1, 3), 1 / 1.01).double(), atol=1e-6)
    moved = model(x + directions[:, 0], 0.1) - model(x, 0.1)
    assert torch.allclose(moved, values[:, :1] * directions[:, 0], atol=1e-6)
    across = torch.randn(1, 40, generator=G, dtype=torch.float64)
    across = across - across @ U @ U.mT
    assert torch.allclose(model(x + 0.1 * across, 0.1), model(x, 0.1), atol=1e-6)


def test_directions_have_the_shape_of_pictures_and_seeds_repeat():
    pictures = torch.randn(2, 3, 4, 4)
    scaling = torch.rand(3, 4, 4)
    a, b = (leading_directions(lambda x, sigma: scaling * x, pictures, 0.5, k=2)[1] for _ in range(2))
    assert a.shape == (2, 2, 3, 4, 4)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"k": 0}, "k=0"), ({"k": 4}, "k=4"), ({"k": 1.5}, "k=1.5"), ({"k": True}, "k=True"), ({"passes": 0}, "passes=0")],
)
def test_numbers_of_directions_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        leading_directions(lambda x, sigma: x, torch.zeros(1, 3), 1.0, **changed)
