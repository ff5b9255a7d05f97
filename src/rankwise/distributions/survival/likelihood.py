"""Likelihood of the power generalised Weibull under any censoring, its exact derivatives, and Newton's method on them.

An observation is known to lie in ``[lower, upper]`` and to have been seen from ``entry`` on:

    event at t                 log h(t) - H(t)               lower = upper = t
    right censored             -H(lower)                     upper = ∞
    left, interval censored    log(e^{-H(lower)} - e^{-H(upper)})
    each of them, truncated    + H(entry)

A row right censored at time 0 says nothing.

The four parameters have linear predictors ``η = (log φ, log λ, log γ, log(κ + 1))``, each its own design X_k: with
d_k = ∂ℓ/∂η_k and d_kl = ∂²ℓ/∂η_k∂η_l, n-vectors, the gradient's blocks are X_k' d_k and the Hessian's X_k' D_kl X_l.
Rows are taken in blocks, so that nothing of the data's size is made; columns are centred and scaled within a block.

Source: Burke, Jones & Noufaily (2020), arXiv 1901.03212, section 3; the derivatives are derived here.

What people get wrong: φ and λ are one parameter at κ = 1 (only φ^γ λ matters) and nearly one close to it; one of them
stays at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.distributions.survival.power_weibull import Derivatives, growth
from rankwise.spectral.concurrent import each

Array = NDArray[np.float64]
Rows = slice | NDArray[np.bool_] | NDArray[np.int64]
PARAMETERS = ("phi_", "lambda_", "gamma_", "kappa_")
BLOCK = 8192  # rows at a time: their derivatives stay in the cache


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Times and what is known of them, ``(n,)`` each.

    Attributes
    ----------
    lower, upper : ndarray
        The event lies between them; equal for an observed event, ``upper = ∞`` for a right-censored one.
    event : ndarray of bool
        Whether the event was seen at ``lower``.
    entry : ndarray
        When the subject came under observation; 0 for from the start.
    weight : ndarray
        How many rows one stands for, above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.likelihood import Observations
    >>> o = Observations(
    ...     lower=np.array([2.0, 3.0]), upper=np.array([2.0, np.inf]), event=np.array([True, False]),
    ...     entry=np.zeros(2), weight=np.ones(2),
    ... )  # an event at 2, and a row that is censored at 3
    >>> len(o), o.take(o.event).upper.tolist()
    (2, [2.0])
    """

    lower: Array
    upper: Array
    event: NDArray[np.bool_]
    entry: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, rows: Rows) -> Observations:
        """These rows."""
        return Observations(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


class Second(NamedTuple):
    """Value, gradient and Hessian.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.likelihood import Likelihood
    >>> from rankwise.distributions.survival.model import right_censored
    >>> L = Likelihood(right_censored([1.0, 2.0, 6.0]), {"phi_": None})  # exponential: γ = κ = 1
    >>> at = L(np.array([-np.log(3.0)]))  # the maximum, where φ is one over the mean
    >>> bool(abs(at.gradient[0]) < 1e-12), at.hessian.round(6).tolist()
    (True, [[-1.0]])
    """

    value: float
    gradient: Array
    hessian: Array


class Likelihood:
    """Mean log-likelihood of the free parameters, in coordinates of centred and scaled columns.

    Parameters
    ----------
    observations : Observations
        The ``n`` times, what is known of them, and their weights.
    designs : mapping of str to ndarray or None
        Of the free parameters only, ``(n, p_k)``; None is an intercept alone. Equal arrays are best one object.
    fixed : mapping of str to float
        Linear predictors of the others (0 where left out, but log 2 for kappa_: κ = 1).
    penalizer : float
        ``½ penalizer Σ θ²`` over the scaled columns, intercepts apart, is taken from the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.likelihood import Likelihood, newton
    >>> from rankwise.distributions.survival.model import right_censored
    >>> L = Likelihood(right_censored([1.0, 2.0, 6.0]), {"phi_": None})  # exponential: γ = κ = 1
    >>> top = newton(L, L.start({"phi_": 0.0}))
    >>> float(np.exp(-top.theta[0]).round(6))  # the mean
    3.0
    """

    def __init__(
        self,
        observations: Observations,
        designs: Mapping[str, Array | None],
        fixed: Mapping[str, float] | None = None,
        *,
        penalizer: float = 0.0,
    ) -> None:
        self.observations, self.penalizer = observations, penalizer
        self.designs = {name: designs[name] for name in PARAMETERS if name in designs}
        self.fixed = {"phi_": 0.0, "lambda_": 0.0, "gamma_": 0.0, "kappa_": float(np.log(2))} | dict(fixed or {})
        self.total = float(observations.weight.sum())
        of_array = {id(X): _Scale.of(X) for X in self._distinct()}
        self.scales = {n: of_array[id(X)] for n, X in self.designs.items() if X is not None}
        widths = [1 if X is None else X.shape[1] for X in self.designs.values()]
        ends = np.cumsum(widths)
        self.slices = {n: slice(e - w, e) for n, e, w in zip(self.designs, ends, widths, strict=True)}
        self.size = int(ends[-1]) if widths else 0
        self.shrunk = np.concatenate([np.ones(0), *map(self._shrunk, self.designs)])

    def __call__(self, theta: Array) -> Second:
        """Value, gradient ``(P,)`` and Hessian ``(P, P)``."""
        value, gradient, hessian = 0.0, np.zeros(self.size), np.zeros((self.size, self.size))
        for part in self._blocks(lambda rows: self._derivatives(theta, rows)):
            value, gradient, hessian = value + part.value, gradient + part.gradient, hessian + part.hessian
        penalty = self.penalizer * self.shrunk
        return Second(
            value / self.total - float(penalty @ theta**2) / 2,
            gradient / self.total - penalty * theta,
            hessian / self.total - np.diag(penalty),
        )

    def scores(self, theta: Array) -> Array:
        """``Σ_i s_i s_i'`` over the observations' weighted scores, ``(P, P)``: the middle of a sandwich."""
        out = np.zeros((self.size, self.size))
        for rows in self._rows():
            X = self._standard(rows)
            first = self._observed(theta, rows, X)[1]
            S = np.concatenate([first[n][:, None] * (1.0 if (x := X[n]) is None else x) for n in self.designs], 1)
            out += S.T @ S
        return out

    def original(self) -> Array:
        """``A``, with ``A θ`` the coefficients of the columns as given."""
        out = np.eye(self.size)
        for name, scale in self.scales.items():
            at = self.slices[name]
            out[at, at] = scale.back()
        return out

    def scaled(self, coefficients: ArrayLike) -> Array:
        """θ of coefficients of the columns as given."""
        return np.asarray(np.linalg.solve(self.original(), np.asarray(coefficients, dtype=float)), dtype=np.float64)

    def start(self, values: Mapping[str, float]) -> Array:
        """θ whose linear predictors are these constants, where there is an intercept."""
        theta = np.zeros(self.size)
        for name in self.designs:
            constant = self.scales[name].constant if name in self.scales else 0
            if constant is not None:
                theta[self.slices[name].start + constant] = values.get(name, self.fixed[name])
        return theta

    def dependent(self) -> list[tuple[str, int]]:
        """Columns that others make up, as (parameter, position): constants beside an intercept, collinear ones."""
        found: dict[int, list[int]] = {}
        for name, X in self.designs.items():
            if X is None or id(X) in found:
                continue
            scale, out = self.scales[name], found.setdefault(id(X), [])
            gram = np.zeros((X.shape[1], X.shape[1]))
            for rows in self._rows():
                part = scale.apply(X[rows])
                gram += part.T @ part / len(X)
            order = sorted(range(X.shape[1]), key=lambda j: j != scale.constant)  # the intercept is kept
            for place, j in enumerate(order):
                kept = [i for i in order[:place] if i not in out]
                rest = gram[j, j]
                if kept:
                    rest -= gram[j, kept] @ np.linalg.lstsq(gram[np.ix_(kept, kept)], gram[kept, j], rcond=None)[0]
                if rest < 1e-10:
                    out.append(j)
        return [(name, j) for name, X in self.designs.items() if X is not None for j in found[id(X)]]

    def _shrunk(self, name: str) -> Array:
        if name not in self.scales:
            return np.zeros(1)
        scale = self.scales[name]
        return np.array([float(j != scale.constant) for j in range(len(scale.scale))])

    def _rows(self) -> Iterator[slice]:
        n = len(self.observations)
        return (slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))

    def _blocks(self, f: Callable[[slice], Second]) -> Iterator[Second]:
        return each(f, self._rows(), workers=1 if len(self.observations) <= 2 * BLOCK else None)

    def _standard(self, rows: slice) -> dict[str, Array | None]:
        done: dict[int, Array] = {}
        for name, X in self.designs.items():
            if X is not None and id(X) not in done:
                done[id(X)] = self.scales[name].apply(X[rows])
        return {name: None if X is None else done[id(X)] for name, X in self.designs.items()}

    def _distinct(self) -> list[Array]:
        return list({id(X): X for X in self.designs.values() if X is not None}.values())

    def _predictors(self, theta: Array, X: Mapping[str, Array | None]) -> dict[str, Array]:
        eta = {name: np.asarray(self.fixed[name]) for name in PARAMETERS}
        for name, at in self.slices.items():
            given = X[name]
            eta[name] = np.asarray(theta[at.start]) if given is None else given @ theta[at]
        return eta

    def _derivatives(self, theta: Array, rows: slice) -> Second:
        X = self._standard(rows)
        value, first, second = self._observed(theta, rows, X)
        gradient, hessian = np.empty(self.size), np.empty((self.size, self.size))
        for name, at in self.slices.items():
            gradient[at] = _sums(X[name], first[name], None)[:, 0]
        for (a, b), d in second.items():
            hessian[self.slices[a], self.slices[b]] = block = _sums(X[a], d, X[b])
            hessian[self.slices[b], self.slices[a]] = block.T
        return Second(value, gradient, hessian)

    def _observed(self, theta: Array, rows: slice, X: Mapping[str, Array | None]):
        """Log-likelihood of the rows, and its first and second derivatives by linear predictor, weighted."""
        o, eta = self.observations.take(rows), self._predictors(theta, X)
        ell = _Sum(list(self.designs), len(o))
        narrow = ~o.event & np.isfinite(o.upper)  # left and interval censored
        plain = ~narrow & (o.lower > 0)
        late = o.entry > 0
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a step too far: not finite, not taken
            _add_plain(ell, o, eta, slice(None) if plain.all() else plain)
            if narrow.any():
                _add_interval(ell, o, eta, narrow)
            if late.any():
                ell.add(late, *hazards(np.log(o.entry[late]), _at(eta, late), list(ell.first))[0], sign=1.0)
        w = o.weight
        value = float(w @ ell.value)
        return value, {n: w * d for n, d in ell.first.items()}, {k: w * d for k, d in ell.second.items()}


