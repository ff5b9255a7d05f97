"""Handwritten digits: clusters that are subspaces against other clusterings, and how many directions a denoiser keeps.

Every run takes a part of the digits; the dimension of the subspaces is chosen by the likelihood of the others, labels
unseen. A perceptron is trained to denoise the same part, and another one isotropic rows of the same spread, both at
noise from the least to the largest level at which they are judged: the rank of its Jacobian, by the rule of 99% (of the
root of the energy), on rows that it did not see, is the control. Its rows are many: of few, a denoiser learns the rows
themselves at large noise, which have fewer directions than what they are drawn from (a third perceptron, of as many
isotropic rows as there are digits, shows how many fewer).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from rankwise.bench import Recipe
from rankwise.bench.shared.clusterings import Array, better_than_others, clusterings, indices
from rankwise.bench.shared.denoisers import train_perceptrons
from rankwise.bench.shared.evidence import Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.kept import called, kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.dynamics import IdentifiabilityWarning, MoLRGDenoiser, SubspaceClustering, intrinsic_dimension
from rankwise.events import OnEvent, environment

RECIPE = Recipe(
    name="molrg",
    part="digits",
    about="handwritten digits: subspaces against other clusterings; directions that a trained denoiser keeps",
    spreads=True,
    smoke={
        "ROWS": 300,
        "DIMS": (3,),
        "STARTS": 1,
        "STEPS": 30,
        "HIDDEN": 32,
        "POINTS": 2,
        "MANY": 1000,
        "LEVELS": (0.5,),
        "seeds": 2,
    },
    remark="The digits' subspaces do not go through the origin: each has a mean, which is not in the paper. Runs are "
    "draws of four fifths of one data set: p-values speak of that set alone.",
)

ROWS, SHARE, CLUSTERS = 1_797, 0.8, 10  # images; those of a run
DIMS, STARTS = (4, 8, 12, 16), 10
STEPS, HIDDEN, BATCH = 4000, 256, 64  # of the denoisers
MANY = 60_000  # isotropic rows of the control
POINTS = 20  # where ranks are taken, at each level
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # of noise, in units of the data's spread
MIDDLE = (0.2, 5.0)  # where few directions are claimed
NET, BEST, NONE, SCARCE = (
    "perceptron", "best denoiser of the subspaces", "perceptron, isotropic rows", "perceptron, as few isotropic rows"
)  # fmt: skip


def measure(out: Path, *, seeds: int = 6, on_event: OnEvent | None = None) -> Runs:
    """Cluster and denoise ``seeds`` times (what is there is read back): labels of rows, ranks at points."""
    told = {"rows": ROWS, "share": SHARE}
    clustering = {**told, "dims": DIMS, "starts": STARTS}
    ranks = {
        **told,
        "steps": STEPS,
        "hidden": HIDDEN,
        "batch": BATCH,
        "points": POINTS,
        "many": MANY,
        "levels": LEVELS,
        "dim": DIMS[-1],
    }
    asked: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        **{f"clusters {s}": (clustered, {**clustering, "seed": s}) for s in range(seeds)},
        **{f"ranks {s}": (ranked, {**ranks, "seed": s}) for s in range(seeds)},
    }
    return kept_runs(out / "runs.json", called, asked, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The clusterings compared, and median ranks by level of noise."""
    scores = indices([found[f"clusters {s}"] for s in range(seeds)])
    kept = {
        arm: np.array([np.quantile(found[f"ranks {s}"][arm], 0.5, axis=1, method="lower") for s in range(seeds)])
        for arm in (NET, BEST, NONE, SCARCE)
    }  # (seeds, levels)
    chosen = [found[f"clusters {s}"]["dim"] for s in range(seeds)]
    return Evidence(
        recipe="molrg_digits",
        title="Digits: subspaces as clusters, and directions that a denoiser keeps",
        command=f"rankwise bench molrg --part digits --seeds {seeds} --jobs 2",
        setting=f"scikit-learn's 8 x 8 digits, {SHARE:.0%} of {ROWS:,} a run, {seeds} runs, {CLUSTERS} clusters; "
        f"adjusted Rand index (%) against the labels; dimension of subspaces by held-out likelihood: "
        f"{', '.join(map(str, chosen))}; {STARTS} starts each. Denoiser: two layers of {HIDDEN}, {STEPS:,} steps at "
        f"noise of {min(LEVELS):g} to {max(LEVELS):g} spreads (its logarithm uniform); {MANY:,} isotropic rows "
        f"for the control; rank of its Jacobian at {POINTS} unseen rows, noise in units of the data's spread "
        f"({', '.join(f'{v:g}' for v in LEVELS)}), of 64 directions",
        header=["method", "found"],
        rows=[
            *[[f"clusters: {arm}", plus_minus(v)] for arm, v in scores.items()],
            *[[f"directions: {arm}", " / ".join(f"{v:.0f}" for v in r.mean(0))] for arm, r in kept.items()],
        ],
        claims=_claims(scores, kept),
        environment=environment("fp64", 1),
        extra={"levels": list(LEVELS), "ranks": {arm: r.tolist() for arm, r in kept.items()}},
    )  # fmt: skip


