"""Prediction intervals better than any one quantile model's: a stack whose weights know the model, level and input.

p base models give out-of-fold quantiles q_j(x; τ_k); the prediction is ``q̂(x; τ_k) = Σ w q`` with convex weights

    coarse   w_j           one a model
    medium   w_j^k         one a model and level
    fine     w_{jl}^k      every base quantile for every level

global (free parameters) or local (a network of x). Trained on

    mean pinball loss + λ mean_{k<l} relu(q̂_k - q̂_l + δ_kl),     δ_kl = c relu(Q_l - Q_k)    Q: the response's quantiles

then put in order (`noncrossing`) and calibrated (`conformal`).

Source: Fakoor, Kim, Mueller, Smola & Tibshirani, "Flexible Model Aggregation for Quantile Regression", JMLR 2023, arXiv
2103.00083, sections 2 to 5.

What people get wrong: base predictions of rows the base was fitted on. Everything the weights see is out of fold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.progress import Progress
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from rankwise.distributions.accepted import rows_and_response_of, rows_of
from rankwise.distributions.quantiles.bases import GaussianNetwork, mlp, predict_base
from rankwise.distributions.quantiles.conformal import conformity_scores, cross_calibrated, intervals, widening
from rankwise.distributions.quantiles.kept import Kept
from rankwise.distributions.quantiles.linear import LinearQuantile
from rankwise.distributions.quantiles.metrics import symmetric_pairs, weighted_interval_score
from rankwise.distributions.quantiles.noncrossing import WAYS, monotone
from rankwise.distributions.seeds import seed_of
from rankwise.nearest import unknown
from rankwise.parallel import fan_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["QuantileAggregator"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
WEIGHTS = tuple(f"{place}-{grain}" for place in ("global", "local") for grain in ("coarse", "medium", "fine"))
LEVELS = tuple(np.round(np.arange(0.01, 1, 0.01), 2).tolist())
_RANGES = {
    "crossing": (0.0, np.inf), "margin": (0.0, np.inf), "huber": (0.0, np.inf), "dropout": (0.0, 0.99),
    "calibration": (0.01, 0.99), "lr": (1e-12, 1e3), "weight_decay": (0.0, 1e3),
}  # fmt: skip
_OWN = 8.0  # a fine weight's head start at its own level: it begins as the mean of the models


class QuantileAggregator(BaseEstimator):
    """Convex combination of quantile regressors.

    Parameters
    ----------
    estimators : list of estimators or (name, estimator), optional
        Bases, see `rankwise.distributions.quantiles.bases`; by default linear quantile regression, gradient boosting
        and a Gaussian network.
    quantiles : sequence of float
        Ascending levels in (0, 1).
    weights : str
        ``"global"`` or ``"local"`` with ``-coarse``, ``-medium`` or ``-fine``.
    normalize : bool
        Convex weights (softmax); False leaves them free.
    monotone : {"sort", "isotonic", "sweep", "none"}
        How predicted quantiles are put in order, see `rankwise.distributions.quantiles.noncrossing`. Default "sort".
    in_training : bool
        Put quantiles in order inside the training loss too.
    conformal : {"cqr", "cv+", None}
        Calibrate symmetric pairs, and levels without a partner as single ends: ``"cqr"`` on ``calibration`` of the
        rows, which nothing else sees; ``"cv+"`` on all rows, each by a fit without its fold, ``cv + 1`` fits in all.
        The median alone has nothing to calibrate, and no rows are kept from it.
    crossing, margin : float
        λ and c.
    huber : float
        Half-width of the pinball loss's rounded kink, in standard deviations of y; 0 leaves the kink.
    hidden, dropout :
        The local network's layers.
    cv : int
        Folds, of rows dealt at random.
    calibration : float
        Share of rows for ``"cqr"``.
    batch_size : int or "paper"
        ``"paper"``: 2^(3 + ⌊log10 n⌋).
    lr, weight_decay, max_steps, patience :
        Adam; steps without a better validation loss before it stops.
    on_error : {"raise", "drop"}
        What to do with a base that fails or predicts NaN.
    memory : str, optional
        Folder where fits of bases and their out-of-fold predictions are kept as arrays: those of kinds that
        `rankwise.distributions.quantiles.saved` keeps, by their parameters and the data's content. Others are fitted
        anew.
    n_jobs : int, optional
        Processes for the fits of bases, see `rankwise.parallel.fan_out`; what they find is the same.
    random_state : int or None
        Decides calibration rows, folds, the start and the batches. Default 0; None draws anew.
    verbose : bool
        Show how many fits are done.

    Attributes
    ----------
    weights_ : ndarray
        ``(p,)``, ``(m, p)`` or ``(m, p, m)``; for local weights their mean over the training rows.
    names_ : list of str
        Of the bases kept.
    widening_ : ndarray
        ``(m,)``, what ``"cqr"`` added to each level; zeros without it.
    folds_ : list of QuantileAggregator
        For ``"cv+"``: the fits without each fold, else empty.
    scores_ : list of ndarray
        ``(n_k, intervals)``, conformity scores of each fold's rows.
    seed_ : int
        What ``random_state`` came to.
    n_features_in_ : int
        Columns of the training rows.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from rankwise.distributions import LinearQuantile, QuantileAggregator
    >>> X, y = load_diabetes(return_X_y=True)
    >>> bases = [("linear", LinearQuantile()), ("sparse", LinearQuantile(alpha=0.05))]
    >>> model = QuantileAggregator(bases, quantiles=[0.1, 0.5, 0.9], cv=2, max_steps=50).fit(X[:350], y[:350])
    >>> low, high = model.predict_interval(X[350:], alpha=0.2).T
    >>> bool(0.7 < ((low <= y[350:]) & (y[350:] <= high)).mean() < 0.9)
    True
    """

    def __init__(
        self,
        estimators: Sequence[Any] | None = None,
        *,
        quantiles: Sequence[float] = LEVELS,
        weights: str = "local-medium",
        normalize: bool = True,
        monotone: str = "sort",
        in_training: bool = False,
        conformal: str | None = "cqr",
        crossing: float = 1.0,
        margin: float = 0.01,
        huber: float = 0.0,
        hidden: tuple[int, ...] = (64, 64),
        dropout: float = 0.0,
        cv: int = 5,
        calibration: float = 0.2,
        batch_size: int | str = 256,
        lr: float = 3e-3,
        weight_decay: float = 1e-7,
        max_steps: int = 4000,
        patience: int = 300,
        on_error: str = "raise",
        memory: str | None = None,
        n_jobs: int | None = None,
        random_state: int | None = 0,
        verbose: bool = False,
    ) -> None:
        self.estimators = estimators
        self.quantiles = quantiles
        self.weights = weights
        self.normalize = normalize
        self.monotone = monotone
        self.in_training = in_training
        self.conformal = conformal
        self.crossing = crossing
        self.margin = margin
        self.huber = huber
        self.hidden = hidden
        self.dropout = dropout
        self.cv = cv
        self.calibration = calibration
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_steps = max_steps
        self.patience = patience
        self.on_error = on_error
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> QuantileAggregator:
        """Fit bases, weights and calibration to numeric ``(n, d)`` and ``(n,)``.

        Raises
        ------
        ValueError
            Bad levels or options, too few rows for folds and calibration (the least α is named), a constant y, a base
            that fails (named), NaN.
        """
        X, y = rows_and_response_of(self, X, y)
        tau = self._levels()
        self.seed_ = seed_of(self.random_state)
        rows, calibrating = self._split(len(y))
        self._check_rows(y, tau, calibrating)
        self._stack(X[rows], y[rows], tau)
        self.widening_, self.folds_, self.scores_ = np.zeros(len(tau)), [], []
        if len(calibrating):
            scores = conformity_scores(y[calibrating], self._ordered(X[calibrating]), tau)
            self.widening_ = widening(scores, tau)
        elif self.conformal == "cv+" and intervals(tau):
            for rest, fold in KFold(self.cv, shuffle=True, random_state=self.seed_ + 1).split(X):
                without: Any = clone(self)
                without.set_params(conformal=None, random_state=self.seed_)
                self.folds_.append(without.fit(X[rest], y[rest]))
                self.scores_.append(conformity_scores(y[fold], without.predict(X[fold]), tau))
        return self

    def fitting_rows(self, n: int) -> Rows:
        """Positions of the rows, out of n, that bases and weights will be fitted to: those not kept for calibration.

        Encoders of columns must not see the others. Needs a ``random_state`` that is an integer.
        """
        self._levels()
        self.seed_ = seed_of(self.random_state)
        return self._split(n)[0]

    def _split(self, n: int) -> tuple[Rows, Rows]:
        """Rows to fit to, ascending, and rows to calibrate on."""
        held = round(self.calibration * n) if self.conformal == "cqr" and intervals(self._levels()) else 0
        order = np.random.default_rng(self.seed_).permutation(n)
        return np.sort(order[held:]), order[:held]

    def predict(self, X: ArrayLike) -> Array:
        """Quantiles ``(n, m)``."""
        check_is_fitted(self)
        X = rows_of(self, X, reset=False)
        q = self._ordered(X)
        if not self.conformal:
            return q
        if self.folds_:
            q = cross_calibrated(q, [f.predict(X) for f in self.folds_], self.scores_, np.asarray(self.quantiles))
        way = "sort" if self.monotone == "none" else self.monotone
        return self._in_order(torch.as_tensor(q + self.widening_), way).numpy()

    def predict_uncalibrated(self, X: ArrayLike) -> Array:
        """Quantiles ``(n, m)`` in order, before calibration."""
        check_is_fitted(self)
        return self._ordered(rows_of(self, X, reset=False))

    def predict_interval(self, X: ArrayLike, alpha: float = 0.1) -> Array:
        """Ends ``(n, 2)`` of the interval at level ``1 - alpha``.

        Raises
        ------
        ValueError
            α / 2 and 1 - α / 2 are not among the levels.
        """
        tau = np.asarray(self.quantiles, dtype=float)
        pairs = symmetric_pairs(tau)
        found = [pair for pair in pairs if abs(2 * tau[pair[0]] - alpha) < 1e-9]
        if not found:
            offered = ", ".join(f"{2 * tau[i]:.3g}" for i, _ in pairs[:12])
            raise ValueError(f"alpha is {alpha}; the levels have symmetric pairs for {offered}")
        return self.predict(X)[:, list(found[0])]

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Negative weighted interval score."""
        return -weighted_interval_score(y, self.predict(X), self.quantiles)

    def plot_weights(self, ax: Axes | None = None) -> Axes:
        """Weight of every model against the level."""
        from matplotlib import pyplot as plt

        check_is_fitted(self)
        ax = plt.gca() if ax is None else ax
        w = self.weights_
        if w.ndim == 1:
            ax.bar(self.names_, w)
        else:
            ax.stackplot(np.asarray(self.quantiles), (w if w.ndim == 2 else w.sum(2)).T, labels=self.names_, alpha=0.8)
            ax.set_xlabel("level")
            ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        ax.set_ylabel("weight")
        return ax

    def _levels(self) -> Array:
        """The levels; all options are checked."""
        tau = np.asarray(self.quantiles, dtype=float)
        if tau.ndim != 1 or not len(tau) or not ((tau > 0) & (tau < 1)).all() or (np.diff(tau) <= 0).any():
            raise ValueError(f"quantiles must ascend within (0, 1), found {list(self.quantiles)[:8]}")
        for kind, value, accepted in (
            ("weights", self.weights, WEIGHTS), ("way to keep quantiles in order", self.monotone, WAYS),
            ("conformal", str(self.conformal), ("cqr", "cv+", "None")), ("on_error", self.on_error, ("raise", "drop")),
        ):  # fmt: skip
            if value not in accepted:
                raise unknown(kind, str(value), accepted)
        if self.monotone == "sweep" and not np.isclose(tau, 0.5).any():
            raise ValueError("monotone='sweep' starts at the median: 0.5 must be among the quantiles")
        for name, (low, high) in _RANGES.items():
            value: Any = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
                raise ValueError(f"{name} is {value}; a number from {low:g} to {high:g} is accepted")
        for name, low in (("cv", 2), ("max_steps", 0), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if (name, value) != ("batch_size", "paper") and not (_whole(value) and value >= low):
                raise ValueError(f"{name} is {value}; a whole number from {low} on is accepted")
        if not all(_whole(h) and h >= 1 for h in self.hidden):
            raise ValueError(f"hidden is {self.hidden}; widths from 1 on are accepted")
        return tau

    def _check_rows(self, y: Array, tau: Array, calibrating: Rows) -> None:
        if len(y) - len(calibrating) < 2 * self.cv:
            raise ValueError(
                f"n_samples={len(y)} is too few for cv={self.cv} folds and {len(calibrating)} rows of calibration"
            )
        if np.ptp(y) == 0:
            raise ValueError(f"y is constant ({y[0]}): there is nothing to predict")
        n = len(y) if self.conformal == "cv+" else len(calibrating)
        narrow = min((i.alpha for i in intervals(tau)), default=1.0)
        if self.conformal and narrow < 1 / (n + 1):
            warnings.warn(
                f"{n} rows of calibration guarantee intervals down to alpha = {1 / (n + 1):.3g}; narrower alphas take "
                "the largest score",
                stacklevel=3,
            )

    def _stack(self, X: Array, y: Array, tau: Array) -> None:
        """Bases, out of fold and on all rows, and the weights."""
        named = _named(self.estimators)
        kept = Kept(None if self.memory is None else Path(self.memory), X, y, tau)
        B, failures = self._out_of_fold(named, kept, X, y, tau)
        left = [name for name, _ in named if name not in failures]
        if failures and (self.on_error == "raise" or not left):
            raise ValueError(f"base models failed: {'; '.join(f'{n}: {why}' for n, why in failures.items())}")
        for name, why in failures.items():
            warnings.warn(f"base model {name} is left out: {why}", stacklevel=3)
        self.names_ = left
        used = [e for name, e in named if name in left]
        self.bases_: list[Any] = self._tracked(_fitted, [(kept, e) for e in used], "on all rows")
        self.scaler_ = StandardScaler().fit(X)
        self.y_mean_, self.y_scale_ = float(y.mean()), float(y.std())
        self.losses_, self.net_ = self._train(self._x(X), self._y(B), self._y(y), tau)
        with torch.no_grad():
            mean = self._weights(self.net_, self._x(X)[:2000]).mean(0).double().numpy()
        self.weights_ = {"coarse": mean[:, 0], "medium": mean.T, "fine": mean}[self.weights.partition("-")[2]]

    def _out_of_fold(
        self, named: list[tuple[str, Any]], kept: Kept, X: Array, y: Array, tau: Array
    ) -> tuple[Array, Mapping[str, str]]:
        """Base quantiles ``(n, p, m)`` of rows their fold's model did not see, and what failed (not kept)."""
        folds = list(KFold(self.cv, shuffle=True, random_state=self.seed_).split(X))
        jobs = [(name, e, train, test) for name, e in named for train, test in folds]
        done = self._tracked(_attempted, [(kept, e, train, test) for _, e, train, test in jobs], "out of fold")
        out, failures = {name: np.empty((len(y), len(tau))) for name, _ in named}, {}
        for (name, _, _, test), found in zip(jobs, done, strict=True):
            if isinstance(found, str):
                failures[name] = found
            else:
                out[name][test] = found
        fine = [q for name, q in out.items() if name not in failures]
        return (np.stack(fine, 1) if fine else np.empty((len(y), 0, len(tau)))), failures

    def _tracked(self, work: Callable[[Any], Any], fits: list[Any], where: str) -> list[Any]:
        with Progress(*Progress.get_default_columns(), disable=not self.verbose, transient=True) as bars:
            bar = bars.add_task(f"base models {where}", total=len(fits))
            return fan_out(work, fits, jobs=self.n_jobs, on_done=lambda at, found: bars.advance(bar))

    def _x(self, X: Array) -> Tensor:
        return torch.as_tensor(self.scaler_.transform(X), dtype=torch.float32)

    def _y(self, y: Array) -> Tensor:
        """The response, or its quantiles, without its mean and scale."""
        return torch.as_tensor((y - self.y_mean_) / self.y_scale_, dtype=torch.float32)

    def _in_order(self, q: Tensor, way: str) -> Tensor:
        return monotone(q, way, middle=int(np.argmin(np.abs(np.asarray(self.quantiles) - 0.5))))

    def _weights(self, net: nn.Module, x: Tensor) -> Tensor:
        """``(b or 1, p, 1 or m)``, or ``(b or 1, m, p, m)`` where fine: levels last, along a processor's lanes."""
        m, p = len(self.quantiles), len(self.names_)
        raw = net(x)
        if self.weights.endswith("fine"):
            raw = raw.reshape(-1, m, p * m)
            raw = raw + _OWN * torch.eye(m).repeat(1, p) if self.normalize else raw + torch.eye(m).repeat(1, p) / p
            return (raw.softmax(-1) if self.normalize else raw).reshape(-1, m, p, m)
        raw = raw.reshape(-1, p, 1 if self.weights.endswith("coarse") else m)
        return raw.softmax(1) if self.normalize else raw + 1 / p

    def _combined(self, net: nn.Module, x: Tensor, B: Tensor) -> Tensor:
        """``q̂`` from base quantiles ``(b, p, m)``."""
        w = self._weights(net, x)
        if w.ndim == 4:
            return torch.einsum("bkpl,bpl->bk", w.expand(len(B), -1, -1, -1), B)
        return (w * B).sum(1)

    def _train(self, x: Tensor, B: Tensor, y: Tensor, tau: Array) -> tuple[list[float], nn.Module]:
        net, g = self._network(x.shape[1]), torch.Generator().manual_seed(self.seed_)
        levels = torch.as_tensor(tau, dtype=torch.float32)
        least = self.margin * torch.quantile(y, levels)
        order = torch.randperm(len(y), generator=g)
        held, used = order[: max(len(y) // 10, 1)], order[max(len(y) // 10, 1) :]
        batch = 2 ** (3 + int(np.log10(len(y)))) if self.batch_size == "paper" else int(self.batch_size)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)

        def loss(rows: Tensor, *, penalty: bool) -> Tensor:
            q = self._combined(net, x[rows], B[rows])
            if self.in_training or not penalty:
                q = self._in_order(q, self.monotone)
            value = pinball_loss(y[rows, None] - q, levels, self.huber if penalty else 0.0)
            return value + self.crossing * crossing_penalty(q, least) if penalty and self.crossing else value

        best, kept, since, losses, step = float("inf"), net.state_dict(), 0, [], 0
        while step < self.max_steps and since < self.patience:
            for rows in used[torch.randperm(len(used), generator=g)].split(batch):
                if step % 10 == 0:
                    net.eval()
                    with torch.no_grad():
                        losses.append(float(loss(held, penalty=False)))
                    net.train()
                    since += 10
                    if losses[-1] < best:
                        best, since = losses[-1], 0
                        kept = {k: v.clone() for k, v in net.state_dict().items()}
                optimizer.zero_grad()
                loss(rows, penalty=True).backward()
                optimizer.step()
                step += 1
                if step >= self.max_steps or since >= self.patience:
                    break
        net.load_state_dict(kept)
        return losses, net.eval()

    def _network(self, inputs: int) -> nn.Module:
        """Logits of the weights, equal weights at first."""
        m, p = len(self.quantiles), len(self.names_)
        size = {"coarse": p, "medium": m * p, "fine": m * p * m}[self.weights.partition("-")[2]]
        if self.weights.startswith("global"):
            return _Constant(size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            net = mlp(inputs, self.hidden, size, dropout=self.dropout)
        for parameter in net[-1].parameters():
            nn.init.zeros_(parameter)
        return net

    def _ordered(self, X: Array) -> Array:
        """Quantiles before calibration, in y's units."""
        tau = np.asarray(self.quantiles, dtype=float)
        B = np.stack([predict_base(b, X, tau) for b in self.bases_], 1)
        with torch.no_grad():
            parts = [
                self._in_order(self._combined(self.net_, x, q), self.monotone)
                for x, q in zip(self._x(X).split(2048), self._y(B).split(2048), strict=True)
            ]
        return torch.cat(parts).double().numpy() * self.y_scale_ + self.y_mean_


def pinball_loss(e: Tensor, levels: Tensor, huber: float = 0.0) -> Tensor:
    """Mean of ``τe`` where ``e = y - q (b, m)`` is positive and ``(τ - 1)e`` where not.

    With ``huber`` |e| is replaced by ``e² / (2 huber)`` up to |e| = huber, and by ``|e| - huber / 2`` beyond.
    """
    if not huber:
        return (levels * e + (-e).relu()).mean()
    size = e.abs()
    rounded = torch.where(size <= huber, size.square() / (2 * huber), size - huber / 2)
    return (torch.where(e < 0, 1 - levels, levels) * rounded).mean()


def crossing_penalty(q: Tensor, least: Tensor) -> Tensor:
    """``mean_{k<l} relu(q_k - q_l + δ_kl)`` over rows ``(b, m)`` and pairs, ``δ_kl = least_l - least_k`` of ascending
    ``least``; zero where every gap is at least δ.

    With ``z = q - least`` a pair counts ``relu(z_k - z_l)``, and all pairs ``Σ_k k (z_(k) - z_k)``: sorting moves z_k
    up by the number of later values below it less that of earlier ones above. One sort, no pairs.
    """
    m, z = q.shape[1], q - least
    return ((z.sort(1).values - z) @ torch.arange(m).to(z)).mean() / max(m * (m - 1) / 2, 1)


class _Constant(nn.Module):
    """Weights that do not depend on x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def _named(estimators: Sequence[Any] | None) -> list[tuple[str, Any]]:
    if estimators is None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        estimators = [
            ("linear", LinearQuantile()),
            ("boosting", HistGradientBoostingRegressor(loss="quantile", quantile=0.5, max_iter=60)),
            ("gaussian", GaussianNetwork()),
        ]
    if not len(estimators):
        raise ValueError("estimators is empty: at least one base model is needed")
    pairs = [e if isinstance(e, tuple) else (type(e).__name__.lower(), e) for e in estimators]
    seen: dict[str, int] = {}
    out = []
    for name, e in pairs:
        seen[name] = seen.get(name, 0) + 1
        out.append((name if seen[name] == 1 else f"{name}-{seen[name]}", e))
    return out


def _fitted(asked: tuple[Kept, Any]) -> Any:
    kept, e = asked
    return kept.fitted(e)


def _attempted(asked: tuple[Kept, Any, Rows, Rows]) -> Array | str:
    kept, e, train, test = asked
    try:
        q = kept.predicted(e, train, test)
    except Exception as error:  # any base may fail in its own way: it is named
        return f"{type(error).__name__}: {error}"
    return q if np.isfinite(q).all() else "predicts NaN or Inf"


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
