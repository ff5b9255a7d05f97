import json
import shutil

import numpy as np
import pytest
from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import QuantileRegressor

from rankwise.distributions.quantiles import saved as quantile_saved
from rankwise.distributions.quantiles.aggregation import WEIGHTS, QuantileAggregator
from rankwise.distributions.quantiles.bases import GaussianNetwork, QuantileNetwork
from rankwise.distributions.quantiles.linear import LinearQuantile

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


@pytest.fixture(scope="module")
def every():
    return fitted(EVERY)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "m"
    quantile_saved.save(fitted([("forest", RandomForestQuantileRegressor(5)), ("lasso", LinearQuantile())]), folder)
    return folder


def test_every_kind_of_base_predicts_the_same_after_saving(every, tmp_path):
    quantile_saved.save(every, tmp_path / "m")
    again = quantile_saved.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(data()[0]), every.predict(data()[0]))
    assert again.names_ == [name for name, _ in EVERY]
    np.testing.assert_array_equal(again.weights_, every.weights_)
    quantile_saved.save(again, tmp_path / "m")  # a loaded model is saved in its turn
    np.testing.assert_array_equal(quantile_saved.load(tmp_path / "m").predict(data()[0]), every.predict(data()[0]))


def test_a_folder_holds_arrays_and_json_alone(every, tmp_path):
    quantile_saved.save(every, tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {".rankwise.json", "model.json", "model.safetensors"}
    json.loads((tmp_path / "m" / "model.json").read_text())
    load_file(tmp_path / "m" / "model.safetensors")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_kind_of_weights_is_kept(tmp_path, weights):
    model = fitted(weights=weights, hidden=(8,), monotone="isotonic")
    quantile_saved.save(model, tmp_path / "m")
    np.testing.assert_array_equal(quantile_saved.load(tmp_path / "m").predict(data()[0]), model.predict(data()[0]))


def test_single_levels_and_their_calibration_are_kept(tmp_path):
    model = fitted(quantiles=(0.5, 0.9))
    assert model.widening_[1] != 0
    quantile_saved.save(model, tmp_path / "m")
    np.testing.assert_array_equal(quantile_saved.load(tmp_path / "m").predict(data()[0]), model.predict(data()[0]))


def test_fits_without_each_fold_are_kept(tmp_path):
    model = fitted(conformal="cv+", cv=2)
    quantile_saved.save(model, tmp_path / "m")
    again = quantile_saved.load(tmp_path / "m")
    assert [len(E) for E in again.scores_] == [75, 75]
    np.testing.assert_array_equal(again.predict(data()[0]), model.predict(data()[0]))
    other = fitted(quantiles=(0.1, 0.9), conformal=None)
    shutil.rmtree(tmp_path / "m" / "fold-1")
    quantile_saved.save(other, tmp_path / "m" / "fold-1")
    with pytest.raises(ValueError, match="a fold's fit is not of this model"):
        quantile_saved.load(tmp_path / "m")
    (tmp_path / "m" / "fold-1" / "model.json").unlink()
    with pytest.raises(ValueError, match="fold-1 holds no quantile model"):
        quantile_saved.load(tmp_path / "m")


class Own(BaseEstimator):
    """A base of the user's."""

    def fit(self, X, y):
        self.value_ = float(np.mean(y))
        return self

    def predict(self, X, quantiles=(0.5,)):
        return np.full((len(X), len(quantiles)), self.value_)


def test_a_base_of_another_kind_is_fitted_named_when_saved_and_nothing_is_written(tmp_path):
    model = fitted([("mine", Own()), ("lasso", LinearQuantile())])
    assert np.isfinite(model.predict(data()[0])).all()
    with pytest.raises(ValueError, match="base model 'mine' is not saved: Own cannot be kept as plain arrays"):
        quantile_saved.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_folder_of_an_earlier_version_is_refused_in_one_line_and_its_objects_are_not_read(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "aggregator.json").write_text("{}")
    (tmp_path / "old" / "bases.skops").write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"old is of an earlier version, .* run code: fit again$"):
        quantile_saved.load(tmp_path / "old")
    assert not ran.exists()


