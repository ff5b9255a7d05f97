"""Sentence embeddings: the mean of an encoder's last hidden states over a text's tokens, or the first one, at length 1.

Which of the two is read from ``1_Pooling/config.json``, where sentence-transformers writes it; the mean without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.files import content_of, write_json
from rankwise.models.loading import load, load_tokenizer, most_tokens, placed, resolve
from rankwise.models.names import check_own_files
from rankwise.reading import read_json

POOLING = "1_Pooling/config.json"


class TextEncoder:
    """Texts to unit vectors: a callable that selectors and depths take.

    Parameters
    ----------
    model : str
        ``minilm``, a folder or a hub id; read onto the GPU where torch sees one.
    max_length : int
        Tokens of a text that are read at most; the encoder's own limit also holds.
    batch_size : int
        Texts that go through the encoder together; those of similar length do.

    Attributes
    ----------
    model : PreTrainedModel
        The encoder, in evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that belongs to the model.
    pooling : {"mean", "cls"}
        Whether a text's vector is the mean of its tokens' states, or the first one's.

    Raises
    ------
    ValueError
        An encoder that is pooled otherwise; one text where a list of them is needed.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel, BertTokenizer
    >>> from rankwise.models.embedding import TextEncoder
    >>> words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"])}
    >>> config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:  # "minilm" is the bundled one
    ...     BertModel(config).save_pretrained(folder)
    ...     _ = BertTokenizer(vocab=words).save_pretrained(folder)
    ...     encoder = TextEncoder(folder)
    >>> vectors = encoder(["a fine film", "a film"])
    >>> vectors.shape, (vectors**2).sum(1).round(3).tolist()
    ((2, 16), [1.0, 1.0])
    """

    def __init__(self, model: str = "minilm", *, max_length: int = 256, batch_size: int = 64) -> None:
        self.pooling, self._folder = _pooling(model), model
        self.model, self.tokenizer = placed(load(model, task="base").eval()), load_tokenizer(model)
        self.max_length = min(max_length, self.tokenizer.model_max_length, most_tokens(self.model) or max_length)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """``(n, d)`` unit vectors, float32."""
        if isinstance(texts, str):
            raise ValueError("one text was given where a list of texts is needed: put it into a list")
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
        return self._pooled(self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"])

    def save(self, folder: str | Path) -> None:
        """As a folder that ``TextEncoder(str(folder))`` reads."""
        check_own_files(self._folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        modes = {"pooling_mode_mean_tokens": self.pooling == "mean", "pooling_mode_cls_token": self.pooling == "cls"}
        write_json(Path(folder) / POOLING, modes)

    def _pooled(self, ids: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        if self.pooling == "cls":
            return torch.nn.functional.normalize(hidden[:, 0], dim=-1)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1)


def embed(
    texts: Iterable[str], *, model: str = "minilm", max_length: int = 256, batch_size: int = 64
) -> NDArray[np.float32]:
    """``(n, d)`` unit vectors by a `TextEncoder` that is kept for the next call, while its files stay as they are."""
    folder = Path(resolve(model))
    content = content_of(folder) if folder.is_dir() else ""
    return _encoder(model, content, max_length=max_length, batch_size=batch_size)(texts)


@lru_cache(maxsize=1)
def _encoder(model: str, content: str, **options: int) -> TextEncoder:
    return TextEncoder(model, **options)


def _pooling(model: str) -> str:
    """How an encoder is pooled: as written beside it."""
    from transformers.utils.hub import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    file = cached_file(resolve(model), POOLING, **quiet)
    written = read_json(Path(file)) if file else {}
    modes = {
        k.removeprefix("pooling_mode_") for k, on in written.items() if k.startswith("pooling_mode_") and on is True
    }
    known = {frozenset(): "mean", frozenset({"mean_tokens"}): "mean", frozenset({"cls_token"}): "cls"}
    if frozenset(modes) not in known:
        raise ValueError(f"{model} is pooled by {' and '.join(sorted(modes))}; mean_tokens or cls_token is read")
    return known[frozenset(modes)]
