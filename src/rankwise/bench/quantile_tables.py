"""Quantile aggregation on twelve real tables: six kinds of weights, each base, averages, free weights.

Control: three bases of noise (quantiles of a random normal) must not hurt by more than 1%.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMRegressor
from numpy.typing import ArrayLike
from quantile_forest import RandomForestQuantileRegressor
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.linear_model import QuantileRegressor
from sklearn.preprocessing import StandardScaler

from rankwise.bench.evidence import Claim, Evidence, paired, plus_minus
from rankwise.data.frames import REGRESSION, regression
from rankwise.distributions.quantile_aggregation import WEIGHTS, QuantileAggregator
from rankwise.distributions.quantile_bases import GaussianNetwork, predict_base
from rankwise.distributions.quantile_metrics import report, weighted_interval_score
from rankwise.jobs.adapt import OnEvent, environment

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975)
ROWS = 1_500


class Noise(BaseEstimator):
    """A normal of the response's spread about a mean drawn for every row."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> Noise:
        """Take the response's mean and spread."""
        given = np.asarray(y, dtype=float)
        self.mean_, self.spread_ = float(given.mean()), float(given.std())
        return self

    def predict(self, X: ArrayLike, quantiles: ArrayLike = (0.5,)) -> np.ndarray:
        """Quantiles ``(n, m)`` that know nothing of X."""
        centre = np.random.default_rng(self.seed).normal(self.mean_, self.spread_, size=(len(np.asarray(X)), 1))
        return centre + self.spread_ * norm.ppf(np.asarray(quantiles))


class LinearQuantiles(QuantileRegressor):
    """Linear quantile regression on standardised columns."""

    def fit(self, X, y, sample_weight=None):
        """Standardise both sides, then fit."""
        self.scaler_ = StandardScaler().fit(X)
        self.y_scale_ = float(np.std(y)) or 1.0
        return super().fit(self.scaler_.transform(X), np.asarray(y) / self.y_scale_)

    def predict(self, X):
        """In the response's units."""
        return super().predict(self.scaler_.transform(X)) * self.y_scale_


def bases() -> list[tuple[str, Any]]:
    """The base models."""
    return [
        ("linear", LinearQuantiles(alpha=1e-4)),
        ("LightGBM", LGBMRegressor(objective="quantile", n_estimators=80, num_leaves=15, verbose=-1, n_jobs=2)),
        ("forest", RandomForestQuantileRegressor(n_estimators=80, min_samples_leaf=5, random_state=0, n_jobs=2)),
        ("Gaussian network", GaussianNetwork()),
    ]


