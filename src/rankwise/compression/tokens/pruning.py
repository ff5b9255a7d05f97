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
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.compression.tokens.schedule import PRESETS, TokenFlops, TokenSchedule, planned
from rankwise.compression.tokens.towers import Seen, Tower, check_mask, tower_of
from rankwise.nearest import unknown

__all__ = ["AttentionGraph", "Choice", "Kept", "TokenChooser", "TokenPruning", "prune_tokens", "zero_tprune"]


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
    >>> from rankwise.compression.tokens.pruning import most_important
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
    >>> from rankwise.compression.tokens.pruning import votes
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


def most_important(importance: Tensor, prefix: int, keep: int) -> Tensor:
    """Positions, ascending, of the prefix and of the ``keep`` patches of greatest importance (of equals, the first)."""
    best = importance[:, prefix:].argsort(dim=1, descending=True, stable=True)[:, :keep].sort(1).values
    return torch.cat([torch.arange(prefix, device=best.device).expand(len(best), -1), best + prefix], 1)


def gathered(tokens: Tensor, at: Tensor) -> Tensor:
    """Rows of ``(batch, tokens, channels)`` at positions ``(batch, some)``."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], at]


class Kept(NamedTuple):
    """What a pruning layer leaves of images.

    Attributes
    ----------
    layer : int
        After how many blocks.
    patches : Tensor
        Patches of the image that stay, row by row from 0, ascending; ``(batch, left)``.
    similar : Tensor, optional
        Those that left here because another is like them, ``(batch, r)``.
    heads : Tensor, optional
        Which heads counted, ``(batch, heads)``.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from rankwise.compression import zero_tprune
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192,
    ...                    image_size=32, patch_size=4)
    >>> with zero_tprune(ViTModel(config), keep=0.5, layers=[2]) as pruned:
    ...     (kept,) = pruned.tokens(torch.randn(3, 32, 32))
    >>> kept.layer, kept.patches.shape
    (2, torch.Size([1, 32]))
    """

    layer: int
    patches: Tensor
    similar: Tensor | None
    heads: Tensor | None


class _Stage:
    """A pruning layer: takes what its attention sees, and lets tokens leave after its block."""

    def __init__(self, *, which: int, schedule: TokenSchedule, prefix: int, method: TokenChooser) -> None:
        self.which, self.schedule, self.prefix, self.method = which, schedule, prefix, method
        self.before: _Stage | None = None
        self.seen: Seen | None = None
        self.key: Tensor | None = None
        self.choice: Choice | None = None
        self.sizes: Tensor | None = None  # patches that a token stands for, (batch, left); where tokens merge

    def take(self, attention: Tensor, key: Tensor, masked: bool) -> None:
        visible = (attention.amax((1, 2)) > 0).to(attention.dtype) if masked else None
        self.seen = Seen(attention, key, visible)

    def take_keys(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.key = output.detach()

    def take_probabilities(self, module: nn.Module, args: Any) -> None:
        if self.key is not None:
            self.take(args[0].detach().float(), self.key, masked=False)

    def prune(self, block: nn.Module, args: Any, hidden: Tensor) -> Tensor:
        """After the block: the states of the tokens that stay."""
        seen, self.seen, self.key = self.seen, None, None
        if seen is None:
            raise RuntimeError(f"the attention of block {self.schedule.layers[self.which]} gave no probabilities")
        schedule, which, patches = self.schedule, self.which, hidden.shape[1] - self.prefix
        self.choice = self.method.choose(
            seen,
            prefix=self.prefix,
            keep=schedule.left(which, patches),
            similar=schedule.similar[which],
            iterations=schedule.iterations[which],
        )
        if self.choice.into is not None:
            hidden, self.sizes = self.merged(hidden, self.choice)
        return gathered(hidden, self.choice.kept)

    def merged(self, hidden: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """States in which tokens are the mean of those merged into them, and how many patches each stands for."""
        assert choice.similar is not None
        assert choice.into is not None
        sizes = None if self.before is None else self.before.sizes
        if sizes is None:
            sizes = hidden.new_ones(hidden.shape[:2], dtype=torch.float32)
        total = hidden * sizes[..., None]  # float32 also of a bfloat16 model
        at = choice.into[..., None].expand(-1, -1, hidden.shape[2])
        total = total.scatter_add(1, at, gathered(total, choice.similar))
        sizes = sizes.scatter_add(1, choice.into, sizes.gather(1, choice.similar))
        return (total / sizes[..., None]).to(hidden.dtype), sizes.gather(1, choice.kept)


class TokenPruning:
    """What pruning did to a model: to change, to undo, to ask. Made by `zero_tprune` and `prune_tokens`.

    As a context manager it is undone at the end of the block.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from rankwise.compression import zero_tprune
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192,
    ...                    image_size=32, patch_size=4)
    >>> model, pixels = ViTModel(config).eval(), torch.randn(1, 3, 32, 32)
    >>> with zero_tprune(model, keep=0.5, layers=[2]) as pruned:
    ...     print(model(pixels).last_hidden_state.shape)
    torch.Size([1, 33, 48])
    >>> model(pixels).last_hidden_state.shape
    torch.Size([1, 65, 48])
    """

    def __init__(self, tower: Tower, schedule: TokenSchedule, method: TokenChooser) -> None:
        self.tower, self.method = tower, method
        self._stages: dict[int, _Stage] = {}  # by block
        self._hooks: list[Any] = []
        self.schedule = schedule

    @property
    def schedule(self) -> TokenSchedule:
        """After which blocks how many tokens leave; a new one can be set at any time between forward passes."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: TokenSchedule) -> None:
        shape, previous = self.tower.shape, None
        schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)
        self.undo()
        self._schedule = schedule
        for which, layer in enumerate(schedule.layers):
            if schedule.keep[which] == 1 and schedule.similar[which] == 0:
                continue  # nothing leaves, nothing is computed
            stage = _Stage(which=which, schedule=schedule, prefix=shape.prefix, method=self.method)
            stage.before, previous = previous, stage
            self._stages[layer - 1] = stage
            self.tower.watch(layer - 1, stage)
            # first among the block's hooks, so that hidden states are recorded as they go on
            self._hooks.append(self.tower.blocks[layer - 1].register_forward_hook(stage.prune, prepend=True))
        for block in range(min(self._stages, default=len(self.tower.blocks)), len(self.tower.blocks)):
            hook = _Mask(self.tower.mask, [s for n, s in self._stages.items() if n < block]).narrow
            self._hooks.append(self.tower.blocks[block].register_forward_pre_hook(hook, with_kwargs=True))
        self.tower.module.token_pruning = self  # pyright: ignore[reportArgumentType]  (no module: its own record)

    def undo(self) -> None:
        """The model as it was; a second time does nothing."""
        for hook in self._hooks:
            hook.remove()
        for block in self._stages:
            self.tower.unwatch(block)
        self._hooks, self._stages = [], {}
        vars(self.tower.module).pop("token_pruning", None)

    def __enter__(self) -> TokenPruning:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def flops(self) -> TokenFlops:
        """Multiply-accumulates of one image of the model's size."""
        shape, schedule = self.tower.shape, self.schedule
        dense = shape.macs([shape.prefix + shape.patches] * shape.depth)
        counts = schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)
        choosing = 0
        for which, layer in enumerate(schedule.layers):
            if layer - 1 in self._stages:
                choosing += self.method.macs(
                    counts[layer - 1] - shape.prefix,
                    prefix=shape.prefix,
                    heads=shape.heads,
                    inner=shape.inner,
                    keep=counts[layer] - shape.prefix,
                    similar=schedule.similar[which],
                    iterations=schedule.iterations[which],
                )
        return TokenFlops(dense=dense, pruned=shape.macs(counts), choosing=choosing)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> list[Kept]:
        """Which patches of images stay after each pruning layer.

        Parameters
        ----------
        pixels : Tensor
            As the model takes them, ``(batch, 3, height, width)``, or one image ``(3, height, width)``.

        Raises
        ------
        ValueError
            Another shape.
        """
        if pixels.dim() not in (3, 4):
            raise ValueError(f"pixels of shape {tuple(pixels.shape)}; (3, height, width) or a batch of it is accepted")
        self.tower.run(pixels if pixels.dim() == 4 else pixels[None])
        found, prefix, at = [], self.tower.shape.prefix, None
        for block, stage in self._stages.items():
            assert stage.choice is not None
            kept, similar = stage.choice.kept[:, prefix:] - prefix, stage.choice.similar
            similar = None if similar is None else similar - prefix
            if at is not None:
                similar = None if similar is None else at.gather(1, similar)
                kept = at.gather(1, kept)
            found.append(Kept(block + 1, kept, similar, stage.choice.heads))
            at = kept
        return found


