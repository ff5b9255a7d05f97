"""A fitted `QuantileAggregator` in a folder, and back: plain data only.

Base models and scaler are kept by skops, which builds only types named here; weights as safetensors, the rest as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from skops import io
from skops.io.exceptions import UntrustedTypesFoundException

from rankwise.distributions.quantile_aggregation import QuantileAggregator
from rankwise.files import whole_folder, write_json
from rankwise.reading import read_json

TRUSTED = (
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "quantile_forest._quantile_forest.ExtraTreesQuantileRegressor",
    "quantile_forest._quantile_forest.RandomForestQuantileRegressor",
    "quantile_forest._quantile_forest_fast.QuantileForest",
    "rankwise.distributions.quantile_bases.GaussianNetwork",
    "rankwise.distributions.quantile_bases.QuantileNetwork",
    "rankwise.distributions.quantile_linear.LinearQuantile",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


def save(model: QuantileAggregator, folder: str | Path) -> None:
    """Write ``bases.skops``, ``weights.safetensors`` and ``aggregator.json``; the folder appears when it is whole.

    The fits of ``"cv+"`` without each fold are folders in it, their conformity scores ``scores.safetensors``.

    Raises
    ------
    ValueError
        A base of a type that `load` would refuse.
    """
    held = {"bases": model.bases_, "scaler": model.scaler_}
    packed = io.dumps(held)
    unknown = sorted(set(io.get_untrusted_types(data=packed)) - set(TRUSTED))
    if unknown:
        raise ValueError(
            f"base models of types {', '.join(unknown)} cannot be kept as plain data; use scikit-learn's, LightGBM's, "
            "quantile-forest's or rankwise's"
        )
    elsewhere = ("estimators", "memory", "n_jobs", "verbose")
    options = {k: v for k, v in model.get_params(deep=False).items() if k not in elsewhere}
    features = model.scaler_.mean_.shape[0]  # type: ignore[union-attr]
    described = {
        "options": options, "names": model.names_, "y_mean": model.y_mean_, "y_scale": model.y_scale_,
        "widening": model.widening_.tolist(), "weights": model.weights_.tolist(), "features": features,
        "folds": len(model.folds_),
    }  # fmt: skip
    with whole_folder(Path(folder), made_by="quantile_saved.save") as draft:
        (draft / "bases.skops").write_bytes(packed)
        save_file({k: v.contiguous() for k, v in model.net_.state_dict().items()}, draft / "weights.safetensors")
        write_json(draft / "aggregator.json", described)
        save_file(
            {f"fold-{k}": torch.from_numpy(E).contiguous() for k, E in enumerate(model.scores_)},
            draft / "scores.safetensors",
        )
        for k, fold in enumerate(model.folds_):
            save(fold, draft / f"fold-{k}")


def read_plain(path: Path) -> Any:
    """What a skops file holds, if all its types are `TRUSTED`.

    Raises
    ------
    ValueError
        Another type in it, no such file, or a broken one.
    """
    try:
        return io.loads(path.read_bytes(), trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} holds no quantile model: {path.name} is missing") from error
    except (BadZipFile, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is broken: {error}") from error


def load(folder: str | Path) -> QuantileAggregator:
    """Read what `save` wrote. Nothing in it is executed.

    Raises
    ------
    ValueError
        Not such a folder, a broken file, or a type that is not one of `TRUSTED`.
    """
    folder = Path(folder)
    try:
        described = read_json(folder / "aggregator.json")
        model = QuantileAggregator(**described["options"])
        held = read_plain(folder / "bases.skops")
        model.bases_, model.scaler_ = held["bases"], held["scaler"]
        model.names_, model.y_mean_, model.y_scale_ = (described[k] for k in ("names", "y_mean", "y_scale"))
        model.widening_, model.weights_ = np.array(described["widening"]), np.array(described["weights"])
        vars(model)["n_features_in_"] = described["features"]  # scikit-learn sets it in `validate_data`
        model.net_ = model._network(described["features"])
        model.net_.load_state_dict(load_file(folder / "weights.safetensors"))
        scores, names = load_file(folder / "scores.safetensors"), [f"fold-{k}" for k in range(described["folds"])]
        model.folds_, model.scores_ = [load(folder / n) for n in names], [scores[n].numpy() for n in names]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no quantile model: {Path(error.filename).name} is missing") from error
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds a broken quantile model: {error}") from error
    model.net_.eval()
    return model
