"""Prediction intervals for a table: read, encode, fit, judge on held-out rows, keep, predict."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from rankwise.distributions.quantiles import saved as quantile_saved
from rankwise.distributions.quantiles.aggregation import QuantileAggregator
from rankwise.distributions.quantiles.bases import GaussianNetwork, QuantileNetwork, predict_base
from rankwise.distributions.quantiles.cells import READINGS, read_cells, target_of
from rankwise.distributions.quantiles.columns import Columns
from rankwise.distributions.quantiles.linear import LinearQuantile
from rankwise.distributions.quantiles.metrics import calibration_error, crps, report, weighted_interval_score
from rankwise.files import content_of, drafted, write_json
from rankwise.jobs.early import QUANTILES, check_fit, check_fitted, check_models
from rankwise.nearest import unknown
from rankwise.parallel import threads_each
from rankwise.reading import check_regular, read_json

Array = NDArray[np.float64]
LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model with how it did on rows that no part of it saw.

    Attributes
    ----------
    model : QuantileAggregator
    columns : Columns
        From the table's columns to numbers.
    about : dict
        ``target``, how its numbers are written (``target_reading``), ``columns``, ``rows``, ``test_rows``, ``notes`` on
        columns and fits, ``scores`` (weighted interval score by forecast), ``crps``, ``calibration`` and ``intervals``
        (rows of `metrics.report`). Forecasts are ``calibrated``, what `predict_table` gives, and in order but
        before calibration, as they compare: the ``aggregate``, the ``average`` of the bases, and every base.
    observed, quantiles : ndarray
        Of the test rows, ``(n,)`` and ``(n, m)``.
    """

    model: QuantileAggregator
    columns: Columns
    about: dict
    observed: Array
    quantiles: Array


def base_models(names: Sequence[str], *, seed: int = 0) -> list[tuple[str, Any]]:
    """Base quantile models by name.

    Raises
    ------
    ValueError
        Another name than those of `rankwise.jobs.early.QUANTILE_MODELS`, one twice, or none.
    """
    check_models(names)
    n = threads_each()
    from lightgbm import LGBMRegressor
    from quantile_forest import ExtraTreesQuantileRegressor, RandomForestQuantileRegressor

    made: dict[str, Any] = {
        "linear": LinearQuantile(),
        "boosting": LGBMRegressor(
            objective="quantile",
            n_estimators=200,
            learning_rate=0.05,
            num_leaves=15,
            verbose=-1,
            random_state=seed,
            n_jobs=n,
        ),
        "forest": RandomForestQuantileRegressor(200, min_samples_leaf=5, random_state=seed, n_jobs=n),
        "extra-trees": ExtraTreesQuantileRegressor(200, min_samples_leaf=5, random_state=seed, n_jobs=n),
        "gaussian": GaussianNetwork(random_state=seed),
        "network": QuantileNetwork(random_state=seed),
    }
    return [(name, made[name]) for name in names]


def fit_table(
    path: Path,
    target: str,
    out: Path,
    *,
    quantiles: Sequence[float] = LEVELS,
    models: Sequence[str] = ("linear", "boosting", "forest", "gaussian"),
    weights: str = "local-medium",
    conformal: str | None = "cqr",
    leave_out: Sequence[str] = (),
    test_share: float = 0.2,
    seed: int = 0,
    verbose: bool = False,
    page: Callable[[Fitted, Path], None] | None = None,
) -> Fitted:
    """Fit to a csv, tsv, jsonl, json or parquet file and write the folder ``out``.

    Columns of numbers, dates and words are told by their cells (`table_columns`); absent numbers are their median. Fits
    of bases are kept in a draft beside ``out`` until it is whole: a run that was cut short goes on with them, where
    data and options are the same.

    Parameters
    ----------
    leave_out : sequence of str
        Columns that are not used.
    page : callable, optional
        Called with the fit and the folder, before it appears, to add files to it.

    Raises
    ------
    ValueError
        A folder that holds something else, no such column, a target that is no number, cells that may be read in two
        ways, too few rows, an unknown model.
    """
    check_fit(path, out, models=models, test_share=test_share)
    cells = read_cells(path)
    y, reading = target_of(cells, target)
    for name in leave_out:
        if name not in cells.columns or name == target:
            raise unknown("column to leave out", name, [c for c in cells.columns if c != target])
    if len(cells) < 20:
        raise ValueError(f"{path} has {len(cells)} rows; at least 20 are needed to fit, calibrate and judge")
    options = {"quantiles": list(map(float, quantiles)), "models": list(models), "weights": weights,
               "conformal": conformal, "seed": seed}  # fmt: skip
    model = QuantileAggregator(
        base_models(models, seed=seed), quantiles=tuple(options["quantiles"]), weights=weights, conformal=conformal,
        random_state=seed, verbose=verbose,
    )  # fmt: skip
    train, test = map(np.asarray, train_test_split(np.arange(len(cells)), test_size=test_share, random_state=seed))
    used = [c for c in cells.columns if c != target and c not in leave_out]
    columns = Columns.of(cells, used, train[model.fitting_rows(len(train))])
    X = columns.matrix(cells)
    told = options | {"data": content_of(path), "target": target, "leave_out": list(leave_out),
                      "test_share": test_share, "rankwise": version("rankwise")}  # fmt: skip
    with drafted(out, made_by=QUANTILES, told=told, inputs=[path]) as draft:
        model.set_params(memory=str(draft / "fits"))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            model.fit(X[train], y[train]).set_params(memory=None)
        notes = [*columns.notes, *dict.fromkeys(str(w.message) for w in warned if issubclass(w.category, UserWarning))]
        about = {"target": target, "target_reading": reading, "columns": [c.name for c in columns.columns],
                 "rows": len(train), "test_rows": len(test), "notes": notes}  # fmt: skip
        q = model.predict(X[test])
        fitted = Fitted(
            model=model, columns=columns, about=about | _judged(model, X[test], y[test], q), observed=y[test],
            quantiles=q,
        )  # fmt: skip
        (draft / "model").mkdir(exist_ok=True)
        quantile_saved.write(model, draft / "model")
        write_json(draft / "columns.json", columns.as_json())
        write_json(draft / "results.json", fitted.about)
        named(model, q).assign(**{target: y[test]}).to_csv(draft / "test.csv", index=False)
        if page is not None:
            page(fitted, draft)
        shutil.rmtree(draft / "fits")
    return fitted


