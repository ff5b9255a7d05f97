import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, ortho_group
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.dynamics import (
    IdentifiabilityWarning,
    MoLRGDenoiser,
    SubspaceClustering,
    low_rank_mixture,
    subspace_error,
)

RNG = np.random.default_rng(0)


def sample(dim=3, noise=0.05, **options):
    made = low_rank_mixture(20, dim, noise=noise, **options)
    return made.X.numpy(), made.labels.numpy(), made.bases


@parametrize_with_checks([
    SubspaceClustering(),
    SubspaceClustering(method="k-subspaces"),
    SubspaceClustering(affine=True),
    SubspaceClustering("auto", "auto"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::rankwise.dynamics.subspaces.IdentifiabilityWarning")
def test_scikit_learn_checks(estimator, check):
    assert check(estimator) is None


@pytest.mark.parametrize(
    "options", [{"method": "k-subspaces"}, {"method": "em"}, {"method": "k-subspaces", "orthogonal": True}]
)
def test_rows_of_orthogonal_subspaces_are_told_apart(options):
    X, y, bases = sample(n_clusters=3, samples=40)
    model = SubspaceClustering(3, 3, **options).fit(X)
    assert adjusted_rand_score(y, model.labels_) == 1
    assert subspace_error(model.subspaces_, bases).max() < 0.2
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    stacked = np.concatenate(model.subspaces_, 1)
    if options.get("orthogonal"):
        np.testing.assert_allclose(stacked.T @ stacked, np.eye(9), atol=1e-10)


@pytest.mark.parametrize("method", ["em", "k-subspaces"])
def test_one_subspace_is_that_of_principal_components(method):
    X = RNG.normal(size=(60, 8)) * np.arange(1, 9)
    about = SubspaceClustering(1, 3, method=method, affine=True).fit(X)
    assert subspace_error(about.subspaces_, [PCA(3).fit(X).components_.T])[0] < 1e-6
    through = SubspaceClustering(1, 3, method=method).fit(X)
    assert subspace_error(through.subspaces_, [np.linalg.svd(X)[2][:3].T])[0] < 1e-6


def test_the_mixture_of_one_cluster_is_probabilistic_principal_components():
    X = RNG.normal(size=(80, 6)) * [4, 3, 2, 1, 1, 1]
    ours = SubspaceClustering(1, 2, affine=True).fit(X)
    theirs = PCA(2).fit(X * np.sqrt((len(X) - 1) / len(X)))  # the maximum of likelihood divides by n
    precise = multivariate_normal(X.mean(0), theirs.get_covariance()).logpdf(X)
    np.testing.assert_allclose(ours.score_samples(X), precise, rtol=1e-8)


def test_probabilities_are_those_of_gaussians_with_full_covariances():
    X, _, _ = sample(n_clusters=2, samples=30, noise=0.3)
    model = SubspaceClustering(2, [3, 2]).fit(X)
    m = model.mixture_
    parts = []
    for k, (U, v) in enumerate(zip(m.bases, m.variances, strict=True)):
        C = U @ torch.diag(v - m.noise) @ U.mT + m.noise * torch.eye(20).double()
        parts.append(float(m.weights[k]) * multivariate_normal(np.zeros(20), C.numpy()).pdf(X))
    joint = np.stack(parts, 1)
    np.testing.assert_allclose(model.predict_proba(X), joint / joint.sum(1, keepdims=True), atol=1e-8)
    np.testing.assert_allclose(model.score_samples(X), np.log(joint.sum(1)), rtol=1e-9)


def test_likelihood_never_falls_and_distances_never_rise():
    X = RNG.normal(size=(120, 10))
    for affine in (False, True):
        likelihood = SubspaceClustering(3, 2, affine=affine, tol=0.0, max_iter=60).fit(X).path_
        assert (np.diff(likelihood) > -1e-10).all()
        for options in ({}, {"orthogonal": True}):
            if not (affine and options):
                path = SubspaceClustering(3, 2, method="k-subspaces", affine=affine, **options).fit(X).path_
                assert len(path) > 2
                assert (np.diff(path) < 1e-5 * (X**2).sum()).all()  # the first steps are of float32


@pytest.mark.parametrize("method", ["em", "k-subspaces"])
def test_rotated_rows_have_rotated_subspaces(method):
    X, _, _ = sample(n_clusters=2, samples=40)
    R = ortho_group.rvs(20, random_state=1)
    plain, turned = (SubspaceClustering(2, 3, method=method).fit(A) for A in (X, X @ R))
    assert adjusted_rand_score(plain.labels_, turned.labels_) == 1
    assert subspace_error([R.T @ U for U in plain.subspaces_], turned.subspaces_).max() < 1e-3


def test_unequal_dimensions_are_found_where_they_are_given():
    big, small = (low_rank_mixture(20, d, samples=60, noise=0.02, seed=s) for d, s in ((5, 0), (1, 1)))
    X = torch.cat([big.X, small.X]).numpy()
    for method in ("em", "k-subspaces"):
        model = SubspaceClustering(2, [1, 5], method=method).fit(X)
        assert adjusted_rand_score(np.repeat([0, 1], 60), model.labels_) > 0.9
        assert subspace_error(model.subspaces_, [*small.bases, *big.bases]).max() < 0.3


def test_affine_subspaces_need_not_reach_the_origin():
    X, y, _ = sample(dim=2, n_clusters=2, samples=50)
    X = X + 3 * RNG.normal(size=(2, 20))[y]
    model = SubspaceClustering(2, 2, affine=True).fit(X)
    assert adjusted_rand_score(y, model.labels_) == 1
    np.testing.assert_allclose(model.means_[model.labels_[0]], X[y == 0].mean(0), atol=0.05)


def test_number_and_dimensions_are_chosen():
    parts = [low_rank_mixture(20, d, samples=80, noise=0.1, seed=d) for d in (1, 2, 4)]
    model = SubspaceClustering("auto", "auto", max_clusters=6).fit(torch.cat([p.X for p in parts]).numpy())
    assert model.n_clusters_ == 3
    assert sorted(model.dims_) == [1, 2, 4]
    assert min(model.choices_, key=lambda c: c["bic"])["n_clusters"] == 3


def test_control_isotropic_rows_have_one_cluster_of_no_dimension():
    model = SubspaceClustering("auto", "auto", max_clusters=4).fit(RNG.normal(size=(300, 12)))
    assert model.dims_.tolist() == [0]
    assert set(model.labels_) == {0}


def test_a_seed_decides_the_starts():
    X = RNG.normal(size=(60, 6))
    a, b = (SubspaceClustering(3, 2, method="k-subspaces", n_init=1, random_state=s).fit(X) for s in (1, 1))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    found = {
        SubspaceClustering(3, 2, method="k-subspaces", n_init=1, random_state=s).fit(X).path_[-1] for s in range(6)
    }
    assert len(found) > 1
    best = SubspaceClustering(3, 2, method="k-subspaces", n_init=30).fit(X)
    assert best.restarts_ == sorted(best.restarts_)
    assert len(best.restarts_) == 30
    assert best.path_[-1] <= best.restarts_[0] + 1e-9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "molrg"}, "method"),
        ({"n_clusters": "many"}, "auto"),
        ({"dim": "auto", "method": "k-subspaces"}, "method='em' is needed"),
        ({"n_clusters": "auto", "method": "k-subspaces"}, "method='em' is needed"),
        ({"orthogonal": True}, "k-subspaces"),
        ({"orthogonal": True, "affine": True, "method": "k-subspaces"}, "origin"),
        ({"n_clusters": 3, "dim": 4, "orthogonal": True, "method": "k-subspaces"}, "need 12 columns, X has 8"),
        ({"dim": 8}, "from 1 to 7"),
        ({"dim": 0}, "from 1 to 7"),
        ({"dim": 2.0}, r"dim=2.0 .* from 1 to 7"),
        ({"dim": None}, r"dim=None .* from 1 to 7"),
        ({"dim": [1, 2, 3]}, "dim has 3 entries"),
        ({"n_clusters": "auto", "dim": [1, 2]}, "dim has 2 entries"),
        ({"n_clusters": 0}, "n_clusters is 0"),
        ({"n_init": 0}, "n_init is 0"),
        ({"max_iter": 1.5}, "max_iter is 1.5"),
        ({"tol": -1.0}, "tol"),
        ({"n_clusters": 40}, "30 rows for 40 clusters"),
    ],
)
def test_what_is_not_accepted_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        SubspaceClustering(**options).fit(np.random.default_rng(0).normal(size=(30, 8)))


