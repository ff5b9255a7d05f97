"""The weight spectrum of every linear layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch
from rankwise.models.loading import load
from rankwise.models.low_rank import low_rank_layers, replace
from rankwise.models.outliers import outlier_scores
from rankwise.models.targets import blocks, linear_layers, stacked_experts, target_modules
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
    """One record a layer, in the model's order; of a compressed model, of the products of its factors.

    Keys: ``layer``, ``shape`` (out, in), ``effective_rank`` and its share of the full rank ``effective_rank_share``,
    ``stable_rank``, ``rank_90`` (directions that hold 90% of the energy), ``hill_alpha`` (exponent of the tail of the
    eigenvalues of the Gram matrix; NaN for one row), ``outlier_ratio`` (entries above five times the mean magnitude),
    ``spectrum`` (singular values, descending). Experts that share one parameter follow, ``name[expert]`` each, unless
    ``target`` names other layers.

    Raises
    ------
    ValueError
        Weights that are quantised, complex or not finite (the layer is named).

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models.spectra import layer_spectra
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertModel(config).save_pretrained(folder)
    ...     records = layer_spectra(folder)
    >>> len(records), records[0]["layer"], records[0]["shape"], records[0]["effective_rank"] <= 16
    (6, 'encoder.layer.0.attention.self.query', [16, 16], True)
    """
    model = _loaded(name_or_path)
    matrices = _matrices(model, target)
    return [_record(name, matrices[name]) for name in progress(list(matrices), len(matrices))]


def _matrices(model: nn.Module, target: str) -> dict[str, Tensor]:
    """``(out, in)`` of every layer that the target names, in the dtype that it has."""
    layers = linear_layers(model)
    found = {
        n: layers[n].weight if isinstance(layers[n], nn.Linear) else layers[n].weight.mT
        for n in target_modules(model, target, fused=True)
    }
    if target in ("auto", "all-linear", "mlp"):
        found |= {f"{n}[{i}]": W for n, stack in stacked_experts(model).items() for i, W in enumerate(stack)}
    return found


def _record(name: str, W: Tensor) -> dict:
    try:
        S = singular_values(W)
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error
    rank = float(effective_rank(S))
    return {
        "layer": name,
        "shape": list(W.shape),
        "effective_rank": rank,
        "effective_rank_share": rank / len(S),
        "stable_rank": float(stable_rank(S)),
        "rank_90": int((explained_variance(S) < 0.9).sum()) + 1 if S[0] > 0 else 0,
        "hill_alpha": float(hill_index(S.square())),
        "outlier_ratio": float(outlier_ratio(W)),
        "spectrum": [round(float(s), 6) for s in S],
    }


@torch.no_grad()
def block_outliers(name_or_path: str, batches: Iterable[Batch] | None = None, *, threshold: float = 13.0) -> list[dict]:
    """One record a block: ``block``, ``outliers`` (D, per cent), ``probability`` (OwLore's draw), ``hill_alpha``.

    ``hill_alpha`` is the mean heavy-tail index of the block's matrices; with ``batches`` of inputs the outliers are
    weighed by the size of the activations.
    """
    model = _loaded(name_or_path)
    stack, layers = blocks(model)
    scores = outlier_scores(model, batches, threshold=threshold)
    total = float(scores.sum())
    tails: dict[int, list[float]] = {}
    for name, layer in linear_layers(model).items():
        if name.startswith(f"{stack}.") and min(layer.weight.shape) > 1:  # one row has no tail
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


def _loaded(name_or_path: str) -> nn.Module:
    model = load(name_or_path, task="base" if name_or_path != "smollm2" else "causal-lm")
    replace(model, {layer: layer.to_dense() for layer in low_rank_layers(model).values()})
    return model


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
