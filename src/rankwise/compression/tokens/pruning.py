"""Tokens that leave between the blocks of an image transformer: the hooks, their schedule, and how to undo them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.compression.tokens.choosing import Choice, TokenChooser, gathered
from rankwise.compression.tokens.schedule import TokenFlops, TokenSchedule
from rankwise.compression.tokens.towers import Seen, Tower, check_mask, tower_of

__all__ = ["Kept", "TokenPruning", "prune_tokens"]


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
