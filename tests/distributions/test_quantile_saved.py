import json

import numpy as np
import pytest
from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import QuantileRegressor
from skops import io

from rankwise.distributions import quantile_saved
from rankwise.distributions.quantile_aggregation import WEIGHTS, QuantileAggregator
from rankwise.distributions.quantile_bases import GaussianNetwork, QuantileNetwork
from rankwise.distributions.quantile_linear import LinearQuantile

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
EVERY = [
    ("linear", QuantileRegressor(alpha=1e-3)),
    ("lasso", LinearQuantile()),
    ("lightgbm", LGBMRegressor(objective="quantile", n_estimators=5, verbose=-1)),
    ("histogram", HistGradientBoostingRegressor(loss="quantile", quantile=0.5, max_iter=5)),
    ("forest", RandomForestQuantileRegressor(5)),
    ("gaussian", GaussianNetwork(epochs=3)),
    ("network", QuantileNetwork(epochs=3)),
]


def data(n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    return X, X[:, 0] + rng.normal(size=n)


def fitted(bases=None, **options) -> QuantileAggregator:
    options = {"quantiles": LEVELS, "max_steps": 50} | options
    return QuantileAggregator(bases or [("gaussian", GaussianNetwork(epochs=3))], **options).fit(*data())


def test_every_kind_of_base_predicts_the_same_after_saving(tmp_path):
    model = fitted(EVERY)
    quantile_saved.save(model, tmp_path / "m")
    again = quantile_saved.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(data()[0]), model.predict(data()[0]))
    assert again.names_ == [name for name, _ in EVERY]
    np.testing.assert_array_equal(again.weights_, model.weights_)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_kind_of_weights_is_kept(tmp_path, weights):
    model = fitted(weights=weights, hidden=(8,), monotone="isotonic")
    quantile_saved.save(model, tmp_path / "m")
    np.testing.assert_array_equal(quantile_saved.load(tmp_path / "m").predict(data()[0]), model.predict(data()[0]))


def test_fits_without_each_fold_are_kept(tmp_path):
    model = fitted(conformal="cv+", cv=2)
    quantile_saved.save(model, tmp_path / "m")
    again = quantile_saved.load(tmp_path / "m")
    assert [len(E) for E in again.scores_] == [75, 75]
    np.testing.assert_array_equal(again.predict(data()[0]), model.predict(data()[0]))
    (tmp_path / "m" / "scores.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds a broken quantile model"):
        quantile_saved.load(tmp_path / "m")
    quantile_saved.save(model, tmp_path / "again")
    (tmp_path / "again" / "fold-1" / "aggregator.json").unlink()
    with pytest.raises(ValueError, match="fold-1 holds no quantile model"):
        quantile_saved.load(tmp_path / "again")


class Own(BaseEstimator):
    """A base of the user's."""

    def fit(self, X, y):
        self.value_ = float(np.mean(y))
        return self

    def predict(self, X, quantiles=(0.5,)):
        return np.full((len(X), len(quantiles)), self.value_)


def test_a_base_that_is_not_plain_data_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="Own cannot be kept"):
        quantile_saved.save(fitted([Own()]), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_type_that_was_not_asked_for_is_not_built(tmp_path):
    quantile_saved.save(fitted(), tmp_path / "m")
    (tmp_path / "m" / "bases.skops").write_bytes(io.dumps({"bases": [Own().fit(*data())], "scaler": None}))
    with pytest.raises(ValueError, match="is refused"):
        quantile_saved.load(tmp_path / "m")


def test_an_absent_or_broken_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"aggregator.json is missing"):
        quantile_saved.load(tmp_path)
    quantile_saved.save(fitted(), tmp_path / "m")
    (tmp_path / "m" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken quantile model"):
        quantile_saved.load(tmp_path / "m")
    (tmp_path / "m" / "aggregator.json").write_text(json.dumps({"options": {"wrong": 1}}))
    with pytest.raises(ValueError, match="broken quantile model"):
        quantile_saved.load(tmp_path / "m")
