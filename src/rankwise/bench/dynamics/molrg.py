"""From how many rows are subspaces found? Five estimators over dimensions and rows, noise, angles, and a control.

The theory says N = d rows a subspace, for principal components and for a denoiser that has the mixture's form; networks
are said to need some 60 d. Estimators: principal components with labels known; K-subspaces; expectation-maximisation;
the denoiser with soft weights, trained by gradient steps; a perceptron, which knows nothing of subspaces. The last is
judged twice: whether what it makes of fresh rows spans the subspaces, and whether it errs there as on rows it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.denoisers import train_perceptrons
from rankwise.bench.shared.evidence import Claim, Evidence, plus_minus
from rankwise.bench.shared.kept import called, kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.dynamics import MoLRGDenoiser, PhaseTransition, SubspaceClustering, low_rank_mixture, phase_transition
from rankwise.dynamics.low_rank.denoising import orthonormal, trained
from rankwise.dynamics.low_rank.recovery import recovery_threshold, subspace_error
from rankwise.events import OnEvent, environment
from rankwise.spectral import truncated_svd

RECIPE = Recipe(
    name="molrg",
    part="recovery",
    about="subspaces by five estimators over dimensions and rows; noise, angles, an isotropic control",
    spreads=True,
    smoke={
        "DIMS": (2, 4), "SAMPLES": (2, 3, 6), "CLUSTERS": (1, 2), "STEPS": 60, "RESTARTS": 1, "RATIOS": (1, 4),
        "WIDE": (2,), "TRAINED": 40, "NOISES": (0.05,), "MORE": (8, 32), "ANGLES": (90, 30), "FRESH": 20, "seeds": 2,
    },
    remark="All rows are drawn: the claim is about a distribution that is known.",
)  # fmt: skip

FEATURES = 48
DIMS, SAMPLES, CLUSTERS = tuple(range(2, 9)), tuple(range(2, 16)), (1, 2, 3)
STEPS, RESTARTS, BATCH = 1000, 4, 32  # of the denoiser; one start for one subspace, which has no local optimum
WIDE, RATIOS, TRAINED, HIDDEN = (2, 4, 6), (1, 2, 4, 8, 16, 32, 64, 128), 2500, 128  # of the perceptron: d; N/d
AT, FRESH, NEAR = 0.3, 500, 1.25  # where it is judged: noise, fresh rows a subspace, times the error on seen rows
NOISES, MORE, NOISY_DIM = (0.01, 0.03, 0.1, 0.2), (8, 16, 32, 64, 128, 256), 4
ANGLES, NARROW, ANGLE_DIM, ANGLE_SAMPLES = (90, 60, 45, 30, 20, 10), 30, 4, 32
TOLERANCE = 0.5
PCA, HARD, EM, SOFT, MLP, CLOSE = (
    "principal components, labels known", "K-subspaces", "expectation-maximisation", "soft denoiser, trained",
    "perceptron, span", "perceptron, error",
)  # fmt: skip
Array = NDArray[np.float64]


def measure(out: Path, *, seeds: int = 6, on_event: OnEvent | None = None) -> Runs:
    """Every part (what is there is read back)."""
    return kept_runs(out / "runs.json", called, _asked(seeds), on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The parts compared."""
    grids = {(arm, K): _grid(found, arm, K) for arm in (PCA, HARD, EM, SOFT) for K in CLUSTERS}
    rho = {at: grid.threshold for at, grid in grids.items()}
    rho |= {(arm, K): _wide(found, arm, K) for arm in (MLP, CLOSE) for K in CLUSTERS}
    return Evidence(
        recipe="molrg",
        title="From how many rows subspaces are found",
        command=f"rankwise bench molrg --part recovery --seeds {seeds} --jobs 2",
        setting=f"{FEATURES} columns, coefficients of variance 1, no noise but where it is said (angles: "
        f"0.02); {seeds} runs a cell, each with subspaces and rows of its own; success: every subspace within "
        f"{TOLERANCE} (Frobenius) of it; "
        f"grid: d {DIMS[0]} to {DIMS[-1]}, N {SAMPLES[0]} to {SAMPLES[-1]} a subspace; denoiser: {STEPS:,} steps, "
        f"{RESTARTS} starts; perceptron: two layers of {HIDDEN}, {TRAINED:,} steps, d {', '.join(map(str, WIDE))}, N/d "
        f"to {RATIOS[-1]}, judged at σ {AT} on {FRESH} fresh rows a subspace, its error within {NEAR} times "
        "that on seen rows. "
        "Thresholds: N/d at which half of the runs succeed, by logistic regression",
        header=["estimator", *(f"N/d, {K} subspace{'s' * (K > 1)}" for K in CLUSTERS)],
        rows=[
            *[[arm, *(_said(rho[arm, K], arm) for K in CLUSTERS)] for arm in (PCA, HARD, EM, SOFT, MLP, CLOSE)],
            *_noise_rows(found), *_angle_rows(found),
        ],
        claims=_claims(found, grids, rho, seeds),
        environment=environment("fp64", 1),
        extra={"success": {f"{arm}, {K}": g.success.tolist() for (arm, K), g in grids.items()},
               "dims": list(DIMS), "samples": list(SAMPLES)},
    )  # fmt: skip