@dataclass(frozen=True)
class _Scale:
    """Centre and scale of a design's columns; the centre is 0 where no intercept takes it up."""

    centre: Array
    scale: Array
    constant: int | None

    @classmethod
    def of(cls, X: Array) -> _Scale:
        mean, spread = X.mean(0), X.std(0)
        flat = spread <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        places = np.flatnonzero(flat & (mean != 0))
        constant = int(places[0]) if len(places) else None
        scale = np.where(flat, np.where(mean == 0, 1.0, mean), spread)
        return cls(np.where(flat | (constant is None), 0.0, mean), scale, constant)

    def apply(self, X: Array) -> Array:
        return (X - self.centre) / self.scale

    def back(self) -> Array:
        A = np.diag(1 / self.scale)
        if self.constant is not None:
            A[self.constant] -= self.centre / self.scale / self.scale[self.constant]
        return A


class _Sum:
    """A value an observation with its derivatives by the free linear predictors."""

    def __init__(self, names: list[str], n: int) -> None:
        self.value = np.zeros(n)
        self.first = {name: np.zeros(n) for name in names}
        self.second = {pair: np.zeros(n) for pair in combinations_with_replacement(names, 2)}

    def add(self, at: Rows, value: Array, first: Mapping[str, Array], second: Mapping, sign: float) -> None:
        self.value[at] += sign * value
        for name, into in self.first.items():
            into[at] += sign * first[name]
        for pair, into in self.second.items():
            into[at] += sign * second[pair]


