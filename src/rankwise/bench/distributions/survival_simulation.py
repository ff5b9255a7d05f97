"""Bias and coverage of power generalised Weibull estimates where the truth is known; exponential data as control."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import Runs
from rankwise.distributions.survival import power_weibull as pgw
from rankwise.distributions.survival.fitter import PGWFitter, select_baseline
from rankwise.events import OnEvent, counting, environment
from rankwise.parallel import fan_out

RECIPE = Recipe(
    name="flexible-survival",
    part="simulation",
    about="power generalised Weibull: bias and coverage in simulation",
    spreads=True,
    smoke={"seeds": 3, "LEAST": 3, "ROWS": 200},
)

CASES = {
    "exponential": (1.0, 1.0), "weibull, up": (1.6, 1.0), "weibull, down": (0.7, 1.0), "log-logistic": (2.0, 0.0),
    "between": (1.5, 0.4), "linear hazard": (1.0, 2.0), "bathtub": (0.6, 4.0), "cured": (1.5, -0.4),
}  # fmt: skip
PICKED = "AIC on exponential data"  # whether Weibull, PGW and PGW with both scales are preferred
ROWS = 1000
LEAST = 200  # samples a case: with fewer the intervals' coverage is not known


def measure(out: Path, *, seeds: int = 200, on_event: OnEvent | None = None) -> Runs:
    """``seeds`` samples a case (``LEAST`` at least): of each the estimates, and whether intervals cover the truth."""
    note, n = on_event or (lambda *_: None), max(seeds, LEAST)
    runs: Runs = {}
    for name, (gamma, kappa) in CASES.items():
        note(name, "train", 0, n, float("nan"))
        found = fan_out(_one, [(gamma, kappa, seed) for seed in range(n)], on_done=counting(note, name, n))
        note(name, "done", 1, 1, float("nan"))
        runs[name] = dict(zip(("log γ", "γ covered", "κ covered", "median", "median covered"), np.array(found).T,
                              strict=True))  # fmt: skip
    return {**runs, PICKED: np.array(fan_out(_picked, range(n)))}


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Bias and coverage by case."""
    n, rows, coverage = max(seeds, LEAST), [], {}
    for name, (gamma, kappa) in CASES.items():
        logs, inside_gamma, inside_kappa, median, inside_median = (np.mean(v) for v in found[name].values())
        coverage[name] = inside_kappa, inside_median
        rows.append([
            name, f"{gamma:g}", f"{kappa:g}", f"{logs - np.log(gamma):+.3f}", f"{100 * inside_gamma:.1f}",
            f"{100 * inside_kappa:.1f}", f"{100 * (median - 1):+.1f}", f"{100 * inside_median:.1f}",
        ])  # fmt: skip
    picked, more = np.mean(found[PICKED], 0), np.arange(1, 4)  # parameters more than the truth's
    chance = chi2.sf(2 * more, more)  # of a likelihood ratio that pays for them
    most = chance + 2.6 * np.sqrt(chance * (1 - chance) / n)
    near = 2.6 * np.sqrt(0.05 * 0.95 / n)
    return Evidence(
        recipe="survival_simulation",
        title="Flexible parametric survival: bias and coverage",
        command=f"rankwise bench flexible-survival --part simulation --seeds {n}",
        setting=f"{n} samples of {ROWS} a case, exponential censoring; 95% intervals: γ by Wald on the log scale, κ "
        "by profile likelihood, the median by the delta method",
        header=[
            "truth", "γ", "κ", "bias of log γ", "γ covered (%)", "κ covered (%)", "bias of median (%)",
            "median covered (%)",
        ],
        rows=rows,
        claims=[
            Claim(
                text=f"profile intervals of κ cover at 95% within {100 * near:.1f} points, in every case",
                held=all(abs(k - 0.95) <= near for k, _ in coverage.values()),
                found="; ".join(f"{c} {100 * k:.1f}" for c, (k, _) in coverage.items()),
            ),
            Claim(
                text=f"intervals of the median cover at 95% within {100 * near:.1f} points, in every case",
                held=all(abs(m - 0.95) <= near for _, m in coverage.values()),
                found="; ".join(f"{c} {100 * m:.1f}" for c, (_, m) in coverage.items()),
            ),
            Claim(
                text="control: on exponential data AIC takes 1, 2 and 3 further parameters no more often than a "
                f"likelihood ratio does by chance ({_shares(chance)}), within 2.6 standard errors (so at most "
                f"{_shares(most)})",
                control=True,
                held=bool((picked <= most).all()),
                found=f"Weibull, PGW, both scales: {_shares(picked)} of {n}",
            ),
        ],
        environment=environment("fp64", 1),
    )  # fmt: skip


def _shares(of: np.ndarray) -> str:
    return ", ".join(f"{100 * share:.1f}%" for share in of)


def _sample(gamma: float, kappa: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Median 1; the censoring times are exponential, of mean 6, and end at 6, where the cured show."""
    rng = np.random.default_rng([seed, int(1000 * gamma), int(1000 * (kappa + 1))])
    phi = float(pgw.quantile(np.log(2), gamma=gamma, kappa=kappa))
    t = pgw.quantile(rng.exponential(size=ROWS), phi=phi, gamma=gamma, kappa=kappa)
    c = np.minimum(rng.exponential(scale=6, size=ROWS), 6)
    return np.minimum(t, c), (t <= c).astype(float)


def _one(asked: tuple[float, float, int]) -> tuple[float, bool, bool, float, bool]:
    gamma, kappa, seed = asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = PGWFitter().fit(*_sample(gamma, kappa, seed))
        low, high = fit.profile_interval("kappa_")
        median = fit.interval("quantile", 0.5).iloc[0]
    log_gamma = np.log(fit.gamma_)
    error = np.sqrt(fit.fit_.covariance[1, 1])
    return (
        log_gamma, abs(log_gamma - np.log(gamma)) < 1.96 * error, low <= kappa <= high, median["estimate"],
        median["lower"] <= 1 <= median["upper"],
    )  # fmt: skip


def _picked(seed: int) -> tuple[bool, bool, bool]:
    """Whether AIC prefers Weibull, PGW and PGW with both scales to the truth."""
    t, e = _sample(1.0, 1.0, 10_000 + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aic = select_baseline(t, e, candidates=["exponential", "weibull", "pgw"])["AIC"]
        four = PGWFitter(family="both").fit(t, e).AIC_
    return aic["weibull"] < aic["exponential"], aic["pgw"] < aic["exponential"], four < aic["exponential"]
