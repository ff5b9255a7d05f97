"""Speed of clustering by subspaces, against the alternation that people write over scikit-learn's PCA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.dynamics import SubspaceClustering, low_rank_mixture
from rankwise.events import OnEvent

RECIPE = Recipe(
    name="speed",
    part="subspaces",
    about="K-subspaces: speed ratio against an alternation over scikit-learn's PCA",
    smoke={"ROWS": 200, "STARTS": 2, "PARTS": 50},
    control=False,
)

ROWS, CLUSTERS, DIM, STARTS = 1_797, 10, 8, 20  # of the digits
PARTS, PLANES, WIDTH, FLAT = 500, 4, 48, 5  # drawn: rows of a subspace, subspaces, columns, dimension
STEPS = 100
Array = NDArray[np.float64]


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    return side_by_side(
        {"K-subspaces": clustering},
        on_event,
        recipe="subspaces_speed",
        title="Clustering by subspaces: speed ratios",
        command="rankwise bench speed --part subspaces",
        setting=f"{torch.get_num_threads()} threads, one process; medians of three alternating runs; {STARTS} starts, "
        "the best counts",
    )


def clustering() -> Measured:
    """Digits and drawn rows: all starts as one against one after another, from random labels."""
    drawn = low_rank_mixture(WIDTH, FLAT, n_clusters=PLANES, samples=PARTS, noise=0.1).X.numpy()
    data = {
        f"{ROWS:,} digits, {CLUSTERS} clusters of dimension {DIM}": (
            np.asarray(load_digits(return_X_y=True)[0])[:ROWS] / 16, CLUSTERS, DIM,
        ),
        f"{PLANES * PARTS:,} drawn rows, {PLANES} clusters of dimension {FLAT}": (drawn, PLANES, FLAT),
    }  # fmt: skip
    rows, claims = [], []
    for what, (X, K, d) in data.items():
        ended: dict[str, float] = {}

        def ours(X: Array = X, K: int = K, d: int = d, ended: dict[str, float] = ended) -> None:
            model = SubspaceClustering(K, d, method="k-subspaces", affine=True, n_init=STARTS, max_iter=STEPS)
            ended["ours"] = model.fit(X).path_[-1]

        def theirs(X: Array = X, K: int = K, d: int = d, ended: dict[str, float] = ended) -> None:
            ended["theirs"] = looped(X, K, d, starts=STARTS)

        mine, other = alternate(ours, theirs)
        rows.append(
            [f"K-subspaces, {what}", f"{mine:.2f}s", "an alternation over PCA", f"{other:.2f}s", f"{other / mine:.1f}x"]
        )
        claims.append(
            Claim(
                text=f"{what}: at least 10x faster than an alternation over scikit-learn's PCA, distances at "
                "most 1% larger",
                held=other / mine >= 10 and ended["ours"] <= 1.01 * ended["theirs"],
                found=f"{other / mine:.1f}x, squared distances {ended['ours']:.4g} against {ended['theirs']:.4g}",
            )
        )
    return rows, claims


def looped(X: Array, K: int, d: int, *, starts: int, steps: int = STEPS) -> float:
    """The least sum of squared distances of several alternations, each a PCA a cluster and step, from random labels."""
    best = np.inf
    for start in range(starts):
        labels = np.random.default_rng(start).integers(K, size=len(X))
        for _ in range(steps):
            left = np.full((len(X), K), np.inf)
            for k in range(K):
                if (labels == k).sum() > d:
                    pca = PCA(d).fit(X[labels == k])
                    left[:, k] = ((X - pca.inverse_transform(pca.transform(X))) ** 2).sum(1)
            now = left.argmin(1)
            if (now == labels).all():
                break
            labels = now
        best = min(best, float(left.min(1).sum()))
    return best
