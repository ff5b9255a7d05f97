"""Fits of base models that were made before, kept in a folder as arrays and recognised by content.

A fit's name is the hash of the model's kind and parameters, of rows, responses and levels, and of the libraries'
versions: data that changed, or another option, is another name. Nothing read from the folder runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rankwise.distributions.quantiles.bases import fit_base, predict_base
from rankwise.distributions.quantiles.plain import bases_apart, bases_together, kept_kind
from rankwise.files import fingerprint, whole_file
from rankwise.reading import parse_json, tensor_file

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


class Kept:
    """Fits on parts of one data set.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    X, y, tau : ndarray
        Rows ``(n, d)``, responses ``(n,)``, levels ``(m,)``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from rankwise.distributions import LinearQuantile
    >>> from rankwise.distributions.quantiles.kept import Kept
    >>> train, test = np.arange(300), np.arange(300, 442)
    >>> with TemporaryDirectory() as folder:
    ...     fits = Kept(Path(folder), *load_diabetes(return_X_y=True), np.array([0.1, 0.9]))
    ...     once, again = (fits.predicted(LinearQuantile(), train, test) for _ in range(2))
    ...     len(list(Path(folder).iterdir())), once.shape, bool((once == again).all())
    (1, (142, 2), True)
    """

    def __init__(self, folder: Path | None, X: Array, y: Array, tau: Array) -> None:
        self.folder, self.X, self.y, self.tau = folder, X, y, tau

    def predicted(self, estimator: Any, train: Rows, test: Rows) -> Array:
        """Quantiles ``(len(test), m)`` of a fit to the rows ``train``."""
        path = self._path(estimator, "fold", [_hash(train), _hash(test)])
        arrays, _ = _read(path)
        q = arrays.get("q")
        if q is not None and q.shape == (len(test), len(self.tau)):
            return q.double().numpy()
        fitted = fit_base(estimator, self.X[train], self.y[train], self.tau)
        found = predict_base(fitted, self.X[test], self.tau)
        _write(path, {"q": torch.tensor(found)}, [])
        return found

    def fitted(self, estimator: Any) -> Any:
        """A fit to all rows."""
        path = self._path(estimator, "all", [])
        arrays, about = _read(path)
        if about:
            with suppress(KeyError, TypeError, RuntimeError, ValueError, IndexError):  # another version's: made anew
                return bases_together(arrays, about, self.X.shape[1], self.tau)[0]
        fitted = fit_base(estimator, self.X, self.y, self.tau)
        if path is not None:
            _write(path, *bases_apart([fitted]))
        return fitted

    def _path(self, estimator: Any, what: str, more: list[str]) -> Path | None:
        kind = kept_kind(estimator)
        if self.folder is None or kind is None:
            return None
        try:
            said = json.loads(json.dumps(estimator.get_params()))
        except TypeError:  # a parameter that is no plain value
            return None
        if said.get("random_state", 0) is None:
            return None
        return self.folder / f"{fingerprint([kind, said, what, more, self._data, _versions(kind)])}.safetensors"

    @cached_property
    def _data(self) -> list[str]:
        return [_hash(a) for a in (self.X, self.y, self.tau)]


def _hash(array: NDArray[Any]) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _versions(kind: str) -> list[str]:
    """Of the libraries that decide a fit."""
    names = (kind.partition(".")[0], "rankwise", "numpy", "torch")
    return [str(getattr(sys.modules.get(name), "__version__", "")) for name in names]


def _read(path: Path | None) -> tuple[dict[str, Tensor], list]:
    if path is None or not path.is_file():
        return {}, []
    try:
        with tensor_file(path) as opened:
            about = parse_json((opened.metadata() or {}).get("about", "[]"), str(path), list)
            return {k: opened.get_tensor(k) for k in opened.keys()}, about  # noqa: SIM118
    except ValueError:
        return {}, []


def _write(path: Path | None, arrays: dict[str, Tensor], about: list) -> None:
    if path is not None:
        with whole_file(path) as draft:
            save_file({k: v.contiguous() for k, v in arrays.items()}, draft, metadata={"about": json.dumps(about)})
