import json
import warnings
from itertools import pairwise

import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import ortho_group, wasserstein_distance
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.distributions import SingularGenerativeEstimator
from rankwise.distributions.singular.estimator import NOISE_GRID, DegenerateWarning, GridEdgeWarning
from rankwise.distributions.singular.networks import Ensemble

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
    assert check(estimator) is None  # what does not hold is raised


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


def test_settings_are_these_where_none_are_given():
    assert SingularGenerativeEstimator().get_params() == {
        "latent_dim": 1, "noise": "auto", "noise_grid": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), "objective": "iwae",
        "draws": 16, "hidden": (128, 128, 128), "refresh": True, "anneal": False, "sigma_floor": 1e-3, "lr": 1e-3,
        "batch_size": 64, "epochs": 300, "patience": 150, "validation": 0.2, "device": None, "random_state": 0,
        "verbose": False,
    }  # fmt: skip


def test_drawing_and_scoring_have_these_settings_where_none_are_given(fit):
    assert fit.sample().shape == (1, 3)
    np.testing.assert_array_equal(fit.sample(5), fit.sample(5, noise=fit.noise_, observed=False, random_state=0))
    assert not np.allclose(fit.sample(5), fit.sample(5, random_state=1))
    X = circle()[:5]
    np.testing.assert_array_equal(fit.score_samples(X), fit.score_samples(X, draws=512, quadrature=False))
    assert fit.score(X) == pytest.approx(fit.score_samples(X).mean())
    np.testing.assert_allclose(fit.score_samples(X)[2:3], fit.score_samples(X[2:3]), rtol=1e-6)
    whole = fit.score_samples(np.tile(X, (120, 1)))  # in blocks
    np.testing.assert_allclose(whole, np.tile(fit.score_samples(X), 120), rtol=1e-6)


def test_a_level_is_the_nearest_to_the_noise_asked_for(fit):
    levels = fit.noise_path_["noise"].to_numpy()
    for k, level in enumerate(levels):
        for near in (level, level * 1.2, level + 1e-3):
            np.testing.assert_array_equal(fit.sample(4, noise=near), fit.sample(4, noise=float(level)))
        assert fit._member(float(level)) == k
    assert fit._member(None) == fit.noise_path_["wasserstein"].to_numpy().argmin()
    assert fit._member(1e9) == len(levels) - 1


def test_every_number_has_its_range():
    X = circle(40)
    for name in ("latent_dim", "draws", "batch_size", "epochs", "patience"):
        with pytest.raises(ValueError, match=f"{name} is 0; 1 or more is accepted"):
            SingularGenerativeEstimator(**{name: 0}).fit(X)
        SingularGenerativeEstimator(**{name: 1})._check()
    for value in (0.0, 1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="validation is"):
            SingularGenerativeEstimator(validation=value).fit(X)
    for value in (0.0, 9e-6, 1.0, np.nan):
        with pytest.raises(ValueError, match="sigma_floor is"):
            SingularGenerativeEstimator(sigma_floor=value).fit(X)
    SingularGenerativeEstimator(sigma_floor=1e-5, validation=0.01)._check()
    for options in ({"noise": np.inf}, {"noise": np.nan}, {"noise_grid": (0.1, -0.1)}, {"noise_grid": (0.1, np.inf)}):
        with pytest.raises(ValueError, match="none below 0, all finite"):
            SingularGenerativeEstimator(**options).fit(X)
    SingularGenerativeEstimator(noise=0.0)._check()


def test_rows_are_held_out_by_their_share_and_the_others_are_enough():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4, 3))
    model = SingularGenerativeEstimator(1, noise=0.1, validation=0.3, **LINEAR).fit(X)  # one of four is held out
    assert model.noise_ == pytest.approx(0.1)
    with pytest.raises(ValueError, match="4 samples leave 2 for training; latent_dim 1 needs at least 3"):
        SingularGenerativeEstimator(1, noise=0.1, validation=0.5, **LINEAR).fit(X)
    with pytest.raises(ValueError, match="latent_dim is 3, and 3 of 3 feature"):
        SingularGenerativeEstimator(3, **LINEAR).fit(rng.normal(size=(40, 3)))
    SingularGenerativeEstimator(2, **LINEAR).fit(rng.normal(size=(40, 3)))


