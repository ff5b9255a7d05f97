"""What estimators take as rows: scikit-learn's checks, and the columns named that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data

Array = NDArray[np.float64]
# scikit-learn's own types are those of its defaults, among them the word "no_validation"
_validated: Callable[..., Any] = validate_data


def rows_of(estimator: Any, X: ArrayLike, **options: Any) -> Array:
    """Rows ``(n, d)`` in float64, as `sklearn.utils.validation.validate_data` checks them.

    Raises
    ------
    ValueError
        Columns of a frame that hold words or dates (all are named); NaN, another number of columns, no rows.
    """
    _refuse_words(X)
    return np.asarray(_validated(estimator, X, dtype=np.float64, **options))


def rows_and_response_of(estimator: Any, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """`rows_of` with a response ``(n,)`` of numbers."""
    _refuse_words(X)
    rows, response = _validated(estimator, X, y, dtype=np.float64, y_numeric=True)
    return np.asarray(rows), np.asarray(response, dtype=np.float64)


def _refuse_words(X: Any) -> None:
    if not isinstance(X, pd.DataFrame):
        return
    words = [str(c) for c, column in X.items() if _is_no_number(column)]
    if words:
        raise ValueError(
            f"columns {', '.join(words)} hold words or dates; numbers are needed: encode them first, or leave them out"
        )


def _is_no_number(column: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return False
    numbers: Any = pd.to_numeric(column, errors="coerce") if column.dtype == object else column.isna()
    return column.dtype != object or bool((numbers.isna() & column.notna()).any())
