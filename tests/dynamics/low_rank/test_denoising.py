import math

import numpy as np
import pytest
import torch

from rankwise.dynamics import MoLRGDenoiser, SubspaceClustering, low_rank_mixture, subspace_error
from rankwise.dynamics.low_rank.alternation import residuals
from rankwise.dynamics.low_rank.denoising import log_weights, orthonormal, trained
from rankwise.spectral import principal_angles

DATA = low_rank_mixture(12, 3, n_clusters=2, samples=40)
PRIOR = [0.3, 0.7]
VARIANCES = [torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.7]).double()]
UNEQUAL = [DATA.bases[0], DATA.bases[1][:, :1]]
G = torch.Generator().manual_seed(0)
NOISY = DATA.X[::9] + 0.5 * torch.randn(9, 12, generator=G, dtype=torch.float64)


def full(k, s, g):
    U = UNEQUAL[k]
    return s**2 * U @ torch.diag(VARIANCES[k]) @ U.mT + g**2 * torch.eye(12).double()


def unequal():
    return MoLRGDenoiser.from_bases(UNEQUAL, variances=VARIANCES, prior=PRIOR)


def log_density(x, s, g):
    parts = [
        torch.distributions.MultivariateNormal(torch.zeros(12).double(), full(k, s, g)).log_prob(x) + math.log(PRIOR[k])
        for k in range(2)
    ]
    return torch.stack(parts, -1)


@pytest.mark.parametrize(("s", "g"), [(1.0, 0.5), (0.6, 0.8), (1.0, 0.05), (1.0, 4.0)])
def test_the_denoiser_is_the_posterior_mean_of_full_covariances(s, g):
    model, joint = unequal(), log_density(NOISY, s, g)
    w = joint.softmax(-1)
    torch.testing.assert_close(model.responsibilities(NOISY, g, scale=s), w, atol=1e-8, rtol=0)
    want = sum(
        w[:, k : k + 1]
        * (s * NOISY @ torch.linalg.solve(full(k, s, g), (full(k, s, g) - g**2 * torch.eye(12).double()) / s**2))
        for k in range(2)
    )
    torch.testing.assert_close(model(NOISY, g, scale=s), want, atol=1e-8, rtol=0)


def test_it_is_tweedies_formula():
    x = NOISY.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x, 1.0, 0.5).logsumexp(-1).sum(), x)
    torch.testing.assert_close(unequal()(NOISY, 0.5), NOISY + 0.25 * score, atol=1e-8, rtol=0)


def test_it_is_the_mean_of_what_may_have_been():
    g, n = 0.6, 400_000
    k = torch.multinomial(torch.tensor(PRIOR), n, replacement=True, generator=G)
    clean = torch.zeros(n, 12).double()
    for j in range(2):
        a = torch.randn(n, len(VARIANCES[j]), generator=G, dtype=torch.float64) * VARIANCES[j].sqrt()
        clean[k == j] = (a @ UNEQUAL[j].mT)[k == j]
    x = clean[:1] + 0.1
    w = (-(x - clean).square().sum(1) / (2 * g**2)).softmax(0)
    assert 1 / float(w.square().sum()) > 2000  # draws that count
    torch.testing.assert_close(unequal()(x, g)[0], w @ clean, atol=0.05, rtol=0)


def test_equal_dimensions_and_unit_variance_are_the_papers_formula():
    s, g = 0.8, 0.6
    model = MoLRGDenoiser.from_bases(DATA.bases)
    phi = s**2 / (2 * g**2 * (s**2 + g**2))
    w = torch.stack([phi * (NOISY @ U).square().sum(1) for U in DATA.bases], 1).softmax(1)
    want = s / (s**2 + g**2) * sum(w[:, k : k + 1] * NOISY @ U @ U.mT for k, U in enumerate(DATA.bases))
    torch.testing.assert_close(model(NOISY, g, scale=s), want)


def test_weights_sum_to_one_pick_one_without_noise_and_are_the_prior_in_much():
    model, rows = unequal(), DATA.X[:5]
    for g in (1e-8, 0.3, 1e6):
        w = model.responsibilities(rows, g)
        torch.testing.assert_close(w.sum(1), torch.ones(5).double())
    assert (model.responsibilities(rows, 1e-8)[:, 0] > 1 - 1e-9).all()
    torch.testing.assert_close(
        model.responsibilities(rows, 1e6), torch.tensor(PRIOR).double().expand(5, 2), atol=1e-6, rtol=0
    )