def test_the_distance_on_the_path_is_that_of_samples_to_the_rows_held_out():
    X = plane(400)
    model = SingularGenerativeEstimator(2, noise=0.7, **LINEAR).fit(X)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0)).numpy()
    held, drawn = X[order[:80]], model.sample(4000, random_state=5)
    axes = np.random.default_rng(0).normal(size=(5, 400))
    axes /= np.linalg.norm(axes, axis=0)
    far = np.mean([wasserstein_distance(held @ a, drawn @ a) for a in axes.T])
    assert model.noise_path_["wasserstein"].iloc[0] == pytest.approx(far, rel=0.15)
    assert model.noise_path_["noise"].iloc[0] == pytest.approx(0.7)
    assert model.noise_path_["relative"].iloc[0] == pytest.approx(0.7 / np.sqrt(X.var(0).mean()))
    assert list(model.noise_path_.columns) == ["noise", "relative", "sigma", "wasserstein", "epoch", "at_floor"]


def test_columns_vary_by_more_than_rounding():
    X = np.c_[circle(60), 1e6 + 1e-8 * np.arange(60), np.zeros(60)]
    model = SingularGenerativeEstimator(1, noise=0.1, **LINEAR).fit(X)
    assert model.columns_.tolist() == [True, True, True, False, False]
    assert model.scale_ == pytest.approx(np.sqrt(circle(60).var(0).mean()))


@pytest.fixture
def schedule(monkeypatch):
    """What training did: learning rates, perturbations and numbers of rows."""
    seen, adam, loss = {"rates": [], "rows": [], "draws": [], "x": []}, torch.optim.Adam, Ensemble.loss

    class Watched(adam):
        def step(self, closure=None):
            seen["rates"].append([g["lr"] for g in self.param_groups])
            return super().step(closure)

    def watched(self, x, draws, generator=None):
        seen["rows"].append(x.shape[1])
        seen["draws"].append(draws.shape[1])
        seen["x"].append(x.detach().clone())
        return loss(self, x, draws, generator)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    monkeypatch.setattr(Ensemble, "loss", watched)
    return seen


def test_training_goes_along_a_cosine_in_batches_with_sigma_five_times_as_fast(schedule):
    SingularGenerativeEstimator(1, hidden=(4,), epochs=3, batch_size=50, lr=0.01, draws=5, noise=0.1).fit(circle(150))
    assert schedule["rows"] == [50, 50, 20] * 3
    assert set(schedule["draws"]) == {5}
    rates = np.array(schedule["rates"])
    np.testing.assert_allclose(rates[:, 0], 0.01 * (1 + np.cos(np.pi * np.arange(9) / 9)) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates[:, 1], 5 * rates[:, 0])
    schedule["draws"].clear()
    SingularGenerativeEstimator(1, hidden=(4,), epochs=1, objective="vae", noise=0.1).fit(circle(150))
    assert set(schedule["draws"]) == {1}


def test_perturbations_are_new_every_epoch_or_kept_and_annealed_from_the_datas_scale(schedule):
    data = circle(64)
    options = {"hidden": (4,), "epochs": 8, "batch_size": 99, "noise_grid": (0.0, 0.1, 0.5), "lr": 1e-9}

    def epochs(**more):
        schedule["x"].clear()
        SingularGenerativeEstimator(1, **options, **more).fit(data)
        return [x.sort(1).values for x in schedule["x"]]  # rows come in another order

    kept, fresh, annealed = epochs(refresh=False), epochs(), epochs(anneal=True, refresh=False)
    assert all(torch.equal(x, kept[0]) for x in kept)
    assert all(not torch.equal(a[1:], b[1:]) for a, b in pairwise(fresh))
    assert all(torch.equal(x[0], kept[0][0]) for x in fresh)  # without noise there is nothing to draw
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).numpy()
    clean = torch.as_tensor((data - data.mean(0)) / np.sqrt(data.var(0).mean()), dtype=torch.float32)[order[12:]]
    spread = [float((x[2] - clean.sort(0).values).abs().mean()) for x in annealed]
    assert spread[0] > spread[1] > spread[2] > 0.9 * spread[3]
    assert all(torch.equal(x, kept[0]) for x in annealed[3:])  # from half of the epochs on


