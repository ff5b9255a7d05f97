"""Clusters that are subspaces, and what else a user would take, on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from rankwise.bench.shared.evidence import Claim, paired
from rankwise.dynamics import IdentifiabilityWarning, SubspaceClustering

EM, HARD, ORIGIN = "subspaces, mixture", "K-subspaces", "subspaces through the origin"
OTHERS = ("k-means", "spectral", "Gaussian mixture, full", "Gaussian mixture, diagonal")
ARMS = (EM, HARD, ORIGIN, *OTHERS)
Array = NDArray[np.float64]


def clusterings(
    X: Array, y: NDArray[Any], others: Array, *, clusters: int, dims: tuple[int, ...], starts: int, seed: int
) -> dict[str, Any]:
    """Every clustering's and the right labels, and the dimension under which the rows left out are likeliest."""
    told: dict[str, Any] = {"n_init": starts, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)
        fits = [SubspaceClustering(clusters, d, affine=True, **told).fit(X) for d in dims]
        best = fits[int(np.argmax([f.score(others) for f in fits]))]
        d = int(best.dims_[0])
        hard = SubspaceClustering(clusters, d, method="k-subspaces", affine=True, **told)
        labels = {
            EM: best.labels_,
            HARD: hard.fit_predict(X),
            ORIGIN: SubspaceClustering(clusters, d, **told).fit_predict(X),
            "k-means": KMeans(clusters, **told).fit_predict(X),
            "spectral": SpectralClustering(clusters, affinity="nearest_neighbors", **told).fit_predict(X),
        }
        for name, covariance in (("full", "full"), ("diagonal", "diag")):
            mixture = GaussianMixture(clusters, covariance_type=covariance, reg_covar=1e-3, **told)
            labels[f"Gaussian mixture, {name}"] = mixture.fit_predict(X)
    return {
        "dim": d,
        "right": np.asarray(y).tolist(),
        "labels": {name: found.tolist() for name, found in labels.items()},
    }


def indices(runs: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """By clustering, the adjusted Rand index of every run."""
    return {arm: np.array([adjusted_rand_score(r["right"], r["labels"][arm]) for r in runs]) for arm in ARMS}


def better_than_others(scores: dict[str, Array], what: str) -> list[Claim]:
    """The mixture of subspaces against what a user would take, and against subspaces through the origin."""
    claims = []
    for other in ("k-means", "spectral", "Gaussian mixture, full", ORIGIN):
        gain = paired(scores[EM], scores[other])
        means = "means of their own are worth it: " if other == ORIGIN else ""
        claims.append(
            Claim(
                text=f"{means}the mixture of subspaces finds {what} better than {other} (p <= 0.05)",
                held=gain.clear(),
                found=str(gain),
            )
        )
    return claims