def _add_plain(ell: _Sum, o: Observations, eta: Mapping[str, Array], at: Rows) -> None:
    """``δ log h - H``."""
    seen = o.event[at]
    H, log_h = hazards(np.log(o.lower[at]), _at(eta, at), list(ell.first))
    ell.add(at, *H, sign=-1.0)
    ell.value[at] += np.where(seen, log_h.value, 0.0)
    for name, into in ell.first.items():
        into[at] += seen * log_h.first[name]
    for pair, into in ell.second.items():
        into[at] += seen * log_h.second[pair]


def _add_interval(ell: _Sum, o: Observations, eta: Mapping[str, Array], at: NDArray[np.bool_]) -> None:
    """``-H(lower) + g(x)``, ``g(x) = log(1 - e^{-x})`` at ``x = H(upper) - H(lower)``."""
    names, n = list(ell.first), int(at.sum())
    x = _Sum(names, n)
    lower, upper, here = o.lower[at], o.upper[at], _at(eta, at)
    x.add(slice(None), *hazards(np.log(upper), here, names)[0], sign=1.0)
    begun = lower > 0
    if begun.any():
        H, _ = hazards(np.log(lower[begun]), _at(here, begun), names)
        x.add(begun, *H, sign=-1.0)
        full = np.flatnonzero(at)[begun]
        ell.add(full, *H, sign=-1.0)
    width = np.maximum(x.value, 1e-300)
    slope = 1 / np.expm1(width)
    ell.value[at] += np.log(-np.expm1(-width))
    for name, into in ell.first.items():
        into[at] += slope * x.first[name]
    for (a, b), into in ell.second.items():
        into[at] += slope * x.second[a, b] - slope * (1 + slope) * x.first[a] * x.first[b]