def test_training_stops_when_no_level_came_nearer_and_keeps_each_at_its_nearest(monkeypatch):
    told = iter([[3.0, 3.0], [2.0, 4.0], [5.0, 1.0], *[[9.0, 9.0]] * 50])
    weights = []

    def distance(self, held, axes):
        weights.append({k: v.clone() for k, v in self.net_.state_dict().items()})
        return np.array(next(told))

    monkeypatch.setattr(SingularGenerativeEstimator, "_distance", distance)
    model = SingularGenerativeEstimator(1, hidden=(4,), epochs=500, patience=25, noise_grid=(0.0, 0.3), lr=0.05)
    model.fit(circle(60))
    assert model.noise_path_["epoch"].tolist() == [20, 30]  # a look every ten epochs
    assert len(weights) == 6  # 25 epochs after 30: the look at 60
    np.testing.assert_allclose(model.noise_path_["wasserstein"] / model.scale_, [2.0, 1.0])
    for name, value in model.net_.state_dict().items():
        assert torch.equal(value[0], weights[1][name][0])
        assert torch.equal(value[1], weights[2][name][1])


def test_the_plot_shows_distance_and_sigma_by_level(fit):
    ax = matplotlib.pyplot.subplots()[1]
    assert fit.plot_noise_path(ax) is ax
    right, path = next(a for a in ax.figure.axes if a is not ax), fit.noise_path_
    np.testing.assert_allclose(ax.lines[0].get_xydata(), path[["noise", "wasserstein"]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), path[["noise", "sigma"]])
    assert set(ax.lines[1].get_xdata()) == {fit.noise_}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("perturbation σ̃", "sliced W1 to held-out rows")
    assert right.get_ylabel() == "fitted σ"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["chosen"]
    assert ax.get_xscale() == "symlog"
    assert ax.xaxis.get_transform().linthresh == pytest.approx(path["noise"].iloc[1])
    single = SingularGenerativeEstimator(1, noise=0.5, **LINEAR).fit(circle()).plot_noise_path()
    assert single.xaxis.get_transform().linthresh == 1
    matplotlib.pyplot.close("all")


def test_warnings_point_to_who_fitted(monkeypatch):
    with pytest.warns(DegenerateWarning) as record:
        SingularGenerativeEstimator(1, noise=0.0, hidden=(), sigma_floor=0.9).fit(circle())
    assert record[0].filename == __file__
    monkeypatch.setattr(SingularGenerativeEstimator, "_distance", lambda *_: np.array([2.0, 1.0]))
    with pytest.warns(GridEdgeWarning, match=r"largest of noise_grid \(0\.5 data scales\)") as record:
        SingularGenerativeEstimator(1, noise_grid=(0.1, 0.5), **LINEAR).fit(circle())
    assert record[0].filename == __file__
    monkeypatch.setattr(SingularGenerativeEstimator, "_distance", lambda *_: np.array([1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SingularGenerativeEstimator(1, noise=5.0, **LINEAR).fit(circle())  # one level has no end


def test_a_saved_model_keeps_what_it_was_fitted_with(fit, tmp_path):
    fit.save(tmp_path / "m.safetensors")
    again = SingularGenerativeEstimator.load(tmp_path / "m.safetensors")
    assert (again.noise_, again.sigma_, again.scale_, again.seed_, again.n_features_in_) == (
        fit.noise_, fit.sigma_, fit.scale_, fit.seed_, 3,
    )  # fmt: skip
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in again.get_params().items()} == fit.get_params()
    np.testing.assert_array_equal(again.mean_, fit.mean_)
    np.testing.assert_array_equal(again.columns_, fit.columns_)
    with pytest.raises(ValueError, match="no such file"):
        SingularGenerativeEstimator.load(tmp_path / "none.safetensors")
    drawn = SingularGenerativeEstimator(1, noise=0.5, random_state=None, **LINEAR).fit(circle())
    drawn.save(tmp_path / "d.safetensors")
    assert SingularGenerativeEstimator.load(tmp_path / "d.safetensors").random_state == drawn.seed_


def test_rows_of_many_columns_are_scored_by_their_normal_density():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(700, 1)) * rng.normal(size=300) + rng.normal(size=(700, 300))
    model = SingularGenerativeEstimator(1, noise=0.0, **LINEAR).fit(X)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0)).numpy()
    exact = PCA(1).fit(X[order[140:]])
    np.testing.assert_allclose(model.score_samples(X), exact.score_samples(X), rtol=2e-3)