def load_fit(folder: str | Path) -> Fitted:
    """What `fit_table` wrote; nothing in it runs.

    Raises
    ------
    ValueError
        Not such a folder, a broken one, or one of an earlier version.
    """
    folder = Path(folder)
    check_fitted(folder)
    model = quantile_saved.load(folder / "model")
    columns = Columns.from_json(read_json(folder / "columns.json"), str(folder / "columns.json"))
    about, levels = read_json(folder / "results.json"), named(model, np.empty((0, len(model.quantiles)))).columns
    if columns.width != vars(model)["n_features_in_"]:
        raise ValueError(f"{folder} is broken: its columns are not those of its model")
    try:
        _check_about(about)
        check_regular(folder / "test.csv")
        test = pd.read_csv(folder / "test.csv", dtype=float)
        observed, q = test[about["target"]].to_numpy(), test[levels].to_numpy()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is broken: {error}") from error
    return Fitted(model=model, columns=columns, about=about, observed=observed, quantiles=q)


def predict_table(fitted: Fitted, path: Path) -> pd.DataFrame:
    """Quantiles of the rows of a file, a column a level; ``attrs["notes"]`` says where words were new.

    Raises
    ------
    ValueError
        Columns that the model knows are absent (all are named), or a cell is not of its column's kind.
    """
    cells = read_cells(path)
    found = named(fitted.model, fitted.model.predict(fitted.columns.matrix(cells)))
    found.attrs["notes"] = fitted.columns.unseen(cells)
    return found


def judge_table(fitted: Fitted, path: Path) -> Fitted:
    """The model's scores on another file that holds the target."""
    cells, about = read_cells(path), fitted.about
    y, _ = target_of(cells, about["target"], about["target_reading"])
    X = fitted.columns.matrix(cells)
    q = fitted.model.predict(X)
    more = {"test_rows": len(y), "notes": about["notes"] + fitted.columns.unseen(cells)}
    about = about | more | _judged(fitted.model, X, y, q)
    return Fitted(model=fitted.model, columns=fitted.columns, about=about, observed=y, quantiles=q)


def named(model: QuantileAggregator, q: Array) -> pd.DataFrame:
    """Quantiles ``(n, m)`` with a name a level."""
    return pd.DataFrame({f"q{t:g}": column for t, column in zip(model.quantiles, q.T, strict=True)})


def _check_about(about: dict) -> None:
    """Refuse what could not be shown."""
    texts = [about["target"], *about["columns"], *about["notes"]]
    by_forecast = [about[k] for k in ("scores", "crps", "calibration")]
    if not all(isinstance(t, str) for t in texts) or about["target_reading"] not in READINGS:
        raise ValueError("results.json has other texts than a fit writes")
    numbers = [about["rows"], about["test_rows"], *(v for d in by_forecast for v in d.values())]
    numbers += [r[k] for r in about["intervals"] for k in ("nominal", "coverage", "width", "interval_score")]
    if not all(isinstance(v, int | float) for v in numbers) or any(set(d) != set(by_forecast[0]) for d in by_forecast):
        raise ValueError("results.json has other numbers than a fit writes")
    if "aggregate" not in by_forecast[0]:
        raise ValueError("results.json has no score of the aggregate")


def _judged(model: QuantileAggregator, X: Array, y: Array, q: Array) -> dict:
    tau = np.asarray(model.quantiles, dtype=float)
    bases = np.stack([predict_base(b, X, tau) for b in model.bases_])
    alike = {"aggregate": model.predict_uncalibrated(X), "average": np.sort(bases.mean(0), 1)}
    alike |= {name: np.sort(base, 1) for name, base in zip(model.names_, bases, strict=True)}
    every = ({"calibrated": q} if model.conformal else {}) | alike
    return {
        "scores": {name: weighted_interval_score(y, p, tau) for name, p in every.items()},
        "crps": {name: crps(y, p, tau) for name, p in every.items()},
        "calibration": {name: calibration_error(y, p, tau) for name, p in every.items()},
        "intervals": report(y, q, tau).to_dict("records"),
    }
