"""Sentence embeddings: the mean of an encoder's last hidden states over a text's tokens, at length 1."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.models.loading import load, load_tokenizer


class TextEncoder:
    """Texts to unit vectors: a callable that selectors and depths take.

    Parameters
    ----------
    model : str
        ``minilm``, a folder or a hub id of an encoder that is pooled by the mean, as sentence-transformers' are.
    max_length : int
        Tokens read of a text.
    batch_size : int
        Texts at a time; those of similar length go together.

    Attributes
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    """

    def __init__(self, model: str = "minilm", *, max_length: int = 256, batch_size: int = 64) -> None:
        self.model, self.tokenizer = load(model, task="base").eval(), load_tokenizer(model)
        self.max_length, self.batch_size = max_length, batch_size

    @torch.no_grad()
    def __call__(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """``(n, d)`` unit vectors, float32."""
        texts = list(texts)
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        out = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self._pooled([ids[i] for i in rows]).float().cpu().numpy()
        return out

    def vectors(self, texts: list[str]) -> Tensor:
        """The same as a tensor through which gradients flow, all texts in one batch."""
        return self._pooled(self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"])  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """As a folder that ``TextEncoder(str(folder))`` reads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _pooled(self, ids: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1)


def embed(
    texts: Iterable[str], *, model: str = "minilm", max_length: int = 256, batch_size: int = 64
) -> NDArray[np.float32]:
    """``(n, d)`` unit vectors by a `TextEncoder` that is kept for the next call."""
    return _encoder(model, max_length=max_length, batch_size=batch_size)(texts)


_encoder = lru_cache(maxsize=1)(TextEncoder)