def _split(rows: int, share: float, seed: int) -> tuple[Array, Array, Array]:
    """Rows that are used, their labels, and the rows left out."""
    X, y = (np.asarray(part)[:rows] for part in load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(X))
    used, others = np.split(order, [round(share * len(X))])
    return X[used] / 16, y[used], X[others] / 16


def clustered(*, rows: int, share: float, dims: tuple[int, ...], starts: int, seed: int) -> dict[str, Any]:
    """Every clustering of a part."""
    X, y, others = _split(rows, share, seed)
    return clusterings(X, y, others, clusters=CLUSTERS, dims=dims, starts=starts, seed=seed)


def ranked(
    *, rows: int, share: float, steps: int, hidden: int, batch: int, points: int, many: int, levels: tuple[float, ...],
    dim: int, seed: int,
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Ranks at points by level of noise: of a trained denoiser, the best one of fitted subspaces, the controls."""
    X, _, others = (torch.as_tensor(part) for part in _split(rows, share, seed))
    g = torch.Generator().manual_seed(seed)
    spread = float(X.square().mean().sqrt())
    scarce, fresh, plain = (
        spread * torch.randn(n, X.shape[1], generator=g, dtype=torch.float64) for n in (len(X), len(others), many)
    )
    told = {"hidden": hidden, "steps": steps, "batch": batch, "seed": seed}
    net = train_perceptrons([X, plain, scarce], levels=(min(levels), max(levels)), **told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)
        mixture = SubspaceClustering(CLUSTERS, dim, n_init=3, random_state=seed).fit(X.numpy())
    best = MoLRGDenoiser.from_clustering(mixture)
    digits, control, few = (_one(net.member(b)) for b in range(3))
    out: dict[str, list[list[float]]] = {NET: [], BEST: [], NONE: [], SCARCE: []}
    for level in levels:
        sigma = level * spread
        arms = ((NET, digits, others), (BEST, best, others), (NONE, control, fresh), (SCARCE, few, fresh))
        for name, denoiser, clean in arms:
            some = clean[:points]
            noisy = some + sigma * torch.randn(some.shape, generator=g, dtype=torch.float64)
            found = intrinsic_dimension(denoiser, noisy if name == BEST else noisy.float(), sigma)
            out[name].append(found.double().tolist())
    return out


def _one(net: Any) -> Callable[..., torch.Tensor]:
    return lambda x, sigma: net(x[None], sigma)[0]


def _claims(scores: dict[str, Array], kept: dict[str, Array]) -> list[Claim]:
    levels = np.array(LEVELS)
    middle = (levels >= MIDDLE[0]) & (levels <= MIDDLE[1])
    n = 64
    few, many = kept[NET][:, middle].mean(0), kept[NONE][:, middle].mean(0)
    fewer = [paired(a, b, unit="directions", scale=1) for a, b in zip(kept[SCARCE][:, middle].T, kept[NET][:, middle].T,
                                                                      strict=True)]  # fmt: skip
    return [
        *better_than_others(scores, "the digits"),
        Claim(
            text=f"at noise of {MIDDLE[0]} to {MIDDLE[1]:g} spreads the denoiser keeps half the directions at most",
            held=bool((few <= n / 2).all()),
            found=" / ".join(f"{v:.0f}" for v in few) + f" of {n}",
        ),
        Claim(
            text="and fewer than one trained on as many isotropic rows does, at each of these levels (p ≤ 0.05)",
            held=all(p.clear() for p in fewer),
            found="; ".join(map(str, fewer)),
        ),
        Claim(
            text="control: trained on isotropic rows it keeps at least nine in ten of them there",
            control=True,
            held=bool((many >= 0.9 * n).all()),
            found=" / ".join(f"{v:.0f}" for v in many) + f" of {n}",
        ),
    ]