class _Mask:
    """A block's attention mask, cut to the tokens that are left, and where tokens merged, weighed by their sizes."""

    def __init__(self, name: str, stages: list[_Stage]) -> None:
        self.name, self.stages = name, stages

    def narrow(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = args[1] if len(args) > 1 else kwargs.get(self.name)
        if mask is not None and self.name == "attn_mask":
            raise ValueError("an attention mask of timm cannot follow tokens that leave: leave it out, or undo()")
        for stage in self.stages if mask is not None else ():
            assert stage.choice is not None
            mask = _narrowed(mask, stage.choice.kept)
        sizes = self.stages[-1].sizes if self.stages else None
        if sizes is not None:  # a token that stands for n patches counts as a key n times
            weight = sizes.log()[:, None, None].to(args[0].dtype)
            hidden = torch.finfo(weight.dtype).min
            if mask is None:
                mask = weight.expand(-1, -1, weight.shape[-1], -1)
            else:
                mask = weight.where(mask, hidden) if mask.dtype == torch.bool else mask + weight
        if mask is None:
            return args, kwargs
        return (args[0], mask, *args[2:]) if len(args) > 1 else args, kwargs | (
            {} if len(args) > 1 else {self.name: mask}
        )


def _narrowed(mask: Any, kept: Tensor) -> Tensor:
    """Rows and columns of a mask ``(batch, heads, tokens, tokens)`` at the positions kept."""
    check_mask(mask, mask.shape[-1] if isinstance(mask, Tensor) else 0)
    batch = len(kept)
    mask = mask.expand(batch, -1, -1, -1)
    columns = kept[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
    mask = mask.gather(3, columns)
    if mask.shape[2] == 1:
        return mask
    return mask.gather(2, kept[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def prune_tokens(model: nn.Module, schedule: TokenSchedule, method: TokenChooser) -> TokenPruning:
    """Let tokens leave by a schedule, chosen by any method.

    Parameters
    ----------
    model : nn.Module
        As in `zero_tprune`.
    schedule : TokenSchedule
        After which blocks how many leave; `planned` makes one for a target.
    method : TokenChooser
        Which leave: `AttentionGraph` (Zero-TPrune), `RandomTokens`, `AttentionToCLS`, `MergeSimilar`, or your own.

    Returns
    -------
    TokenPruning
        As `zero_tprune` gives.

    Raises
    ------
    ValueError
        As in `zero_tprune`.

    Examples
    --------
    >>> from transformers import ViTConfig, ViTModel
    >>> from rankwise.compression import AttentionToCLS, TokenSchedule, prune_tokens
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192,
    ...                    image_size=32, patch_size=4)
    >>> half = TokenSchedule(layers=(2,), keep=(0.5,), similar=(0,), iterations=(1,))
    >>> pruned = prune_tokens(ViTModel(config), half, AttentionToCLS())
    >>> round(pruned.flops().share, 2)
    0.74
    """
    tower = tower_of(model)
    if getattr(tower.module, "token_pruning", None) is not None:
        raise ValueError("the model's tokens are pruned already: undo() that, or set the schedule of its token_pruning")
    return TokenPruning(tower, schedule, method)
