"""Handwritten digits by perturbed likelihood with ten latent dimensions, against baselines.

Distance of samples to test images, and whether a classifier tells them apart. Control: other real images are not told
apart from the test images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict, train_test_split

from rankwise.bench import Recipe
from rankwise.bench.shared import wasserstein_gan
from rankwise.bench.shared.evidence import Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.kept import kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.distributions.density.estimator import HighDimKDE
from rankwise.distributions.singular.estimator import SingularGenerativeEstimator
from rankwise.distributions.singular.networks import directions, sliced_wasserstein
from rankwise.events import OnEvent, environment
from rankwise.parallel import threads_each

RECIPE = Recipe(
    name="singular-likelihood",
    part="digits",
    about="likelihood of perturbed data: handwritten digits",
    spreads=True,
    smoke={"seeds": 1, "TEST": 40, "ROWS": 160, "EPOCHS": 2, "GAN_STEPS": 5, "TREES": 5},
)

LATENT, ROWS, TEST = 10, 1_797, 500  # images, and of these for testing
DIGITS = 5  # of a distance
EPOCHS, GAN_STEPS, TREES = 300, 2_000, 200


def measure(out: Path, *, seeds: int = 5, on_event: OnEvent | None = None) -> Runs:
    """Split ``seeds`` times, fit: distances along directions, and which images a classifier tells apart."""
    return kept_runs(out / "runs.json", _split, {f"split {seed}": seed for seed in range(seeds)}, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """Samples of every model compared, paired by split."""
    splits = [found[f"split {seed}"] for seed in range(seeds)]
    chosen = [split["level"] for split in splits]
    column = {k: np.array([_summed(**split["judged"][k]) for split in splits]) for k in splits[0]["judged"]}
    auto, none = column["likelihood, σ̃ chosen"], column["likelihood, σ̃ = 0"]
    gain, c2st = paired(none[:, 0], auto[:, 0]), paired(none[:, 1], auto[:, 1])
    real = column["real images"][:, 1]
    return Evidence(
        recipe="singular_digits",
        title="Likelihood of a singular distribution: handwritten digits",
        command=f"rankwise bench singular-likelihood --part digits --seeds {seeds}",
        setting=f"scikit-learn's 8 x 8 digits, {LATENT} latent dimensions, {seeds} splits with {TEST} test images; "
        "samples rounded to the images' greys; sliced Wasserstein-1 to the test images, and a random forest's accuracy "
        f"(%) in telling the two apart (50: not at all); levels chosen: {', '.join(f'{c:g}' for c in chosen)}",
        header=["samples", "sliced W1", "told apart (%)"],
        rows=[[k, plus_minus(v[:, 0], 1, 4), plus_minus(v[:, 1])] for k, v in column.items()],
        claims=[
            Claim(
                text="the chosen level's samples are nearer to test images than those without perturbation (p <= 0.05)",
                held=gain.clear(),
                found=f"sliced W1 lower by {gain.mean:.4f}±{gain.error:.4f}, p={gain.p_value:.2g}; told apart less by "
                f"{c2st}",
            ),
            Claim(
                text="nearer than principal components and a Wasserstein GAN",
                held=auto[:, 0].mean()
                < np.min([column[k][:, 0].mean() for k in ("principal components", "Wasserstein GAN")]),
                found=", ".join(
                    f"{k} {plus_minus(column[k][:, 0], 1, 4)}"
                    for k in ("likelihood, σ̃ chosen", "principal components", "Wasserstein GAN", "kernel density")
                ),
            ),
            Claim(
                text="control: other real images are told apart from the test images in less than 55 of 100",
                control=True,
                held=real.mean() < 0.55,
                found=plus_minus(real),
            ),
        ],
        environment=environment("fp32", 1),
    )


def _split(seed: int) -> dict[str, Any]:
    """The chosen noise, relative to the data's spread; how every model's samples are judged."""
    images = np.asarray(load_digits(return_X_y=True)[0])[:ROWS] / 16.0
    X, test = map(np.asarray, train_test_split(images, test_size=TEST, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SingularGenerativeEstimator(LATENT, epochs=EPOCHS, random_state=seed).fit(X)
        kde = HighDimKDE("cv").fit(X + 1e-3 * np.random.default_rng(seed).standard_normal(X.shape))
    path = model.noise_path_
    samples = {
        f"likelihood, σ̃ = {r:g}": model.sample(TEST, noise=float(n))
        for r, n in zip(path["relative"], path["noise"], strict=True)
    } | {
        "likelihood, σ̃ chosen": model.sample(TEST),
        "principal components": _principal(X, seed),
        "kernel density": kde.sample(TEST, random_state=seed),
        "Wasserstein GAN": wasserstein_gan.generate(X, TEST, latent_dim=LATENT, hidden=128, steps=GAN_STEPS, seed=seed),
        "real images": X[:TEST],
    }
    # images have 17 greys: no sample is told apart by others
    grey = {name: np.clip(np.round(16 * sample), 0, 16) / 16 for name, sample in samples.items()}
    judged = {
        name: {"distances": _sliced(sample, test), "right": _told_apart(sample, test, seed)}
        for name, sample in grey.items()
    }
    return {"level": float(path["relative"].iloc[int(path["wasserstein"].argmin())]), "judged": judged}


def _summed(*, distances: Sequence[float], right: str) -> tuple[float, float]:
    """Sliced Wasserstein-1, the mean over directions, and the share of images that are told apart."""
    return float(np.mean(distances)), right.count("1") / len(right)


def _principal(X: np.ndarray, seed: int) -> np.ndarray:
    pca = PCA(LATENT).fit(X)
    spread = np.sqrt(np.maximum(pca.explained_variance_ - pca.noise_variance_, 0))
    return np.random.default_rng(seed).standard_normal((TEST, LATENT)) * spread @ pca.components_ + pca.mean_


def _sliced(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Wasserstein-1 along each of many directions."""
    axes = directions(a.shape[1], 500, torch.Generator().manual_seed(1)).double()
    x, y = torch.as_tensor(a), torch.as_tensor(b)
    return [float(f"{float(sliced_wasserstein(x, y, axis[:, None])):.{DIGITS}g}") for axis in axes.T]


def _told_apart(a: np.ndarray, b: np.ndarray, seed: int) -> str:
    """Of every row of both whether a classifier that did not see it says right whose it is."""
    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=threads_each())
    labels = np.repeat([0, 1], [len(a), len(b)])
    said = np.asarray(cross_val_predict(forest, np.concatenate([a, b]), labels, cv=5))
    return "".join("1" if own == whose else "0" for own, whose in zip(said, labels, strict=True))
