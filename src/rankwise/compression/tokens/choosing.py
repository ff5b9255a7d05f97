"""What a method says of tokens: which stay, and which go into which."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rankwise.compression.tokens.towers import Seen

__all__ = ["Choice", "TokenChooser"]


class Choice(NamedTuple):
    """Which tokens stay.

    Attributes
    ----------
    kept : Tensor
        Their positions among the layer's tokens, prefix included, ascending; ``(batch, left)``.
    similar : Tensor, optional
        Positions of those that left because another is like them, ``(batch, r)``.
    into : Tensor, optional
        Positions of the tokens that these are merged into, ``(batch, r)``; ``None`` where they are dropped.
    heads : Tensor, optional
        Which heads counted, ``(batch, heads)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression import Choice
    >>> Choice(torch.tensor([[0, 2, 3]])).into is None  # CLS and two patches stay, the others are dropped
    True
    """

    kept: Tensor
    similar: Tensor | None = None
    into: Tensor | None = None
    heads: Tensor | None = None


class TokenChooser(Protocol):
    """What decides which tokens stay; `AttentionGraph` and the baselines are such.

    Examples
    --------
    >>> from rankwise.compression import Choice, TowerShape, planned, prune_tokens
    >>> from rankwise.compression.tokens.choosing import most_important
    >>> class ReceivedAttention:  # a choice of your own
    ...     def choose(self, seen, *, prefix, keep, similar, iterations):
    ...         return Choice(most_important(seen.attention.mean((1, 2)), prefix, keep))
    ...     def macs(self, patches, **sizes):
    ...         return 0
    """

    def choose(self, seen: Seen, *, prefix: int, keep: int, similar: int, iterations: int) -> Choice:
        """Which of a layer's tokens stay: its prefix, and ``keep`` patches of those that ``similar`` leave."""
        ...

    def macs(
        self, patches: int, *, prefix: int, heads: int, inner: int, keep: int, similar: int, iterations: int
    ) -> int:
        """What choosing costs, in multiply-accumulates an image."""
        ...


def most_important(importance: Tensor, prefix: int, keep: int) -> Tensor:
    """Positions, ascending, of the prefix and of the ``keep`` patches of greatest importance (of equals, the first)."""
    best = importance[:, prefix:].argsort(dim=1, descending=True, stable=True)[:, :keep].sort(1).values
    return torch.cat([torch.arange(prefix, device=best.device).expand(len(best), -1), best + prefix], 1)


def gathered(tokens: Tensor, at: Tensor) -> Tensor:
    """Rows of ``(batch, tokens, channels)`` at positions ``(batch, some)``."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], at]