CHANGES = {
    "an option that is none": lambda m: m["options"].update(wrong=1),
    "a folder to keep fits in": lambda m: m["options"].update(memory="/"),
    "estimators": lambda m: m["options"].update(estimators=["os.system"]),
    "an option out of range": lambda m: m["options"].update(dropout=7),
    "levels": lambda m: m["options"].update(quantiles=[0.1, 0.9]),
    "levels of another type": lambda m: m["options"].update(quantiles="abc"),
    "hidden layers of a billion": lambda m: m["options"].update(hidden=[10**9, 10**9]),
    "a thousand hidden layers": lambda m: m["options"].update(hidden=[64] * 1000),
    "a billion features": lambda m: m.update(features=10**9),
    "no features": lambda m: m.update(features=0),
    "names": lambda m: m.update(names=["one"]),
    "bases": lambda m: m.update(bases=[]),
    "many fits of a base": lambda m: m["bases"].__setitem__(1, [{"kind": "linear", "intercept": 0.0}] * 10**5),
    "one fit": lambda m: m["bases"].__setitem__(1, m["bases"][1][:1]),
    "no fit": lambda m: m["bases"].__setitem__(1, []),
    "a kind": lambda m: m["bases"][0][0].update(kind="joblib"),
    "folds": lambda m: m.update(folds=10**9),
    "a format to come": lambda m: m.update(format=3),
    "a number": lambda m: m.update(y_mean="x"),
    "nothing": lambda m: m.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_description_is_refused_by_folder(saved, tmp_path, change):
    shutil.copytree(saved, tmp_path / "m")
    said = json.loads((tmp_path / "m" / "model.json").read_text())
    CHANGES[change](said)
    (tmp_path / "m" / "model.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"m holds a broken quantile model"):
        quantile_saved.load(tmp_path / "m")


@pytest.mark.parametrize("tensor", ["base.0.0.left", "base.0.0.right", "base.0.0.feature", "base.0.0.starts"])
def test_tree_indices_out_of_range_are_refused_and_not_followed(saved, tmp_path, tensor):
    shutil.copytree(saved, tmp_path / "m")
    arrays = load_file(tmp_path / "m" / "model.safetensors")
    arrays[tensor] = arrays[tensor] + 10**12
    save_file(arrays, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds a broken quantile model: (a tree|the roots)"):
        quantile_saved.load(tmp_path / "m")


@pytest.mark.parametrize("missing", ["base.1.3.coef", "net.0.weight", "mean", "widening", "base.0.0.value"])
def test_an_absent_array_is_refused(saved, tmp_path, missing):
    shutil.copytree(saved, tmp_path / "m")
    arrays = load_file(tmp_path / "m" / "model.safetensors")
    del arrays[missing]
    save_file(arrays, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match="holds a broken quantile model"):
        quantile_saved.load(tmp_path / "m")


def test_an_absent_or_broken_file_is_said(saved, tmp_path):
    with pytest.raises(ValueError, match=r"holds no quantile model: model.json is missing"):
        quantile_saved.load(tmp_path)
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        quantile_saved.load(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"model.json (nests|is not)"):
        quantile_saved.load(tmp_path / "m")


def test_a_folder_that_holds_something_else_is_not_replaced(saved, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        quantile_saved.save(quantile_saved.load(saved), tmp_path / "m")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("conformal", ["cqr", "cv+", None])
def test_all_that_predicts_is_kept(tmp_path, conformal):
    model = fitted(conformal=conformal, cv=2, hidden=(4, 3), margin=0.02, random_state=7)
    quantile_saved.save(model, tmp_path / "m")
    again = quantile_saved.load(tmp_path / "m")
    elsewhere = {"estimators": None, "memory": None, "n_jobs": None, "verbose": False, "random_state": 7}
    assert again.get_params(deep=False) == {**model.get_params(deep=False), **elsewhere}
    assert (again.seed_, again.names_, again.n_features_in_) == (7, ["gaussian"], 3)
    assert (again.y_mean_, again.y_scale_) == (model.y_mean_, model.y_scale_)
    for name in ("mean_", "scale_"):
        np.testing.assert_array_equal(getattr(again.scaler_, name), getattr(model.scaler_, name))
    np.testing.assert_array_equal(again.widening_, model.widening_)
    assert len(again.folds_) == len(again.scores_) == (2 if conformal == "cv+" else 0)
    for a, b in zip(again.scores_, model.scores_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not again.net_.training
    np.testing.assert_array_equal(again.predict_uncalibrated(data()[0]), model.predict_uncalibrated(data()[0]))
    said = json.loads((tmp_path / "m" / "model.json").read_text())
    assert set(said) == {"format", "options", "names", "seed", "bases", "features", "folds", "y_mean", "y_scale"}
    assert (said["format"], said["features"], said["folds"]) == (2, 3, len(model.folds_))


def test_scores_of_no_rows_or_other_intervals_are_refused(tmp_path):
    quantile_saved.save(fitted(conformal="cv+", cv=2), tmp_path / "m")
    arrays = load_file(tmp_path / "m" / "model.safetensors")
    assert arrays["score.0"].shape == (75, 2)
    for wrong in (arrays["score.0"][:0], arrays["score.0"][:, :1], arrays["score.0"].ravel()):
        save_file(arrays | {"score.0": wrong.contiguous()}, tmp_path / "m" / "model.safetensors")
        with pytest.raises(ValueError, match=r"holds a broken quantile model: scores of"):
            quantile_saved.load(tmp_path / "m")