def run(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Evidence:
    """Split every table ``seeds`` times, fit, compare."""
    start, note = time.perf_counter(), on_event or (lambda *_: None)
    tau, names = np.array(LEVELS), [n for n, _ in bases()]
    kinds = [*WEIGHTS, *names, "average", "median", "free weights (QRA)", "local-medium, three noise bases"]
    score: dict[str, dict[str, list[float]]] = {k: {t: [] for t in REGRESSION} for k in kinds}
    cover: dict[str, list[np.ndarray]] = {"without calibration": [], "calibrated": [], "by cv+ (first splits)": []}
    gained: list[float] = []
    for table in REGRESSION:
        X, y = regression(table)
        for seed in range(seeds):
            note(table, "train", seed, seeds, float("nan"))
            order = np.random.default_rng(seed).permutation(len(y))[:ROWS]
            train, test = order[: 4 * len(order) // 5], order[4 * len(order) // 5 :]
            given = X.iloc[train].to_numpy(), y.iloc[train].to_numpy()
            Z, t = X.iloc[test].to_numpy(), y.iloc[test].to_numpy()

            def fitted(models=None, data=given, seed=seed, **options) -> QuantileAggregator:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return QuantileAggregator(
                        models or bases(), quantiles=LEVELS, memory=str(out / "quantile_memory"), random_state=seed,
                        **{"conformal": None, "max_steps": 1500, **options},
                    ).fit(*data)  # fmt: skip

            for weights in WEIGHTS:
                model = fitted(weights=weights)
                score[weights][table].append(weighted_interval_score(t, model.predict(Z), tau))
                if weights == "local-medium":
                    B = np.stack([predict_base(b, Z, tau) for b in model.bases_], 1)
                    cover["without calibration"].append(_coverage(t, model.predict(Z)))
            for name, q in zip(names, B.transpose(1, 0, 2), strict=True):
                score[name][table].append(weighted_interval_score(t, np.sort(q, 1), tau))
            score["average"][table].append(weighted_interval_score(t, np.sort(B.mean(1), 1), tau))
            score["median"][table].append(weighted_interval_score(t, np.sort(np.median(B, 1), 1), tau))
            free = fitted(weights="global-coarse", normalize=False)
            score["free weights (QRA)"][table].append(weighted_interval_score(t, free.predict(Z), tau))
            noisy = fitted([*bases(), *((f"noise {i}", Noise(i)) for i in range(3))], weights="local-medium")
            score[kinds[-1]][table].append(weighted_interval_score(t, noisy.predict(Z), tau))
            calibrated = fitted(conformal="cqr", weights="local-medium")
            cover["calibrated"].append(_coverage(t, calibrated.predict(Z)))
            if seed == 0:  # six times the fits
                q = fitted(conformal="cv+", weights="local-medium").predict(Z)
                cover["by cv+ (first splits)"].append(_coverage(t, q))
                gained.append(float(np.log(-calibrated.score(Z, t) / weighted_interval_score(t, q, tau))))
        note(table, "done", 1, 1, float("nan"))
    mean = {k: {t: float(np.mean(v)) for t, v in by.items()} for k, by in score.items()}
    best = {t: min(names, key=lambda n: mean[n][t]) for t in REGRESSION}
    relative = {k: np.array([mean[k][t] / mean[best[t]][t] for t in REGRESSION]) for k in kinds}
    medium = relative["local-medium"]
    noise = relative[kinds[-1]] / medium - 1
    grain = paired(relative["global-medium"], medium)
    cross = paired(gained, np.zeros(len(gained)))
    covered = {k: np.mean(v, 0) for k, v in cover.items()}
    return Evidence(
        recipe="quantile_tables",
        title="Quantile aggregation: twelve tables",
        command=f"rankwise bench quantile-aggregation --seeds {seeds}",
        setting=f"up to {ROWS:,} rows a table, {seeds} splits, a fifth for testing; {len(LEVELS)} levels; WIS relative "
        "to each table's best base (chosen afterwards), geometric mean over tables",
        header=["method", "relative WIS", "tables at most 1", *REGRESSION],
        rows=[
            [k, f"{np.exp(np.log(r).mean()):.3f}", str(int((r <= 1).sum())), *(f"{x:.3f}" for x in r)]
            for k, r in relative.items()
        ],
        claims=[
            Claim(
                text="local-medium weights beat the best base (chosen afterwards) on average over tables",
                held=np.exp(np.log(medium).mean()) < 1,
                found=f"{np.exp(np.log(medium).mean()):.3f}, {int((medium <= 1).sum())} of {len(medium)} tables",
            ),
            Claim(
                text="local-medium weights beat the plain average and the median of the bases on average over tables",
                held=all(np.log(medium / relative[k]).mean() < 0 for k in ("average", "median")),
                found=", ".join(
                    f"{np.exp(np.log(medium / relative[k]).mean()):.3f} of the {k}'s" for k in ("average", "median")
                ),
            ),
            Claim(
                text="local medium weights beat global medium ones on average over tables",
                held=grain.mean > 0 and grain.p_value < 0.05,
                found=str(grain),
            ),
            Claim(
                text="calibrated intervals cover 50, 80 and 95% within 3 points on average",
                held=bool((np.abs(covered["calibrated"] - [0.5, 0.8, 0.95]) <= 0.03).all()),
                found="; ".join(f"{k} " + ", ".join(f"{100 * c:.1f}" for c in v) for k, v in covered.items()),
            ),
            Claim(
                text="calibrated by cv+ on all rows, intervals score better than calibrated on a fifth (p <= 0.05)",
                held=cross.mean > 0 and cross.p_value <= 0.05,
                found=f"score lower by {100 * cross.mean:.1f}±{100 * cross.error:.1f}%, p={cross.p_value:.2g}, on the "
                f"first split of each table; coverage above",
            ),
            Claim(
                text="control: three noise bases do not hurt by more than 1% on average",
                control=True,
                held=noise.mean() <= 0.01,
                found=plus_minus(noise, 100, 2) + "%",
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
    )


def _coverage(y: np.ndarray, q: np.ndarray) -> np.ndarray:
    table = report(y, q, LEVELS).set_index("nominal")["coverage"]
    return np.array([table.iloc[int(np.argmin(np.abs(table.index.to_numpy() - n)))] for n in (0.5, 0.8, 0.95)])
