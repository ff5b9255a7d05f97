"""Linear quantile regression with a lasso penalty, exact, by an interior point.

    min_β  Σ_i ρ_τ(y_i - x_iᵀβ) + n α Σ_j |β_j|,      ρ_τ(e) = max(τe, (τ - 1)e)

As ``ρ_τ(e) + ρ_τ(-e) = |e|``, the penalty is two further rows a coefficient, ``±n α e_j`` with response 0, and there is
one problem left. Its dual, solved here, has a variable a row and no inequality but bounds:

    max_a  yᵀa      Xᵀa = (1 - τ) Xᵀ1,  0 <= a <= 1

A Newton step on its optimality conditions costs one weighted Gram matrix ``Xᵀ diag(q) X``, and some tens of
steps are enough where a simplex takes one a row. β is the multiplier of the equality; what is reported is the gap of β
itself, its objective less that of a feasible a.

Source: Portnoy & Koenker, "The Gaussian Hare and the Laplacian Tortoise", Statistical Science 1997, section 4; the
predictor and corrector are Mehrotra's, SIAM J. Optimization 1992.

What people get wrong: a penalty on columns of different units. Both sides are standardised here.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, lstsq, qr, solve
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from rankwise.distributions.accepted import rows_and_response_of, rows_of

__all__ = ["LinearQuantile"]

Array = NDArray[np.float64]
_STEPS = 100
_INSIDE = 0.9995  # share of the way to the nearest bound
_DEPENDENT = 1e-7  # of the largest column: all that is left of a column that others make up


class LinearQuantile(RegressorMixin, BaseEstimator):
    """One conditional quantile as a linear function.

    Parameters
    ----------
    quantile : float
        Level τ in (0, 1).
    alpha : float
        Lasso penalty, with columns and response standardised.
    tol : float
        Gap between the objective and its lower bound, a row, in standard deviations of the response.

    Attributes
    ----------
    coef_ : ndarray
        ``(d,)``, in the data's units.
    intercept_ : float
        In the response's unit.
    n_iter_ : int
        Steps taken.
    n_features_in_ : int
        Columns of the training rows.

    Notes
    -----
    CPU, float64, whatever the input. Columns may be dependent (to a ten-millionth), constant, or more than the rows:
    of the coefficients with the same predictions the smallest are taken.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from rankwise.distributions import LinearQuantile
    >>> X, y = load_diabetes(return_X_y=True)
    >>> q = LinearQuantile(0.9).fit(X, y).predict(X)
    >>> float((y <= q).mean().round(2))
    0.9
    """

    def __init__(self, quantile: float = 0.5, *, alpha: float = 1e-3, tol: float = 1e-7) -> None:
        self.quantile = quantile
        self.alpha = alpha
        self.tol = tol

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearQuantile:
        """Fit to ``(n, d)`` and ``(n,)``.

        Raises
        ------
        ValueError
            A level outside (0, 1), a negative penalty, a tolerance that is not positive, NaN.

        Warns
        -----
        ConvergenceWarning
            The gap is above ``tol`` after a hundred steps.
        """
        X, y = rows_and_response_of(self, X, y)
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile is {self.quantile}; a level between 0 and 1 is accepted")
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; at least 0 is accepted")
        if not self.tol > 0:
            raise ValueError(f"tol is {self.tol}; above 0 is accepted")
        (n, d), scaler = X.shape, cast(Any, StandardScaler().fit(X))
        centre, scale = float(np.median(y)), float(y.std()) or 1.0
        rows = np.column_stack([np.ones(n), scaler.transform(X)])
        response = (y - centre) / scale
        if self.alpha:
            penalty = np.column_stack([np.zeros(d), n * self.alpha * np.eye(d)])
            rows, response = np.vstack([rows, penalty, -penalty]), np.concatenate([response, np.zeros(2 * d)])
        beta, self.n_iter_, gap = interior_point(rows, response, self.quantile, tol=self.tol * n)
        if not gap <= self.tol * n:
            warnings.warn(
                f"the gap of the {self.quantile} quantile is {gap / n:.1g} a row after {self.n_iter_} steps, above "
                f"tol={self.tol:.1g}", ConvergenceWarning, stacklevel=2,
            )  # fmt: skip
        self.coef_ = scale * beta[1:] / scaler.scale_
        self.intercept_ = centre + scale * beta[0] - float(self.coef_ @ scaler.mean_)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Quantile ``(n,)`` in the response's units."""
        check_is_fitted(self)
        X = rows_of(self, X, reset=False)
        return X @ self.coef_ + self.intercept_


