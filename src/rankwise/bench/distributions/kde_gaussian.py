"""Kernel density on standard normal data: the three regimes and the best bandwidth against the theory.

Control: in one and two dimensions, where the theory does not apply, the classical rules must win.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import stats

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.distributions.density.estimator import ConcentrationWarning, HighDimKDE
from rankwise.distributions.density.regimes import CriticalBandwidths, critical_bandwidths
from rankwise.events import OnEvent, environment
from rankwise.report.plots.distributions import kde_phases
from rankwise.report.plots.shared import save

RECIPE = Recipe(
    name="kde-large-d",
    part="regimes",
    about="kernel density in large dimension: the regimes against theory, bandwidth rules on Gaussians",
    spreads=True,
    smoke={
        "seeds": 1, "SIZES": ((60, 100), (80, 200), (100, 400)), "LOW": ((1, 100), (2, 100), (20, 100)),
        "DRAWS": 10, "DRAWN": 100, "QUERIES": 40, "PAIRED": 100,
    },
    figures=(("critical bandwidths, and fluctuations across them", "kde_gaussian.png"),),
)  # fmt: skip

LOW = ((1, 1_000), (2, 1_000), (20, 10_000))
SIZES = ((60, 1_000), (80, 10_000), (100, 100_000))  # one α = log n / d = 0.115
RULES = ("theory", "scott", "silverman", "nn", "cv")
DRAWS, DRAWN, QUERIES = 400, 1_000, 400  # data sets and their points, for fluctuations; queries
AROUND = 2 ** (np.arange(-8, 13) / 16)  # bandwidths in units of h_opt, of which the best is told
DIGITS = 5  # of a log-density
FLUCTUATIONS = "fluctuations"
PAIRED = 10_000  # points at most that all pairs are taken of


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Draw and estimate, ``seeds`` data sets a size: the log-density at every query by rule."""
    asked = {f"d = {d}": (d, n, seeds) for d, n in (*LOW, *SIZES)}
    drawn = kept_runs(out / "runs.json", _size, asked, on_event)
    fluctuations = _fluctuations()
    save(kde_phases(normality(**fluctuations)), out / "kde_gaussian.png")
    return {FLUCTUATIONS: fluctuations} | drawn


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The rules compared with the theory."""
    sizes, rows = {}, []
    for d, n in (*LOW, *SIZES):
        c, drawn = critical_bandwidths(np.ones(d), n), found[f"d = {d}"]
        sets = [summed(s, c) for s in drawn]
        sizes[d] = {k: np.array([s[k] for s in sets]) for k in sets[0]}
        for rule in RULES:
            h = float(np.mean([s["chosen"][rule] for s in drawn]))
            rows.append([
                str(d), f"{n:,}", rule, f"{h:.3f}", f"{float(c.index(h)):.2f}", c.regime(h),
                plus_minus(sizes[d][rule], 1, 2),
            ])  # fmt: skip
    return Evidence(
        recipe="kde_gaussian",
        title="Kernel density in large dimension: Gaussian data",
        command=f"rankwise bench kde-large-d --part regimes --seeds {seeds}",
        setting=f"standard normal data and {QUERIES} queries, {seeds} data sets a size; mean log-density ± standard "
        f"deviation; fluctuations over {DRAWS} data sets of {DRAWN:,} points in 60 dimensions at one query; cv and nn "
        f"of more than {PAIRED:,} points are chosen on so many of them",
        header=["d", "n", "rule", "bandwidth", "μ", "regime", "held-out log-density"],
        rows=rows,
        claims=_claims(sizes, normality(**found[FLUCTUATIONS])),
        environment=environment("fp64", 1),
    )


def _size(asked: tuple[int, int, int]) -> list[dict[str, Any]]:
    """What was chosen and what was judged, a data set each."""
    d, n, seeds = asked
    c, chosen, sets = critical_bandwidths(np.ones(d), n), {}, []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, d])
        X, Q = rng.standard_normal((n, d)), rng.standard_normal((QUERIES, d))
        for rule in RULES:
            chosen.setdefault(rule, []).append(_chosen(rule, X, chosen.get(rule)))
        sets.append(_judged(_fitted(X, c.h_g), Q, {r: h[-1] for r, h in chosen.items()}, c))
    return sets


def _chosen(rule: str, X: np.ndarray, before: list[float] | None) -> float:
    """A rule's bandwidth; where all pairs are too many, that of a part of the first data set."""
    if rule in ("cv", "nn") and len(X) > PAIRED:
        if before:
            return before[0]
        X = X[:PAIRED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConcentrationWarning)
        return HighDimKDE(rule).fit(X).bandwidth_


def _judged(kde: HighDimKDE, Q: np.ndarray, chosen: dict[str, float], c: CriticalBandwidths) -> dict[str, Any]:
    """Log-density of every query by rule and at h_opt; bandwidths around h_opt, in its units, each with the mean."""
    by_rule = dict(zip(chosen, map(_short, kde.log_densities(Q, list(chosen.values()))), strict=True))
    return {
        "chosen": chosen,
        "by": by_rule,
        "around": list(zip(AROUND.tolist(), kde.log_densities(Q, list(c.h_opt * AROUND)).mean(1), strict=True)),
        "optimal": _short(kde.log_densities(Q, [c.h_opt])[0]),
    }


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.{DIGITS}g}") for v in values]