def test_a_second_fit_by_another_method_leaves_nothing_of_the_first():
    first, second = (sample(dim=2, n_clusters=k, samples=50, seed=k)[0] for k in (2, 3))
    model = SubspaceClustering(2, 2).fit(first)
    model.set_params(method="k-subspaces", n_clusters=3).fit(second)
    fresh = SubspaceClustering(3, 2, method="k-subspaces").fit(second)
    np.testing.assert_array_equal(model.predict(second), model.labels_)
    assert set(vars(model)) == set(vars(fresh))
    assert model.score(second) == fresh.score(second)
    with pytest.raises(ValueError, match="method='em'"):
        MoLRGDenoiser.from_clustering(model)
    with pytest.raises(NotFittedError, match="fit again by 'em'"):
        model.set_params(method="em").predict_proba(second)


def test_a_fit_that_is_refused_leaves_the_last_one_as_it_was():
    X = sample(dim=2, n_clusters=2, samples=50)[0]
    model = SubspaceClustering(2, 2).fit(X)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match="dim=50"):
        model.set_params(dim=50).fit(X)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_rows_without_a_direction_are_refused():
    with pytest.raises(ValueError, match="no direction"):
        SubspaceClustering(1, 2).fit(np.zeros((10, 4)))
    with pytest.raises(ValueError, match="no direction"):
        SubspaceClustering(1, 2, affine=True).fit(np.ones((10, 4)))
    with pytest.raises(ValueError, match="1 different rows for 2 clusters"):
        SubspaceClustering(2, 1).fit(np.ones((10, 4)))
    with pytest.raises(ValueError, match="NaN"):
        SubspaceClustering(1, 1).fit([[1.0, np.nan], [2.0, 3.0]])


