"""What a detector sees of a text: the mean state of every layer of a sentence encoder.

A text becomes ``(chunks, layers, width)``: one that is longer than the encoder is cut into chunks. Means are over a
chunk's own tokens; padding changes nothing. The first states, the embeddings, are left out, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.continual.unlearning.blocks import Factors, acting
from rankwise.models import linear_layers
from rankwise.models.embedding import TextEncoder
from rankwise.reading import printable

States = NDArray[np.float32]
MOST_UNKNOWN = 0.2  # share of tokens that the encoder's vocabulary lacks, from which on it is said


class LayerEncoder:
    """Texts to the states of all layers.

    Parameters
    ----------
    model : str
        ``minilm``, a folder or a hub id.
    max_length : int
        Tokens of a chunk; the encoder's own limit also holds.
    batch_size : int
        Chunks in one pass.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel, BertTokenizer
    >>> from rankwise.continual.unlearning.features import LayerEncoder
    >>> words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film"])}
    >>> config = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:  # "minilm" is the bundled one
    ...     BertModel(config).save_pretrained(folder)
    ...     _ = BertTokenizer(vocab=words).save_pretrained(folder)
    ...     states, text = LayerEncoder(folder, max_length=5)(["a film", "a film a film a"])
    >>> states.shape, text.tolist()
    ((3, 3, 16), [0, 1, 1])
    """

    def __init__(self, model: str = "minilm", *, max_length: int = 256, batch_size: int = 64) -> None:
        self.name, self.batch_size = model, batch_size
        encoder = TextEncoder(model, max_length=max_length)
        self.model, self.tokenizer, self.max_length = encoder.model, encoder.tokenizer, encoder.max_length
        self.layers = linear_layers(self.model)

    def to(self, device: torch.device) -> LayerEncoder:
        """Move the encoder."""
        self.model.to(device)  # pyright: ignore[reportArgumentType]  (transformers wraps the method)
        return self

    def chunks(self, texts: Sequence[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Token ids of every chunk, and the text that each is of."""
        check_texts(texts)
        if not len(texts):
            return [], np.zeros(0, np.int64)
        cut = self.tokenizer([*texts], truncation=True, max_length=self.max_length, return_overflowing_tokens=True)
        return cut["input_ids"], np.asarray(cut["overflow_to_sample_mapping"])

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], block: Factors | None = None) -> tuple[States, NDArray[np.int64]]:
        """``(chunks, layers, width)`` float32, and the text of each chunk; with a request's own block or none."""
        ids, text = self.chunks(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts: dict[int, States] = {}
        with acting(self.layers, [block] if block else [], torch.ones(1, 1)):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                parts |= dict(zip(rows, self.states([ids[i] for i in rows]).float().cpu().numpy(), strict=True))
        width, layers = self.model.config.hidden_size, self.model.config.num_hidden_layers
        return np.stack([parts[i] for i in range(len(ids))]) if ids else np.zeros((0, layers, width), np.float32), text

    def states(self, ids: list[list[int]]) -> Tensor:
        """``(chunks, layers, width)`` of one batch."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        hidden = self.model(**batch, output_hidden_states=True).hidden_states[1:]
        return torch.stack([mean_over(h, batch["attention_mask"]) for h in hidden], 1)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Share of tokens that the vocabulary lacks: of a language that the encoder has not seen."""
        ids, _ = self.chunks(texts)
        return float(np.mean(np.concatenate([np.asarray(i) for i in ids]) == self.tokenizer.unk_token_id))

    def __repr__(self) -> str:
        return f"LayerEncoder({printable(self.name)!r})"


def check_texts(texts: Sequence[str]) -> None:
    """Refuse one text in place of a list, and what is no text."""
    if isinstance(texts, str):
        raise ValueError("one text was given where a list of texts is needed: put it into a list")
    if strange := [t for t in texts if not isinstance(t, str)]:
        raise ValueError(f"{str(strange[0])[:60]!r} is a {type(strange[0]).__name__} where a text is needed")


def mean_over(hidden: Tensor, mask: Tensor) -> Tensor:
    """``(n, width)``: the mean over each row's tokens of states ``(n, tokens, width)``."""
    counted = mask[..., None].to(hidden.dtype)
    return (hidden * counted).sum(1) / counted.sum(1)
