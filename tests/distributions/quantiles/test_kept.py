import json

import numpy as np
import pytest
from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator

from rankwise.distributions.quantiles import kept as quantile_kept
from rankwise.distributions.quantiles.bases import GaussianNetwork, QuantileNetwork
from rankwise.distributions.quantiles.kept import Kept
from rankwise.distributions.quantiles.linear import LinearQuantile

TAU = np.array([0.1, 0.5, 0.9])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3))
Y = X[:, 0] + RNG.normal(size=120)
TRAIN, TEST = np.arange(80), np.arange(80, 120)


@pytest.fixture
def fits(monkeypatch):
    """Kinds of the estimators that were fitted."""
    seen = []
    fit = quantile_kept.fit_base
    monkeypatch.setattr(quantile_kept, "fit_base", lambda e, *given: (seen.append(type(e).__name__), fit(e, *given))[1])
    return seen


@pytest.mark.parametrize(
    "base",
    [
        LinearQuantile(),
        LGBMRegressor(objective="quantile", n_estimators=4, verbose=-1, random_state=0),
        RandomForestQuantileRegressor(4, random_state=0),
        GaussianNetwork(epochs=2),
    ],
    ids=lambda b: type(b).__name__,
)
def test_a_fit_that_was_made_before_is_not_made_again(tmp_path, fits, base):
    results = []
    for _ in range(2):
        kept = Kept(tmp_path, X, Y, TAU)
        results.append((kept.predicted(base, TRAIN, TEST), kept.fitted(base)))
    assert len(fits) == 2  # the first time: one on a part, one on all
    np.testing.assert_array_equal(*[q for q, _ in results])
    values = [quantile_kept.predict_base(model, X, TAU) for _, model in results]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("what", ["rows", "responses", "levels", "parameter", "kind", "part", "library"])
def test_a_fit_of_anything_else_is_not_reused(tmp_path, fits, monkeypatch, what):
    base = GaussianNetwork(epochs=2)
    Kept(tmp_path, X, Y, TAU).predicted(base, TRAIN, TEST)
    rows, responses, levels, train = X.copy(), Y.copy(), TAU, TRAIN
    if what == "rows":
        rows[3, 1] += 1e-12
    elif what == "responses":
        responses[0] += 1e-12
    elif what == "levels":
        levels = np.array([0.1, 0.5, 0.8])
    elif what == "parameter":
        base = GaussianNetwork(epochs=3)
    elif what == "kind":
        base = QuantileNetwork(epochs=2)
    elif what == "part":
        train = TRAIN[:-1]
    else:
        monkeypatch.setattr("torch.__version__", "0.0")
    Kept(tmp_path, rows, responses, levels).predicted(base, train, TEST)
    assert len(fits) == 2


class Own(BaseEstimator):
    def __init__(self, seed=0):
        self.seed = seed

    def fit(self, X, y):
        return self

    def predict(self, X, quantiles=(0.5,)):
        return np.zeros((len(X), len(quantiles)))


@pytest.mark.parametrize(
    "base", [Own(), GaussianNetwork(epochs=1, random_state=None)], ids=["of the user's", "no seed"]
)
def test_what_cannot_be_recognised_is_fitted_anew(tmp_path, fits, base):
    for _ in range(2):
        Kept(tmp_path, X, Y, TAU).predicted(base, TRAIN, TEST)
    assert len(fits) == 2
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_kept(fits):
    for _ in range(2):
        Kept(None, X, Y, TAU).fitted(LinearQuantile())
    assert len(fits) == 2


@pytest.mark.parametrize("flaw", ["cut short", "a pickle", "other arrays", "indices", "depth"])
def test_a_broken_or_planted_file_is_fitted_over_and_never_run(tmp_path, fits, flaw):
    base = RandomForestQuantileRegressor(4, random_state=0)
    kept = Kept(tmp_path, X, Y, TAU)
    honest, part = kept.fitted(base), kept.predicted(base, TRAIN, TEST)
    ran = tmp_path / "ran"
    for path in tmp_path.glob("*.safetensors"):
        if flaw == "cut short":
            path.write_bytes(path.read_bytes()[:50])
        elif flaw == "a pickle":
            path.write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
        elif flaw == "other arrays":
            save_file({"q": load_file(path).popitem()[1][:1]}, path)
        elif flaw == "depth":
            save_file(load_file(path), path, metadata={"about": "[" * 100_000})
        else:
            arrays = {k: v + 10**9 if k.endswith("left") else v for k, v in load_file(path).items() if k != "q"}
            save_file(arrays, path, metadata={"about": json.dumps([[{"kind": "forest"}]])})
    again = Kept(tmp_path, X, Y, TAU)
    np.testing.assert_array_equal(again.fitted(base).predict(X, list(TAU)), honest.predict(X, list(TAU)))
    np.testing.assert_array_equal(again.predicted(base, TRAIN, TEST), part)
    assert len(fits) == 4
    assert not ran.exists()


def test_what_is_kept_is_named_by_all_that_decides_a_fit(tmp_path, fits):
    base = LinearQuantile(alpha=0.01)
    kept = Kept(tmp_path, X, Y, TAU)
    kept.predicted(base, TRAIN, TEST)
    kept.predicted(base, TRAIN, TEST[:-1])
    kept.predicted(base, TRAIN[1:], TEST)
    kept.fitted(base)
    assert len(fits) == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    again = Kept(tmp_path, X, Y, TAU)
    assert again.predicted(base, TRAIN, TEST[:-1]).shape == (39, 3)
    again.fitted(LinearQuantile(alpha=0.01))
    assert len(fits) == 4
    again.fitted(LinearQuantile(alpha=0.02))
    Kept(tmp_path, X[:, :2], Y, TAU).fitted(base)
    assert len(fits) == 6
    Kept(tmp_path, X.reshape(60, 6)[:60], Y[:60], TAU).predicted(base, TRAIN[:40], TEST[:5] - 50)  # another shape
    assert len(fits) == 7


def test_a_parameter_that_is_no_plain_value_is_not_kept(tmp_path, fits):
    base = RandomForestQuantileRegressor(2, random_state=np.random.RandomState(0))
    for _ in range(2):
        Kept(tmp_path, X, Y, TAU).predicted(base, TRAIN, TEST)
    assert len(fits) == 2
    assert not list(tmp_path.iterdir())
    own = Own()
    assert Kept(tmp_path, X, Y, TAU).fitted(own).predict(X, TAU).shape == (120, 3)  # a kind that is not kept
    assert not list(tmp_path.iterdir())


def test_predictions_are_of_the_rows_asked_for_by_a_fit_to_the_others(tmp_path):
    seen = {}

    class Seeing(Own):
        def fit(self, X, y):
            seen.update(X=X, y=y)
            return self

        def predict(self, X, quantiles=(0.5,)):
            return np.repeat(X[:, :1], len(quantiles), axis=1)

    found = Kept(None, X, Y, TAU).predicted(Seeing(), TRAIN[::2], TEST[::-1])
    np.testing.assert_array_equal(found, np.repeat(X[TEST[::-1], :1], 3, axis=1))
    np.testing.assert_array_equal(seen["X"], X[TRAIN[::2]])
    np.testing.assert_array_equal(seen["y"], Y[TRAIN[::2]])
    Kept(None, X, Y, TAU).fitted(Seeing())
    assert len(seen["X"]) == 120