def test_without_the_determinant_rows_would_go_to_the_larger_subspace():
    small = torch.randn(200, 1, generator=G, dtype=torch.float64) @ UNEQUAL[1].mT
    noisy = small + 0.4 * torch.randn(200, 12, generator=G, dtype=torch.float64)
    model = MoLRGDenoiser.from_bases([DATA.bases[0], UNEQUAL[1]])
    phi = 1 / (2 * 0.16 * 1.16)
    without = torch.stack([phi * (noisy @ U).square().sum(1) for U in (DATA.bases[0], UNEQUAL[1])], 1).argmax(1)
    right = model.responsibilities(noisy, 0.4).argmax(1)
    assert float((right == 1).double().mean()) > float((without == 1).double().mean()) + 0.1


def test_expected_weights_replace_squares_by_their_mean_over_the_noise():
    s, g, clean = 0.9, 0.5, DATA.X[3:4]
    U = torch.stack(DATA.bases)
    ones, prior = torch.ones(2, 3).double(), torch.tensor([0.5, 0.5]).double().log()
    x = s * clean + g * torch.randn(200_000, 12, generator=G, dtype=torch.float64)
    phi = s**2 / (2 * g**2 * (s**2 + g**2))
    squares = torch.stack([(x @ B).square().sum(1).mean() for B in DATA.bases])
    got = log_weights(clean, U, ones, prior, g, s, "expected", clean).exp()[0]
    torch.testing.assert_close(got, (phi * squares).softmax(0), atol=1e-2, rtol=0)


