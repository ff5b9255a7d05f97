"""Two learned prompts through a CLIP's own text tower.

    T = [T_backlit, T_well-lit], (2, tokens, d): token embeddings of "X X … X" between its first and last token
    all trained; positions added, causal blocks, final norm, the row of the last token, text projection, unit length

What people get wrong: the first and the last token are trained too, so that sixteen X are eighteen rows; what would
follow the last token cannot be seen from it, so no such rows are kept. Both prompts start equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

WORDS = "X"  # what both start from, so many times


class LearnedPrompts(nn.Module):
    """A pair of prompts for a CLIP: backlit, then well-lit.

    Parameters
    ----------
    rows : Tensor
        ``(2, tokens, d)``, token embeddings, the last token's last.

    Examples
    --------
    >>> from transformers import CLIPConfig, CLIPModel
    >>> from rankwise.vision.lit.prompts import LearnedPrompts
    >>> words = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
    ...          "intermediate_size": 16, "bos_token_id": 7, "eos_token_id": 8}
    >>> sees = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16,
    ...         "image_size": 8, "patch_size": 4}
    >>> clip = CLIPModel(CLIPConfig(text_config=words, vision_config=sees, projection_dim=4)).eval()
    >>> prompts = LearnedPrompts.starting(clip, [7, 1, 1, 8])
    >>> prompts(clip).shape, sum(p.numel() for p in prompts.parameters())
    (torch.Size([2, 4]), 64)
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().float().clone())

    @classmethod
    def starting(cls, clip: Any, tokens: Sequence[int]) -> LearnedPrompts:
        """Both from the same tokens, the first and the last among them.

        Raises
        ------
        ValueError
            More tokens than the tower has positions, fewer than three, or one that it has not.
        """
        table = clip.text_model.embeddings.token_embedding.weight
        most = clip.config.text_config.max_position_embeddings
        if not 3 <= len(tokens) <= most:
            raise ValueError(f"a prompt of {len(tokens)} tokens; from 3 to {most}, the first and the last among them")
        if strange := [t for t in tokens if not 0 <= t < len(table)]:
            raise ValueError(f"token {strange[0]}; the text tower has 0 to {len(table) - 1}")
        return cls(table[torch.tensor(list(tokens), device=table.device)].expand(2, -1, -1))

    def forward(self, clip: Any) -> Tensor:
        """Features of both, ``(2, d)``, of unit length."""
        return encoded(clip, self.rows, self.rows.shape[1] - 1)


def encoded(clip: Any, rows: Tensor, last: int) -> Tensor:
    """Token embeddings ``(batch, tokens, d)`` through the text tower, read at position ``last``: unit vectors.

    Raises
    ------
    ValueError
        More tokens than positions.
    """
    tower = clip.text_model
    hidden = tower.embeddings(inputs_embeds=rows.to(tower.embeddings.token_embedding.weight.dtype))
    mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, cache=None)
    seen = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return F.normalize(clip.text_projection(tower.final_layer_norm(seen)[:, last]).float(), dim=-1)


def sixteen(tokenizer: Any, words: int = 16) -> list[int]:
    """Tokens of ``X`` so many times, with the first and the last token.

    Raises
    ------
    ValueError
        The tokenizer makes another number of tokens of them.
    """
    found = list(tokenizer(" ".join([WORDS] * words))["input_ids"])
    if len(found) != words + 2:
        raise ValueError(f"{words} X are {len(found)} tokens of this tokenizer; give the prompt's tokens=[…] yourself")
    return found
