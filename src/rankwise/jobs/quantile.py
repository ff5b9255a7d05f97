"""Prediction intervals for a table: read, encode, fit, judge on held-out rows, keep, predict."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skops import io

from rankwise.data.dataframe import frame
from rankwise.distributions import quantile_saved
from rankwise.distributions.quantile_aggregation import QuantileAggregator
from rankwise.distributions.quantile_bases import GaussianNetwork, QuantileNetwork, predict_base
from rankwise.distributions.quantile_linear import LinearQuantile
from rankwise.distributions.quantile_metrics import calibration_error, crps, report, weighted_interval_score
from rankwise.files import whole_folder, write_json
from rankwise.nearest import unknown
from rankwise.reading import read_json

Array = NDArray[np.float64]
LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
MODELS = ("linear", "boosting", "forest", "extra-trees", "gaussian", "network")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model with how it did on rows that no part of it saw.

    Attributes
    ----------
    model : QuantileAggregator
    columns : ColumnTransformer
        From the table's columns to numbers.
    about : dict
        ``target``, ``columns``, ``rows``, ``test_rows``, ``scores`` (weighted interval score by model) and
        ``intervals`` (rows of `quantile_metrics.report`).
    observed, quantiles : ndarray
        Of the test rows, ``(n,)`` and ``(n, m)``.
    """

    model: QuantileAggregator
    columns: ColumnTransformer
    about: dict
    observed: Array
    quantiles: Array


def base_models(names: Sequence[str], *, seed: int = 0) -> list[tuple[str, Any]]:
    """Base quantile models by name.

    Raises
    ------
    ValueError
        Another name than those of `MODELS`.
    """
    from lightgbm import LGBMRegressor
    from quantile_forest import ExtraTreesQuantileRegressor, RandomForestQuantileRegressor

    made: dict[str, Any] = {
        "linear": LinearQuantile(),
        "boosting": LGBMRegressor(
            objective="quantile", n_estimators=200, learning_rate=0.05, num_leaves=15, verbose=-1, random_state=seed
        ),
        "forest": RandomForestQuantileRegressor(200, min_samples_leaf=5, random_state=seed, n_jobs=-1),
        "extra-trees": ExtraTreesQuantileRegressor(200, min_samples_leaf=5, random_state=seed, n_jobs=-1),
        "gaussian": GaussianNetwork(random_state=seed),
        "network": QuantileNetwork(random_state=seed),
    }
    for name in names:
        if name not in made:
            raise unknown("base model", name, MODELS)
    return [(name, made[name]) for name in names]


def fit_table(
    path: Path,
    target: str,
    out: Path,
    *,
    quantiles: Sequence[float] = LEVELS,
    models: Sequence[str] = ("linear", "boosting", "forest", "gaussian"),
    weights: str = "local-medium",
    conformal: str = "cqr",
    test_share: float = 0.2,
    seed: int = 0,
    verbose: bool = False,
) -> Fitted:
    """Fit to a csv, tsv, jsonl or parquet file and write the folder ``out``.

    Columns that are not numbers become indicators, absent numbers their column's median. Base fits are kept beside
    ``out`` until it is whole: a run that was killed continues with them.

    Raises
    ------
    ValueError
        No such column, a target that is no number, too few rows, an unknown model.
    """
    table = frame(path)
    y = _target(table, target, path)
    given = table.drop(columns=target)
    if not 0 < test_share < 1:
        raise ValueError(f"test share is {test_share}; between 0 and 1 is accepted")
    if len(table) < 20:
        raise ValueError(f"{path} has {len(table)} rows; at least 20 are needed to fit, calibrate and judge")
    train, test = map(np.asarray, train_test_split(np.arange(len(table)), test_size=test_share, random_state=seed))
    columns = _columns(given).fit(given.iloc[train])
    X = np.asarray(columns.transform(given), dtype=float)
    kept = out.parent / f".{out.name}.fits"
    model = QuantileAggregator(
        base_models(models, seed=seed),
        quantiles=tuple(quantiles),
        weights=weights,
        conformal=conformal,
        memory=str(kept),
        random_state=seed,
        verbose=verbose,
    ).fit(X[train], y[train])
    q = model.predict(X[test])
    fitted = Fitted(
        model=model, columns=columns, observed=y[test], quantiles=q,
        about={"target": target, "columns": list(given.columns), "rows": len(train), "test_rows": len(test)}
        | _judged(model, X[test], y[test], q),
    )  # fmt: skip
    with whole_folder(out, made_by="quantile fit", inputs=[path]) as draft:
        quantile_saved.save(model, draft / "model")
        (draft / "columns.skops").write_bytes(io.dumps(columns))
        write_json(draft / "results.json", fitted.about)
        _named(model, q).assign(**{target: y[test]}).to_csv(draft / "test.csv", index=False)
    shutil.rmtree(kept, ignore_errors=True)
    return fitted


