import warnings

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from scipy.optimize import linprog
from scipy.stats import norm
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.distributions.quantiles import kept as quantile_kept
from rankwise.distributions.quantiles.aggregation import (
    LEVELS,
    WEIGHTS,
    QuantileAggregator,
    crossing_penalty,
    pinball_loss,
)
from rankwise.distributions.quantiles.bases import (
    GaussianNetwork,
    QuantileNetwork,
    fit_base,
    fitted_levels,
    interpolate,
    level_parameter,
    predict_base,
)
from rankwise.distributions.quantiles.linear import LinearQuantile
from rankwise.distributions.quantiles.metrics import pinball, weighted_interval_score
from rankwise.distributions.seeds import seed_of

matplotlib.use("Agg")
TAU = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 3))
Y = X[:, 0] + (0.5 + np.abs(X[:, 1])) * RNG.normal(size=300)


class Fixed(BaseEstimator):
    """Quantiles of a normal, shifted and scaled; knows the rows it was fitted on."""

    def __init__(self, shift=0.0, scale=1.0):
        self.shift = shift
        self.scale = scale

    def fit(self, X, y):
        self.seen_ = {tuple(r) for r in np.asarray(X)}
        self.y_ = dict(zip(map(tuple, np.asarray(X)), y, strict=True))
        return self

    def predict(self, X, quantiles=(0.5,)):
        from scipy.stats import norm

        return X[:, :1] + self.shift + self.scale * norm.ppf(np.asarray(quantiles))


class Memorising(Fixed):
    """Returns y exactly for the rows it was fitted on, and 1000 elsewhere."""

    def predict(self, X, quantiles=(0.5,)):
        values = [self.y_.get(tuple(r), 1000.0) for r in np.asarray(X)]
        return np.repeat(np.array(values)[:, None], len(quantiles), axis=1)


def aggregator(estimators, **options):
    return QuantileAggregator(estimators, **{"quantiles": TAU, "conformal": None, "max_steps": 300, **options})


@parametrize_with_checks(
    [
        QuantileAggregator(
            [QuantileRegressor(alpha=0.01)], quantiles=(0.25, 0.5, 0.75), cv=2, max_steps=20, conformal=None
        )
    ]
)
def test_scikit_learn_checks(estimator, check):
    assert check(estimator) is None  # what does not hold is raised


@pytest.mark.parametrize("weights", [w for w in WEIGHTS if not w.endswith("fine")])
def test_one_base_is_returned_as_it_is(weights):
    model = aggregator([Fixed(0.3, 1.2)], weights=weights).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), Fixed(0.3, 1.2).predict(X, TAU), atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_begin_as_the_mean_and_are_convex(weights):
    bases = [Fixed(0.0), Fixed(2.0), Fixed(0.0, 2.0)]
    start = aggregator(bases, weights=weights, max_steps=0).fit(X, Y)
    mean = np.mean([b.predict(X, TAU) for b in bases], 0)
    np.testing.assert_allclose(start.predict(X), mean, atol=1e-5 if not weights.endswith("fine") else 0.02)
    trained = aggregator(bases, weights=weights).fit(X, Y)
    total = trained.weights_.sum((1, 2) if weights.endswith("fine") else -1)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (trained.weights_ >= 0).all()


def test_global_coarse_optimum_is_the_linear_programmes():
    bases = [Fixed(0.5), Fixed(-1.0, 0.6), Fixed(0.0, 2.5)]
    many = np.tile(X, (30, 1))  # so that the tenth on which training stops is the sample itself, nearly
    options = {"crossing": 0.0, "lr": 0.01, "max_steps": 2000, "patience": 2000, "batch_size": 9000}
    model = aggregator(bases, weights="global-coarse", **options).fit(many, np.tile(Y, 30))
    B, y = np.stack([b.predict(X, TAU) for b in bases], 1), Y
    p, m = B.shape[1:]
    A = B.transpose(0, 2, 1).reshape(-1, p)  # min Σ τ u + (1 - τ) v,  A w + u - v = y,  w convex
    k = len(A)
    cost = np.r_[np.zeros(p), np.tile(TAU, len(y)), np.tile(1 - TAU, len(y))]
    equal = np.vstack([np.hstack([A, np.eye(k), -np.eye(k)]), np.r_[np.ones(p), np.zeros(2 * k)]])
    best = linprog(cost, A_eq=equal, b_eq=np.r_[np.repeat(y, m), 1.0], method="highs")
    found = pinball(y, np.einsum("j,njm->nm", model.weights_, B), TAU).mean()
    assert found == pytest.approx(best.fun / k, rel=2e-3)


def test_weights_see_no_row_that_its_base_saw():
    honest, memory = Fixed(0.0, 1.0), Memorising()
    model = aggregator([("honest", honest), ("memory", memory)], weights="global-coarse", lr=0.1).fit(X, Y)
    assert model.weights_[0] > 0.99  # in sample the memorising base would be perfect


