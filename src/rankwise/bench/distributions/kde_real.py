"""Bandwidth rules on real points: digits by their principal components, sentences by MiniLM.

Does the theory's rule help? Held-out log-density, and telling other domains' sentences from one's own. Power: other
domains can be told apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.measured import Runs
from rankwise.data import sentiment
from rankwise.data.moving import digits
from rankwise.distributions.density.estimator import ConcentrationWarning, HighDimKDE
from rankwise.events import OnEvent, environment
from rankwise.models.embedding import embed
from rankwise.parallel import fan_out

RECIPE = Recipe(
    name="kde-large-d",
    part="real",
    about="kernel density in large dimension: bandwidth rules on digits and sentences",
    spreads=True,
    smoke={"seeds": 1, "DIGITS": 300, "ROWS": 200, "OTHERS": 50},
)

RULES = ("theory", "nn", "cv", "scott", "silverman")
DATA = ("digits", "movie sentences")
DIGITS_KEPT = 5  # of a log-density
DOMAINS = ("movies", "amazon", "nyt", "tweets")
KEPT, DIGITS, ROWS, OTHERS = 50, 5_000, 2_500, 500  # components; images; sentences a domain, and of another one


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Split ``seeds`` times, fit every rule: the log-density of every held-out row, and of other domains' sentences."""
    note = on_event or (lambda *_: None)
    images = digits()[0][:DIGITS]
    points = {DATA[0]: PCA(KEPT, random_state=0).fit_transform(images.reshape(len(images), -1) / 255.0)}
    texts = {d: sentiment(d, task="rating").split().train.texts[:ROWS] for d in DOMAINS}
    note("embedding", "train", 0, 1, float("nan"))
    raw = {d: np.asarray(embed(t), dtype=np.float64) for d, t in texts.items()}
    basis = PCA(KEPT, random_state=0).fit(raw["movies"])
    embedded = {d: basis.transform(x) for d, x in raw.items()}
    points[DATA[1]] = embedded["movies"]
    runs: Runs = {}
    for name, X in points.items():
        others = None if name == DATA[0] else np.concatenate([embedded[d][:OTHERS] for d in DOMAINS[1:]])
        note(name, "train", 0, seeds, float("nan"))
        splits = fan_out(_split, [(X, others, seed) for seed in range(seeds)])
        runs |= {f"{name}, split {seed}": split for seed, split in enumerate(splits)}
        note(name, "done", 1, 1, float("nan"))
    return runs


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The rules compared, paired by split."""
    splits = {n: [{r: Judged.of(**found[f"{n}, split {s}"][r]) for r in RULES} for s in range(seeds)] for n in DATA}
    held = {n: {r: np.array([s[r].held for s in of]) for r in RULES} for n, of in splits.items()}
    auc = {n: {r: np.array([s[r].auc for s in of]) for r in RULES} for n, of in splits.items()}
    rows = [
        [name, rule, *of[0][rule].where, plus_minus(held[name][rule], 1, 2),
         "-" if np.isnan(auc[name][rule]).any() else plus_minus(auc[name][rule], 100, 1)]
        for name, of in splits.items() for rule in RULES
    ]  # fmt: skip
    return Evidence(
        recipe="kde_real",
        title="Kernel density in large dimension: digits and sentences",
        command=f"rankwise bench kde-large-d --part real --seeds {seeds}",
        setting=f"{KEPT} principal components of {DIGITS:,} MNIST digits and of MiniLM embeddings of {ROWS:,} "
        f"snippets; {seeds} splits, a fifth held out; AUROC: own held-out sentences against {OTHERS} of "
        "each other domain",
        header=["data", "rule", "bandwidth", "μ", "regime", "points per estimate", "held-out log-density", "AUROC (%)"],
        rows=rows,
        claims=_claims(
            held,
            {r: float(v.mean()) for r, v in auc["movie sentences"].items()},
            np.array([s["theory"].same for of in splits.values() for s in of]),
        ),
        environment=environment("fp64", 1),
    )


@dataclass
class Judged:
    """A rule on one split: held-out log-density, AUROC against others and of halves, where the bandwidth is."""

    held: float
    auc: float
    same: float
    where: Sequence[str]

    @classmethod
    def of(cls, *, own: Sequence[float], others: Sequence[float] | None, where: Sequence[str]) -> Judged:
        """Of the log-densities of held-out rows and of others; without others nothing is told apart."""
        inside, half, none = np.array(own), len(own) // 2, others is None
        return cls(
            held=float(inside.mean()),
            auc=np.nan if none else _auc(inside, np.array(others)),
            same=np.nan if none else _auc(inside[:half], inside[half:]),
            where=where,
        )


def _split(asked: tuple[np.ndarray, np.ndarray | None, int]) -> dict[str, Any]:
    """By rule: log-densities, and where the bandwidth is."""
    X, others, seed = asked
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = X[order[: 4 * len(X) // 5]], X[order[4 * len(X) // 5 :]]
    train = np.unique(train, axis=0)  # repeated sentences make leave-one-out unbounded
    judged = {}
    for rule in RULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConcentrationWarning)
            kde = HighDimKDE(rule).fit(train)
        h, c = kde.bandwidth_, kde.critical_
        assert c is not None
        effective = float(kde.diagnose(test[:200])["effective_number"].median())
        judged[rule] = {
            "own": _short(kde.score_samples(test)),
            "others": None if others is None else _short(kde.score_samples(others)),
            "where": (f"{h:.3g}", f"{float(c.index(h)):.2f}", c.regime(h), f"{effective:.1f}"),
        }
    return judged


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.{DIGITS_KEPT}g}") for v in values]


def _claims(held: dict[str, dict[str, np.ndarray]], auc: dict[str, float], same: np.ndarray) -> list[Claim]:
    gain = {n: v["theory"] - np.maximum(v["scott"], v["silverman"]) for n, v in held.items()}
    cross = {n: v["cv"] - v["theory"] for n, v in held.items()}
    same = same[~np.isnan(same)]
    return [
        Claim(
            text="the theory's bandwidth has a higher held-out log-density than the better classical rule, on "
            "both in every split",
            held=all((g > 0).all() for g in gain.values()),
            found="; ".join(f"{n} {plus_minus(g, 1, 2)}" for n, g in gain.items()),
        ),
        Claim(
            text="leave-one-out likelihood is as good as the theory's bandwidth less 0.05 nats, on both in every split",
            held=all((g >= -0.05).all() for g in cross.values()),
            found="; ".join(f"{n} {plus_minus(g, 1, 2)}" for n, g in cross.items()),
        ),
        Claim(
            text="the theory's bandwidth tells other domains apart at least as well as the best other rule less 1%",
            held=bool(auc["theory"] >= max(auc.values()) - 0.01),
            found=", ".join(f"{r} {100 * a:.1f}" for r, a in auc.items()),
        ),
        Claim(
            text="halves of one domain's held-out sentences are not told apart (AUROC within 3% of 50)",
            held=bool(abs(np.mean(same) - 0.5) < 0.03),
            found=plus_minus(same),
        ),
        Claim(
            text="power: some rule tells other domains apart (AUROC of 60 or more)",
            control=True,
            held=max(auc.values()) >= 0.6,
            found=", ".join(f"{r} {100 * a:.1f}" for r, a in auc.items()),
        ),
    ]


def _auc(inside: np.ndarray, outside: np.ndarray) -> float:
    return float(roc_auc_score(np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]))
