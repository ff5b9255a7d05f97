"""Features of a trained vision transformer: clusters that are subspaces against other clusterings.

The features are those of `vit-cifar10`, of test pictures, scaled by one number. Every run takes a part of the pictures;
labels are seen by the score alone. The control draws blobs at the classes' means, as wide as the classes are in every
direction: there are no subspaces in it to find, so that subspaces may not be better than k-means.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.bench import Recipe
from rankwise.bench.shared.clusterings import ARMS, EM, Array, better_than_others, clusterings, indices
from rankwise.bench.shared.evidence import CERTAIN, Claim, Evidence, paired, plus_minus
from rankwise.bench.shared.kept import called, kept_runs
from rankwise.bench.shared.measured import Runs
from rankwise.data import read_images
from rankwise.events import OnEvent, environment
from rankwise.files import whole_file
from rankwise.models import load, load_image_processor

RECIPE = Recipe(
    name="molrg",
    part="features",
    about="CIFAR-10 features of a vision transformer: subspaces against other clusterings",
    spreads=True,
    smoke={"SOURCE": "digits", "ROWS": 200, "DIMS": (3,), "STARTS": 1, "seeds": 2},
    remark="The network was trained to tell these classes apart, on other pictures. Runs are draws of four fifths of "
    "one set of pictures: p-values speak of that set alone.",
)

MODEL, SOURCE, ROWS, SHARE, CLUSTERS = "vit-cifar10", "cifar10", 3000, 0.8, 10  # pictures; the part of a run
DIMS, STARTS = (2, 4, 8, 16, 32), 5
KNOWN = 0.2  # the adjusted Rand index at which clusterings see the classes at all


def measure(out: Path, *, data: Path | None = None, seeds: int = 6, on_event: OnEvent | None = None) -> Runs:
    """Cluster ``seeds`` parts, and as many draws of blobs (what is there is read back)."""
    out.mkdir(parents=True, exist_ok=True)
    told = {"features": _prepared(out / "features.npz", data), "share": SHARE, "dims": DIMS, "starts": STARTS}
    asked: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        f"{kind} {s}": (clustered, {**told, "blobs": kind == "blobs", "seed": s})
        for s in range(seeds)
        for kind in ("features", "blobs")
    }
    return kept_runs(out / "runs.json", called, asked, on_event)


def judge(found: Runs, *, seeds: int) -> Evidence:
    """The clusterings compared."""
    scores = {kind: indices([found[f"{kind} {s}"] for s in range(seeds)]) for kind in ("features", "blobs")}
    dims = {kind: ", ".join(str(found[f"{kind} {s}"]["dim"]) for s in range(seeds)) for kind in scores}
    return Evidence(
        recipe="molrg_features",
        title="Features of pictures: subspaces as clusters",
        command=f"rankwise bench molrg --part features --data cifar10 --seeds {seeds} --jobs 2",
        setting=f"{MODEL}'s features of {ROWS:,} test pictures of {SOURCE}, {SHARE:.0%} a run, {seeds} runs, "
        f"{CLUSTERS} clusters; adjusted Rand index (%) against the classes; dimension of subspaces by held-out "
        f"likelihood, of {', '.join(map(str, DIMS))}: {dims['features']} (blobs: {dims['blobs']}); {STARTS} starts",
        header=["method", "features", "blobs at the classes' means"],
        rows=[[arm, *(plus_minus(scores[kind][arm]) for kind in scores)] for arm in ARMS],
        claims=_claims(**scores),
        environment=environment("fp64", 1),
        extra={kind: {arm: v.tolist() for arm, v in of.items()} for kind, of in scores.items()},
    )


def _prepared(path: Path, data: Path | None) -> Path:
    """Features of test pictures at the class token, and labels; written once."""
    if not path.exists():
        images = read_images(SOURCE, split="test", data=data if SOURCE == "cifar10" else None).head(ROWS)
        processor = load_image_processor(MODEL)
        model: Any = load(MODEL, task="image-classification").eval()
        features = []
        with torch.inference_mode():
            for part in np.array_split(np.arange(len(images)), -(-len(images) // 100)):
                pixels = processor([images.pil(int(i)) for i in part], return_tensors="pt")["pixel_values"]
                seen = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
                features.append(model.vit.layernorm(seen[:, 0]))
        with whole_file(path) as draft, draft.open("wb") as stream:
            np.savez(stream, features=torch.cat(features).numpy(), labels=np.asarray(images.labels))
    return path


def clustered(
    *, features: Path, share: float, dims: tuple[int, ...], starts: int, blobs: bool, seed: int
) -> dict[str, Any]:
    """All clusterings of a part of the features, or of blobs in their place."""
    held, rng = np.load(features), np.random.default_rng(seed)
    X, y = held["features"].astype(np.float64), held["labels"]
    X = X / X.std()
    if blobs:
        X = _blobs(X, y, rng)
    used, others = np.split(rng.permutation(len(X)), [round(share * len(X))])
    return clusterings(X[used], y[used], X[others], clusters=CLUSTERS, dims=dims, starts=starts, seed=seed)


def _blobs(X: Array, y: NDArray[Any], rng: np.random.Generator) -> Array:
    """Rows at their class's mean plus noise, as much of it in every direction as the classes' rows have on average."""
    kinds, at = np.unique(y, return_inverse=True)
    means = np.stack([X[y == kind].mean(0) for kind in kinds])[at]
    return means + np.sqrt(np.mean((X - means) ** 2)) * rng.standard_normal(X.shape)


def _claims(features: dict[str, Array], blobs: dict[str, Array]) -> list[Claim]:
    gain = paired(blobs[EM], blobs["k-means"])
    return [
        Claim(
            text=f"power: k-means finds the classes in the features, at an index of {KNOWN:.0%} or more",
            held=bool((features["k-means"] >= KNOWN).all()),
            found=plus_minus(features["k-means"]),
            control=True,
        ),
        Claim(
            text="control: among blobs subspaces are not better than k-means (p > 0.05)",
            held=gain.mean <= 0 or gain.p_value > CERTAIN,
            found=str(gain),
            control=True,
        ),
        *better_than_others(features, "the classes"),
    ]