def _asked(seeds: int) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every unit of work by name: a function and all that it needs (processes do not share this module's sizes)."""
    grid = {"samples": SAMPLES, "seeds": seeds}
    asked: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for K in reversed(CLUSTERS):  # the long ones first
        for d in reversed(DIMS):
            told = {**grid, "K": K, "d": d}
            asked[f"{SOFT} {K} {d}"] = (
                _denoisers, {**told, "steps": STEPS, "restarts": RESTARTS if K > 1 else 1, "batch": BATCH}
            )  # fmt: skip
            for arm, estimator in ((PCA, "pca"), (HARD, "k-subspaces"), (EM, "em")):
                asked[f"{arm} {K} {d}"] = (_estimated, {**told, "estimator": estimator})
        for d in WIDE:
            asked[f"{MLP} {K} {d}"] = (
                _perceptrons,
                {"K": K, "d": d, "ratios": RATIOS, "seeds": seeds, "steps": TRAINED, "hidden": HIDDEN, "fresh": FRESH},
            )
    for noise in NOISES:
        asked[f"noise {noise:g}"] = (_noise, {"noise": noise, "samples": MORE, "d": NOISY_DIM, "seeds": seeds})
    for angle in ANGLES:
        asked[f"angle {angle}"] = (_angle, {"angle": angle, "d": ANGLE_DIM, "samples": ANGLE_SAMPLES, "seeds": seeds})
    asked["isotropic"] = (_isotropic, {"samples": ANGLE_SAMPLES * 10, "seeds": seeds})
    return asked


def _estimated(*, estimator: str, K: int, d: int, samples: tuple[int, ...], seeds: int) -> list:
    """Errors ``(samples, seeds)``."""
    found = phase_transition(estimator, features=FEATURES, dims=[d], samples=samples, n_clusters=K, seeds=seeds)
    return found.errors[0].tolist()


def _denoisers(*, K: int, d: int, samples: tuple[int, ...], seeds: int, steps: int, restarts: int, batch: int) -> list:
    """The same of denoisers with soft weights; all cells and starts train as one."""
    drawn = [low_rank_mixture(FEATURES, d, n_clusters=K, samples=N, seed=s) for N in samples for s in range(seeds)]
    rows = torch.nn.utils.rnn.pad_sequence([x.X.float() for x in drawn], batch_first=True)
    counts = torch.tensor([len(x.X) for x in drawn])
    g = torch.Generator().manual_seed(1000 * K + d)
    raw = torch.randn(len(drawn) * restarts, K, FEATURES, d, generator=g)
    like = MoLRGDenoiser(FEATURES, K, d)
    raw, last = trained(
        raw, rows.repeat_interleave(restarts, 0), like.variances, like.log_prior, like.dims,
        counts=counts.repeat_interleave(restarts), steps=steps, batch_size=batch, generator=g,
    )  # fmt: skip
    best = last.view(-1, restarts).argmin(1) + torch.arange(len(drawn)) * restarts
    bases = orthonormal(raw[best], like.dims)
    errors = [float(subspace_error(list(U), x.bases).max()) for U, x in zip(bases, drawn, strict=True)]
    return np.reshape(errors, (len(samples), seeds)).tolist()


def _perceptrons(
    *, K: int, d: int, ratios: tuple[int, ...], seeds: int, steps: int, hidden: int, fresh: int
) -> dict[str, list]:
    """Of perceptrons: errors of the spans of what they make of fresh rows; their error there over that on seen ones."""
    cells = [(ratio, s) for ratio in ratios for s in range(seeds)]
    drawn = [low_rank_mixture(FEATURES, d, n_clusters=K, samples=r * d + fresh, seed=s) for r, s in cells]
    each = [torch.arange(len(x.X)) % (len(x.X) // K) for x in drawn]  # the place of a row within its subspace
    net = train_perceptrons(
        [x.X[at >= fresh] for x, at in zip(drawn, each, strict=True)], hidden=hidden, steps=steps, batch=64, seed=d
    )
    g = torch.Generator().manual_seed(d)
    spans, ratio = [], []
    for b, (x, at) in enumerate(zip(drawn, each, strict=True)):
        one = net.member(b)
        clean, own = (x.X[rows].float() for rows in (at < fresh, at >= fresh))
        made = one((clean + AT * torch.randn(clean.shape, generator=g))[None], AT)[0]
        again = own.repeat(-(-fresh // len(own)), 1)  # seen rows, with as much noise as there are draws
        known = one((again + AT * torch.randn(again.shape, generator=g))[None], AT)[0]
        spans.append(float(subspace_error([truncated_svd(part, d).Vh.mT for part in made.split(fresh)], x.bases).max()))
        ratio.append(float((made - clean).square().mean() / (known - again).square().mean()))
    return {name: np.reshape(v, (len(ratios), seeds)).tolist() for name, v in (("span", spans), ("error", ratio))}


def _noise(*, noise: float, samples: tuple[int, ...], d: int, seeds: int) -> list:
    """Error of principal components over the bound without its constant, ``(samples, seeds)``."""
    out = []
    for N in samples:
        draws = [low_rank_mixture(FEATURES, d, samples=N, noise=noise, seed=s) for s in range(seeds)]
        out.append([
            float(subspace_error([truncated_svd(x.X, d, method="gram").Vh.mT], x.bases)[0])
            / (float(x.noise.norm()) / (math.sqrt(N) - math.sqrt(d - 1)))
            for x in draws
        ])  # fmt: skip
    return out


def _angle(*, angle: float, d: int, samples: int, seeds: int) -> dict[str, list[float]]:
    """Errors of three estimators on two subspaces at an angle."""
    errors: dict[str, list[float]] = {HARD: [], "K-subspaces, orthogonal": [], EM: []}
    for s in range(seeds):
        x = low_rank_mixture(FEATURES, d, n_clusters=2, samples=samples, angle=angle, noise=0.02, seed=s)
        options: dict[str, dict[str, Any]] = {
            HARD: {"method": "k-subspaces"},
            "K-subspaces, orthogonal": {"method": "k-subspaces", "orthogonal": True},
            EM: {},
        }
        for name, told in options.items():
            model = SubspaceClustering(2, d, n_init=20, random_state=s, **told).fit(x.X.numpy())
            errors[name].append(float(subspace_error(model.subspaces_, x.bases).max()))
    return errors


def _isotropic(*, samples: int, seeds: int) -> list:
    """Clusters and dimensions that are found where there are none."""
    found = []
    for s in range(seeds):
        X = torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        model = SubspaceClustering("auto", "auto", max_clusters=4, random_state=s).fit(X.numpy())
        found.append([model.n_clusters_, int(model.dims_.max())])
    return found


def _grid(found: dict[str, Any], arm: str, K: int) -> PhaseTransition:
    errors = np.array([found[f"{arm} {K} {d}"] for d in DIMS])
    return PhaseTransition(name=arm, dims=list(DIMS), samples=list(SAMPLES), errors=errors, tolerance=TOLERANCE)


def _wide(found: dict[str, Any], arm: str, K: int) -> float:
    """The perceptron's threshold, on a scale of log N/d, along which its ratios lie."""
    kind, below = ("span", TOLERANCE) if arm == MLP else ("error", NEAR)
    hits = np.array([(np.array(found[f"{MLP} {K} {d}"][kind]) < below).sum(1) for d in WIDE])
    seeds = np.array(found[f"{MLP} {K} {WIDE[0]}"][kind]).shape[1]
    ratios = np.log2(np.tile(RATIOS, (len(WIDE), 1)))
    return 2 ** recovery_threshold(ratios.ravel(), hits.ravel(), np.full(hits.size, seeds))


def _said(rho: float, arm: str) -> str:
    most = RATIOS[-1] if arm in (MLP, CLOSE) else SAMPLES[-1] / DIMS[0]
    return f"{rho:.2f}" if math.isfinite(rho) else f"above {most:g}"


def _noise_rows(found: dict[str, Any]) -> list[list[str]]:
    blank = ["-"] * (len(CLUSTERS) - 1)
    return [
        [f"error over the bound, noise {noise:g}, N {MORE[0]} to {MORE[-1]}",
         f"{np.mean(found[f'noise {noise:g}'][0]):.3f} to {np.mean(found[f'noise {noise:g}'][-1]):.3f}", *blank]
        for noise in NOISES
    ]  # fmt: skip


def _angle_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name in found[f"angle {ANGLES[0]}"]:
        by = [f"{a}°: {plus_minus(found[f'angle {a}'][name], 1, 2)}" for a in ANGLES]
        cells = ["; ".join(by), *["-"] * (len(CLUSTERS) - 1)]
        rows.append([f"error of two subspaces at an angle, {name}", *cells])
    return rows


def _claims(
    found: dict[str, Any], grids: dict[tuple[str, int], PhaseTransition], rho: dict[tuple[str, int], float], seeds: int
) -> list[Claim]:
    below = np.array([[d > N for N in SAMPLES] for d in DIMS])
    steps = {K: grids[PCA, K].success for K in CLUSTERS}
    several = [K for K in CLUSTERS if K > 1]
    bound = np.array([found[f"noise {noise:g}"] for noise in NOISES])  # (noises, samples, seeds)
    wide, right = found[f"angle {ANGLES[0]}"], found[f"angle {NARROW}"]
    none = found["isotropic"]
    return [
        Claim(
            text="with labels known, success is a step: none at N < d, all at N ≥ d",
            paper="N = d (n 48, d 2 to 8)",
            held=all((s[below] == 0).all() and (s[~below] == 1).all() for s in steps.values()),
            found=f"success at N < d {np.mean([s[below].mean() for s in steps.values()]):.1%}, at N ≥ d "
            f"{np.mean([s[~below].mean() for s in steps.values()]):.1%}",
        ),
        Claim(
            text="one subspace: the trained denoiser succeeds from the N/d of principal components, within a fifth",
            held=abs(rho[SOFT, 1] / rho[PCA, 1] - 1) <= 0.2,
            found=f"{_said(rho[SOFT, 1], SOFT)} against {_said(rho[PCA, 1], PCA)}",
        ),
        Claim(
            text="several subspaces: K-subspaces and expectation-maximisation succeed from at most 2 rows a dimension",
            held=all(rho[arm, K] <= 2 for arm in (HARD, EM) for K in several),
            found=f"K-subspaces {_line(rho, HARD, several)}; expectation-maximisation {_line(rho, EM, several)}",
        ),
        Claim(
            text="several subspaces: so does the soft denoiser, which is trained without the theory's hard choice",
            held=all(rho[SOFT, K] <= 2 for K in several),
            found=_line(rho, SOFT, several),
        ),
        *_of_the_network(found, rho),
        Claim(
            text="noisy rows: the error stays within twice √Σ‖e‖² / (√N - √(d-1)) in every run",
            held=float(bound.max()) <= 2,
            found=f"at most {bound.max():.2f} times; at N = {MORE[-1]} {bound[:, -1].mean():.2f} times: the error "
            "falls faster than the bound",
        ),
        Claim(
            text=f"subspaces need not be orthogonal: K-subspaces finds those at {NARROW}° in most runs",
            held=float(np.mean(np.array(right[HARD]) < TOLERANCE)) > 0.5,
            found=f"{np.mean(np.array(right[HARD]) < TOLERANCE):.0%} at {NARROW}°, "
            f"{np.mean(np.array(wide[HARD]) < TOLERANCE):.0%} at {ANGLES[0]}°",
        ),
        Claim(
            text=f"control: orthogonal subspaces cannot follow those at {NARROW}°, and do at {ANGLES[0]}°",
            control=True,
            held=np.min(right["K-subspaces, orthogonal"]) > TOLERANCE
            and float(np.median(wide["K-subspaces, orthogonal"])) < TOLERANCE,
            found=f"errors from {min(right['K-subspaces, orthogonal']):.2f}, and "
            f"{plus_minus(wide['K-subspaces, orthogonal'], 1, 2)}",
        ),
        Claim(
            text="control: isotropic rows have one cluster of no dimension in every run",
            control=True,
            held=all(pair == [1, 0] for pair in none),
            found=f"clusters {sorted({p[0] for p in none})}, largest dimension {max(p[1] for p in none)}; {seeds} runs",
        ),
    ]


def _of_the_network(found: dict[str, Any], rho: dict[tuple[str, int], float]) -> list[Claim]:
    """Of the perceptron, and that it could have told."""
    learned = {
        K: float(np.mean([np.array(found[f"{MLP} {K} {d}"]["error"][-1]) < NEAR for d in WIDE])) for K in CLUSTERS
    }
    return [
        Claim(
            text="a network that knows no subspaces needs at least 10 times as many rows, to err as on seen "
            "ones, as PCA with labels needs",
            paper="N about 60 d (a U-Net, by the similarity of what it draws to its training pictures)",
            held=all(math.inf > rho[CLOSE, K] >= 10 * rho[PCA, K] for K in CLUSTERS),
            found=f"span {_line(rho, MLP, CLUSTERS)}; error {_line(rho, CLOSE, CLUSTERS)}; "
            f"PCA {_line(rho, PCA, CLUSTERS)}",
        ),
        Claim(
            text=f"power: with {RATIOS[-1]} rows a dimension that network errs as on seen ones in most runs",
            control=True,
            held=all(share > 0.5 for share in learned.values()),
            found=", ".join(f"{K}: {share:.0%}" for K, share in learned.items()),
        ),
    ]


def _line(rho: dict[tuple[str, int], float], arm: str, clusters: Sequence[int]) -> str:
    return ", ".join(f"{K}: {_said(rho[arm, K], arm)}" for K in clusters)
