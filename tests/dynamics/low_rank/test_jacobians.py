import pytest
import torch
from torch import nn

from rankwise.dynamics import MoLRGDenoiser, intrinsic_dimension, leading_directions, low_rank_mixture
from rankwise.dynamics.low_rank import jacobians

G = torch.Generator().manual_seed(0)


def linear(values, n=None):
    n = n or len(values)
    U, V = (torch.linalg.qr(torch.randn(n, len(values), generator=G, dtype=torch.float64)).Q for _ in range(2))
    J = U @ torch.diag(torch.tensor(values).double()) @ V.mT
    return lambda x, sigma: x @ J.mT


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
    ("changed", "said"), [({"k": 0}, "k=0"), ({"k": 4}, "k=4"), ({"k": 1.5}, "k=1.5"), ({"passes": 0}, "passes=0")]
)
def test_numbers_of_directions_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        leading_directions(lambda x, sigma: x, torch.zeros(1, 3), 1.0, **changed)