def summed(kept: Mapping[str, Any], c: CriticalBandwidths) -> dict[str, float]:
    """Mean log-density by rule, the best bandwidth in units of h_opt, and the gap to the theory there, a dimension."""
    by_rule = {rule: float(np.mean(values)) for rule, values in kept["by"].items()}
    at_best, (around, means) = np.mean(kept["optimal"]) / c.d, np.transpose(kept["around"])
    return by_rule | {
        "best": float(around[np.argmax(means)]),
        "gap": float(c.log_density(c.h_opt) - at_best),
    }


def _claims(sizes: dict[int, dict[str, np.ndarray]], normality: list[dict[str, float]]) -> list[Claim]:
    large = {d: sizes[d] for d, _ in SIZES}
    gaps, best = [s["gap"].mean() for s in large.values()], {d: s["best"] for d, s in large.items()}
    against = {d: [s["theory"] - s[r] for r in ("scott", "silverman")] for d, s in large.items()}
    low = {d: np.maximum(sizes[d]["scott"], sizes[d]["silverman"]) - sizes[d]["theory"] for d in (1, 2)}
    below = [r["anderson"] for r in normality if r["ratio"] < 1.2]
    above = [r["anderson"] for r in normality if r["ratio"] > 2.5]
    return [
        Claim(
            text="the bandwidth of the largest mean log-density is within 10% of h_opt, from 60 dimensions on",
            held=all(abs(b.mean() - 1) <= 0.1 for b in best.values()),
            found=", ".join(f"d = {d}: {b.mean():.3f} h_opt" for d, b in best.items()),
        ),
        Claim(
            text="the gap to the theory at h_opt shrinks as d grows at one α",
            held=bool(gaps[0] > gaps[1] > gaps[2] > 0),
            found=", ".join(f"d = {d}: {g:.4f} a dimension" for d, g in zip(large, gaps, strict=True)),
        ),
        Claim(
            text="the theory's bandwidth beats Scott's and Silverman's in every data set from 60 dimensions on",
            held=all((g > 0).all() for pair in against.values() for g in pair),
            found="; ".join(f"d = {d}: {plus_minus(a, 1, 2)}, {plus_minus(b, 1, 2)}" for d, (a, b) in against.items()),
        ),
        Claim(
            text="the estimate is further from normal (Anderson-Darling) below 1.2 h_G than above 2.5 h_G",
            held=np.min(below) > np.max(above),
            found=", ".join(f"{r['ratio']:.2f} h_G: {r['anderson']:.1f}" for r in normality),
        ),
        Claim(
            text="control: in one and two dimensions the better classical rule beats the theory's bandwidth",
            control=True,
            held=all((g > 0).all() for g in low.values()),
            found="; ".join(f"d = {d}: {plus_minus(g, 1, 3)}" for d, g in low.items()),
        ),
    ]


def _fitted(X: np.ndarray, h: float) -> HighDimKDE:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConcentrationWarning)
        return HighDimKDE(h).fit(X)


def _fluctuations(d: int = 60) -> dict[str, Any]:
    """By bandwidth, over many data sets, at one typical query: log-densities less their mean, and the share of points
    that count."""
    n, rng = DRAWN, np.random.default_rng(0)
    c = critical_bandwidths(np.ones(d), n)
    x = rng.standard_normal((1, d))
    x *= np.sqrt(d) / np.linalg.norm(x)
    ratios = np.array([0.6, 0.8, 1.0, 1.2, 1.41, 1.7, 2.0, 2.6, 3.2])
    logs, effective = [], []
    for _ in range(DRAWS):
        kde = _fitted(rng.standard_normal((n, d)), c.h_g)
        logs.append(kde.log_densities(x, list(ratios * c.h_g))[:, 0])
        D = ((kde.data_.numpy() + kde.centre_ - x) ** 2).sum(1)
        p = np.exp(-(D - D.min()) / (2 * (ratios[:, None] * c.h_g) ** 2))
        effective.append((p.sum(1) ** 2) / (p**2).sum(1))
    return {
        "ratios": ratios.tolist(),
        "logs": [_short(v - v.mean()) for v in np.transpose(logs)],  # digits are of what varies
        "effective": [_short(v) for v in np.transpose(effective) / n],
    }


def normality(*, ratios: Sequence[float], logs: Any, effective: Any) -> list[dict[str, float]]:
    """How far the estimate, by its mean, is from normal, and the share of points that count."""
    out = []
    for r, column, e in zip(ratios, np.array(logs), effective, strict=True):
        value = np.exp(column - column.max())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statistic = float(cast(Any, stats.anderson(value / value.mean())).statistic)
        out.append({"ratio": float(r), "anderson": statistic, "effective": float(np.median(e))})
    return out
