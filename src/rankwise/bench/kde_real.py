"""Bandwidth rules on real points: digits by their principal components, sentences by MiniLM; does knowing help?

Held-out log-density, and telling other domains' sentences from one's own. Control: two halves of one domain are not
told apart.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from rankwise.bench.evidence import Claim, Evidence, plus_minus
from rankwise.data import sentiment
from rankwise.data.digits import digits
from rankwise.distributions.kde import ConcentrationWarning, HighDimKDE
from rankwise.jobs.adapt import OnEvent, environment
from rankwise.models.embedding import embed

RULES = ("theory", "nn", "cv", "scott", "silverman")
DOMAINS = ("movies", "amazon", "nyt", "tweets")
KEPT, ROWS = 50, 2_500


def run(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Evidence:
    """Split ``seeds`` times, fit every rule, judge."""
    start, note = time.perf_counter(), on_event or (lambda *_: None)
    images, _ = digits()
    points = {"digits": PCA(KEPT, random_state=0).fit_transform(images.reshape(len(images), -1) / 255.0)}
    texts = {d: sentiment(d, task="rating").split().train.texts[:ROWS] for d in DOMAINS}
    note("embedding", "train", 0, 1, float("nan"))
    raw = {d: np.asarray(embed(t), dtype=np.float64) for d, t in texts.items()}
    basis = PCA(KEPT, random_state=0).fit(raw["movies"])
    embedded = {d: basis.transform(x) for d, x in raw.items()}
    points["movie sentences"] = embedded["movies"]
    rows, held, auc = [], {}, {}
    same = []
    for name, X in points.items():
        values: dict[str, list[float]] = {r: [] for r in RULES}
        outside: dict[str, list[float]] = {r: [] for r in RULES}
        where: dict[str, tuple[float, float, str, float]] = {}
        for seed in range(seeds):
            note(name, "train", seed, seeds, float("nan"))
            order = np.random.default_rng(seed).permutation(len(X))
            train, test = X[order[: 4 * len(X) // 5]], X[order[4 * len(X) // 5 :]]
            train = np.unique(train, axis=0)  # repeated sentences make leave-one-out unbounded
            for rule in RULES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConcentrationWarning)
                    kde = HighDimKDE(rule).fit(train)
                own = kde.score_samples(test)
                values[rule].append(float(own.mean()))
                if name != "digits":
                    other = np.concatenate([kde.score_samples(embedded[d][:500]) for d in DOMAINS[1:]])
                    outside[rule].append(_auc(own, other))
                    if rule == "theory":
                        half = len(own) // 2
                        same.append(_auc(own[:half], own[half:]))
                if seed == 0:
                    assert kde.critical_ is not None
                    effective = float(kde.diagnose(test[:200])["effective_number"].median())
                    h = kde.bandwidth_
                    where[rule] = h, float(kde.critical_.index(h)), kde.critical_.regime(h), effective
        note(name, "done", 1, 1, float("nan"))
        for rule in RULES:
            h, mu, regime, effective = where[rule]
            rows.append([
                name, rule, f"{h:.3g}", f"{mu:.2f}", regime, f"{effective:.1f}", plus_minus(values[rule], 1, 2),
                plus_minus(outside[rule], 100, 1) if outside[rule] else "-",
            ])  # fmt: skip
        held[name] = {r: np.array(v) for r, v in values.items()}
        auc[name] = {r: float(np.mean(v)) for r, v in outside.items() if v}
    classical = {n: np.maximum(v["scott"], v["silverman"]) for n, v in held.items()}
    found = auc["movie sentences"]
    return Evidence(
        recipe="kde_real",
        title="Kernel density in large dimension: digits and sentences",
        command=f"rankwise bench kde-large-d --part real --seeds {seeds}",
        setting=f"{KEPT} principal components of 5,000 MNIST digits and of MiniLM embeddings of {ROWS:,} snippets; "
        f"{seeds} splits, a fifth held out; AUROC: own held-out sentences against 500 of each other domain",
        header=["data", "rule", "bandwidth", "μ", "regime", "points per estimate", "held-out log-density", "AUROC (%)"],
        rows=rows,
        claims=[
            Claim(
                text="the theory's bandwidth has a higher held-out log-density than the better classical rule, on both",
                held=all((v["theory"] > classical[n]).all() for n, v in held.items()),
                found="; ".join(f"{n} {plus_minus(v['theory'] - classical[n], 1, 2)}" for n, v in held.items()),
            ),
            Claim(
                text="leave-one-out likelihood is at least as good as the theory's bandwidth, on both",
                held=all((v["cv"] >= v["theory"] - 0.05).all() for v in held.values()),
                found="; ".join(f"{n} {plus_minus(v['cv'] - v['theory'], 1, 2)}" for n, v in held.items()),
            ),
            Claim(
                text="the theory's bandwidth tells other domains apart at least as well as the best other rule less 1%",
                held=bool(found["theory"] >= max(found.values()) - 0.01),
                found=", ".join(f"{r} {100 * a:.1f}" for r, a in found.items()),
            ),
            Claim(
                text="control: halves of one domain's held-out sentences are not told apart (AUROC within 3% of 50)",
                control=True,
                held=bool(abs(np.mean(same) - 0.5) < 0.03),
                found=plus_minus(same),
            ),
        ],
        seconds=time.perf_counter() - start,
        environment=environment("fp64", 1),
    )


def _auc(inside: np.ndarray, outside: np.ndarray) -> float:
    return float(roc_auc_score(np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]))