class ByPredictor(NamedTuple):
    """A value with its derivatives by linear predictors: ``first[name]``, ``second[name, name]``.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.likelihood import hazards
    >>> exponential = {"phi_": 0.0, "lambda_": 0.0, "gamma_": 0.0, "kappa_": np.log(2)}
    >>> H, log_h = hazards(np.log([2.0]), {n: np.asarray(v) for n, v in exponential.items()}, ["phi_"])
    >>> H.value.round(6), H.first["phi_"].round(6)  # H(t) = φ t at t = 2, and its derivative by log φ
    (array([2.]), array([2.]))
    """

    value: Array
    first: dict[str, Array]
    second: dict[tuple[str, str], Array]


def hazards(u: Array, eta: Mapping[str, Array], names: list[str]) -> tuple[ByPredictor, ByPredictor]:
    """H and log h at ``u = log t``, with the chain rule from (z, ν) to the predictors: ``z = e^{η_γ} (u + η_φ)``."""
    gamma = np.exp(eta["gamma_"])
    z = gamma * (u + eta["phi_"])
    G, slope = growth(z, eta["kappa_"])
    to_z = {"phi_": gamma, "gamma_": z}
    scale = np.exp(eta["lambda_"])
    H = _chained(Derivatives(*(scale * d for d in G)), to_z, gamma, names)
    log_h = _chained(slope, to_z, gamma, names)
    if "gamma_" in names:
        log_h.first["gamma_"] += 1
    if "lambda_" in names:  # it multiplies H, whose derivatives are then H's own; log h has log λ added
        H.first["lambda_"], log_h.first["lambda_"] = H.value, np.ones_like(log_h.value)
        for pair in combinations_with_replacement(names, 2):
            if "lambda_" in pair:
                other = pair[pair[0] == "lambda_"]
                H.second[pair], log_h.second[pair] = H.first[other], np.zeros_like(log_h.value)
    return H, log_h._replace(value=log_h.value + eta["lambda_"] + eta["gamma_"] - u)


