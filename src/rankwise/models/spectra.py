"""The weight spectrum of every linear layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from rankwise.models.loading import load
from rankwise.models.outliers import outlier_scores
from rankwise.models.targets import blocks, linear_layers, target_modules
from rankwise.spectral import (
    effective_rank,
    explained_variance,
    hill_index,
    outlier_ratio,
    singular_values,
    stable_rank,
)

HEADER = ["layer", "shape", "eff. rank", "stable", "rank for 90%", "tail", "outliers"]


@torch.no_grad()
def layer_spectra(
    name_or_path: str,
    *,
    target: str = "auto",
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> list[dict]:
    """One record a layer, in the model's order.

    Keys: ``layer``, ``shape`` (out, in), ``effective_rank`` and its share of the full rank ``effective_rank_share``,
    ``stable_rank``, ``rank_90`` (directions that hold 90% of the energy), ``hill_alpha`` (exponent of the tail of the
    eigenvalues of the Gram matrix), ``outlier_ratio`` (entries above five times the mean magnitude), ``spectrum``
    (singular values, descending).
    """
    model = load(name_or_path, task="base" if name_or_path != "smollm2" else "causal-lm")
    layers = linear_layers(model)
    names = target_modules(model, target)
    records = []
    for name in progress(names, len(names)):
        weight = layers[name].weight
        weight = weight if isinstance(layers[name], torch.nn.Linear) else weight.mT
        S = singular_values(weight)
        rank = float(effective_rank(S))
        records.append(
            {
                "layer": name,
                "shape": list(weight.shape),
                "effective_rank": rank,
                "effective_rank_share": rank / len(S),
                "stable_rank": float(stable_rank(S)),
                "rank_90": int((explained_variance(S) < 0.9).sum()) + 1,
                "hill_alpha": float(hill_index(S.square())),
                "outlier_ratio": float(outlier_ratio(weight)),
                "spectrum": [round(float(s), 6) for s in S],
            }
        )
    return records


@torch.no_grad()
def block_outliers(
    name_or_path: str, batches: Iterable[dict[str, torch.Tensor]] | None = None, *, threshold: float = 13.0
) -> list[dict]:
    """One record a block: ``block``, ``outliers`` (D, per cent), ``probability`` (OwLore's draw), ``hill_alpha``.

    ``hill_alpha`` is the mean heavy-tail index of the block's matrices; with ``batches`` of inputs the outliers are
    weighed by the size of the activations.
    """
    model = load(name_or_path, task="base" if name_or_path != "smollm2" else "causal-lm")
    stack, layers = blocks(model)
    scores = outlier_scores(model, batches, threshold=threshold)
    total = float(scores.sum())
    tails: dict[int, list[float]] = {}
    for name, layer in linear_layers(model).items():
        if name.startswith(f"{stack}."):
            block = int(name.removeprefix(f"{stack}.").split(".")[0])
            tails.setdefault(block, []).append(float(hill_index(singular_values(layer.weight).square())))
    return [
        {
            "block": i,
            "outliers": float(scores[i]),
            "probability": float(scores[i]) / total if total else 1 / len(layers),
            "hill_alpha": sum(tails[i]) / len(tails[i]) if i in tails else float("nan"),
        }
        for i in range(len(layers))
    ]


def as_rows(records: list[dict], *, full: bool = False) -> list[list[str]]:
    """Table rows; layer names without their common beginning unless ``full``."""
    first = records[0]["layer"].split(".")
    common = 0
    while (
        not full
        and common < len(first) - 1
        and all(r["layer"].split(".")[: common + 1] == first[: common + 1] for r in records)
    ):
        common += 1
    return [
        [
            ".".join(r["layer"].split(".")[common:]),
            f"{r['shape'][0]}x{r['shape'][1]}",
            f"{r['effective_rank']:.0f}",
            f"{r['stable_rank']:.1f}",
            str(r["rank_90"]),
            f"{r['hill_alpha']:.2f}",
            f"{100 * r['outlier_ratio']:.2f}%",
        ]
        for r in records
    ]
