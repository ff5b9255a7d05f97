"""The image transformers whose tokens can leave: where their blocks and attention are, and what is refused.

Choosing tokens needs attention probabilities, which fused attention does not give. So the attention of the layers that
prune, and of those alone, computes them, once for its output and for the choice; all other layers stay as they are.
In `transformers` that is an attention function, looked up by the configuration that such a layer is lent; in `timm` the
layer's own path without fusion, watched.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.compression.tokens.schedule import TowerShape

NAME = "rankwise_tokens"  # of the attention function in transformers
_TOWERS = {  # class of transformers, and where its image tower is
    "ViTModel": "",
    "ViTForImageClassification": "vit",
    "DeiTModel": "",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "CLIPVisionModel": "",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
    "CLIPModel": "vision_model",
}
_REASONS = {
    "beit": "its relative position bias belongs to the full grid of patches",
    "data2vec-vision": "its relative position bias belongs to the full grid of patches",
    "swin": "its windows and relative position bias need the full grid of patches",
    "swinv2": "its windows and relative position bias need the full grid of patches",
    "vit_mae": "its decoder needs every patch",
    "vit": "its head rebuilds every patch",
    "deit": "its head rebuilds every patch",
    "clip": "it reads words, not images",
    "clip_text_model": "it reads words, not images",
    "siglip": "it has no CLS token that would stay",
    "siglip_vision_model": "it has no CLS token that would stay",
}


class Seen(NamedTuple):
    """What a layer's attention shows.

    Attributes
    ----------
    attention : Tensor
        Probabilities before dropout, ``(batch, heads, tokens, tokens)``, float32, each row of sum 1.
    key : Tensor
        ``(batch, heads, tokens, channels)``.
    visible : Tensor, optional
        ``(batch, tokens)``, 0 for tokens that a mask hides from all, else 1; ``None`` where there is no mask.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.tokens.towers import Seen
    >>> Seen(torch.full((1, 2, 5, 5), 0.2), torch.ones(1, 2, 5, 8)).visible is None
    True
    """

    attention: Tensor
    key: Tensor
    visible: Tensor | None = None


class _Watcher(Protocol):
    """What is lent to an attention layer: it takes what the layer sees."""

    def take(self, attention: Tensor, key: Tensor, masked: bool) -> None:
        """Probabilities ``(batch, heads, tokens, tokens)`` and keys ``(batch, heads, tokens, channels)``."""
        ...

    def take_keys(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """As a hook on what gives the keys."""
        ...

    def take_probabilities(self, module: nn.Module, args: Any) -> None:
        """As a hook before dropout."""
        ...


@dataclass(kw_only=True)
class Tower:
    """An image transformer: its blocks, their attention modules, its sizes.

    Examples
    --------
    >>> from transformers import ViTConfig, ViTModel
    >>> from rankwise.compression.tokens.towers import tower_of
    >>> config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192)
    >>> tower_of(ViTModel(config)).shape.patches
    196
    """

    module: nn.Module
    blocks: list[nn.Module]
    attentions: list[Any]
    shape: TowerShape
    mask: str  # the name under which a block takes its attention mask
    own: dict[int, Any] = field(default_factory=dict)  # what watching replaced, by block

    def watch(self, block: int, stage: _Watcher) -> None:
        """From now on the block's attention shows ``stage`` what it sees."""
        attention = self.attentions[block]
        if self.mask == "attn_mask":
            keys = attention.k_norm.register_forward_hook(stage.take_keys)
            probabilities = attention.attn_drop.register_forward_pre_hook(stage.take_probabilities)
            self.own[block], attention.fused_attn = (attention.fused_attn, keys, probabilities), False
            return
        register()
        self.own[block], attention.config = attention.config, copy.copy(attention.config)
        attention.config._attn_implementation = NAME
        attention.token_stage = stage

    def unwatch(self, block: int) -> None:
        """As it was before `watch`."""
        attention, own = self.attentions[block], self.own.pop(block)
        if self.mask == "attn_mask":
            attention.fused_attn = own[0]
            own[1].remove()
            own[2].remove()
            return
        attention.config = own
        del attention.token_stage

    def run(self, pixels: Tensor) -> None:
        """Images through the tower, for what is seen on the way."""
        run = getattr(self.module, "forward_features", self.module)
        run(pixels.to(next(self.module.parameters())))


