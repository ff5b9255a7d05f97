"""The adapted power generalised Weibull (PGW) distribution: one hazard that takes every usual shape, with its limits.

With ``z = γ (log t + log φ)``, ``m = κ + 1 > 0`` and ``L = log(1 + e^z / m)``

    H(t) = λ G,         G = (m / κ) (e^{κ L} - 1)                         cumulative hazard
    h(t) = λ γ D / t,   D = ∂G/∂z = e^{z + (κ - 1) L}                     hazard
    H(t) = y   at   (φ t)^γ = m ((1 + κ y / (m λ))^{1/κ} - 1)             quantiles: y = -log S

φ > 0 scales time (accelerated failure), λ > 0 the hazard (proportional hazards), γ > 0 is the power, and κ > -1 selects
the family: 0 log-logistic (λ = 1) or Burr XII, 1 Weibull, 2 with γ = 1 a linear hazard, ∞ with γ = 1 Gompertz; below 0
the hazard is defective: ``H(∞) = -λ m / κ``, a share ``exp(λ m / κ)`` is cured.

All of it is computed from z and ν = log m: no power of t overflows, κ → 0 is a series, and κ = ∞ is m = 2^53, where the
limit differs from the formula by less than rounding.

Source: Burke, Jones & Noufaily, "A Flexible Parametric Modelling Framework for Survival Analysis", JRSS C 2020, arXiv
1901.03212, section 2.

What people get wrong: κ and γ carry other meanings in other papers' power generalised Weibull. Nikulin and Haghighi's
``H = (1 + (t/σ)^ν)^{1/g} - 1`` is ours with γ = ν, κ = 1/g, ``φ = m^{1/ν} / σ`` and ``λ = κ / m``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, xlogy

Array = NDArray[np.float64]
LARGEST = 2.0**53  # κ + 1 from here on is κ = ∞


def cumulative_hazard(
    t: ArrayLike, *, phi: ArrayLike = 1.0, lambda_: ArrayLike = 1.0, gamma: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """``H(t)``, with everything broadcast; 0 at t = 0 and, for κ < 0, finite at t = ∞."""
    z, nu = _z(t, phi, gamma), log_shape(kappa)
    return np.asarray(lambda_) * _growth(_Terms.of(z, nu))


def log_hazard(
    t: ArrayLike, *, phi: ArrayLike = 1.0, lambda_: ArrayLike = 1.0, gamma: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """``log h(t)``, with everything broadcast; at t = 0 and ∞ its limits (±∞ but where γ or κγ is 1)."""
    t, gamma, terms = np.asarray(t, dtype=float), np.asarray(gamma), _Terms.of(_z(t, phi, gamma), log_shape(kappa))
    with np.errstate(divide="ignore", invalid="ignore"):
        early = xlogy(gamma - 1, t) + (terms.kappa - 1) * terms.L
        # L → z - log m: one power of t is left
        late = xlogy(gamma * terms.kappa - 1, t) + (terms.kappa - 1) * (gamma * np.log(phi) - np.log(terms.m))
        return np.log(lambda_) + np.log(gamma) + gamma * np.log(phi) + np.where(np.isposinf(t), late, early)


def log_cumulative_hazard(
    t: ArrayLike, *, phi: ArrayLike = 1.0, lambda_: ArrayLike = 1.0, gamma: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """``log H(t)``, with everything broadcast: finite where H itself would overflow or vanish."""
    terms = _Terms.of(_z(t, phi, gamma), log_shape(kappa))
    with np.errstate(divide="ignore", invalid="ignore"):
        w, nu = terms.w, np.log(terms.m)
        grown = np.where(w > 30, w - np.log(np.maximum(w, 1.0)), np.log(_mean_exponential(np.minimum(w, 30.0))))
        log_L = np.where(terms.L > 0, np.log(terms.L), terms.z - nu)  # L → e^z / m
        return np.log(lambda_) + nu + log_L + grown


def quantile(
    y: ArrayLike, *, phi: ArrayLike = 1.0, lambda_: ArrayLike = 1.0, gamma: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """The time at which ``-log S = y``; ∞ where y is at or above the limit of a defective distribution."""
    with np.errstate(over="ignore"):
        return np.exp(log_quantile(y, phi=phi, lambda_=lambda_, gamma=gamma, kappa=kappa))


def log_quantile(
    y: ArrayLike, *, phi: ArrayLike = 1.0, lambda_: ArrayLike = 1.0, gamma: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """Logarithm of `quantile`, which is finite where the time itself overflows."""
    nu = log_shape(kappa)
    m = np.exp(nu)
    k = m - 1
    x = np.asarray(y, dtype=float) / np.asarray(lambda_) / m
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # log(1 + κ x) / κ, x at κ = 0
        power = np.where(k == 0, x, np.log1p(np.maximum(k * x, -1.0)) / np.where(k == 0, 1.0, k))
        # e^p - 1 as a logarithm; p above 700 would overflow
        grown = np.where(power > 30, power + np.log1p(-np.exp(-power)), np.log(np.expm1(np.minimum(power, 30.0))))
        return np.where(k * x <= -1, np.inf, (nu + grown) / np.asarray(gamma) - np.log(phi))


def cure_fraction(*, lambda_: ArrayLike = 1.0, kappa: ArrayLike = 1.0) -> Array:
    """``S(∞) = exp(λ (κ + 1) / κ)`` for κ < 0, else 0."""
    kappa = np.asarray(kappa, dtype=float)
    below = kappa < 0
    return np.where(below, np.exp(lambda_ * (kappa + 1) / np.where(below, kappa, -1.0)), 0.0)


def hazard_shape(gamma: float, kappa: float) -> str:
    """How the hazard runs: constant, increasing, decreasing, up then down, or down then up."""
    early, late = gamma - 1, (np.inf if np.isinf(kappa) else kappa * gamma - 1)
    if early == 0 and late == 0:
        return "constant"
    if early >= 0 and late >= 0:
        return "increasing"
    if early <= 0 and late <= 0:
        return "decreasing"
    return "up then down" if early > 0 else "down then up"


def log_shape(kappa: ArrayLike) -> Array:
    """ν = log(κ + 1), finite at κ = ∞."""
    kappa = np.asarray(kappa, dtype=float)
    if not np.all(kappa > -1):
        raise ValueError(f"kappa must be above -1, found {np.min(kappa)}")
    return np.log(np.minimum(kappa + 1, LARGEST))


def _z(t: ArrayLike, phi: ArrayLike, gamma: ArrayLike) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(gamma) * (np.log(t) + np.log(phi))


class _Terms(NamedTuple):
    """What every formula is made of."""

    z: Array
    m: Array
    kappa: Array
    L: Array  # log(1 + e^z / m)
    s: Array  # ∂L/∂z = -∂L/∂ν
    w: Array  # κ L

    @classmethod
    def of(cls, z: Array, nu: Array | float) -> _Terms:
        m = np.exp(nu)
        x = z - nu
        # log(1 + e^x) in a third of logaddexp's time
        L = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
        with np.errstate(invalid="ignore"):  # 0 ∞ at the end of time
            return cls(z, m, m - 1, L, expit(x), (m - 1) * L)


class Derivatives(NamedTuple):
    """A function of (z, ν) with its first and second derivatives.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions.survival.power_weibull import growth
    >>> G, log_D = growth(np.array([0.0]), np.log(2))  # κ = 1, where G = e^z
    >>> [float(v[0].round(6)) for v in (G.value, G.z, G.zz)]
    [1.0, 1.0, 1.0]
    """

    value: Array
    z: Array
    nu: Array
    zz: Array
    znu: Array
    nunu: Array


def growth(z: Array, nu: Array | float) -> tuple[Derivatives, Derivatives]:
    """``G`` and ``log D`` (see the module) with derivatives in (z, ν)."""
    t = _Terms.of(z, nu)
    z, m, kappa, L, s, w = t
    with np.errstate(over="ignore", invalid="ignore"):
        mL, ks, turn = m * L, (kappa - 1) * s, s * (1 - s)
        lean = kappa * turn - turn
        slope_z, slope_nu = 1 + ks, mL - ks
        log_slope = z + w - L
        slope = Derivatives(log_slope, slope_z, slope_nu, lean, m * s - lean, mL - 2 * m * s + lean)
        D, f, ew = np.exp(log_slope), _series(w), np.exp(w)
        G = mL * f[0]
        A, B = mL * mL * f[1], -m * ew * s
        G_nu = G + A + B
        w_nu = mL - kappa * s
        A_nu = 2 * A + m * m * L * (L * f[2] * w_nu - 2 * s * f[1])
        B_nu = B - m * ew * (w_nu * s - turn)
    return Derivatives(G, D, G_nu, D * slope_z, D * slope_nu, G_nu + A_nu + B_nu), slope


def _growth(t: _Terms) -> Array:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = t.m * t.L * _mean_exponential(t.w)
        end = np.where(t.kappa < 0, -t.m / np.where(t.kappa == 0, 1.0, t.kappa), np.inf)
        return np.where(np.isposinf(t.z), end, value)


def _mean_exponential(w: Array) -> Array:
    """``(e^w - 1) / w``, 1 at 0."""
    safe = np.where(w == 0, 1.0, w)
    return np.where(w == 0, 1.0, np.expm1(safe) / safe)


def _series(w: Array) -> tuple[Array, Array, Array]:
    """``(e^w - 1) / w`` and its two derivatives; by Taylor's series where the quotients would cancel."""
    small = np.abs(w) < 0.5
    if np.ndim(w) and small.any() and not small.all():
        out = np.empty_like(w), np.empty_like(w), np.empty_like(w)
        for part in (small, ~small):
            for into, values in zip(out, _series(w[part]), strict=True):
                into[part] = values
        return out
    if np.all(small):
        f1, f2, term = 0.0 * w, 0.0 * w, 1.0
        for k in range(16):
            f1, f2 = f1 + term / (k + 2), f2 + term / (k + 3)
            term = term * w / (k + 1)
        return _mean_exponential(w), f1, f2
    e, f = np.exp(w), _mean_exponential(w)
    f1 = (e - f) / w
    return f, f1, (e - 2 * f1) / w