def test_expected_weights_count_the_noise_in_every_direction_of_a_subspace():
    s, g, clean = 0.9, 0.5, DATA.X[3:4]
    U = torch.stack([DATA.bases[0], torch.nn.functional.pad(DATA.bases[1][:, :1], (0, 2))])  # 3 directions and 1
    variances = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    phi, d = s**2 / (2 * g**2 * (s**2 + g**2)), torch.tensor([3.0, 1.0], dtype=torch.float64)
    squares = s**2 * torch.stack([(clean @ B).square().sum() for B in U]) + g**2 * d
    want = (phi * squares - 0.5 * d * math.log(1 + s**2 / g**2)).softmax(0)
    got = log_weights(clean, U, variances, torch.zeros(2).double(), g, s, "expected", clean).exp()[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("schedule", ["ve", "vp"])
@pytest.mark.parametrize("loss_weight", ["uniform", "edm"])
def test_training_weighs_the_loss_at_the_level_that_was_drawn(schedule, loss_weight):
    sigma = 0.7
    s = 1 / math.sqrt(1 + sigma**2) if schedule == "vp" else 1.0
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2 if loss_weight == "edm" else 1.0  # Karras et al. (2022)
    model = MoLRGDenoiser(12, 2, 3, weights="hard", seed=1).double()
    told = {"schedule": schedule, "loss_weight": loss_weight, "log_sigma": (math.log(sigma), 0.0)}
    rows = DATA.X[:1].expand(5, -1)  # one row, so that it does not matter which are drawn
    _, loss = trained(
        model.raw.detach()[None], rows[None], model.variances, model.log_prior, model.dims, weights="hard", steps=1,
        batch_size=4, learning_rate=1e-9, **told,
    )  # fmt: skip
    assert float(loss[0]) == pytest.approx(weight * float(model.loss(rows[:1], s * sigma, scale=s).detach()), rel=1e-6)


def test_the_hard_loss_is_a_constant_less_a_multiple_of_what_k_subspaces_maximises():
    s, g = 0.8, 0.6
    gain, losses, held = s / (s**2 + g**2), [], []
    for seed in range(4):
        model = MoLRGDenoiser(12, 2, 3, weights="hard", seed=seed).double()
        left = residuals(DATA.X, torch.stack([U.detach() for U in model.bases])[None])
        held.append(float(DATA.X.square().sum() - left[0].amin(1).sum()))
        losses.append(float(model.loss(DATA.X, g, scale=s).detach().sum()))
    constant = float(DATA.X.square().sum()) + len(DATA.X) * g**2 * gain**2 * 3
    np.testing.assert_allclose(losses, constant - (2 * s * gain - s**2 * gain**2) * np.array(held), rtol=1e-10)


@pytest.mark.parametrize("weights", ["hard", "expected"])
def test_the_mean_loss_is_that_of_many_draws(weights):
    model, s, g = MoLRGDenoiser(12, 2, [3, 1], weights=weights, seed=1).double(), 0.9, 0.5
    clean = DATA.X[:1].expand(100_000, -1)
    U = orthonormal(model.raw.detach(), model.dims)
    w = log_weights(clean[:1], U, model.variances, model.log_prior, g, s, weights, clean[:1]).exp()[0]
    x = s * clean + g * torch.randn(clean.shape, generator=G, dtype=torch.float64)
    out = sum(w[k] * s / (s**2 + g**2) * x @ B.detach() @ B.detach().mT for k, B in enumerate(model.bases))
    many = (out - clean).square().sum(1)
    assert float(model.loss(clean[:1], g, scale=s).detach()) == pytest.approx(float(many.mean()), rel=0.02)


def test_the_soft_loss_is_less_at_the_truth_than_elsewhere():
    true, others = MoLRGDenoiser.from_bases(DATA.bases), [MoLRGDenoiser(12, 2, 3, seed=s).double() for s in range(5)]

    def mean(model):
        return float(model.loss(DATA.X, 0.3, generator=torch.Generator().manual_seed(1)).detach().mean())

    assert mean(true) < 0.5 * min(map(mean, others))


@pytest.mark.parametrize("schedule", ["ve", "vp"])
@pytest.mark.parametrize("loss_weight", ["uniform", "edm"])
def test_one_subspace_ends_at_principal_components_whatever_the_schedule(schedule, loss_weight):
    X = torch.randn(30, 8, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [3.0, 2.5, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )
    model = MoLRGDenoiser(8, 1, 2).double()
    # the same rows at every step: noise levels differ, and change the loss by a factor alone
    levels = torch.exp(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    rows = X.double()
    for step in range(1000):
        sigma = float(levels[step])
        s = 1 / math.sqrt(1 + sigma**2) if schedule == "vp" else 1.0
        weight = (sigma**2 + 0.25) / (0.25 * sigma**2) if loss_weight == "edm" else 1.0
        loss = min(weight, 4.0) * model.loss(rows, s * sigma, scale=s).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    want = torch.linalg.svd(rows).Vh[:2].mT
    assert float(principal_angles(model.bases[0].detach(), want).max()) < 1e-3


def test_training_finds_the_subspaces():
    model = MoLRGDenoiser(12, 2, 3).fit(DATA.X, steps=400, batch_size=64)
    assert subspace_error([U.detach() for U in model.bases], DATA.bases).max() < 0.3


def test_joint_bases_stay_orthonormal_in_training():
    model = MoLRGDenoiser(12, 2, [3, 2], orthogonal=True).fit(DATA.X, steps=20)
    stacked = torch.cat(model.bases, 1)
    torch.testing.assert_close(stacked.mT @ stacked, torch.eye(5), atol=1e-5, rtol=0)


def test_a_seed_decides_the_training_and_rows_are_taken_as_they_are():
    before = DATA.X.clone()
    a, b, c = (MoLRGDenoiser(12, 1, 2).fit(DATA.X, steps=5, seed=s).raw for s in (0, 0, 1))
    torch.testing.assert_close(a, b)
    assert not torch.equal(a, c)
    torch.testing.assert_close(DATA.X, before)


def test_a_fitted_clustering_denoises():
    noisy = low_rank_mixture(12, 3, n_clusters=2, samples=60, noise=0.05)
    model = MoLRGDenoiser.from_clustering(SubspaceClustering(2, 3).fit(noisy.X.numpy()))
    seen = DATA.X + 0.5 * torch.randn(DATA.X.shape, generator=G, dtype=torch.float64)
    assert float((model(seen, 0.5).detach() - DATA.X).square().mean()) < 0.5 * float((seen - DATA.X).square().mean())
    with pytest.raises(ValueError, match="method='em'"):
        MoLRGDenoiser.from_clustering(SubspaceClustering(2, 3, method="k-subspaces").fit(noisy.X.numpy()))


def test_hard_weights_project_onto_one_subspace():
    model = MoLRGDenoiser.from_bases(DATA.bases, weights="hard")
    U = DATA.bases[0]
    torch.testing.assert_close(model(DATA.X[:3], 0.5), DATA.X[:3] @ U @ U.mT / 1.25)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MoLRGDenoiser(8, 2, 3, weights="best"), "weights"),
        (lambda: MoLRGDenoiser(8, 2, 9), "from 1 to 8"),
        (lambda: MoLRGDenoiser(8, 2, [1]), "for 2 clusters"),
        (lambda: MoLRGDenoiser(8, 3, 3, orthogonal=True), "9 dimensions"),
        (lambda: MoLRGDenoiser(8, variance=0.0), "variance"),
        (lambda: MoLRGDenoiser(8, 2, prior=[1.0]), "prior"),
        (lambda: MoLRGDenoiser(8)(torch.zeros(1, 8), 0.0), "above 0"),
        (lambda: MoLRGDenoiser(8, 2, weights="expected")(torch.zeros(1, 8), 1.0), "clean row"),
        (lambda: MoLRGDenoiser(8).fit(torch.zeros(3, 7)), r"\(n, 8\)"),
        (lambda: MoLRGDenoiser(8).fit(torch.full((3, 8), torch.nan)), "NaN"),
        (lambda: MoLRGDenoiser(8).fit(torch.zeros(3, 8), schedule="edm"), "schedule"),
        (lambda: MoLRGDenoiser(8).fit(torch.zeros(3, 8), loss_weight="snr"), "loss_weight"),
        (lambda: MoLRGDenoiser(8).fit(torch.zeros(3, 8), steps=0), "steps"),
    ],
)
def test_what_is_not_accepted_is_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_half_precision_denoises_as_float32_does(dtype, orthogonal):
    denoiser = MoLRGDenoiser(12, 2, 2, orthogonal=orthogonal).to(dtype)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = denoiser(x, 0.5)
    assert out.dtype == dtype
    exact = MoLRGDenoiser(12, 2, 2, orthogonal=orthogonal)
    exact.load_state_dict(denoiser.state_dict())
    same = exact(x.float(), 0.5)
    torch.testing.assert_close(out.float(), same, atol=0.1, rtol=0)  # some steps of 2^-8 at entries of 2


