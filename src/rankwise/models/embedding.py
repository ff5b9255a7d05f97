"""Sentence embeddings: the mean of an encoder's last hidden states over a text's tokens, at length 1."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.models.loading import load, load_tokenizer


@torch.no_grad()
def embed(
    texts: Iterable[str], *, model: str = "minilm", max_length: int = 256, batch_size: int = 64
) -> NDArray[np.float32]:
    """``(n, d)`` unit vectors.

    Parameters
    ----------
    texts : iterable of str
    model : str
        ``minilm``, a folder or a hub id of an encoder that is pooled by the mean, as sentence-transformers' are.
    max_length : int
        Tokens read of a text.
    batch_size : int
        Texts at a time; those of similar length go together.
    """
    texts = list(texts)
    encoder, tokenizer = load(model, task="base").eval(), load_tokenizer(model)
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
    order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
    out = np.zeros((len(texts), encoder.config.hidden_size), np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(encoder.device)
        hidden = encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        out[rows] = torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()
    return out
