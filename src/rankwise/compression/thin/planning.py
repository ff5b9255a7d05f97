"""How many bytes a thin cache will take, and the smallest ratio that fits into so many."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from rankwise.compression.thin.rows import GROUP, Bits

__all__ = ["fitting_ratio", "planned_bytes"]


def planned_bytes(
    config: PreTrainedConfig, *, tokens: int, ratio: float = 0.4, value_ratio: float = 0.0, recent: int = 32,
    budget: int | None = None, bits: Bits | None = None, batch: int = 1, dtype: torch.dtype | None = None,
) -> int:  # fmt: skip
    """Bytes of a `ThinKCache` right after a prompt.

    Parameters
    ----------
    config : PreTrainedConfig
        ``model.config``; its attention layers are full or sliding, and have ordinary keys.
    tokens : int
        Of the prompt, padding included.
    ratio, value_ratio, recent, budget, bits
        As of the cache.
    batch : int
        Prompts at once. Default 1.
    dtype : torch.dtype, optional
        Of keys and values. Default: the model's, float32 where it names none.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import planned_bytes
    >>> config = LlamaConfig(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    >>> round(planned_bytes(config, tokens=2048) / planned_bytes(config, tokens=2048, ratio=0), 3)
    0.808
    """
    text = config.get_text_config(decoder=True)
    size = torch.empty(0, dtype=dtype or getattr(text, "dtype", None) or torch.float32).element_size()
    types, options = get_layer_types_and_kwargs(text)
    if strange := set(types) - {"full_attention", "sliding_attention", "chunked_attention", "dummy"}:
        raise ValueError(f"bytes of {sorted(strange)[0]} layers cannot be planned: give ratio= in place of bytes")
    if getattr(text, "kv_lora_rank", None):
        raise ValueError("bytes of multi-head latent attention cannot be planned: give ratio= in place of bytes")
    total = 0
    for kind, option, layer in zip(types, options, text.per_layer_config, strict=True):
        heads, dim = _key_heads(layer)
        if kind == "full_attention":
            rows = min(tokens, budget or tokens)
            old = max(0, rows - recent) // (GROUP if bits else 1) * (GROUP if bits else 1)
            k, v = dim - int(ratio * dim), dim - int(value_ratio * dim)
            whole = (rows - old) * 2 * dim * size
            chosen = (8 * k + (8 * v if value_ratio else 0)) * bool(old) + (4 * rows if rows < tokens else 0)
            total += batch * (8 + heads * (whole + chosen + _held(old, k, v, bits, size)))
        elif kind != "dummy":
            total += batch * heads * min(tokens, option["sliding_window"] - 1) * 2 * dim * size
    return total


def _held(rows: int, keys: int, values: int, bits: Bits | None, size: int) -> int:
    if bits is None:
        return rows * (keys + values) * size
    a_row = keys + values if bits == 8 else -(-keys // 2) + -(-values // 2)
    return rows * a_row + rows // GROUP * keys * 2 * size + rows * 2 * size


def _key_heads(layer: PreTrainedConfig) -> tuple[int, int]:
    heads = layer.num_attention_heads
    dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return getattr(layer, "num_key_value_heads", None) or heads, dim


def fitting_ratio(config: PreTrainedConfig, *, tokens: int, bytes: float, **options: Any) -> float:
    """The smallest ratio with which a prompt's cache takes at most so many bytes.

    Parameters
    ----------
    config : PreTrainedConfig
        ``model.config``.
    tokens : int
        Of the prompt.
    bytes : float
        What the cache may take.
    **options
        Of `planned_bytes`.

    Raises
    ------
    ValueError
        No ratio is enough; what the largest would leave is named.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import fitting_ratio
    >>> config = LlamaConfig(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    >>> fitting_ratio(config, tokens=8192, bytes=300e6)
    0.421875
    """
    layers = config.get_text_config(decoder=True).per_layer_config
    dim = max(_key_heads(layer)[1] for layer in layers)
    for dropped in range(dim):
        if planned_bytes(config, tokens=tokens, ratio=dropped / dim, **options) <= bytes:
            return dropped / dim
    least = planned_bytes(config, tokens=tokens, ratio=(dim - 1) / dim, **options)
    raise ValueError(
        f"a prompt of {tokens} tokens does not fit {bytes:,.0f} bytes with any ratio: the values, and one channel of "
        f"the keys, take {least:,}; give value_ratio=, budget= or bits=, or allow more"
    )
