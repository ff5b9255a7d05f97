"""What Zero-TPrune is measured against: tokens drawn, tokens that CLS looks at, tokens merged in pairs.

All take the same schedules and go through the same hooks, so that a comparison is of the choice alone. Of what a
schedule calls similar and unimportant, random and CLS's choice remove the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from rankwise.compression.tokens.choosing import Choice, most_important
from rankwise.compression.tokens.schedule import TokenSchedule, TowerShape
from rankwise.compression.tokens.towers import Seen

__all__ = ["AttentionToCLS", "MergeSimilar", "RandomTokens", "merging_schedule"]


@dataclass(kw_only=True)
class RandomTokens:
    """Patches drawn at random: the control.

    Parameters
    ----------
    seed : int
        Decides every draw; the same images in the same batches lose the same patches.

    Examples
    --------
    >>> from rankwise.compression import RandomTokens
    >>> RandomTokens(seed=3).seed
    3
    """

    seed: int = 0
    _drawn: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._drawn = torch.Generator().manual_seed(self.seed)

    def choose(self, seen: Seen, *, prefix: int, keep: int, similar: int, iterations: int) -> Choice:
        """``keep`` patches, each as likely as any other."""
        batch, _, tokens, _ = seen.key.shape
        return Choice(
            most_important(torch.rand(batch, tokens, generator=self._drawn).to(seen.key.device), prefix, keep)
        )

    def macs(self, patches: int, **sizes: int) -> int:
        """Nothing."""
        return 0


@dataclass(frozen=True, kw_only=True)
class AttentionToCLS:
    """Patches that CLS attends to most, by the mean over heads (as EViT and others do).

    Examples
    --------
    >>> from rankwise.compression import AttentionToCLS
    >>> AttentionToCLS().macs(197)
    0
    """

    def choose(self, seen: Seen, *, prefix: int, keep: int, similar: int, iterations: int) -> Choice:
        """``keep`` patches of greatest weight in CLS's row.

        Raises
        ------
        ValueError
            A model without a CLS token.
        """
        if prefix == 0:
            raise ValueError("attention to CLS needs a CLS token, and the model has none")
        return Choice(most_important(seen.attention[:, :, 0].mean(1), prefix, keep))

    def macs(self, patches: int, **sizes: int) -> int:
        """Nothing: the weights are there."""
        return 0


@dataclass(frozen=True, kw_only=True)
class MergeSimilar:
    """Pairs of like patches become their mean, as in ToMe (Bolya et al., 2023).

    Patches are dealt to two sides in turn; each of the first side finds its likest on the second, by the cosine of keys
    averaged over heads, and the likest pairs merge, weighed by the patches that each stands for. A token of n patches
    counts n times as a key in later blocks (proportional attention). Unlike ToMe's, merging comes after the
    block, where all methods here remove tokens. Give it a schedule of its own, as `merging_schedule` makes it.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from rankwise.compression import MergeSimilar, TokenSchedule, prune_tokens
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192,
    ...                    image_size=32, patch_size=4)
    >>> eight = TokenSchedule(layers=(1, 2, 3), keep=(1.0,) * 3, similar=(8,) * 3, iterations=(1,) * 3)
    >>> model = ViTModel(config).eval()
    >>> with prune_tokens(model, eight, MergeSimilar()):
    ...     print(model(torch.randn(1, 3, 32, 32)).last_hidden_state.shape)
    torch.Size([1, 41, 48])
    """

    @torch.no_grad()
    def choose(self, seen: Seen, *, prefix: int, keep: int, similar: int, iterations: int) -> Choice:
        """All patches but those that merge into another.

        Raises
        ------
        ValueError
            A schedule that removes for importance, too.
        """
        batch, _, tokens, _ = seen.key.shape
        if keep < tokens - prefix - similar:
            raise ValueError(
                "merging removes similar tokens alone: give a schedule with keep=1, as merging_schedule does"
            )
        feature = F.normalize(seen.key.mean(1).float(), dim=-1)[:, prefix:]
        one, other = feature[:, ::2], feature[:, 1::2]
        cosine = one @ other.mT
        if seen.visible is not None:  # what a mask hides merges last
            shown = seen.visible[:, prefix:]
            cosine = cosine + 4 * (shown[:, ::2, None] + shown[:, None, 1::2] - 2)
        likeness, partner = cosine.max(-1)
        best = likeness.argsort(dim=1, descending=True, stable=True)[:, :similar]
        gone, into = prefix + 2 * best, prefix + 2 * partner.gather(1, best) + 1
        here = torch.ones(batch, tokens, device=gone.device).scatter(1, gone, -1)
        return Choice(most_important(here, prefix, keep), similar=gone, into=into)

    def macs(
        self, patches: int, *, prefix: int, heads: int, inner: int, keep: int, similar: int, iterations: int
    ) -> int:
        """One side compared with the other."""
        return (patches - patches // 2) * (patches // 2) * (inner // heads)


def merging_schedule(shape: TowerShape, target_flops: float) -> TokenSchedule:
    """About as many tokens merged after every block but the last, within a share of the dense cost.

    Parameters
    ----------
    shape : TowerShape
        The model's.
    target_flops : float
        Share of the dense multiply-accumulates that may be left.

    Raises
    ------
    ValueError
        A target out of reach.

    Examples
    --------
    >>> from rankwise.compression import TowerShape, merging_schedule
    >>> vit = TowerShape(depth=6, width=192, heads=3, inner=192, hidden=768, patches=64, prefix=1, embedding=10**6)
    >>> merging_schedule(vit, 0.65).similar
    (9, 9, 9, 9, 9)
    """
    layers = tuple(range(1, shape.depth))
    allowed = target_flops * shape.macs([shape.patches + shape.prefix] * shape.depth)
    for total in range(len(layers) * shape.patches):
        left, similar = shape.patches, []
        for i in range(len(layers)):
            wanted = total * (i + 1) // len(layers) - total * i // len(layers)
            similar.append(min(wanted, left // 2))
            left -= similar[-1]
        schedule = TokenSchedule(
            layers=layers, keep=(1.0,) * len(layers), similar=tuple(similar), iterations=(1,) * len(layers)
        )
        if shape.macs(schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)) <= allowed:
            return schedule
    raise ValueError(f"target_flops={target_flops:g} is out of reach: merging halves the tokens of a block at most")
