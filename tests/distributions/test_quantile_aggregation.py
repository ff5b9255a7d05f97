import warnings

import matplotlib
import numpy as np
import pytest
import torch
from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from scipy.optimize import linprog
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise.distributions import quantile_kept
from rankwise.distributions.quantile_aggregation import WEIGHTS, QuantileAggregator, crossing_penalty, pinball_loss
from rankwise.distributions.quantile_bases import GaussianNetwork, QuantileNetwork, fit_base, predict_base
from rankwise.distributions.quantile_linear import LinearQuantile
from rankwise.distributions.quantile_metrics import pinball, weighted_interval_score

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
    check(estimator)


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
