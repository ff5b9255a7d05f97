import json
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import ortho_group
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.distributions import SingularGenerativeEstimator
from rankwise.distributions.singular import NOISE_GRID, DegenerateWarning, GridEdgeWarning

matplotlib.use("Agg")
QUICK = {"hidden": (16, 16), "epochs": 30, "noise_grid": (0.0, 0.1, 0.5), "lr": 5e-3}
LINEAR = {"hidden": ()}


def circle(n: int = 300, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 2 * np.pi, n)
    return 5 + 10 * (np.c_[np.cos(t), np.sin(t), np.cos(t)] + noise * rng.normal(size=(n, 3)))


@pytest.fixture(scope="module")
def fit():
    return SingularGenerativeEstimator(1, **QUICK).fit(circle())


@parametrize_with_checks([SingularGenerativeEstimator(1, noise=0.5, hidden=(4,), epochs=2, draws=2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_the_path_has_a_row_a_level_in_the_units_of_the_data(fit):
    path = fit.noise_path_
    scale = np.sqrt(circle().var(0).mean())
    np.testing.assert_allclose(path["noise"], scale * np.array([0, 0.1, 0.5]), rtol=1e-6)
    assert fit.noise_ == path["noise"].iloc[path["wasserstein"].argmin()]
    assert fit.sigma_ == path["sigma"].iloc[path["wasserstein"].argmin()]
    assert path["epoch"].between(1, 30).all()


def test_samples_are_in_the_units_of_the_data(fit):
    moved = clone(fit).fit(2.0 * circle() + 30.0)
    np.testing.assert_allclose(moved.sample(50), 2.0 * fit.sample(50) + 30.0, rtol=1e-3)
    gap = fit.score_samples(circle()[:9]) - moved.score_samples(2.0 * circle()[:9] + 30.0)
    np.testing.assert_allclose(gap, 3 * np.log(2), rtol=1e-3)


def test_samples_carry_no_noise_unless_asked(fit):
    calm, noisy = fit.sample(4000), fit.sample(4000, observed=True)
    rest = np.sqrt(max(fit.sigma_**2 - fit.noise_**2, 0))
    np.testing.assert_allclose((noisy - calm).std(0), rest, rtol=0.05)
    assert rest > 0


def test_every_level_can_be_sampled(fit):
    small, large = (fit.sample(50, noise=float(v)) for v in fit.noise_path_["noise"].iloc[[0, 2]])
    assert not np.allclose(small, large)


def plane(n: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, 5)) * 3 + rng.normal(size=(n, 5)) + 7


def test_a_linear_fit_with_default_options_is_the_closed_form_of_principal_components():
    X = plane()
    model = SingularGenerativeEstimator(2, noise=0.0, **LINEAR).fit(X)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    trained = X[order[200:].numpy()]  # the first fifth chooses the level
    exact = PCA(2).fit(trained)
    assert model.sigma_**2 == pytest.approx(exact.noise_variance_ * 799 / 800, rel=1e-5)
    np.testing.assert_allclose(
        model.score_samples(X), exact.score_samples(X), atol=0.02
    )  # divided by n there, n - 1 here
    np.testing.assert_allclose(model.score_samples(X[:40], quadrature=True), model.score_samples(X[:40]), atol=1e-3)
    assert model.noise_path_["epoch"].tolist() == [0]


@pytest.mark.parametrize("refresh", [True, False])
def test_every_level_of_a_linear_fit_adds_its_variance(refresh):
    model = SingularGenerativeEstimator(2, refresh=refresh, **LINEAR).fit(plane(4000))
    path = model.noise_path_
    added = path["sigma"] ** 2 - path["sigma"].iloc[0] ** 2
    np.testing.assert_allclose(added, path["noise"] ** 2, rtol=1e-4 if refresh else 0.1, atol=1e-4 if refresh else 0.05)
    assert list(path["noise"]) == pytest.approx([v * model.scale_ for v in NOISE_GRID])


def test_the_bound_of_score_samples_grows_with_draws(fit):
    few, many = (fit.score_samples(circle(seed=1), draws=k).mean() for k in (1, 256))
    assert few < many


def test_noise_in_the_data_is_not_counted_as_perturbation():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 1)) * np.array([[3.0, 1.0, -2.0]]) + 0.5 * rng.normal(size=(1500, 3))
    model = SingularGenerativeEstimator(1, noise=1.2, **LINEAR).fit(X)
    assert model.sigma_**2 == pytest.approx(0.25 + 1.44, rel=0.05)
    moved = (model.sample(5000, observed=True) - model.sample(5000)).std()
    assert moved == pytest.approx(0.5, abs=0.2)


def test_an_unperturbed_fit_to_a_line_is_reported_as_degenerate():
    X = np.random.default_rng(0).normal(size=(400, 1)) * np.array([[1.0, 2.0, 3.0]])
    with pytest.warns(DegenerateWarning, match="larger noise"):
        model = SingularGenerativeEstimator(1, noise=0.0, **(LINEAR | {"sigma_floor": 0.05})).fit(X)
    assert model.noise_path_["at_floor"].tolist() == [True]
    assert model.sigma_ == pytest.approx(0.05 * model.scale_, rel=1e-5)


