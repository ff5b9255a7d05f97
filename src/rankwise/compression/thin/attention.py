"""The attention functions that read a `rankwise.compression.ThinKCache`: ``"think"``, and one over any other.

A cache is never shown the queries; the attention function is. While a layer is whole, the function below hands over
to the attention it stands before (``"sdpa"`` for ``"think"``) and then shows the layer its queries. Once a layer is
thin, it computes itself, on the thin rows as they are held:

    logits = [q_idx K_thinᵀ ; q K_tailᵀ] · scaling,  P = softmax(logits) in float32,  out = P_old V_old + P_tail V_tail

with the model's own ``scaling`` (of all channels, not of those kept).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from rankwise.compression.thin.layer import ThinKLayer

__all__ = ["thinking"]

NAMES = {"sdpa": "think"}  # the attention stood before, and the name of ours
FUSED = ("sdpa", "eager")  # whose masks the fused computation reads
SINKS = ("s_aux", "sinks")  # keywords that sdpa and the fused computation would ignore
Attended = tuple[Tensor, Tensor | None]


@contextmanager
def thinking(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with the attention that a `ThinKCache` needs; afterwards with the one that it had.

    Parameters
    ----------
    model : PreTrainedModel
        ``"sdpa"`` and ``"eager"`` attention are fused; others with masks of numbers serve ``mode="storage"``, and
        ``"flex_attention"`` is refused.

    Raises
    ------
    ValueError
        A model whose attention cannot be chosen.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import ThinKCache, thinking
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model, prompt = LlamaForCausalLM(config), torch.arange(40)[None]
    >>> with thinking(model):
    ...     tokens = model.generate(prompt, cache=ThinKCache(config, window=8, recent=8), max_new_tokens=3)
    >>> tokens.shape, model.config._attn_implementation
    (torch.Size([1, 43]), 'sdpa')
    """
    adapted: Any = getattr(model, "get_base_model", None)  # peft's
    model = adapted() if adapted else model
    if not isinstance(model, PreTrainedModel) or not model._can_set_attn_implementation():
        raise ValueError(f"{type(model).__name__} does not let its attention be chosen: ThinK cannot read its queries")
    config = model.config
    parts = {k: c for k in config.sub_configs if (c := getattr(config, k, None)) is not None}
    before = {k: c._attn_implementation for k, c in {"": config, **parts}.items()}
    model.set_attn_implementation({k: before_it(v) for k, v in before.items()})
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def before_it(attention: str) -> str:
    """The name of the function that stands before an attention implementation; registered when first asked for."""
    if attention in NAMES.values():
        return attention
    name = NAMES.setdefault(attention, f"think_{attention}")
    AttentionInterface.register(name, _standing_before(attention))
    if attention in (masks := AttentionMaskInterface()):
        AttentionMaskInterface.register(name, masks[attention])
    return name


