"""Kernel density estimation that stays exact and fast in large dimension and says when not to trust it.

    log ρ̂_h(x) = log Σ_i w_i e^{-|x - y_i|²/(2h²)} - log Σ w - d log h - (d/2) log 2π

Squared distances come from one matrix product a block (data centred first, float64), the sum over terms from a running
log-sum-exp: memory is one block. A grid of bandwidths takes its distances once, and where the precisions 1/h² double,
squares its exponentials instead of taking them anew.

Source: Biroli & Mézard, "Kernel Density Estimators in Large Dimensions", 2024, arXiv 2408.05807; see `regimes`.

What people get wrong: in tens of dimensions the usual rules (n^{-1/(d+4)}) land wherever they land; `diagnose` says on
how many points an estimate rests.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_random_state
from torch import Tensor

from rankwise.distributions.accepted import rows_of
from rankwise.distributions.density.regimes import REGIMES, CriticalBandwidths, critical_bandwidths
from rankwise.nearest import unknown
from rankwise.spectral.concurrent import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HighDimKDE"]

Array = NDArray[np.float64]
RULES = ("theory", "scott", "silverman", "cv", "nn")
_BLOCK = 1 << 20  # entries of a block of whole rows of distances
_QUERIES, _POINTS = 128, 1024  # a tile of distances: 1 MB, which the cache holds
_FEW = 10  # an estimate that rests on fewer points is reported


class ConcentrationWarning(UserWarning):
    """Most estimates rest on a few points.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from rankwise.distributions import HighDimKDE
    >>> X = np.random.default_rng(0).normal(size=(200, 30))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     kde = HighDimKDE("scott").fit(X)
    >>> [w.category.__name__ for w in caught]
    ['ConcentrationWarning']
    """


class HighDimKDE(BaseEstimator):
    """Gaussian kernel density estimator with scikit-learn's `KernelDensity` methods.

    Parameters
    ----------
    bandwidth : float or {"theory", "scott", "silverman", "cv", "nn"}
        h, or how to choose it: by the theory from the covariance's spectrum (`critical_bandwidths`);
        ``σ n^{-1/(d+4)}``; ``σ (n (d+2)/4)^{-1/(d+4)}`` (σ² the mean variance); by leave-one-out likelihood; by the
        mean squared distance to the nearest neighbour, a dimension. n is ``n_effective_``, and means are weighted.
    kernel : {"gaussian"}
        Its shape; there is no other.

    Attributes
    ----------
    bandwidth_ : float
        h, in X's units.
    critical_ : CriticalBandwidths or None
        From the sample covariance; None for a single point or no variance.
    n_effective_ : float
        ``(Σ w)² / Σ w²`` (Kish), the number of rows where they weigh the same; rows of weight 0 are left out.
    n_features_in_ : int
        Columns of the training rows.

    Notes
    -----
    CPU and GPU (data go where torch's default device is); float64 throughout, whatever the input.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.distributions import HighDimKDE
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> kde = HighDimKDE("cv").fit(X)
    >>> kde.diagnose([[0.0, 0.0], [4.0, 4.0]])["effective_number"].round().tolist()  # points that each rests on
    [247.0, 1.0]
    >>> kde.sample(3, random_state=0).shape
    (3, 2)
    """

    def __init__(self, bandwidth: float | str = "theory", *, kernel: str = "gaussian") -> None:
        self.bandwidth = bandwidth
        self.kernel = kernel

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> HighDimKDE:
        """Take the data ``(n, d)`` and choose h.

        Raises
        ------
        ValueError
            NaN, a bandwidth that is not positive or not a rule, no variance under a rule that needs it, duplicates that
            make leave-one-out likelihood unbounded, negative weights.

        Warns
        -----
        ConcentrationWarning
            Half of the training points' own estimates rest on fewer than ten others.
        """
        data = rows_of(self, X)
        if self.kernel != "gaussian":
            raise unknown("kernel", self.kernel, ("gaussian",))
        if isinstance(self.bandwidth, str):
            if self.bandwidth not in RULES:
                raise unknown("bandwidth rule", self.bandwidth, RULES)
        elif not 0 < self.bandwidth < np.inf:
            raise ValueError(f"bandwidth is {self.bandwidth}; above 0, or one of {', '.join(RULES)} is accepted")
        w = np.ones(len(data)) if sample_weight is None else _check_sample_weight(sample_weight, data, dtype=np.float64)
        if (w < 0).any() or not w.sum() > 0:
            raise ValueError("sample_weight must be non-negative with a positive sum")
        data, w = data[w > 0], w[w > 0]
        self.n_effective_ = float(w.sum() ** 2 / np.square(w).sum())
        self.centre_ = np.average(data, axis=0, weights=w)
        device = torch.get_default_device()
        self.data_ = torch.as_tensor(data - self.centre_, device=device)
        norms = self.data_.square().sum(1, keepdim=True)
        self._right = torch.cat([self.data_, torch.ones_like(norms), norms], 1)
        self.log_weights_ = torch.as_tensor(np.log(w), device=device)
        self.log_total_ = float(np.log(w.sum()))
        covariance = np.atleast_2d(np.cov(data.T, aweights=w, bias=True)) if len(data) > 1 else np.zeros((1, 1))
        varies = self.n_effective_ >= 2 - 1e-9 and np.trace(covariance) > 0
        self.critical_: CriticalBandwidths | None = None
        if varies:
            self.critical_ = critical_bandwidths(covariance, max(self.n_effective_, 2.0))
        self.bandwidth_ = self._chosen(float(np.sqrt(np.trace(covariance) / data.shape[1])))
        self._warn_if_concentrated()
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Log-densities ``(q,)``."""
        return self.log_densities(X, [self.bandwidth_])[0]

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Sum of the log-densities."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Array:
        """Points drawn from the estimate, ``(n_samples, d)``: covariance ``Σ̂ + h² I``."""
        check_is_fitted(self)
        rng = check_random_state(random_state)
        p = self._weights()
        at = self.data_.cpu().numpy()[rng.choice(len(p), size=n_samples, p=p / p.sum())]
        return at + self.centre_ + self.bandwidth_ * rng.standard_normal(at.shape)

    def log_densities(self, X: ArrayLike, bandwidths: Sequence[float]) -> Array:
        """Log-densities at several bandwidths, ``(len(bandwidths), q)``; distances are taken once."""
        grid = torch.as_tensor(np.asarray(bandwidths, dtype=float)).to(self.data_)
        return self._normalised(self._log_sums(self._queries(X), grid), grid).cpu().numpy()

    def leave_one_out(self, bandwidths: Sequence[float], rows: NDArray[np.int64] | None = None) -> Array:
        """Log-density of training rows under the others, ``(len(bandwidths), rows)``.

        Raises
        ------
        ValueError
            A single point.
        """
        check_is_fitted(self)
        if len(self.data_) < 2:
            raise ValueError("leave-one-out needs at least two points")
        grid = torch.as_tensor(np.asarray(bandwidths, dtype=float)).to(self.data_)
        at = torch.arange(len(self.data_)) if rows is None else torch.as_tensor(rows)
        rest = torch.log(-torch.expm1(self.log_weights_[at] - self.log_total_)) + self.log_total_
        sums = self._log_sums(self.data_[at], grid, at)
        return (self._normalised(sums, grid) + self.log_total_ - rest).cpu().numpy()

    def diagnose(self, X: ArrayLike, *, tail: int | None = None) -> pd.DataFrame:
        """On how much each estimate rests.

        Parameters
        ----------
        X : array_like
            ``(q, d)``.
        tail : int, optional
            Terms in Hill's estimate of the stable index, ``√n`` by default.

        Returns
        -------
        DataFrame
            ``log_density``; ``effective_number``, 1 / Σ p² of the normalised terms; ``top_share``, the largest p;
            ``hill_index``, the terms' tail index; ``h_condensed``, the bandwidth at which the entropy of p is one nat;
            ``regime`` at the spectrum's theory (``index`` μ) and ``local_regime`` by ``(h / h_condensed)²``.
        """
        queries, rows = self._queries(X), []
        beta = self.bandwidth_**-2
        k = min(tail or max(int(np.sqrt(len(self.data_))), 2), len(self.data_) - 1)
        for D in self._distances(queries):
            logs = self.log_weights_ - D * (beta / 2)
            top = torch.topk(logs, k + 1, 1).values if k else logs
            hill = 1 / (top[:, :k] - top[:, k:]).mean(1).clamp(min=1e-300) if k else torch.full_like(logs[:, 0], np.nan)
            rows.append(torch.stack([
                torch.logsumexp(logs, 1), _effective_number(logs), torch.softmax(logs, 1).amax(1), hill,
                _condensed(D, self.log_weights_),
            ]))  # fmt: skip
        total, effective, share, hill, h_c = torch.cat(rows, 1)
        grid = torch.tensor([self.bandwidth_]).to(total)
        out = pd.DataFrame({
            "log_density": self._normalised(total[None], grid)[0].cpu(), "effective_number": effective.cpu(),
            "top_share": share.cpu(), "hill_index": hill.cpu(), "h_condensed": h_c.cpu(),
        })  # fmt: skip
        c = self.critical_
        out["index"] = np.nan if c is None else float(c.index(self.bandwidth_))
        out["regime"] = "unknown" if c is None else c.regime(self.bandwidth_)
        local = (self.bandwidth_ / out["h_condensed"].to_numpy()) ** 2
        out["local_regime"] = np.array(REGIMES)[np.searchsorted([1.0, 2.0], local, side="right")]
        return out

    def regime_map(self, bandwidths: Sequence[float] | None = None, *, rows: int = 500, seed: int = 0) -> pd.DataFrame:
        """Theory and training data by bandwidth.

        μ, regime and typical log-density of the theory; leave-one-out on some rows, the mean log-density and the median
        effective number.

        Raises
        ------
        ValueError
            A single point, or data without variance.
        """
        check_is_fitted(self)
        if self.critical_ is None:
            raise ValueError("the regimes need at least two points and some variance")
        c = self.critical_
        h = np.geomspace(c.h_opt / 4, 4 * c.h_clt, 33) if bandwidths is None else np.asarray(bandwidths, dtype=float)
        at = np.random.default_rng(seed).permutation(len(self.data_))[:rows]
        grid = torch.as_tensor(h).to(self.data_)
        effective = []
        for D in self._distances(self.data_[torch.as_tensor(at)], torch.as_tensor(at)):
            effective.append(torch.stack([
                _effective_number(self.log_weights_ - D / (2 * b * b)) for b in grid
            ]))  # fmt: skip
        return pd.DataFrame({
            "bandwidth": h, "index": c.index(h), "regime": [c.regime(b) for b in h],
            "theory": c.d * c.log_density(h) if c.d == self.data_.shape[1] else np.full(len(h), np.nan),
            "log_density": np.average(self.leave_one_out(list(h), at), axis=1, weights=self._weights()[at]),
            "effective_number": torch.cat(effective, 1).median(1).values.cpu().numpy(),
        })  # fmt: skip

    def plot_regimes(self, ax: Axes | None = None) -> Axes:
        """Leave-one-out log-density and effective number against the bandwidth, with the critical bandwidths."""
        from matplotlib import pyplot as plt

        ax = plt.gca() if ax is None else ax
        table, c = self.regime_map(), self.critical_
        assert c is not None
        ax.plot(table["bandwidth"], table["log_density"], color="#0072b2", label="leave-one-out log-density")
        if np.isfinite(table["theory"].to_numpy()).all():
            ax.plot(table["bandwidth"], table["theory"], color="#0072b2", ls=":", label="theory")
        for h, name, side in ((c.h_opt, "h_opt", "right"), (c.h_g, "h_G", "left"), (c.h_clt, "h_CLT", "left")):
            ax.axvline(h, color="#888888", lw=1, ls="--")  # the first two lie close together
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            shift = (-2 if side == "right" else 2, 1)
            ax.annotate(name, (h, 1.0), xytext=shift, ha=side, va="bottom", fontsize=7, **place)
        ax.axvline(self.bandwidth_, color="#d55e00", lw=1, label="chosen")
        ax.set_xscale("log")
        ax.set_xlabel("bandwidth")
        ax.set_ylabel("mean log-density")
        right = ax.twinx()
        right.plot(table["bandwidth"], table["effective_number"], color="#009e73")
        right.set_yscale("log")
        right.set_ylabel("effective number of points", color="#009e73")
        ax.legend(frameon=False, fontsize=7, loc="center right")
        return ax

    def _weights(self) -> Array:
        """Of the rows, with sum 1."""
        return np.exp(self.log_weights_.cpu().numpy() - self.log_total_)

    def _queries(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        given = rows_of(self, X, reset=False)
        return torch.as_tensor(given - self.centre_).to(self.data_)

    def _log_sums(self, queries: Tensor, grid: Tensor, own: Tensor | None = None) -> Tensor:
        """``log Σ_i w_i e^{-|q - y_i|²/(2h²)}``, ``(grid, q)``, without row ``own`` of the data; by tiles."""

        chains = _chains(grid)

        def of(start: int) -> Tensor:
            at = slice(start, start + _QUERIES)
            q, mine = queries[at], None if own is None else own[at]
            out = torch.full((len(grid), len(q)), -torch.inf).to(q)
            for first in range(0, len(self.data_), _POINTS):
                D = self._squares(q, first, mine)
                torch.logaddexp(
                    out, _tile_log_sums(D, self.log_weights_[first : first + _POINTS], grid, chains), out=out
                )
            return out

        return torch.cat(list(each(of, range(0, len(queries), _QUERIES))), 1)

    def _distances(self, queries: Tensor, own: Tensor | None = None) -> Iterator[Tensor]:
        """Squared distances ``(some queries, n)``, without row ``own`` of the data."""
        step = max(1, _BLOCK // max(len(self.data_), 1))
        for start in range(0, len(queries), step):
            at = slice(start, start + step)
            yield self._squares(queries[at], 0, None if own is None else own[at], len(self.data_)).clamp_(min=0)

    def _squares(self, q: Tensor, first: int, own: Tensor | None, count: int = _POINTS) -> Tensor:
        """Squared distances to ``count`` points from ``first`` on, infinite to row ``own``; may be -1e-16 |x|².

        One product: ``[-2q, |q|², 1] · [y, 1, |y|²]``.
        """
        norms = q.square().sum(1, keepdim=True)
        D = torch.cat([-2 * q, norms, torch.ones_like(norms)], 1) @ self._right[first : first + count].T
        if own is not None:
            at = own.to(D.device) - first
            inside = torch.nonzero((at >= 0) & (at < D.shape[1]))[:, 0]
            D[inside, at[inside]] = torch.inf
        return D

    def _normalised(self, log_sums: Tensor, grid: Tensor) -> Tensor:
        d = self.data_.shape[1]
        return log_sums - (self.log_total_ + d * grid.log() + d / 2 * np.log(2 * np.pi))[:, None]

    def _chosen(self, sigma: float) -> float:
        if not isinstance(self.bandwidth, str):
            return float(self.bandwidth)
        (rows, d), n, rule = self.data_.shape, self.n_effective_, self.bandwidth
        if self.critical_ is None:
            found = f"{rows} sample" if rows == 1 else f"{rows} samples without any variance" if n >= 2 else (
                f"{rows} samples whose weights count as {n:.3g}"
            )  # fmt: skip
            raise ValueError(f"bandwidth='{rule}' needs at least two samples that differ, found {found}; give a number")
        if rule == "scott":
            return float(sigma * n ** (-1 / (d + 4)))
        if rule == "silverman":
            return float(sigma * (n * (d + 2) / 4) ** (-1 / (d + 4)))
        if rule == "theory":
            return self.critical_.h_opt
        nearest = torch.cat([D.amin(1) for D in self._distances(self.data_, torch.arange(rows))])
        if rule == "nn":
            typical = float(nearest.cpu().numpy() @ self._weights())
            if not typical > self._unknown():
                raise ValueError("bandwidth='nn': every row has an exact duplicate; drop duplicates or give a number")
            return float(np.sqrt(typical / d))
        return self._cross_validated(nearest, sigma)

    def _unknown(self) -> float:
        """What squared distances are known to: of duplicates the product leaves its rounding error."""
        return 1e-12 * float(self._right[:, -1].max())

    def _cross_validated(self, nearest: Tensor, sigma: float) -> float:
        """The maximiser of the leave-one-out likelihood: eighths of octaves, then a finer grid."""
        same = int((nearest <= self._unknown()).sum())
        low = max(float((nearest.mean() / self.data_.shape[1]).sqrt()), 1e-3 * sigma) / 16
        grid = low * 2 ** np.arange(0, np.log2(4 * sigma / low) + 0.125, 0.125)
        w = self._weights()
        values = self.leave_one_out(list(grid)) @ w
        best = int(values.argmax())
        if same and best == 0:
            raise ValueError(
                f"bandwidth='cv': {same} rows have an exact duplicate, and the leave-one-out likelihood grows without "
                "bound as h goes to 0; drop duplicates, or choose another rule"
            )
        fine = grid[best] * 2 ** (np.arange(-4, 5) / 32)
        return float(fine[(self.leave_one_out(list(fine)) @ w).argmax()])

    def _warn_if_concentrated(self) -> None:
        n = len(self.data_)
        if self.critical_ is None or n < 4 * _FEW:
            return
        at = torch.as_tensor(np.random.default_rng(0).permutation(n)[:200])
        b = self.bandwidth_**-2 / 2
        parts = [_effective_number(self.log_weights_ - D * b) for D in self._distances(self.data_[at], at)]
        effective = float(torch.cat(parts).median())
        if effective < _FEW:
            warnings.warn(
                f"at h = {self.bandwidth_:.3g} half of the points' estimates rest on fewer than {effective:.1f} others "
                f"({self.critical_.regime(self.bandwidth_)} regime; means need h above {self.critical_.h_clt:.3g})",
                ConcentrationWarning,
                stacklevel=3,
            )


def _tile_log_sums(D: Tensor, log_weights: Tensor, grid: Tensor, chains: list[list[int]]) -> Tensor:
    """``log Σ_i w_i e^{-D_i / (2h²)}`` for every h, ``(grid, queries)``; D is used up.

    The nearest term is taken out of the sum first. Along a chain the exponentials are squared.
    """
    least = D.amin(1, keepdim=True)
    D = D.sub_(torch.where(least.isinf(), 0.0, least))
    offset = log_weights.max()
    w = (log_weights - offset).exp()
    sums = torch.empty(len(grid), len(D), dtype=D.dtype, device=D.device)
    for chain in chains:
        E = torch.exp(D * (-0.5 / grid[chain[0]] ** 2))
        for at in chain:
            torch.mv(E if at == chain[0] else E.square_(), w, out=sums[at])
    return sums.log_().add_(offset).addcmul_(grid.square().reciprocal()[:, None], least.T, value=-0.5)


def _chains(grid: Tensor) -> list[list[int]]:
    """Positions in ``grid``, each with 1/h² twice that of the one before it in its list."""
    octave = 2 * grid.double().log2().cpu().numpy()
    chains: list[list[int]] = []
    for at in np.argsort(-octave, kind="stable").tolist():
        longer = next((c for c in chains if abs(octave[c[-1]] - 1 - octave[at]) < 1e-12), None)
        if longer is None:
            chains.append([at])
        else:
            longer.append(at)
    return chains


def _effective_number(logs: Tensor) -> Tensor:
    """``1 / Σ p²`` of each row's terms, given as logarithms."""
    return 1 / torch.softmax(logs, 1).square().sum(1)


def _condensed(D: Tensor, log_weights: Tensor) -> Tensor:
    """The bandwidth at which the entropy of the normalised terms is one nat, by bisection in log h."""
    low = torch.full_like(D[:, 0], -12.0) + D.mean(1).sqrt().log()
    high = low + 16.0
    for _ in range(40):
        middle = (low + high) / 2
        logs = log_weights - D * ((-2 * middle).exp() / 2)[:, None]
        p = torch.softmax(logs, 1)
        entropy = torch.logsumexp(logs, 1) - (p * logs).sum(1)
        low, high = torch.where(entropy < 1, middle, low), torch.where(entropy < 1, high, middle)
    return ((low + high) / 2).exp()
