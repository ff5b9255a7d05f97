"""Zero-TPrune: an image transformer that reads fewer tokens, without training (Wang, Dedhia & Jha, CVPR 2024).

Most patches of an image say little, or say what others say. Attention knows: read as a graph on N tokens, whose edge
from i to j weighs A_ij, it lets tokens vote for each other. After some blocks tokens leave, in three steps. For the
attention of the block's heads h, A⁽ʰ⁾ ``(N, N)`` with rows of sum 1:

    vote        s ← Aᵀ s, T times from s⁰, in which CLS has √N times the score of any other       (weighted PageRank)
    heads       sᵢ = √( Σ_h η_h s⁽ʰ⁾ᵢ² / Σ_h η_h ),   η_h = 1 where v_min ≤ Var(s⁽ʰ⁾) ≤ v_max      (filter by variance)

    I′          one vote; its ranking cuts the patches in two halves and removes nothing
    S           each patch of the lesser half finds its likest in the better half, by the cosine of keys; those r that
                are likest to theirs leave
    I           votes among those that are left: the top share stays

CLS and a distillation token always stay. Order matters: without S first, many patches of background vote each other up.

What people get wrong: the vote is with Aᵀ ("votes received") and without the 1/N that the paper's formula shows, which
only scales and underflows. The bounds 0.01 and 0.7 on the variance are of scores whose *mean* is 1: of scores that sum
to 1 every variance is below 1/N, and every head would be thrown out (``vhf_scale="sum1"`` is that reading). Where no
head is left, all count. After S the matrix is cut to the tokens left, and its rows are divided by their sums.
The paper has no released code; what it leaves open (heads of keys side by side or averaged, the start) is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.compression.tokens.choosing import Choice, gathered, most_important
from rankwise.compression.tokens.pruning import TokenPruning, prune_tokens
from rankwise.compression.tokens.schedule import PRESETS, planned
from rankwise.compression.tokens.towers import Seen, tower_of
from rankwise.nearest import unknown

__all__ = ["AttentionGraph", "zero_tprune"]


def zero_tprune(
    model: nn.Module,
    *,
    target_flops: float | None = None,
    preset: Literal["a", "b", "c"] | None = None,
    layers: Sequence[int] | None = None,
    keep: float | Sequence[float] | None = None,
    similar: int | Sequence[int] | None = None,
    iterations: int | Sequence[int] | None = None,
    vhf: tuple[float, float] | None = (0.01, 0.7),
    vhf_scale: Literal["mean1", "sum1"] = "mean1",
    cls_boost: Literal["sqrt", "uniform"] = "sqrt",
    similarity: Literal["concat", "mean"] = "concat",
    heads: Literal["rms", "mean"] = "rms",
) -> TokenPruning:
    """Let tokens leave between the blocks of an image transformer, in place, without training.

    Parameters
    ----------
    model : nn.Module
        A ViT, DeiT or CLIP (its image tower) of `transformers`, or timm's ``VisionTransformer``; any device and dtype.
    target_flops : float, optional
        Share of the dense multiply-accumulates that is left, e.g. 0.65, or their number where it is above 1.
    preset : {"a", "b", "c"}, optional
        Instead of a target, the paper's: 0.653, 0.549 and 0.873 of the dense cost.
    layers : sequence of int, optional
        After how many blocks tokens leave; 1, 3, 6, 9 and 11 of 12 by default, and alike at other depths.
    keep : float or sequence of float, optional
        Share of patch tokens that the I step keeps, in all or in each of these layers.
    similar : int or sequence of int, optional
        Patch tokens that the S step removes there.
    iterations : int or sequence of int, optional
        Rounds T of voting; by default 30 in the first quarter of the blocks, 1 in the last, 5 between.
    vhf : (float, float), optional
        Least and greatest variance of a head that counts; ``None`` lets all count.
    vhf_scale : {"mean1", "sum1"}
        Whether that variance is of scores of mean 1, or of sum 1.
    cls_boost : {"sqrt", "uniform"}
        Whether CLS starts with √N times the score of other tokens, or with the same.
    similarity : {"concat", "mean"}
        Cosine of the keys of all heads side by side, or of their mean over heads.
    heads : {"rms", "mean"}
        How the heads' scores become one: the root of their mean square, or their mean.

    Returns
    -------
    TokenPruning
        Changes or undoes what was done, says what it costs and which tokens stayed.

    Raises
    ------
    ValueError
        A model that is not served (relative position bias, no attention probabilities, no CLS, already pruned), a
        target out of reach, a schedule that leaves no patch, a layer that there is not, and unknown options.

    Notes
    -----
    A layer in which nothing leaves is not touched: with ``keep=1`` alone logits are the same bit for bit. Hidden states
    have the lengths that they have (after a pruning block the pruned one), and ``output_attentions=True`` gives the
    weights of the pruning layers. Attention masks follow the tokens. One forward pass at a time.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.compression import zero_tprune
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=6, num_attention_heads=3, intermediate_size=192,
    ...                    image_size=32, patch_size=4)
    >>> model, pixels = ViTForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    >>> pruned = zero_tprune(model, target_flops=0.65)
    >>> model(pixels).logits.shape, round(pruned.flops().share, 2)
    (torch.Size([2, 2]), 0.65)
    >>> [k.patches.shape[1] for k in pruned.tokens(pixels)]  # patches left after each pruning layer, of 64
    [57, 46, 33, 25]
    >>> pruned.undo()
    """
    if preset is not None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        if target_flops is not None:
            raise ValueError(f"preset '{preset}' is a target_flops of {PRESETS[preset]}: give one of them")
        target_flops = PRESETS[preset]
    method = AttentionGraph(
        vhf=vhf, vhf_scale=vhf_scale, cls_boost=cls_boost, similarity=similarity, heads=heads
    )  # fmt: skip
    tower = tower_of(model)
    schedule = planned(
        tower.shape, target_flops=target_flops, layers=layers, keep=keep, similar=similar, iterations=iterations
    )
    return prune_tokens(model, schedule, method)


@dataclass(frozen=True, kw_only=True)
class AttentionGraph:
    """Zero-TPrune's choice, I′ → S → I; options as in `zero_tprune`.

    Examples
    --------
    >>> from rankwise.compression import AttentionGraph
    >>> AttentionGraph(vhf=None).cls_boost
    'sqrt'
    """

    vhf: tuple[float, float] | None = (0.01, 0.7)
    vhf_scale: Literal["mean1", "sum1"] = "mean1"
    cls_boost: Literal["sqrt", "uniform"] = "sqrt"
    similarity: Literal["concat", "mean"] = "concat"
    heads: Literal["rms", "mean"] = "rms"

    def __post_init__(self) -> None:
        for name, accepted in (
            ("vhf_scale", ("mean1", "sum1")),
            ("cls_boost", ("sqrt", "uniform")),
            ("similarity", ("concat", "mean")),
            ("heads", ("rms", "mean")),
        ):
            if getattr(self, name) not in accepted:
                raise unknown(name, getattr(self, name), accepted)
        if self.vhf is not None and not (len(self.vhf) == 2 and 0 <= self.vhf[0] <= self.vhf[1]):
            raise ValueError(f"vhf={self.vhf}: (least, greatest) variance of a head that counts, 0 or more, or None")

    @torch.no_grad()
    def choose(self, seen: Seen, *, prefix: int, keep: int, similar: int, iterations: int) -> Choice:
        """I′ → S → I; ``keep`` patches stay of those that ``similar`` leave."""
        alive, dropped, counted = seen.visible, None, None
        tokens = seen.key.shape[2]
        here = seen.key.new_ones(len(seen.key), tokens, dtype=torch.float32)
        if similar:
            first, counted = self.importance(seen.attention, 1, alive, prefix)
            options = {"prefix": prefix, "r": similar, "similarity": self.similarity, "visible": seen.visible}
            dropped = similar_tokens(first, seen.key, **options)
            here = here.scatter(1, dropped, 0.0)
            alive = here if alive is None else here * alive
        score = here
        if keep < tokens - prefix - similar:
            score, counted = self.importance(seen.attention, iterations, alive, prefix)
        return Choice(most_important(score.where(here > 0, -1), prefix, keep), similar=dropped, heads=counted)

    def importance(
        self, attention: Tensor, iterations: int, alive: Tensor | None, prefix: int
    ) -> tuple[Tensor, Tensor]:
        """``(batch, tokens)`` and which heads counted ``(batch, heads)``, after so many votes."""
        boosted = prefix > 0 and self.cls_boost == "sqrt"
        scores = votes(attention, start(attention, alive, boosted=boosted), iterations, alive)
        counted = filtered_heads(scores, alive, self.vhf, self.vhf_scale)
        return combined(scores, counted, self.heads), counted

    def macs(
        self, patches: int, *, prefix: int, heads: int, inner: int, keep: int, similar: int, iterations: int
    ) -> int:
        """Votes, and keys compared."""
        tokens = prefix + patches
        passes = (1 if similar else 0) + ((iterations + (1 if similar else 0)) if keep < patches - similar else 0)
        width = inner if self.similarity == "concat" else inner // heads
        compared = (patches // 2) * (patches - patches // 2) * width if similar else 0
        return passes * heads * tokens * tokens + compared


def start(attention: Tensor, alive: Tensor | None, *, boosted: bool) -> Tensor:
    """``s⁰``, ``(batch, 1, tokens)``: 1 for each token that is alive, √N for CLS where it is ``boosted``."""
    batch, _, tokens, _ = attention.shape
    s = attention.new_ones(batch, tokens) if alive is None else alive.to(attention.dtype)
    if boosted:
        s = torch.cat([s.sum(1, keepdim=True).sqrt(), s[:, 1:]], 1)
    return s[:, None]


def votes(attention: Tensor, s: Tensor, iterations: int, alive: Tensor | None = None) -> Tensor:
    """``s ← Aᵀ s``, ``iterations`` times, for each head.

    Parameters
    ----------
    attention : Tensor
        A, ``(batch, heads, tokens, tokens)``, rows of sum 1.
    s : Tensor
        Scores to start from, ``(batch, 1 or heads, tokens)``.
    iterations : int
        T.
    alive : Tensor, optional
        ``(batch, tokens)``, 1 or 0: votes are counted in the matrix of the tokens that are alive, its rows divided by
        their sums; 0 for the others. All by default.

    Returns
    -------
    Tensor
        ``(batch, heads, tokens)``; its sum is that of ``s``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.tokens.graph import votes
    >>> hub = torch.tensor([[0.2, 0.4, 0.4], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])  # all others look at the first
    >>> votes(hub[None, None], torch.ones(1, 1, 3), 1)
    tensor([[[2.2000, 0.4000, 0.4000]]])
    """
    batch, heads, tokens, _ = attention.shape
    A = attention.reshape(batch * heads, tokens, tokens)
    row = s.expand(batch, heads, tokens).reshape(batch * heads, 1, tokens)
    if alive is not None:  # instead of cutting the matrix: what the dead say and are told counts nothing
        living = alive.to(A.dtype).repeat_interleave(heads, 0)[:, None]
        said = living / (A @ living.mT).mT.clamp(min=torch.finfo(A.dtype).tiny)
    for _ in range(iterations):
        row = torch.bmm(row, A) if alive is None else torch.bmm(row * said, A) * living
    return row.view(batch, heads, tokens)


def filtered_heads(
    scores: Tensor, alive: Tensor | None, vhf: tuple[float, float] | None, scale: str = "mean1"
) -> Tensor:
    """Which heads' scores ``(batch, heads, tokens)`` vary neither too little nor too much; all where none does.

    The variance is over the tokens that are alive, CLS among them, of scores whose mean (or sum) is 1.
    """
    if vhf is None:
        return torch.ones_like(scores[..., 0], dtype=torch.bool)
    living = torch.ones_like(scores[:, :1]) if alive is None else alive.to(scores.dtype)[:, None]
    number = living.sum(-1)
    mean = scores.sum(-1) / number
    relative = (scores / mean[..., None] - 1) * living
    variance = relative.square().sum(-1) / number
    if scale == "sum1":
        variance = variance / number.square()
    counted = (variance >= vhf[0]) & (variance <= vhf[1])
    return counted | ~counted.any(1, keepdim=True)


def combined(scores: Tensor, counted: Tensor, how: str = "rms") -> Tensor:
    """One score a token, ``(batch, tokens)``: over the heads that count, the root of the mean square, or the mean."""
    weights = counted.to(scores.dtype)[..., None]
    number = weights.sum(1)
    if how == "mean":
        return (scores * weights).sum(1) / number
    return ((scores.square() * weights).sum(1) / number).sqrt()


def similar_tokens(
    importance: Tensor,
    key: Tensor,
    *,
    prefix: int,
    r: int,
    similarity: str = "concat",
    visible: Tensor | None = None,
) -> Tensor:
    """Positions ``(batch, r)`` of the patches that leave because a more important one is like them.

    Parameters
    ----------
    importance : Tensor
        ``(batch, tokens)``; decides the halves, the lesser one being smaller by one where the number is odd.
    key : Tensor
        ``(batch, heads, tokens, channels)``; cosines are of all heads side by side, or of their ``"mean"``.
    prefix : int
        Tokens before the patches, which take no part.
    r : int
        How many leave.
    similarity : {"concat", "mean"}
        As in `zero_tprune`.
    visible : Tensor, optional
        ``(batch, tokens)``, 0 for what a mask hides: that leaves first, and nothing is like it.

    Raises
    ------
    ValueError
        More than the lesser half has.
    """
    patches = importance.shape[1] - prefix
    if r > patches // 2:
        raise ValueError(f"similar={r}: the less important half of {patches} patch tokens has {patches // 2}")
    order = prefix + importance[:, prefix:].argsort(dim=1, descending=True, stable=True)
    better, lesser = order.split([patches - patches // 2, patches // 2], 1)
    lesser = lesser.sort(1).values  # so that equals leave by their place
    feature = F.normalize((key.mean(1) if similarity == "mean" else key.transpose(1, 2).flatten(2)).float(), dim=-1)
    if visible is not None:
        feature = feature * visible[..., None]
    likeness = (gathered(feature, lesser) @ gathered(feature, better).mT).amax(-1)
    if visible is not None:
        likeness = likeness.where(visible.gather(1, lesser) > 0, 2)
    return lesser.gather(1, likeness.argsort(dim=1, descending=True, stable=True)[:, :r])