def _standing_before(attention: str) -> Callable[..., Attended]:
    def think(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Attended:
        layer: ThinKLayer | None = kwargs.pop("think_layer", None)
        whole = _whole(module, attention, kwargs)
        if layer is None:  # no cache, another one, or a layer that is left alone
            return whole(module, query, key, value, attention_mask, **kwargs)
        if layer.shown:  # DiffLlama attends twice with the same keys
            return whole(module, query, key, value, attention_mask, **kwargs)
        layer.check_attention(module, attention, kwargs, (key, value))
        if layer.is_fused:
            mask = layer.mask_of(attention_mask, layer.heads)
            out = attend(query, layer.parts(), mask, training=module.training, **_numbers(kwargs)), None
        else:
            out = whole(module, query, key, value, layer.mask_of(attention_mask, query.shape[1]), **kwargs)
        layer.observe(query, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"))
        return out

    uncompiled: Any = torch.compiler.disable(think)
    return uncompiled


def _whole(module: nn.Module, attention: str, given: dict[str, Any]) -> Callable[..., Attended]:
    """The attention that is stood before; "sdpa" of a model with a softcap, which torch's has not, is computed here."""
    if attention == "sdpa" and (sinks := [k for k in SINKS if given.get(k) is not None]):
        raise ValueError(
            f"{type(module).__name__} gives {sinks[0]} to its attention, which sdpa leaves out: use mode='storage' and "
            "`with thinking(model):` after model.set_attn_implementation('eager')"
        )
    if attention == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    if attention == "sdpa" and given.get("softcap") is not None:
        return _capped
    return ALL_ATTENTION_FUNCTIONS[attention]


def _capped(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Attended:
    if mask is None and not getattr(module, "is_causal", True):
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return attend(query, [(key, value, None, None)], mask, training=module.training, **_numbers(kwargs)), None


def _numbers(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: kwargs[k] for k in ("scaling", "softcap", "dropout") if kwargs.get(k) is not None}


Part = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # keys, values, and the channels of each


def attend(
    query: Tensor, parts: list[Part], mask: Tensor | None, *, scaling: float | None = None,
    softcap: float | None = None, dropout: float = 0.0, training: bool = False,
) -> Tensor:  # fmt: skip
    """Softmax attention over rows that are held in several parts, some with fewer channels.

    Parameters
    ----------
    query : Tensor
        ``(batch, query heads, queries, dim)``; consecutive query heads share a key head.
    parts : list of (keys, values, key channels, value channels)
        ``(batch, key heads, rows, width)``; the channels ``(batch, key heads, width)``, None for all of them.
    mask : Tensor, optional
        ``(batch, 1 or key heads or query heads, queries, rows)``, bool (True: seen) or added to the logits. Default:
        a query sees all rows but those of later queries.
    scaling : float, optional
        Of the logits. Default ``dim ** -0.5``.
    softcap : float, optional
        c of ``c tanh(logits / c)``.
    dropout : float
        Of the probabilities, in training.

    Returns
    -------
    Tensor
        ``(batch, queries, query heads, value dim)``, of the query's dtype.
    """
    batch, q_heads, queries, dim = query.shape
    heads = parts[0][0].shape[1]
    q = query.reshape(batch, heads, -1, dim)  # (batch, key heads, group · queries, dim)
    logits = torch.cat([_picked(q, channels) @ keys.mT for keys, _, channels, _ in parts], -1).float()
    logits = logits * (dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None and queries > 1:
        rows = logits.shape[-1]
        mask = torch.ones(queries, rows, dtype=torch.bool, device=q.device).tril(rows - queries)[None, None]
    if mask is not None:
        logits = _masked(logits.view(batch, heads, -1, queries, logits.shape[-1]), mask).view_as(logits)
    P = logits.softmax(-1).to(query.dtype)
    P = torch.nn.functional.dropout(P, dropout, training)
    widths = [keys.shape[2] for keys, *_ in parts]
    read = [(p @ v, channels) for p, (_, v, _, channels) in zip(P.split(widths, -1), parts, strict=True)]
    full = read[-1][0].shape[-1]
    out = read[-1][0]
    for rows, channels in read[:-1]:
        out = out + rows if channels is None else out.scatter_add(-1, _like(channels, rows), rows)
    return out.view(batch, q_heads, queries, full).transpose(1, 2).contiguous()


def _like(channels: Tensor, rows: Tensor) -> Tensor:
    return channels[:, :, None].expand(-1, -1, rows.shape[2], -1)


def _picked(x: Tensor, channels: Tensor | None) -> Tensor:
    return x if channels is None else x.gather(-1, _like(channels, x))


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits ``(batch, heads, group, queries, rows)`` under a mask of one, the key's or the query's heads."""
    seen = mask.shape[1]
    if seen in (1, logits.shape[1]):
        mask = mask[:, :, None]
    else:
        mask = mask.unflatten(1, (logits.shape[1], -1))
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits + mask.float()


for _attention in FUSED[:1]:
    AttentionInterface.register(NAMES[_attention], _standing_before(_attention))
    AttentionMaskInterface.register(NAMES[_attention], AttentionMaskInterface()[_attention])