@pytest.mark.parametrize(
    ("x", "told", "said"),
    [
        (torch.zeros(4, 5), {}, r"shape \(4, 5\): \(n, 12\)"),
        (torch.zeros(12), {}, r"shape \(12,\)"),
        (torch.zeros(4, 12).double(), {}, "rows are torch.float64, the denoiser is torch.float32"),
        (torch.zeros(4, 12), {"sigma": torch.ones(4, 1)}, r"sigma of shape \(4, 1\): .* each of the 4 rows"),
        (torch.zeros(4, 12), {"sigma": torch.ones(3)}, r"sigma of shape \(3,\)"),
        (torch.zeros(4, 12), {"sigma": float("nan")}, "sigma=nan"),
        (torch.zeros(4, 12), {"scale": 0.0}, "scale=0.0: one number above 0"),
        (torch.zeros(4, 12), {"scale": torch.ones(4, 1)}, "scale of shape"),
    ],
)
def test_rows_and_levels_of_another_shape_are_refused_by_all_that_takes_them(x, told, said):
    denoiser = MoLRGDenoiser(12, 2, 2)
    for takes in (denoiser, denoiser.responsibilities, denoiser.loss):
        with pytest.raises(ValueError, match=said):
            takes(x, **{"sigma": 0.5, **told})


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"log_sigma": (0.0, -1.0)}, "log_sigma"), ({"log_sigma": (float("nan"), 1.0)}, "log_sigma"),
        ({"log_sigma": (0.0, 1.0, 2.0)}, "log_sigma"), ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"), ({"steps": 1.5}, "steps=1.5: a whole number"),
    ],
)  # fmt: skip
def test_training_that_cannot_go_well_is_refused(told, said):
    denoiser = MoLRGDenoiser(12, 2, 2)
    before = denoiser.raw.clone()
    with pytest.raises(ValueError, match=said):
        denoiser.fit(torch.ones(4, 12), **told)
    assert torch.equal(denoiser.raw, before)


def test_training_needs_no_gradients_around_it():
    X = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    made = []
    for around in (torch.no_grad(), torch.enable_grad()):
        with around:
            made.append(MoLRGDenoiser(12, 2, 2).fit(X, steps=3).raw.detach())
    assert torch.equal(*made)


def test_dimensions_are_whole_numbers_of_any_kind():
    assert MoLRGDenoiser(12, 2, np.int64(2)).dims == [2, 2]
    for wrong in (True, [1.5, 2]):
        with pytest.raises(ValueError, match="one each, from 1 to 12"):
            MoLRGDenoiser(12, 2, wrong)


@pytest.mark.parametrize(
    ("bases", "variances", "said"),
    [
        ([], None, "at least one"),
        ([torch.eye(5)[:, :2], torch.eye(4)[:, :2]], None, r"shapes \[\(5, 2\), \(4, 2\)\]"),
        ([torch.eye(5)[:, :2]], [torch.tensor([-1.0, 1.0])], "above 0"),
        ([torch.eye(5)[:, :2]], [torch.ones(3)], "one for each column"),
        ([torch.eye(5)[:, :2]], [], "one for each column"),
    ],
)
def test_known_subspaces_that_do_not_fit_are_refused(bases, variances, said):
    with pytest.raises(ValueError, match=said):
        MoLRGDenoiser.from_bases(bases, variances=variances)