def test_pinball_loss_is_the_metric_and_its_gradient_counts_what_lies_above():
    g = torch.Generator().manual_seed(0)
    y, q = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((50, 1), (50, 7)))
    q.requires_grad_()
    loss = pinball_loss(y - q, torch.as_tensor(TAU))
    assert loss.item() == pytest.approx(pinball(y[:, 0].numpy(), q.detach().numpy(), TAU).mean())
    (slope,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(slope, ((y < q).double() - torch.as_tensor(TAU)) / q.numel())


def test_rounded_pinball_loss_is_smooth_and_tends_to_the_pinball_loss():
    e, levels = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None], torch.as_tensor(TAU)
    sharp = pinball_loss(e, levels)
    gaps = [float(sharp - pinball_loss(e, levels, h)) for h in (0.5, 0.05, 0.005)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.0025
    at = torch.tensor([[0.3], [-0.3], [0.1], [0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: pinball_loss(v, levels, 0.2), at)


def test_weights_follow_the_loss_s_kink():
    """A kink as wide as the response's spread asks for expectiles, which are less extreme."""
    bases = [Fixed(scale=0.2), Fixed(scale=1.2)]
    options = {"weights": "global-medium", "lr": 0.02}
    sharp, narrow, wide = (aggregator(bases, huber=h, **options).fit(X, Y).weights_[:, 0] for h in (0.0, 1e-4, 1.0))
    np.testing.assert_allclose(narrow, sharp, atol=0.01)
    assert (wide[[0, 1, 4, 5, 6]] > sharp[[0, 1, 4, 5, 6]] + 0.05).all()


def test_penalty_is_zero_exactly_when_every_gap_is_wide_enough():
    least = torch.tensor([-1.0, 0.0, 2.0])
    assert crossing_penalty(torch.tensor([[5.0, 6.0, 8.5]]), least) == 0
    assert crossing_penalty(torch.tensor([[5.0, 6.0, 7.8]]), least) == pytest.approx((0.2 + 0.2) / 3, rel=1e-5)
    assert crossing_penalty(torch.tensor([[5.0, 4.0, 6.0]]), least) == pytest.approx((2.0 + 2.0) / 3)


@pytest.mark.parametrize("m", [1, 2, 7, 99])
def test_penalty_and_its_gradient_are_those_of_all_pairs(m):
    g = torch.Generator().manual_seed(m)
    q = torch.randn(20, m, generator=g, dtype=torch.float64, requires_grad=True)
    least = torch.randn(m, generator=g, dtype=torch.float64).sort().values / 10
    low, high = torch.triu_indices(m, m, 1)
    pairs = (q[:, low] - q[:, high] + least[high] - least[low]).relu().sum() / (20 * max(len(low), 1))
    penalty = crossing_penalty(q, least)
    torch.testing.assert_close(penalty, pairs)
    torch.testing.assert_close(*(torch.autograd.grad(value, q, retain_graph=True)[0] for value in (penalty, pairs)))


class Marginal(Fixed):
    """The training response's quantiles, spread about its median."""

    def predict(self, X, quantiles=(0.5,)):
        y = np.array(list(self.y_.values()))
        middle = np.median(y)
        return np.tile(middle + self.scale * (np.quantile(y, quantiles) - middle), (len(X), 1))


def test_affine_in_y():
    a = aggregator([Marginal(scale=0.5), Marginal(scale=2.0)]).fit(X, Y)
    b = aggregator([Marginal(scale=0.5), Marginal(scale=2.0)]).fit(X, 7 + 100 * Y)
    np.testing.assert_allclose(b.predict(X), 7 + 100 * a.predict(X), rtol=1e-3, atol=0.1)


def test_permuting_bases_permutes_weights():
    bases = [Fixed(0.5), Fixed(-1.0, 0.6), Fixed(0.0, 2.5)]
    a = aggregator(bases, weights="global-medium").fit(X, Y)
    b = aggregator(bases[::-1], weights="global-medium").fit(X, Y)
    np.testing.assert_allclose(a.weights_, b.weights_[:, ::-1], atol=1e-4)


def test_calibration_widens_what_is_too_narrow_end_to_end():
    model = aggregator([Fixed(0.0, 0.1)], conformal="cqr").fit(X, Y)
    inside = model.predict_interval(X, 0.2)
    assert ((inside[:, 0] <= Y) & (inside[:, 1] >= Y)).mean() > 0.72
    assert (np.diff(model.predict(X), axis=1) >= 0).all()
    assert model.score(X, Y) == pytest.approx(-weighted_interval_score(Y, model.predict(X), TAU))


def test_cross_calibration_uses_every_row_and_widens_what_is_too_narrow():
    model = aggregator([Fixed(0.0, 0.1)], conformal="cv+", cv=4, monotone="none").fit(X, Y)
    assert sum(map(len, model.scores_)) == len(Y)
    new = RNG.normal(size=(2000, 3))
    y = new[:, 0] + (0.5 + np.abs(new[:, 1])) * RNG.normal(size=2000)
    ends = model.predict_interval(new, 0.2)
    assert ((ends[:, 0] <= y) & (y <= ends[:, 1])).mean() == pytest.approx(0.8, abs=0.06)  # 300 rows calibrate: 2.5 sd
    for fold in model.folds_:
        (base,) = fold.bases_
        assert len(base.seen_) == 225
    q = model.predict(new)
    assert (np.diff(q, axis=1) >= 0).all()


@pytest.mark.parametrize(
    "base",
    [
        QuantileRegressor(alpha=0.0),
        GradientBoostingRegressor(loss="quantile", n_estimators=20),
        LGBMRegressor(objective="quantile", n_estimators=20, verbose=-1, n_jobs=1),
        RandomForestQuantileRegressor(n_estimators=20, random_state=0),
        GaussianNetwork(epochs=30),
        QuantileNetwork(epochs=30),
        LinearQuantile(),
    ],
    ids=lambda b: type(b).__name__,
)
def test_bases_of_other_libraries_and_our_own_beat_the_marginal_quantiles(base):
    fitted = fit_base(base, X[:200], Y[:200], TAU)
    q = predict_base(fitted, X[200:], TAU)
    assert q.shape == (100, 7)
    marginal = np.tile(np.quantile(Y[:200], TAU), (100, 1))
    assert weighted_interval_score(Y[200:], q, TAU) < weighted_interval_score(Y[200:], marginal, TAU)


def test_many_levels_are_interpolated_from_nine_fits():
    levels = np.arange(1, 100) / 100
    fitted = fit_base(QuantileRegressor(alpha=0.0), X, Y, levels)
    assert len(fitted) == 9
    assert predict_base(fitted, X, levels).shape == (300, 99)


@pytest.mark.parametrize("conformal", [None, "cqr"])
def test_the_sweep_starts_at_the_median_wherever_it_stands(conformal):
    levels = [0.5, 0.7, 0.8, 0.9]
    model = aggregator([Fixed()], quantiles=levels, monotone="sweep", conformal=conformal).fit(X, Y)
    crossed = torch.tensor([[3.0, 1.0, 2.0, 4.0]])
    assert model._in_order(crossed, "sweep").tolist() == [[3.0, 3.0, 3.0, 4.0]]
    np.testing.assert_allclose(model.predict(X)[:, 0], X[:, 0], atol=1e-5)


def test_with_memory_a_further_base_costs_only_its_own_fits(tmp_path, monkeypatch):
    fits, fit = [], quantile_kept.fit_base
    monkeypatch.setattr(quantile_kept, "fit_base", lambda e, *given: (fits.append(e.alpha), fit(e, *given))[1])
    first, second = LinearQuantile(alpha=0.01), LinearQuantile(alpha=0.02)
    models = [aggregator(bases, memory=str(tmp_path / "kept")).fit(X, Y) for bases in ([first], [first, second])]
    assert fits == [0.01] * 6 + [0.02] * 6
    np.testing.assert_allclose(predict_base(models[1].bases_[0], X, TAU), predict_base(models[0].bases_[0], X, TAU))


def test_a_failure_is_not_kept_in_memory(tmp_path, monkeypatch):
    def fails(*given):
        raise RuntimeError("broken")

    model = aggregator([LinearQuantile()], memory=str(tmp_path / "kept"))
    with monkeypatch.context() as broken:
        broken.setattr(quantile_kept, "fit_base", fails)
        with pytest.raises(ValueError, match="RuntimeError: broken"):
            model.fit(X, Y)
    assert model.fit(X, Y).names_ == ["linearquantile"]


def test_pipelines_clones_frames_and_plots():
    model = clone(aggregator([Fixed(0.0), Fixed(1.0)], weights="local-fine"))
    assert make_pipeline(StandardScaler(), model).fit(X, Y).predict(X[:4]).shape == (4, 7)
    fitted = aggregator([Fixed(0.0), Fixed(1.0)]).fit(X, Y)
    assert fitted.plot_weights().collections
    matplotlib.pyplot.close("all")


def test_free_weights_reach_beyond_the_convex_hull():
    pair = [Fixed(1.0), Fixed(2.0)]
    free = aggregator(pair, weights="global-coarse", normalize=False, lr=0.05, max_steps=2000).fit(X, Y)
    assert free.score(X, Y) > aggregator(pair, weights="global-coarse").fit(X, Y).score(X, Y)


class Failing(Fixed):
    def fit(self, X, y):
        raise RuntimeError("out of luck")


def test_a_failing_base_is_named_or_dropped():
    with pytest.raises(ValueError, match="bad: RuntimeError: out of luck"):
        aggregator([("good", Fixed()), ("bad", Failing())]).fit(X, Y)
    with pytest.warns(UserWarning, match="bad is left out"):
        model = aggregator([("good", Fixed()), ("bad", Failing())], on_error="drop").fit(X, Y)
    assert model.names_ == ["good"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": [0.5, 0.1]}, "must ascend"),
        ({"quantiles": [0.0, 0.5]}, "within"),
        ({"weights": "local-corse"}, "did you mean local-coarse"),
        ({"monotone": "sweep", "quantiles": [0.1, 0.9]}, "0.5 must be among"),
        ({"cv": 200}, "too few for cv=200"),
        ({"huber": -0.1}, "huber is -0.1; a number from 0"),
        ({"conformal": "cv"}, "did you mean cv[+]"),
        ({"cv": GroupKFold()}, r"cv is GroupKFold\(.*; a whole number from 2 on"),
        ({"cv": 1}, "cv is 1; a whole number from 2 on"),
        ({"cv": 2.5}, "cv is 2.5"),
        ({"calibration": 0}, "calibration is 0; a number from 0.01 to 0.99"),
        ({"calibration": -0.5}, "calibration is -0.5"),
        ({"calibration": 1.0}, "calibration is 1.0"),
        ({"calibration": "half"}, "calibration is half"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'; accepted: drop, raise"),
        ({"crossing": -1.0}, "crossing is -1.0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"max_steps": -1}, "max_steps is -1; a whole number from 0 on"),
        ({"patience": 0}, "patience is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "small"}, "batch_size is small"),
        ({"hidden": (0,)}, r"hidden is \(0,\)"),
        ({"random_state": -1}, "random_state is -1; a seed from 0"),
        ({"random_state": "seed"}, "cannot be used to seed"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        aggregator([Fixed()], **options).fit(X, Y)


def test_a_random_state_of_none_draws_its_own_seed_and_a_generator_gives_one():
    bases = [GaussianNetwork(epochs=2, random_state=None)]
    fresh = [aggregator(bases, random_state=None, max_steps=20).fit(X, Y) for _ in range(2)]
    assert fresh[0].seed_ != fresh[1].seed_
    assert not np.array_equal(fresh[0].predict(X), fresh[1].predict(X))
    drawn = [aggregator([Fixed()], random_state=np.random.RandomState(3), max_steps=0).fit(X, Y).seed_ for _ in "ab"]
    assert drawn[0] == drawn[1]
    calibrated = aggregator([Fixed()], random_state=None, conformal="cv+", cv=2, max_steps=0).fit(X, Y)
    assert [f.seed_ for f in calibrated.folds_] == [calibrated.seed_] * 2


def test_the_rows_that_bases_see_are_those_that_are_foretold():
    for conformal, n in (("cqr", 240), ("cv+", 300), (None, 300)):
        model = aggregator([Memorising()], conformal=conformal, cv=2, max_steps=0).fit(X, Y)
        rows = model.fitting_rows(300)
        assert len(rows) == n
        assert model.bases_[0].seen_ == {tuple(r) for r in X[rows]}


@pytest.mark.parametrize("levels", [(0.9,), (0.5, 0.9), (0.1,), (0.05, 0.5, 0.8)])
@pytest.mark.parametrize("conformal", ["cqr", "cv+"])
def test_levels_without_a_partner_are_calibrated_one_by_one(levels, conformal):
    rng = np.random.default_rng(5)
    Z = rng.normal(size=(1500, 3))
    y = Z[:, 0] + (0.5 + np.abs(Z[:, 1])) * rng.normal(size=1500)
    model = aggregator([Fixed(0.0, 0.1)], quantiles=levels, conformal=conformal, cv=3, max_steps=10).fit(
        Z[:700], y[:700]
    )
    below = (y[700:, None] <= model.predict(Z[700:])).mean(0)
    for level, share in zip(levels, below, strict=True):
        if level != 0.5:  # 140 rows calibrate by cqr, 800 judge: three standard deviations
            sd = np.sqrt(level * (1 - level) * (1 / (140 if conformal == "cqr" else 700) + 1 / 800))
            assert share == pytest.approx(level, abs=3 * sd), level


@pytest.mark.parametrize("conformal", ["cqr", "cv+"])
def test_no_rows_are_kept_from_a_median_alone(conformal):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = aggregator([Memorising()], quantiles=(0.5,), conformal=conformal, max_steps=0).fit(X, Y)
    assert len(model.bases_[0].seen_) == 300
    np.testing.assert_array_equal(model.predict(X), model.predict_uncalibrated(X))


def test_what_is_not_calibrated_is_in_order():
    model = aggregator([Fixed(scale=-1.0)], conformal="cqr").fit(X, Y)
    before = model.predict_uncalibrated(X)
    assert (np.diff(before, axis=1) >= 0).all()
    np.testing.assert_allclose(np.sort(before + model.widening_, 1), model.predict(X))


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="y is constant"):
        aggregator([Fixed()]).fit(X, np.ones(300))
    with pytest.raises(ValueError, match="LinearRegression predicts no quantiles"):
        aggregator([LinearRegression()]).fit(X, Y)
    with pytest.raises(ValueError, match=r"alpha is 0\.3; the levels have symmetric pairs for 0\.1"):
        aggregator([Fixed()]).fit(X, Y).predict_interval(X, 0.3)
    with pytest.warns(UserWarning, match=r"60 rows of calibration guarantee intervals down to alpha = 0.0164"):
        aggregator([Fixed()], conformal="cqr", quantiles=[0.001, 0.5, 0.999]).fit(X, Y)


def test_settings_are_these_where_none_are_given():
    assert QuantileAggregator().get_params() == {
        "estimators": None, "quantiles": LEVELS, "weights": "local-medium", "normalize": True, "monotone": "sort",
        "in_training": False, "conformal": "cqr", "crossing": 1.0, "margin": 0.01, "huber": 0.0, "hidden": (64, 64),
        "dropout": 0.0, "cv": 5, "calibration": 0.2, "batch_size": 256, "lr": 3e-3, "weight_decay": 1e-7,
        "max_steps": 4000, "patience": 300, "on_error": "raise", "memory": None, "n_jobs": None, "random_state": 0,
        "verbose": False,
    }  # fmt: skip
    assert list(LEVELS) == [round(k / 100, 2) for k in range(1, 100)]
    assert WEIGHTS == (
        "global-coarse", "global-medium", "global-fine", "local-coarse", "local-medium", "local-fine"
    )  # fmt: skip
    for network in (GaussianNetwork(), QuantileNetwork()):
        assert network.get_params() == {"hidden": (64, 64), "epochs": 200, "random_state": 0}
    model = QuantileAggregator(quantiles=[0.5], cv=2, max_steps=0).fit(X[:60], Y[:60])
    assert model.names_ == ["linear", "boosting", "gaussian"]
    (linear,), (boosting,), gaussian = model.bases_
    assert linear.get_params() == LinearQuantile().get_params()
    assert (boosting.loss, boosting.quantile, boosting.max_iter) == ("quantile", 0.5, 60)
    assert gaussian.get_params() == GaussianNetwork().get_params()


def test_names_are_those_given_or_the_kinds_and_none_occurs_twice():
    bases = [Fixed(), ("mine", Fixed(1.0)), Fixed(2.0), ("mine", Fixed(3.0)), Fixed(4.0)]
    model = aggregator(bases, max_steps=0).fit(X, Y)
    assert model.names_ == ["fixed", "mine", "fixed-2", "mine-2", "fixed-3"]
    assert [b.shift for b in model.bases_] == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="at least one base model"):
        aggregator([]).fit(X, Y)


@pytest.mark.parametrize("name", ["crossing", "margin", "huber", "dropout", "calibration", "lr", "weight_decay"])
def test_every_number_has_its_range(name):
    low, high = {
        "crossing": (0.0, np.inf), "margin": (0.0, np.inf), "huber": (0.0, np.inf), "dropout": (0.0, 0.99),
        "calibration": (0.01, 0.99), "lr": (1e-12, 1e3), "weight_decay": (0.0, 1e3),
    }[name]  # fmt: skip
    for value in (low, min(high, 7.0)):
        aggregator([Fixed()], **{name: value})._levels()
    aggregator([Fixed()], **{name: high})._levels()
    for value in (np.nextafter(low, -np.inf), np.nextafter(high, np.inf) if high < np.inf else -0.1, True, "1", None):
        with pytest.raises(ValueError, match=f"{name} is .*; a number from"):
            aggregator([Fixed()], **{name: value})._levels()


def test_every_count_has_its_least_value():
    for name, low in (("cv", 2), ("max_steps", 0), ("patience", 1), ("batch_size", 1)):
        aggregator([Fixed()], **{name: low})._levels()
        for value in (low - 1, True, 2.5, "paper" if name != "batch_size" else "Paper"):
            with pytest.raises(ValueError, match=f"{name} is {value}; a whole number from {low} on"):
                aggregator([Fixed()], **{name: value})._levels()
    aggregator([Fixed()], batch_size="paper", hidden=(1,))._levels()
    for levels in ([], [[0.1, 0.5]], [0.1, 0.1], [0.5, 1.0], [-0.1, 0.5], [0.1, np.nan]):
        with pytest.raises(ValueError, match="must ascend within"):
            aggregator([Fixed()], quantiles=levels)._levels()


def test_the_least_rows_are_two_a_fold():
    assert aggregator([Fixed()], cv=5, max_steps=0).fit(X[:10], Y[:10])
    with pytest.raises(ValueError, match="n_samples=9 is too few for cv=5 folds and 0 rows of calibration"):
        aggregator([Fixed()], cv=5, max_steps=0).fit(X[:9], Y[:9])
    with pytest.raises(ValueError, match="n_samples=12 is too few for cv=5 folds and 3 rows of calibration"):
        aggregator([Fixed()], cv=5, conformal="cqr", calibration=0.25, max_steps=0).fit(X[:12], Y[:12])


def test_an_alpha_that_no_row_guarantees_is_told_to_who_asked():
    options = {"conformal": "cqr", "quantiles": [0.05, 0.95], "max_steps": 0, "cv": 2, "calibration": 0.5}
    with pytest.warns(UserWarning, match="8 rows of calibration guarantee intervals down to alpha = 0.111") as record:
        aggregator([Fixed()], **options).fit(X[:16], Y[:16])
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aggregator([Fixed()], **options).fit(X[:18], Y[:18])  # 9 rows: α = 0.1
        aggregator([Fixed()], **{**options, "conformal": None}).fit(X[:16], Y[:16])
    with pytest.warns(UserWarning, match="8 rows of calibration"):
        aggregator([Fixed()], **{**options, "conformal": "cv+"}).fit(X[:8], Y[:8])


def test_weights_are_the_softmax_of_what_was_learned_and_start_equal():
    bases, tau = [Fixed(0.0), Fixed(2.0)], np.array([0.1, 0.5, 0.9])
    for weights, normalize, shape in (
        ("global-coarse", True, (2,)), ("global-medium", True, (3, 2)), ("global-fine", True, (3, 2, 3)),
        ("global-coarse", False, (2,)), ("global-medium", False, (3, 2)), ("global-fine", False, (3, 2, 3)),
    ):  # fmt: skip
        model = aggregator(bases, quantiles=tau, weights=weights, normalize=normalize, max_steps=0).fit(X, Y)
        assert model.weights_.shape == shape
        if weights.endswith("fine"):  # at its own level each model has a half, the rest close to nothing
            own = np.exp(8) / (2 * np.exp(8) + 4) if normalize else 0.5
            other = 1 / (2 * np.exp(8) + 4) if normalize else 0.0
            expected = np.where(np.eye(3)[:, None, :] == 1, own, other) + np.zeros((3, 2, 3))
        else:
            expected = np.full(shape, 0.5)
        np.testing.assert_allclose(model.weights_, expected, rtol=1e-5, atol=1e-7)


def test_local_weights_are_the_mean_over_the_rows_that_were_fitted():
    bases = [Fixed(0.0), Fixed(2.0)]
    model = aggregator(bases, weights="local-medium", hidden=(4,), max_steps=100).fit(X, Y)
    x = torch.as_tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    with torch.no_grad():
        raw = model.net_(x).reshape(len(X), 2, len(TAU)).softmax(1)
    np.testing.assert_allclose(model.weights_, raw.mean(0).T, rtol=1e-4)
    B = np.stack([b.predict(X, TAU) for b in bases], 1)
    expected = np.sort((raw.numpy() * B).sum(1), 1)
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-4)
    widths = [layer.out_features for layer in model.net_ if isinstance(layer, torch.nn.Linear)]
    assert widths == [4, 2 * len(TAU)]
    dropped = aggregator(bases, hidden=(4, 3), dropout=0.3, max_steps=1).fit(X, Y)
    assert [layer.p for layer in dropped.net_ if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]


def test_training_looks_every_ten_steps_at_a_tenth_of_the_rows_and_stops_by_its_patience(monkeypatch):
    batches, adam = [], torch.optim.Adam
    combined = QuantileAggregator._combined
    monkeypatch.setattr(
        QuantileAggregator, "_combined", lambda self, net, x, B: (batches.append(len(B)), combined(self, net, x, B))[1]
    )
    seen = {}
    monkeypatch.setattr(torch.optim, "Adam", lambda p, **how: seen.update(how) or adam(p, **how))
    model = aggregator([Fixed(0.0), Fixed(2.0)], batch_size=100, lr=0.02, weight_decay=0.5, max_steps=25).fit(X, Y)
    assert (seen["lr"], seen["weight_decay"]) == (0.02, 0.5)
    assert batches == [30, *[100, 100, 70] * 3, 100, 30, 100, 70, *[100, 100, 70] * 2, 100, 100, 30, 70, *[100] * 2, 70,
                       100][: len(batches)]  # fmt: skip
    assert len(model.losses_) == 3
    assert sum(b != 30 for b in batches) == 25
    batches.clear()
    aggregator([Fixed(0.0), Fixed(2.0)], batch_size="paper", max_steps=3).fit(X, Y)
    assert batches == [30, 32, 32, 32]  # 2^(3 + 2) of 300 rows
    for patience, looks in ((1, 2), (10, 2), (11, 3), (20, 3)):
        model = aggregator([Fixed()], patience=patience, max_steps=1000).fit(X, Y)  # one base: nothing gets better
        assert len(model.losses_) == looks


def test_the_best_weights_on_the_rows_held_out_are_kept():
    model = aggregator([Fixed(0.0), Fixed(2.0)], weights="global-coarse", lr=1.0, max_steps=60, patience=1000)
    model.fit(X, Y)
    rows = torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))[:30].numpy()
    q = np.einsum("p,npm->nm", model.weights_, np.stack([b.predict(X[rows], TAU) for b in model.bases_], 1))
    held = pinball(Y[rows], np.sort(q, 1), TAU).mean() / Y.std()
    assert held == pytest.approx(min(model.losses_), rel=1e-4)
    assert min(model.losses_) < model.losses_[0]


def test_predictions_in_many_blocks_are_those_of_single_rows():
    many = RNG.normal(size=(5000, 3))
    for weights in ("local-medium", "global-fine", "local-fine"):
        model = aggregator([Fixed(0.0), Fixed(1.0)], weights=weights, max_steps=20).fit(X, Y)
        whole = model.predict(many)
        np.testing.assert_allclose(model.predict(many[[0, 2047, 2048, 4999]]), whole[[0, 2047, 2048, 4999]], atol=1e-5)


def test_a_penalty_on_crossing_and_order_in_training_change_the_weights():
    options = {"weights": "global-coarse", "lr": 0.05, "monotone": "none"}
    spread = [Fixed(scale=0.1), Fixed(scale=4.0)]
    free, strict = (aggregator(spread, crossing=c, margin=2.0, **options).fit(X, Y).weights_ for c in (0.0, 50.0))
    assert strict[1] > free[1] + 0.1  # gaps twice as wide as the response's are asked for
    bases = [Fixed(scale=-2.0), Fixed(scale=1.0)]  # the first one's quantiles cross, and put in order they are wide
    inside = aggregator(bases, in_training=True, crossing=0.0, **{**options, "monotone": "sort"}).fit(X, Y).weights_
    outside = aggregator(bases, crossing=0.0, **{**options, "monotone": "sort"}).fit(X, Y).weights_
    assert inside[0] > outside[0] + 0.2


def test_the_plot_shows_a_models_weight_by_level():
    for weights in ("global-coarse", "global-medium", "global-fine"):
        model = aggregator([Fixed(0.0), Fixed(2.0)], weights=weights, max_steps=20).fit(X, Y)
        ax = matplotlib.pyplot.subplots()[1]
        assert model.plot_weights(ax) is ax
        assert ax.get_ylabel() == "weight"
        if weights == "global-coarse":
            np.testing.assert_allclose([bar.get_height() for bar in ax.patches], model.weights_)
            assert [t.get_text() for t in ax.get_xticklabels()] == model.names_
        else:
            assert ax.get_xlabel() == "level"
            assert [t.get_text() for t in ax.get_legend().get_texts()] == model.names_
            w = model.weights_ if model.weights_.ndim == 2 else model.weights_.sum(2)
            top = ax.collections[0].get_paths()[0].vertices
            for level, height in zip(TAU, w[:, 0], strict=True):
                assert np.isclose(top[np.isclose(top[:, 0], level), 1], height, atol=1e-6).any()
    model.plot_weights()
    matplotlib.pyplot.close("all")


def test_a_failure_is_told_to_who_asked_and_all_failures_together():
    class Odd(Fixed):
        def predict(self, X, quantiles=(0.5,)):
            return np.full((len(X), len(quantiles)), np.inf)

    with pytest.warns(UserWarning, match="base model odd is left out: predicts NaN or Inf"):
        model = aggregator([Fixed(), Odd()], on_error="drop", max_steps=0).fit(X, Y)
    assert model.names_ == ["fixed"]
    with pytest.raises(ValueError, match="base models failed: odd: predicts NaN or Inf; failing: RuntimeError"):
        aggregator([Odd(), Failing()], on_error="drop").fit(X, Y)


@pytest.mark.parametrize("kind", [GaussianNetwork, QuantileNetwork])
def test_a_network_keeps_its_best_epoch_and_stops_after_twenty_without_a_better(kind):
    epochs = []

    class Planted(kind):
        def _loss(self, out, y):
            if torch.is_grad_enabled():
                return super()._loss(out, y)
            epochs.append(len(y))
            return torch.tensor({1: 3.0, 2: 4.0, 3: 2.0}.get(len(epochs), 2.0))

    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(80, 2)), rng.normal(size=80)
    found = Planted((8,), epochs=99).fit(x, noise)
    assert epochs == [8] * 23  # a tenth of the rows judges, and the third epoch was the best
    epochs.clear()
    np.testing.assert_array_equal(found.predict(x), Planted((8,), epochs=3).fit(x, noise).predict(x))
    short = kind((8,), epochs=30).fit(x, noise)
    assert not np.allclose(kind((8,), epochs=30, random_state=1).fit(x, noise).predict(x), short.predict(x))
    assert short.predict(x).shape == (80,)
    assert short.predict(x, [0.1, 0.5]).shape == (80, 2)
    np.testing.assert_allclose(short.predict(x, [0.1, 0.5])[:, 1], short.predict(x))
    moved = kind((8,), epochs=30).fit(3 * x + 1, 10 * noise - 4)
    np.testing.assert_allclose(moved.predict(3 * x + 1, [0.2]), 10 * short.predict(x, [0.2]) - 4, atol=1e-2)


def test_a_gaussian_networks_quantiles_are_those_of_a_normal_and_fit_one():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(3000, 1))
    y = 2 * x[:, 0] + np.exp(x[:, 0]) * rng.normal(size=3000)
    model = GaussianNetwork((16,), epochs=60).fit(x, y)
    at = np.array([[-0.5], [0.0], [0.5]])
    q = model.predict(at, norm.cdf([-1, 0, 1, 2]))
    np.testing.assert_allclose(np.diff(q, axis=1), np.diff(q, axis=1)[:, :1] * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(q[:, 1], 2 * at[:, 0], atol=0.2)
    np.testing.assert_allclose(np.log(q[:, 2] - q[:, 1]), at[:, 0], atol=0.2)
    out, t = torch.tensor([[0.5, 0.2], [-1.0, 9.0]]), torch.tensor([1.0, 2.0])
    log_s = np.array([0.2, 6.0])  # at most
    expected = np.mean(log_s + (np.array([0.5, 3.0]) / np.exp(log_s)) ** 2 / 2)
    assert float(model._loss(out, t)) == pytest.approx(expected, rel=1e-6)


def test_a_quantile_networks_loss_is_the_pinball_loss_of_25_levels():
    model, levels = QuantileNetwork(), np.linspace(0.01, 0.99, 25)
    out, y = torch.randn(7, 25), torch.randn(7)
    assert float(model._loss(out, y)) == pytest.approx(pinball(y.numpy(), out.numpy(), levels).mean(), rel=1e-5)
    assert (GaussianNetwork()._outputs(), model._outputs()) == (2, 25)
    rng = np.random.default_rng(0)
    fitted = QuantileNetwork((8,), epochs=3).fit(rng.normal(size=(200, 1)), rng.normal(size=200))
    rows = rng.normal(size=(5, 1))
    np.testing.assert_allclose(
        fitted.predict(rows, levels), np.sort(fitted._forward(rows), 1) * fitted.y_scale_ + fitted.y_mean_, rtol=1e-5
    )


def test_levels_in_between_are_linear_in_normal_quantiles():
    tau = np.array([0.05, 0.2, 0.5, 0.9])
    values = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])
    knots = norm.ppf([0.1, 0.5, 0.9])
    for row, found in zip(values, interpolate(values, knots, norm.ppf(tau)), strict=True):
        slopes = np.diff(row) / np.diff(knots)
        expected = [row[0] + slopes[0] * (norm.ppf(0.05) - knots[0]), row[0] + slopes[0] * (norm.ppf(0.2) - knots[0]),
                    row[1], row[2]]  # fmt: skip
        np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(interpolate(np.array([[3.0], [4.0]]), knots[:1], knots), [[3.0] * 3, [4.0] * 3])
    nine = fitted_levels(np.arange(1, 100) / 100)
    np.testing.assert_allclose(nine, [0.01, 0.13, 0.25, 0.38, 0.5, 0.62, 0.75, 0.87, 0.99], atol=0.011)
    assert (nine[0], nine[-1], len(nine)) == (0.01, 0.99, 9)
    assert len(fitted_levels(np.linspace(0.1, 0.9, 9))) == 9
    assert fitted_levels(np.linspace(0.1, 0.9, 9)).tolist() == np.linspace(0.1, 0.9, 9).tolist()