def test_too_few_rows_and_too_many_dimensions_are_warned_of():
    X = RNG.normal(size=(6, 9))
    with pytest.warns(IdentifiabilityWarning, match="not identifiable"):
        SubspaceClustering(1, 7, method="k-subspaces").fit(X)
    with pytest.warns(IdentifiabilityWarning, match="exceed the 9 columns"):
        SubspaceClustering(3, 4, method="k-subspaces").fit(RNG.normal(size=(90, 9)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SubspaceClustering(2, 3, method="k-subspaces").fit(RNG.normal(size=(90, 9)))


@pytest.mark.parametrize("method", ["em", "k-subspaces"])
def test_rows_far_from_the_origin_are_clustered_as_near_it(method):
    X, y, _ = sample(dim=2, n_clusters=2, samples=50)
    X = np.round((X + 3 * RNG.normal(size=(2, 20))[y]) * 2**14) / 2**14  # so that no digit is lost below
    near, far = (SubspaceClustering(2, 2, method=method, affine=True).fit(A) for A in (X, X + 2.0**30))
    assert adjusted_rand_score(y, near.labels_) == adjusted_rand_score(y, far.labels_) == 1
    np.testing.assert_array_equal(far.predict(X + 2.0**30), far.labels_)
    np.testing.assert_allclose(far.means_ - 2.0**30, near.means_, atol=1e-6)  # 2^30 has digits of 1e-7
    assert far.score(X + 2.0**30) == pytest.approx(near.score(X), rel=1e-3)


@pytest.mark.parametrize("method", ["em", "k-subspaces"])
@pytest.mark.parametrize("scale", [1e-98, 1e98])
def test_the_scale_of_rows_does_not_matter(method, scale):
    X, _, _ = sample(dim=2, n_clusters=2, samples=50)
    plain, scaled = (SubspaceClustering(2, 2, method=method).fit_predict(A) for A in (X, X * scale))
    assert adjusted_rand_score(plain, scaled) == 1


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_rows_whose_squares_are_no_numbers_are_refused(scale):
    with pytest.raises(ValueError, match=r"largest entry is .* rescale X"):
        SubspaceClustering(1, 2).fit(scale * RNG.normal(size=(20, 5)))


def test_equal_rows_are_refused_whatever_their_mean_is_rounded_to():
    row = RNG.normal(size=8)
    assert (np.tile(row, (130, 1)).mean(0) != row).any()
    with pytest.raises(ValueError, match="all rows are equal"):
        SubspaceClustering("auto", "auto", affine=True).fit(np.tile(row, (130, 1)))


def test_a_choice_by_likelihoods_of_rows_without_noise_is_warned_of():
    X = low_rank_mixture(12, 3, samples=60).X.numpy()
    with pytest.warns(IdentifiabilityWarning, match="without noise"):
        model = SubspaceClustering(1, "auto").fit(X)
    assert model.dims_.tolist() == [3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SubspaceClustering(1, 3).fit(X)  # nothing was chosen
        SubspaceClustering(1, "auto").fit(X + 0.01 * RNG.normal(size=X.shape))
