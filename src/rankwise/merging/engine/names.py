"""What the name of a tensor says: its layer, whether its rows are tokens, whether it is worked out anew on loading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers|layer|h|blocks|block)\.)(\d{1,9})(\..*)$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed\w*|tok_embeddings|wte|wpe|word_embeddings|position_embeddings|token_embedding|position_embedding"
    r"|shared|embeddings)\.(weight|\w*embeddings\.weight)$"
)
_WORDS = re.compile(
    r"(^|\.)(embed_tokens|embed_in|embed|embedding|wte|word_embeddings?|shared|tok_embeddings|token_embedding|embeddings)"
    r"\.weight$"
)
_OUTPUT = re.compile(
    r"(^|\.)(lm_head|embed_out|output_layer|proj_out|vocab_projector|predictions\.decoder|lm_head\.decoder)\.weight$"
)
_PER_TOKEN = re.compile(
    r"(^|\.)(lm_head|embed_out|output_layer|output|proj_out|vocab_projector|predictions|predictions\.decoder|lm_loss"
    r"|lm_head\.decoder|pred_layer\.proj|generator_lm_head|head)\.(weight|bias)$|(^|\.)final_logits_bias$"
)
_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|masked_bias|relative_position_index)$"
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")  # GPT-2's causal mask, (1, 1, n, n)
_STACK = re.compile(r"expert|moe|(^|\.)(input|output)_linear\.weight$")


def is_embedding(name: str) -> bool:
    """Whether a tensor has a row a token (or position): embeddings and output layers."""
    return bool(_EMBEDDING.search(name) or _OUTPUT.search(name) or "embeddings." in name)


def is_output(name: str) -> bool:
    """Whether a tensor is a language model's output layer."""
    return bool(_OUTPUT.search(name))


def is_words(name: str) -> bool:
    """Whether a tensor is an embedding of tokens."""
    return bool(_WORDS.search(name)) and not LAYER.match(name)


def token_axis(name: str, shape: Sequence[int], rows: int | None) -> int | None:
    """Along which axis a tensor has an entry a token, of ``rows``: embeddings, output layers and their biases."""
    if rows is None or LAYER.match(name) or not (is_words(name) or _PER_TOKEN.search(name)):
        return None
    return next((axis for axis, n in enumerate(shape) if n == rows), None)


def is_buffer(name: str, shape: Sequence[int]) -> bool:
    """Whether loading works a tensor out anew, so that it may be absent: tables of positions, causal masks."""
    return bool(_BUFFER.search(name) or (_MASK.search(name) and len(shape) == 4))


def is_stack(name: str, shape: Sequence[int]) -> bool:
    """Whether ``(E, …, …)`` is E matrices, the experts of a mixture, and not a kernel."""
    return len(shape) == 3 and bool(_STACK.search(name))


def position(name: str, depth: Mapping[str, int]) -> float:
    """t of a tensor: 0 for the first layer of its stack, 1 for the last, 0 outside the layers."""
    m = LAYER.match(name)
    if m is None:
        return 0.0
    return int(m[2]) / (depth[m[1]] - 1) if depth[m[1]] > 1 else 1.0