def tower_of(model: nn.Module) -> Tower:
    """The image tower of a model; of one that PEFT wraps, of the model inside.

    Raises
    ------
    ValueError
        A model that is not among those served: what it is, why it is not, and which are.
    """
    inner = getattr(model, "get_base_model", None)
    model = model if inner is None else inner()
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers.models.") and cls.__name__ in _TOWERS:
            place = _TOWERS[cls.__name__]
            return _transformers(model.get_submodule(place) if place else model)
        if cls.__module__ == "timm.models.vision_transformer" and cls.__name__ == "VisionTransformer":
            return _timm(model)
    if hasattr(model, "_orig_mod"):
        raise ValueError("tokens of a compiled model cannot be pruned: prune the model that was given to torch.compile")
    kind = getattr(getattr(model, "config", None), "model_type", "")
    why = f": {_REASONS[kind]}" if kind in _REASONS else ""
    raise ValueError(
        f"tokens of a {type(model).__name__} cannot be pruned{why}; served are ViT and DeiT (with a classifier or "
        "bare), CLIP and its vision tower, of transformers, and timm's VisionTransformer"
    )


def _transformers(tower: Any) -> Tower:
    blocks = getattr(getattr(tower, "encoder", tower), "layers", None)
    if blocks is None:
        from transformers import __version__

        raise ValueError(f"transformers {__version__} keeps the blocks of a {type(tower).__name__} elsewhere: upgrade")
    c = tower.config
    tall, wide = _pair(c.image_size)
    high, broad = _pair(c.patch_size)
    patches, inner = (tall // high) * (wide // broad), c.num_attention_heads * getattr(c, "head_dim", 0)
    shape = TowerShape(
        depth=len(blocks),
        width=c.hidden_size,
        heads=c.num_attention_heads,
        inner=inner or c.hidden_size,
        hidden=c.intermediate_size,
        patches=patches,
        prefix=2 if c.model_type == "deit" else 1,
        embedding=patches * c.num_channels * high * broad * c.hidden_size,
    )
    attentions = [getattr(b, "attention", None) or b.self_attn for b in blocks]
    return Tower(module=tower, blocks=list(blocks), attentions=attentions, shape=shape, mask="attention_mask")


def _timm(tower: Any) -> Tower:
    blocks = list(tower.blocks)
    for i, block in enumerate(blocks):
        attention = getattr(block, "attn", None)
        if type(attention).__name__ != "Attention" or not hasattr(attention, "attn_drop"):
            raise ValueError(
                f"block {i} of the {type(tower).__name__} is a {type(block).__name__} without attn.attn_drop"
            )
    first, patches = blocks[0], tower.patch_embed.num_patches
    shape = TowerShape(
        depth=len(blocks),
        width=tower.embed_dim,
        heads=first.attn.num_heads,
        inner=first.attn.num_heads * first.attn.head_dim,
        hidden=first.mlp.fc1.out_features,
        patches=patches,
        prefix=tower.num_prefix_tokens,
        embedding=patches * tower.patch_embed.proj.weight.numel(),
    )
    return Tower(module=tower, blocks=blocks, attentions=[b.attn for b in blocks], shape=shape, mask="attn_mask")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention for `transformers`: a layer that prunes computes probabilities and keeps them, any other is sdpa's.

    Shapes as there: query, key, value ``(batch, heads, tokens, channels)``; the output has tokens before heads.
    """
    stage = getattr(module, "token_stage", None)
    if stage is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        check_mask(attention_mask, key.shape[2])
        hidden = torch.finfo(scores.dtype).min
        boolean = attention_mask.dtype == torch.bool
        scores = scores.masked_fill(~attention_mask, hidden) if boolean else scores + attention_mask
    probabilities = scores.softmax(-1, dtype=torch.float32)
    stage.take(probabilities.detach(), key.detach(), attention_mask is not None)
    weights = F.dropout(probabilities.to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def check_mask(mask: Any, tokens: int) -> None:
    """A mask from which rows and columns can be taken; ``ValueError`` for any other."""
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != tokens:
        shown = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"that is a {type(mask).__name__}"
        raise ValueError(
            f"an attention mask {shown} cannot follow tokens that leave: (batch, heads, tokens, tokens) with {tokens} "
            "tokens is accepted, as sdpa and eager attention have it; leave the mask out, or undo()"
        )


def register() -> None:
    """Make `attend` known to transformers, with a mask function: without one, masks would vanish."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