def test_a_models_level_is_found_by_its_parameters():
    assert level_parameter(QuantileRegressor()) == "quantile"
    assert level_parameter(GradientBoostingRegressor(loss="quantile")) == "alpha"
    assert level_parameter(LGBMRegressor(objective="quantile")) == "alpha"
    assert level_parameter(HistGradientBoostingRegressor(loss="quantile")) == "quantile"
    for model in (HistGradientBoostingRegressor(), GradientBoostingRegressor(), LGBMRegressor(), LinearRegression()):
        with pytest.raises(ValueError, match=f"{type(model).__name__} predicts no quantiles"):
            level_parameter(model)
    fits = fit_base(QuantileRegressor(alpha=0.0), X, Y, TAU)
    assert [f.quantile for f in fits] == TAU.tolist()
    assert [f.alpha for f in fit_base(GradientBoostingRegressor(loss="quantile", n_estimators=2), X, Y, TAU)] == list(
        TAU
    )


@pytest.mark.parametrize(("given", "seed"), [(0, 0), (7, 7), (np.int64(9), 9), (2**32 - 1, 2**32 - 1)])
def test_a_seed_is_the_integer_itself(given, seed):
    assert seed_of(given) == seed
    first, second = seed_of(np.random.RandomState(3)), seed_of(np.random.RandomState(3))
    assert first == second == np.random.RandomState(3).randint(2**31 - 1)
    assert len({seed_of(None) for _ in range(5)}) > 1
    for bad in (-1, 2**32):
        with pytest.raises(ValueError, match=f"random_state is {bad}; a seed from 0 to 2"):
            seed_of(bad)
    with pytest.raises(ValueError, match="cannot be used to seed"):
        seed_of("seed")
