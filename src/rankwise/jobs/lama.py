"""LAMA classifiers by name for the main job: architectures that start from MiniLM's word embeddings."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.compression.lama import LamaClassifier

LAMA_RATES = [1e-3, 3e-3]
VARIANTS: dict[str, dict[str, Any]] = {
    "lama": {},
    "lama-mean-context": {"context": "mean"},
    "lama-transformer": {"encoder": "transformer"},
    "lama-frozen": {"train_attention": False},
    "gru-structured": {"pooling": "structured"},
    "gru-mean": {"pooling": "mean"},
    "gru-max": {"pooling": "max"},
    "transformer-mean": {"encoder": "transformer", "pooling": "mean"},
}


def build_lama(name: str, *, num_labels: int) -> LamaClassifier:
    """A new classifier (weights drawn from the current random state) on MiniLM's word embeddings."""
    import torch

    from rankwise.compression.lama import LamaClassifier, LamaConfig

    embeddings = _word_embeddings()
    config = LamaConfig(embeddings.shape[0], embeddings.shape[1], num_labels=num_labels, **VARIANTS[name])
    model = LamaClassifier(config)
    with torch.no_grad():
        model.embeddings.weight.copy_(embeddings)
    return model


@cache
def _word_embeddings() -> Tensor:
    """``(vocabulary, 384)``, scaled to entries of size 0.1 on average."""
    from rankwise.models import load

    weight = load("minilm", task="base").get_parameter("embeddings.word_embeddings.weight").detach()
    return 0.1 * weight / weight.square().mean().sqrt()