def interior_point(X: Array, y: Array, tau: float, *, tol: float) -> tuple[Array, int, float]:
    """``β`` that minimises ``Σ ρ_τ(y - Xβ)``, the smallest of those where columns are dependent; the steps taken; and
    by how much at most the objective at this β is above the minimum.

    The steps are taken on an orthonormal basis of the columns, by a QR with pivots. Both problems are feasible at the
    start and stay so; with ``s = 1 - a``, multipliers z of ``a >= 0`` and w of ``s >= 0``, ``z - w = Xβ - y``.
    """
    Q, R, order = cast(Any, qr(X, mode="economic", pivoting=True))
    rank = int((np.abs(np.diag(R)) > _DEPENDENT * abs(R[0, 0])).sum())
    Q = np.ascontiguousarray(Q[:, :rank])
    a, s = np.full(len(y), 1 - tau), np.full(len(y), tau)
    b = Q.T @ y
    r = Q @ b - y
    away = 0.1 * np.abs(r).mean() + 1e-8
    z, w = np.maximum(r, 0) + away, np.maximum(-r, 0) + away
    step, product = 0, float(a @ z + s @ w)
    while step < _STEPS and not (
        product <= tol and _gap(Q, Q, y, tau, b, a) <= tol
    ):  # product: the gap but for rounding
        q = 1 / (z / a + w / s)
        gram = (Q * q[:, None]).T @ Q
        _, da, dz, dw = _direction(Q, gram, q, (a, s, z, w))
        primal, dual = min(_reach(a, da), _reach(s, -da)), min(_reach(z, dz), _reach(w, dw))
        after = float((a + primal * da) @ (z + dual * dz) + (s - primal * da) @ (w + dual * dw))
        mu = (after / product) ** 3 * product / (2 * len(y))
        db, da, dz, dw = _direction(Q, gram, q, (a, s, z, w), mu - da * dz, mu + da * dw)
        primal, dual = min(_reach(a, da), _reach(s, -da)), min(_reach(z, dz), _reach(w, dw))
        a, s = a + primal * da, s - primal * da
        following = float(a @ (z + dual * dz) + s @ (w + dual * dw))
        if not np.isfinite(following):  # no digits are left
            break
        b, z, w = b + dual * db, z + dual * dz, w + dual * dw
        product, step = following, step + 1
    beta = np.zeros(X.shape[1])
    beta[order] = _smallest(R[:rank], b)
    return beta, step, _gap(X, Q, y, tau, beta, a)


def _gap(X: Array, Q: Array, y: Array, tau: float, beta: Array, a: Array) -> float:
    """The objective at β less a bound below it: any u with ``Qᵀu = 0`` and ``τ - 1 <= u <= τ`` has ``uᵀy`` for one."""
    e, u = y - X @ beta, a - (1 - tau)
    u -= Q @ (Q.T @ u)
    u *= min(1.0, tau / max(float(u.max()), 1e-300), (1 - tau) / max(float(-u.min()), 1e-300))
    return float(np.maximum(tau * e, (tau - 1) * e).sum() - u @ y)


def _direction(
    X: Array, gram: Array, q: Array, at: tuple[Array, ...], low: Array | float = 0.0, high: Array | float = 0.0
) -> tuple[Array, Array, Array, Array]:
    """Newton's step from ``(a, s, z, w)`` to ``az = low``, ``sw = high`` with ``Xᵀ da = 0``, ``dz - dw = X dβ``."""
    a, s, z, w = at
    target = z - w - low / a + high / s
    db = -_solved(gram, X.T @ (q * target))
    da = -q * (X @ db + target)
    return db, da, (low - z * da) / a - z, (high + w * da) / s - w


def _solved(gram: Array, b: Array) -> Array:
    try:
        return cast(Any, solve(gram, b, assume_a="pos", check_finite=False))
    except LinAlgError:  # singular to rounding, close to the optimum
        return _smallest(gram, b)


def _smallest(A: Array, b: Array) -> Array:
    return cast(Any, lstsq(A, b, lapack_driver="gelsy"))[0]


def _reach(value: Array, change: Array) -> float:
    """The share of ``change`` that keeps ``value`` positive."""
    falls = change < 0
    return min(1.0, _INSIDE * float(np.min(-value[falls] / change[falls]))) if falls.any() else 1.0