@pytest.mark.parametrize(("distances", "warns"), [((3.0, 2.0, 1.0), True), ((3.0, 1.0, 2.0), False)])
def test_a_level_at_the_end_of_the_grid_is_reported(monkeypatch, distances, warns):
    monkeypatch.setattr(SingularGenerativeEstimator, "_distance", lambda *_: np.array(distances))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SingularGenerativeEstimator(1, **(QUICK | {"epochs": 5})).fit(circle())
    assert any(w.category is GridEdgeWarning for w in caught) is warns
    assert model.noise_ == model.noise_path_["noise"].iloc[int(np.argmin(distances))]


def test_equal_seeds_give_equal_fits_and_others_do_not(fit):
    again = clone(fit).fit(circle())
    pd.testing.assert_frame_equal(again.noise_path_, fit.noise_path_)
    np.testing.assert_array_equal(again.sample(20), fit.sample(20))
    other = clone(fit).set_params(random_state=1).fit(circle())
    assert not np.allclose(other.sample(20), fit.sample(20))


def test_fits_to_rotated_data_are_as_good():
    R = np.asarray(ortho_group.rvs(3, random_state=0))
    found = {
        rotated: [
            clone(SingularGenerativeEstimator(1, **QUICK, random_state=s)).fit(circle() @ (R if rotated else np.eye(3)))
            .noise_path_["wasserstein"].min()
            for s in range(4)
        ]
        for rotated in (False, True)
    }  # fmt: skip
    spread = np.std(found[False]) + np.std(found[True])
    assert abs(np.mean(found[False]) - np.mean(found[True])) < 2 * spread


def test_constant_columns_are_dropped_and_restored():
    X = np.insert(circle(), 1, 42.0, axis=1)
    model = SingularGenerativeEstimator(1, **QUICK).fit(X)
    assert model.columns_.tolist() == [True, False, True, True]
    assert (model.sample(10)[:, 1] == 42).all()
    np.testing.assert_allclose(
        np.delete(model.sample(10), 1, axis=1), SingularGenerativeEstimator(1, **QUICK).fit(circle()).sample(10)
    )


@pytest.mark.parametrize(
    "options", [{"objective": "vae"}, {"refresh": False}, {"anneal": True}, {"noise": 1.0}, {"hidden": ()}]
)
def test_every_option_fits_finite_and_differs_from_the_default(fit, options):
    model = clone(fit).set_params(**options).fit(circle())
    assert np.isfinite(model.sample(20)).all()
    assert not np.allclose(model.sample(20), fit.sample(20))


def test_a_saved_model_is_the_same(fit, tmp_path):
    fit.save(tmp_path / "model.safetensors")
    again = SingularGenerativeEstimator.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.sample(30, observed=True), fit.sample(30, observed=True))
    np.testing.assert_array_equal(again.score_samples(circle()[:9]), fit.score_samples(circle()[:9]))
    pd.testing.assert_frame_equal(again.noise_path_, fit.noise_path_)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


def test_a_file_of_another_kind_is_refused(fit, tmp_path):
    import torch

    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no")
    for name in ("other.safetensors", "text"):
        with pytest.raises(ValueError, match="holds no SingularGenerativeEstimator"):
            SingularGenerativeEstimator.load(tmp_path / name)


def test_the_path_is_drawn(fit):
    axes = fit.plot_noise_path()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), fit.noise_path_["wasserstein"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_dim": 3}, "3 of 3 feature"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"noise": -1.0}, "none below 0"),
        ({"noise": "some"}, "auto"),
        ({"noise_grid": ()}, "at least one"),
        ({"objective": "elbo"}, "iwae"),
        ({"validation": 1.0}, "validation is 1"),
        ({"sigma_floor": 1e-9}, "sigma_floor"),
        ({"draws": 0}, "draws is 0"),
    ],
)
def test_bad_options_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        SingularGenerativeEstimator(**({"latent_dim": 1} | QUICK | options)).fit(circle())


def test_bad_data_are_refused():
    X = circle()
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        SingularGenerativeEstimator(1).fit(X)
    with pytest.raises(ValueError, match="needs at least 3"):
        SingularGenerativeEstimator(1).fit(circle(3))
    with pytest.raises(ValueError, match="0 of 3 feature"):
        SingularGenerativeEstimator(1).fit(np.ones((20, 3)))


def test_the_default_grid_starts_without_noise():
    assert NOISE_GRID[0] == 0
    assert list(NOISE_GRID) == sorted(NOISE_GRID)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": [10**9, 10**9]},
        {"hidden": [4] * 1000},
        {"latent_dim": 10**9},
        {"latent_dim": 0},
        {"draws": "many"},
        {"made_up": 1},
    ],
    ids=str,
)
def test_a_file_whose_parameters_are_not_its_tensors_is_refused_and_nothing_of_their_size_is_made(
    fit, tmp_path, change
):
    fit.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as opened:
        kept = json.loads(opened.metadata()["rankwise"])
        tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    kept["parameters"] |= change
    save_file(tensors, tmp_path / "m.safetensors", metadata={"rankwise": json.dumps(kept)})
    with pytest.raises(ValueError, match=r"m\.safetensors holds no SingularGenerativeEstimator"):
        SingularGenerativeEstimator.load(tmp_path / "m.safetensors")
    save_file(tensors, tmp_path / "m.safetensors", metadata={"rankwise": "[" * 100_000})
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        SingularGenerativeEstimator.load(tmp_path / "m.safetensors")
