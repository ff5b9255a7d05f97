"""A fitted `QuantileAggregator` in a folder, and back: arrays and numbers, nothing that runs.

``model.json`` holds options and numbers, ``model.safetensors`` the arrays (of bases: `plain`), ``fold-0`` and
on the fits of ``"cv+"``. A loaded model predicts the same, to the bit; its bases are the arrays' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rankwise.distributions.quantiles.aggregation import QuantileAggregator
from rankwise.distributions.quantiles.conformal import intervals
from rankwise.distributions.quantiles.plain import NotPlainError, bases_apart, bases_together
from rankwise.files import whole_folder, write_json
from rankwise.reading import read_json, read_tensors

Array = NDArray[np.float64]
FORMAT = 2
_NUMBERS = ("y_mean", "y_scale")
_ELSEWHERE = ("estimators", "memory", "n_jobs", "verbose", "random_state")  # of the fit alone, or kept otherwise


def save(model: QuantileAggregator, folder: str | Path) -> None:
    """Write a folder, which appears when it is whole.

    Raises
    ------
    ValueError
        A base of a kind that is not kept (it is named), or a folder that holds something else.
    """
    parts = _described(model)
    with whole_folder(Path(folder), made_by="quantile_saved.save") as draft:
        _write(parts, draft)


def write(model: QuantileAggregator, folder: Path) -> None:
    """The files of `save` into a folder that is there, such as a draft."""
    _write(_described(model), folder)


def load(folder: str | Path) -> QuantileAggregator:
    """Read what `save` wrote; every array is checked, and nothing in the folder runs.

    Raises
    ------
    ValueError
        Not such a folder, a broken one, or one of an earlier version, which kept objects.
    """
    folder = Path(folder)
    if (folder / "bases.skops").exists() or (folder / "aggregator.json").exists():
        raise ValueError(f"{folder} is of an earlier version, which kept objects that may run code: fit again")
    if not (folder / "model.json").is_file():
        raise ValueError(f"{folder} holds no quantile model: model.json is missing")
    said = read_json(folder / "model.json")
    arrays = read_tensors(folder / "model.safetensors")
    try:
        return _loaded(folder, said, arrays)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} holds a broken quantile model: {error}") from error


def _described(model: QuantileAggregator) -> tuple[dict[str, Tensor], dict[str, Any], list]:
    """Arrays, JSON, and the same of every fold's fit."""
    for name, base in zip(model.names_, model.bases_, strict=True):
        try:
            bases_apart([base])
        except NotPlainError as error:
            raise ValueError(f"base model '{name}' is not saved: {error}") from error
    arrays, bases = bases_apart(model.bases_)
    arrays |= {f"net.{k}": v.detach() for k, v in model.net_.state_dict().items()}
    arrays |= {f"score.{k}": torch.tensor(E) for k, E in enumerate(model.scores_)}
    for name, value in (("mean", model.scaler_.mean_), ("scale", model.scaler_.scale_),
                        ("widening", model.widening_), ("weights", model.weights_)):  # fmt: skip
        arrays[name] = torch.tensor(np.asarray(value))
    options = {k: v for k, v in model.get_params(deep=False).items() if k not in _ELSEWHERE}
    said = {"format": FORMAT, "options": options, "names": model.names_, "seed": model.seed_, "bases": bases,
            "features": _width(model), "folds": len(model.folds_)}  # fmt: skip
    said |= {name: getattr(model, f"{name}_") for name in _NUMBERS}
    return arrays, said, [_described(fold) for fold in model.folds_]


def _write(parts: tuple[dict[str, Tensor], dict[str, Any], list], folder: Path) -> None:
    arrays, said, folds = parts
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in arrays.items()}, folder / "model.safetensors")
    write_json(folder / "model.json", said)
    for k, fold in enumerate(folds):
        _write(fold, folder / f"fold-{k}")


def _loaded(folder: Path, said: dict[str, Any], arrays: dict[str, Tensor]) -> QuantileAggregator:
    if said["format"] != FORMAT:
        raise ValueError(f"format {said['format']}, and {FORMAT} is read")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said["options"].items()}
    if strange := set(options) & set(_ELSEWHERE):
        raise ValueError(f"options {', '.join(sorted(strange))} are not kept")
    model = QuantileAggregator(**options, random_state=int(said["seed"]))
    tau, features = model._levels(), int(said["features"])
    model.seed_, model.names_ = int(said["seed"]), [str(n) for n in said["names"]]
    if len(said["bases"]) != len(model.names_) or any(len(fits) > len(tau) for fits in said["bases"]):
        raise ValueError(f"{len(said['bases'])} bases for {len(model.names_)} names")
    mean, scale, widening = (arrays[n].double().numpy() for n in ("mean", "scale", "widening"))
    if mean.shape != (features,) or scale.shape != (features,) or widening.shape != tau.shape:
        raise ValueError(f"arrays of {mean.shape}, {scale.shape} and {widening.shape} for {features} features")
    model.scaler_ = StandardScaler().fit(np.zeros((1, features)))
    model.scaler_.mean_, model.scaler_.scale_ = mean, scale
    model.y_mean_, model.y_scale_ = (float(said[name]) for name in _NUMBERS)
    model.widening_, model.weights_ = widening, arrays["weights"].double().numpy()
    model.bases_ = bases_together(arrays, said["bases"], features, tau)
    vars(model)["n_features_in_"] = features  # scikit-learn sets it in `validate_data`
    with torch.device("meta"):  # only what the file holds is allocated
        model.net_ = model._network(features)
    net = {k.removeprefix("net."): v.float() for k, v in arrays.items() if k.startswith("net.")}
    model.net_.load_state_dict(net, assign=True)
    model.net_.eval()
    model.scores_ = [arrays[f"score.{k}"].double().numpy() for k in range(int(said["folds"]))]
    model.folds_ = [load(folder / f"fold-{k}") for k in range(len(model.scores_))]
    for fold in model.folds_:
        if fold.conformal or not np.array_equal(fold._levels(), tau) or _width(fold) != features:
            raise ValueError("a fold's fit is not of this model")
    for scores in model.scores_:
        if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(intervals(tau)):
            raise ValueError(f"scores of {scores.shape}")
    return model


def _width(model: QuantileAggregator) -> int:
    return int(vars(model)["n_features_in_"])