def _chained(f: Derivatives, to_z: Mapping[str, Array], gamma: Array, names: list[str]) -> ByPredictor:
    first: dict[str, Array] = {n: f.z * to_z[n] if n in to_z else f.nu for n in names if n != "lambda_"}
    second: dict[tuple[str, str], Array] = {}
    for a, b in combinations_with_replacement([n for n in names if n != "lambda_"], 2):
        if b == "kappa_":
            second[a, b] = f.znu * to_z[a] if a in to_z else f.nunu
        else:
            second[a, b] = f.zz * to_z[a] * to_z[b]
            if b == "gamma_":  # ∂²z: γ with φ, z with γ itself
                second[a, b] = second[a, b] + f.z * (gamma if a == "phi_" else to_z["gamma_"])
    return ByPredictor(f.value, first, second)


def _at(eta: Mapping[str, Array], rows: Rows) -> dict[str, Array]:
    return {name: v if np.ndim(v) == 0 else v[rows] for name, v in eta.items()}


def _sums(X: Array | None, d: Array, Y: Array | None) -> Array:
    """``X' diag(d) Y``, ``(p, q)``; a missing design is a column of ones."""
    if X is None:
        return np.atleast_2d(d.sum() if Y is None else d @ Y)
    return (X.T @ d)[:, None] if Y is None else X.T @ (d[:, None] * Y)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where Newton's method ended.

    Attributes
    ----------
    theta : ndarray
        The maximiser.
    at : Second
        The mean log-likelihood there.
    iterations : int
        Steps tried.
    converged : bool
        The gradient's largest entry is at most the tolerance.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.likelihood import Second, newton
    >>> optimum = newton(lambda x: Second(-(x @ x), -2 * x, -2 * np.eye(2)), np.array([1.0, -1.0]))
    >>> optimum.theta.tolist(), optimum.iterations, optimum.converged
    ([0.0, 0.0], 1, True)
    """

    theta: Array
    at: Second
    iterations: int
    converged: bool

    @property
    def gradient_norm(self) -> float:
        """Largest entry of the mean log-likelihood's gradient."""
        return float(np.abs(self.at.gradient).max(initial=0.0))


def newton(f: Callable[[Array], Second], start: Array, *, tol: float = 1e-8, max_iter: int = 200) -> Optimum:
    """Maximise by Newton's method: curvatures made positive, steps at most 2 a coordinate, damped until they gain."""
    theta, at, damping, iteration = start, f(start), 0.0, 0
    while np.abs(at.gradient).max(initial=0.0) > tol and iteration < max_iter:
        iteration += 1
        curvature, V = np.linalg.eigh(-at.hessian)
        most = max(float(np.abs(curvature).max()), 1e-12)
        if damping > 1e12 * most:
            break
        step = V @ ((V.T @ at.gradient) / (np.maximum(np.abs(curvature), 1e-12 * most) + damping))
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        new = f(theta + step)
        if _finite(new) and new.value >= at.value - 1e-14 * abs(at.value):  # no loss but for rounding
            theta, at = theta + step, new
            damping = 0.0 if damping < 1e-6 * most else damping / 8
        else:
            damping = max(4 * damping, 1e-3 * most)
    converged = bool(np.abs(at.gradient).max(initial=0.0) <= tol)
    return Optimum(theta=theta, at=at, iterations=iteration, converged=converged)


def _finite(s: Second) -> bool:
    return bool(np.isfinite(s.value) and np.isfinite(s.gradient).all() and np.isfinite(s.hessian).all())