def load_fit(folder: Path) -> Fitted:
    """What `fit_table` wrote.

    Raises
    ------
    ValueError
        Not such a folder, or a broken one.
    """
    model = quantile_saved.load(folder / "model")
    columns = quantile_saved.read_plain(folder / "columns.skops")
    about, test = read_json(folder / "results.json"), pd.read_csv(folder / "test.csv")
    observed = test.pop(about["target"]).to_numpy(dtype=float)
    return Fitted(model=model, columns=columns, about=about, observed=observed, quantiles=test.to_numpy(dtype=float))


def predict_table(fitted: Fitted, path: Path) -> pd.DataFrame:
    """Quantiles of the rows of a file, a column a level.

    Raises
    ------
    ValueError
        Columns that the model knows are absent (all are named).
    """
    return _named(fitted.model, fitted.model.predict(_encoded(fitted, frame(path), path)))


def judge_table(fitted: Fitted, path: Path) -> Fitted:
    """The model's scores on another file that holds the target."""
    table, target = frame(path), fitted.about["target"]
    X, y = _encoded(fitted, table, path), _target(table, target, path)
    q = fitted.model.predict(X)
    about = fitted.about | {"test_rows": len(y)} | _judged(fitted.model, X, y, q)
    return Fitted(model=fitted.model, columns=fitted.columns, about=about, observed=y, quantiles=q)


def _judged(model: QuantileAggregator, X: Array, y: Array, q: Array) -> dict:
    tau = np.asarray(model.quantiles, dtype=float)
    bases = np.stack([predict_base(b, X, tau) for b in model.bases_])
    every = {"aggregate": q, "average": bases.mean(0)} | dict(zip(model.names_, bases, strict=True))
    return {
        "scores": {name: weighted_interval_score(y, p, tau) for name, p in every.items()},
        "crps": {name: crps(y, p, tau) for name, p in every.items()},
        "calibration": {name: calibration_error(y, p, tau) for name, p in every.items()},
        "intervals": report(y, q, tau).to_dict("records"),
    }


def _columns(table: pd.DataFrame) -> ColumnTransformer:
    numbers = [c for c in table if pd.api.types.is_numeric_dtype(table[c])]
    words = [c for c in table if c not in numbers]
    return ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        ("words", OneHotEncoder(handle_unknown="ignore", max_categories=50, sparse_output=False), words),
    ])  # fmt: skip


def _encoded(fitted: Fitted, table: pd.DataFrame, path: Path) -> Array:
    absent = [c for c in fitted.about["columns"] if c not in table]
    if absent:
        raise ValueError(f"{path} lacks columns that the model was fitted on: {', '.join(absent)}")
    return np.asarray(fitted.columns.transform(table[fitted.about["columns"]]), dtype=float)


def _target(table: pd.DataFrame, target: str, path: Path) -> Array:
    if target not in table:
        raise unknown("column", target, list(map(str, table.columns)))
    y = np.asarray(pd.to_numeric(table[target], errors="coerce"), dtype=float)
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise ValueError(f"{path}, row {row + 1}: column '{target}' holds {table[target].iloc[row]!r}, not a number")
    return y


def _named(model: QuantileAggregator, q: Array) -> pd.DataFrame:
    return pd.DataFrame({f"q{t:g}": column for t, column in zip(model.quantiles, q.T, strict=True)})
