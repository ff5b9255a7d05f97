"""Quantile aggregation on twelve real tables: six kinds of weights, each base, averages, free weights.

Control: three bases of noise (quantiles of a random normal) must not hurt by more than 1%.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from lightgbm import LGBMRegressor
from numpy.typing import ArrayLike
from quantile_forest import RandomForestQuantileRegressor
from scipy.stats import norm
from sklearn.base import BaseEstimator

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, greater, paired, plus_minus
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.data.frames import regression
from rankwise.distributions.quantiles.aggregation import QuantileAggregator
from rankwise.distributions.quantiles.bases import GaussianNetwork, predict_base
from rankwise.distributions.quantiles.linear import LinearQuantile
from rankwise.distributions.quantiles.metrics import report, weighted_interval_score
from rankwise.events import OnEvent, environment
from rankwise.parallel import threads_each

RECIPE = Recipe(
    name="quantile-aggregation",
    part="tables",
    about="quantile aggregation on twelve tables: six kinds of weights against each base, averages and free weights",
    spreads=True,
    smoke={
        "seeds": 1, "TABLES": ("cps1988", "diamonds"), "ROWS": 200, "TREES": 5, "EPOCHS": 2, "STEPS": 20,
    },
)  # fmt: skip

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975)
TABLES = (
    "carseats", "boston", "house-prices", "car-prices", "concrete", "wage", "computers", "slid", "nox", "deliveries",
    "cps1988", "diamonds",
)  # fmt: skip
WEIGHTS = tuple(f"{place}-{grain}" for place in ("global", "local") for grain in ("coarse", "medium", "fine"))
ROWS = 10_000
TREES, EPOCHS, STEPS = 80, 200, 4000  # of boosting and forest; of the network; of the weights, at most
BLOCKS = 40  # of a split's test rows: what is kept are their means
Scores = dict[str, float]


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


def bases() -> list[tuple[str, Any]]:
    """The base models."""
    n = threads_each()
    return [
        ("linear", LinearQuantile(alpha=1e-4)),
        ("LightGBM", LGBMRegressor(objective="quantile", n_estimators=TREES, num_leaves=15, verbose=-1, n_jobs=n)),
        ("forest", RandomForestQuantileRegressor(n_estimators=TREES, min_samples_leaf=5, random_state=0, n_jobs=n)),
        ("Gaussian network", GaussianNetwork(epochs=EPOCHS)),
    ]


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Split every table ``seeds`` times, fit: what every block of test rows gave."""
    memory = out / "quantile_memory"
    asked = {f"{table}, split {seed}": (table, seed, memory) for table in TABLES for seed in range(seeds)}
    return kept_runs(out / "runs.json", _split, asked, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The methods compared over tables."""
    splits: dict[str, list[Scores]] = {}
    covered: dict[str, list[np.ndarray]] = {}
    for table in TABLES:
        for seed in range(seeds):
            split = found[f"{table}, split {seed}"]
            splits.setdefault(table, []).append(
                {k: float(np.average(v, weights=split["rows"])) for k, v in split["wis"].items()}
            )
            for way, shares in split["covered"].items():
                covered.setdefault(way, []).append(np.average(shares, axis=0, weights=split["rows"]))
    names = [n for n, _ in bases()]
    mean = {t: {k: float(np.mean([s[k] for s in of])) for k in of[-1]} for t, of in splits.items()}
    kinds = [k for k in splits[TABLES[-1]][-1] if k not in covered]
    relative = {k: np.array([m[k] / min(m[n] for n in names) for m in mean.values()]) for k in kinds}
    return Evidence(
        recipe="quantile_tables",
        title="Quantile aggregation: twelve tables",
        command=f"rankwise bench quantile-aggregation --seeds {seeds}",
        setting=f"up to {ROWS:,} rows a table, {seeds} splits, a fifth for testing; {len(LEVELS)} levels; WIS relative "
        "to each table's best base (chosen afterwards), geometric mean over tables; cv+ on the first splits",
        header=["method", "relative WIS", "from", "to", "tables at most 1"],
        rows=[
            [k, _ratio(r), f"{r.min():.3f}", f"{r.max():.3f}", str(int((r <= 1).sum()))] for k, r in relative.items()
        ],
        claims=_claims(relative, [of[0] for of in splits.values()], covered),
        environment=environment("fp32", 1),
        extra={k: dict(zip(TABLES, (f"{x:.3f}" for x in r), strict=True)) for k, r in relative.items()},
    )


def _split(asked: tuple[str, int, Path]) -> dict[str, Any]:
    """Of one split, by block of test rows: weighted interval scores by method, coverage by way of calibration."""
    table, seed, memory = asked
    X, y = regression(table)
    order = np.random.default_rng(seed).permutation(len(y))[:ROWS]
    train, test = order[: 4 * len(order) // 5], order[4 * len(order) // 5 :]
    Z, t, tau = X.iloc[test].to_numpy(), y.iloc[test].to_numpy(), np.array(LEVELS)

    def fitted(weights: str = "local-medium", models: list | None = None, **options) -> QuantileAggregator:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return QuantileAggregator(
                models or bases(), weights=weights, quantiles=LEVELS, memory=str(memory), max_steps=STEPS,
                random_state=seed, **{"conformal": None, **options},
            ).fit(X.iloc[train].to_numpy(), y.iloc[train].to_numpy())  # fmt: skip

    by_weights = {weights: fitted(weights) for weights in WEIGHTS}
    medium = by_weights["local-medium"]
    B = np.stack([predict_base(b, Z, tau) for b in medium.bases_], 1)
    noisy = [*bases(), *((f"noise {i}", Noise(i)) for i in range(3))]
    calibrated = {"without calibration": medium, "calibrated": fitted(conformal="cqr")}
    if seed == 0:  # six times the fits
        calibrated["by cv+"] = fitted(conformal="cv+")
    predicted = {
        **{k: m.predict(Z) for k, m in (by_weights | calibrated).items()},
        **{name: np.sort(q, 1) for name, q in zip(medium.names_, B.transpose(1, 0, 2), strict=True)},
        "average": np.sort(B.mean(1), 1),
        "median": np.sort(np.median(B, 1), 1),
        "free weights (QRA)": fitted("global-coarse", normalize=False).predict(Z),
        "local-medium, three noise bases": fitted(models=noisy).predict(Z),
    }
    blocks = np.array_split(np.arange(len(t)), min(BLOCKS, len(t)))
    return {
        "rows": [len(b) for b in blocks],
        "wis": {k: [weighted_interval_score(t[b], q[b], tau) for b in blocks] for k, q in predicted.items()},
        "covered": {k: [_coverage(t[b], predicted[k][b]) for b in blocks] for k in calibrated},
    }


def _claims(relative: dict[str, np.ndarray], first: list[Scores], covered: dict[str, list[np.ndarray]]) -> list[Claim]:
    medium, coverage = relative["local-medium"], {k: np.mean(v, 0) for k, v in covered.items()}
    cross = paired([float(np.log(s["calibrated"] / s["by cv+"])) for s in first], np.zeros(len(first)))
    noise = relative["local-medium, three noise bases"] / medium - 1
    return [
        Claim(
            text="local-medium weights beat the best base (chosen afterwards) on average over tables",
            held=np.log(medium).mean() < 0,
            found=f"{_ratio(medium)}, {int((medium <= 1).sum())} of {len(medium)} tables",
        ),
        Claim(
            text="local-medium weights beat the plain average and the median of the bases on average over tables",
            held=all(np.log(medium / relative[k]).mean() < 0 for k in ("average", "median")),
            found=", ".join(f"{_ratio(medium / relative[k])} of the {k}'s" for k in ("average", "median")),
        ),
        greater(
            "local medium weights beat global medium ones on average over tables, by the logarithm of the score",
            np.log(relative["global-medium"]),
            np.log(medium),
            unit="%",
        ),
        Claim(
            text="calibrated intervals cover 50, 80 and 95% within 3 points on average",
            held=bool((np.abs(coverage["calibrated"] - [0.5, 0.8, 0.95]) <= 0.03).all()),
            found="; ".join(f"{k} " + ", ".join(f"{100 * c:.1f}" for c in v) for k, v in coverage.items()),
        ),
        Claim(
            text="calibrated by cv+ on all rows, quantiles score better than calibrated on a fifth (p <= 0.05)",
            held=cross.clear(),
            found=f"score lower by {100 * cross.mean:.1f}±{100 * cross.error:.1f}%, p={cross.p_value:.2g}",
        ),
        Claim(
            text="control: three noise bases do not hurt by more than 1% on average",
            control=True,
            held=noise.mean() <= 0.01,
            found=plus_minus(noise, 100, 2) + "%",
        ),
    ]


def _ratio(r: np.ndarray) -> str:
    return f"{np.exp(np.log(r).mean()):.3f}"


def _coverage(y: np.ndarray, q: np.ndarray) -> np.ndarray:
    table = report(y, q, LEVELS).set_index("nominal")["coverage"]
    return np.array([table.iloc[int(np.argmin(np.abs(table.index.to_numpy() - n)))] for n in (0.5, 0.8, 0.95)])
