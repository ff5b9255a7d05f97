"""ThinK: a key cache with fewer channels, those that the prompt's last queries use.

A long prompt's cache is ``(batch, key heads, L, D)`` keys and as many values in every layer. Of the keys of the
L - recent oldest tokens only the channels with the largest scores stay, for each layer, row and key head apart:

    s_c = mean over the window's queries and the head's group of q_c²  ·  mean over rows of k_c²  ∝  ‖Q_c K_cᵀ‖_F²
    K_thin = K[:L - recent, kept],   kept = the D - ⌊ratio · D⌋ channels of largest s, in ascending order
    logits = [q_kept K_thinᵀ ; q K_recentᵀ] · scaling,     out = softmax(logits) V

After RoPE, without training; nothing changes for the prompt itself, which is read before its cache is thinned. The
choice is the best for Σ s_c of what is dropped, not for ‖Q Kᵀ - Q_kept K_keptᵀ‖_F, which has cross terms. With
``value_ratio``, channels of values go too, by ‖softmax(Q Kᵀ · scaling) V_c‖_F (the paper's appendix D). With
``budget``, SnapKV first drops the tokens to which the window's queries pay least attention, after pooling over
neighbours (arXiv 2404.14469).

Source: Xu, Jie, Dong, Wang, Lu, Zhou, Saha, Xiong & Sahoo, "ThinK: Thinner Key Cache by Query-Driven Pruning", ICLR
2025, arXiv 2407.21018.

What people get wrong: writing zeros into dropped channels, which saves nothing. Here the tensors are smaller, and the
attention reads them as they are. The released code scores keys over all rows, the recent ones included, although those
stay whole (``score_rows="all"``); by default the rows are those that are thinned. It takes batches of one, forgets the
thin part in beam search, and reads keys that are gone where several tokens are decoded at once; here it need not.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, CacheLayerMixin, get_layer_types_and_kwargs

from rankwise.compression.thin.layer import Mode, Rows, Settings, ThinKLayer
from rankwise.compression.thin.planning import planned_bytes
from rankwise.compression.thin.rows import GROUP, Bits, HeldRows
from rankwise.nearest import unknown

__all__ = ["ThinKCache"]


class ThinKCache(Cache):
    """A cache for ``generate`` whose old keys have fewer channels.

    It needs an attention function that shows it the queries: ``model.set_attn_implementation("think")``, or
    `thinking` around the calls, which puts the former one back. Layers with a sliding window, linear attention or a
    state are left as they are in a `transformers.DynamicCache`. Rows of a batch are thinned together, one with few
    tokens beside its padding too.

    Parameters
    ----------
    config : PreTrainedConfig
        ``model.config``.
    ratio : float, optional
        Share of the key's channels to drop, at least 0 and below 1. Default 0.4, or what ``max_bytes`` asks for.
    window : int
        Queries that are scored: the last of the prompt. Default 32.
    recent : int
        Newest tokens whose keys stay whole. Default 32.
    score_rows : {"thinned", "all"}
        Keys that are scored: those that will be thinned, or all of them as in the released code. Default "thinned".
    value_ratio : float
        Share of the value's channels to drop. Default 0.
    mode : {"fused", "storage"}
        "fused" computes on the thin keys, in place of "sdpa" or "eager" attention. "storage" fills one layer at a time
        up with zeros and leaves the computing to the attention that the model had. Default "fused".
    block : int, optional
        As soon as so many tokens more than ``recent`` are whole, the oldest of them are thinned, with the channels
        chosen before; a prompt that was too short is scored when it is long enough. None: tokens that are generated
        stay whole, as in the released code. Default 64.
    budget : int, optional
        Tokens of the prompt to keep in each key head, the ``window`` last among them (SnapKV). Default: all.
    pooling : {"mean", "max"}
        Of the attention that SnapKV sums, over ``kernel`` neighbours. Default "mean".
    kernel : int
        Odd. Default 5.
    bits : {8, 4}, optional
        Of a number in the thin part and its values, with one scale for 32 keys of a channel and for a value. Default:
        the model's dtype.
    prompt : int, optional
        Tokens of the prompt (padding included) where it comes in chunks: until they are there the layers stay whole.
        Default: the first forward pass of at least ``window + recent`` tokens is the prompt. In assisted decoding the
        tokens of the first draft that are accepted belong to the prompt that is scored.
    max_bytes : float, optional
        In place of ``ratio``: the smallest ratio with which the prompt's cache takes no more.

    Raises
    ------
    ValueError
        Options outside their range or against each other, encoder-decoder models, models with no full-attention layer
        or whose layers share their keys (in "fused" mode, or with ``budget``).
        While it is used: an attention function that is not ours; attention to other keys than the cache's (latent)
        and, in "fused" mode, to other values (differential); attention sinks, which need "storage" over the model's
        "eager" attention; what the fused computation does not know (position biases, masks that are not
        four-dimensional); rows without a token in the window; another batch size; a prompt over ``max_bytes``; a crop
        into what SnapKV chose.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import ThinKCache
    >>> config = LlamaConfig(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> model.set_attn_implementation("think")
    >>> cache = ThinKCache(model.config, ratio=0.5)
    >>> tokens = model.generate(torch.randint(50, (1, 300)), cache=cache, max_new_tokens=4)
    >>> cache, cache.get_seq_length()
    (ThinKCache(ratio=0.5, 2 of 2 layers thin, 242,192 bytes for 303 tokens), 303)
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        ratio: float | None = None,
        window: int = 32,
        recent: int = 32,
        *,
        score_rows: Rows = "thinned",
        value_ratio: float = 0.0,
        mode: Mode = "fused",
        block: int | None = 64,
        budget: int | None = None,
        pooling: Literal["mean", "max"] = "mean",
        kernel: int = 5,
        bits: Bits | None = None,
        prompt: int | None = None,
        max_bytes: float | None = None,
    ) -> None:
        if ratio is None and max_bytes is None:
            ratio = 0.4
        text = config.get_text_config(decoder=True)
        self.settings = Settings(
            ratio, window, recent, score_rows, value_ratio, mode, block, budget, pooling, kernel, bits, prompt,
            max_bytes, text,
        )  # fmt: skip
        _check(self.settings, config)
        types, options = get_layer_types_and_kwargs(text)
        super().__init__(
            layers=[
                ThinKLayer(self.settings) if t == "full_attention" else DYNAMIC_LAYER_TYPE_MAPPING[t](**o)
                for t, o in zip(types, options, strict=True)
            ]
        )

    def __repr__(self) -> str:
        thin = [layer.is_thin for layer in self.layers if isinstance(layer, ThinKLayer)]
        wanted = (
            f"max_bytes={self.settings.max_bytes:g}" if self.settings.ratio is None else f"ratio={self.settings.ratio}"
        )
        held = f"{self.bytes():,} bytes for {self.get_seq_length()} tokens"
        return f"ThinKCache({wanted}, {sum(thin)} of {len(thin)} layers thin, {held})"

    def thinned(self, ratio: float | None = None, **options: Any) -> ThinKCache:
        """Another cache of the same prompt, thinned by these options; this one, which waits for more, stays whole.

        So a prompt is read once for several ratios. A cache waits when its ``prompt`` is of more tokens than come.

        Parameters
        ----------
        ratio : float, optional
            Share of the key's channels to drop.
        **options
            As the class takes them; ``window`` and ``recent`` are those of this cache.

        Raises
        ------
        ValueError
            This cache is empty or thin already, or has layers that are not thinned.
        """
        s = self.settings
        cache = ThinKCache(s.config, ratio, s.window, s.recent, **options)
        for old, new in zip(self.layers, cache.layers, strict=True):
            if not isinstance(old, ThinKLayer) or not isinstance(new, ThinKLayer):
                raise ValueError(
                    f"{s.config.model_type} has layers that are not thinned: a prompt cannot serve two ratios"
                )
            if old.is_thin or old.keys is None or old.values is None or old.queries is None:
                raise ValueError(
                    "the prompt is thin already, or none is there: wait for it with prompt= of more tokens"
                )
            new.update(old.keys, old.values, kwargs={})
            new.observe(old.queries, old.valid, old.scaling, old.softcap)
        return cache

    def bytes(self) -> int:
        """Bytes of all tensors that are held: the sum over their storages, each counted once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.layers)}
        return sum(storages.values())


def _tensors(held: Any) -> list[Tensor]:
    """All tensors of layers, wherever they keep them."""
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        return [t for x in held.values() for t in _tensors(x)]
    if isinstance(held, (list, tuple)):
        return [t for x in held for t in _tensors(x)]
    return _tensors(vars(held)) if isinstance(held, (CacheLayerMixin, HeldRows)) or hasattr(held, "conv_states") else []


def _check(s: Settings, config: PreTrainedConfig) -> None:
    ratios: dict[str, float] = {"ratio": 0.0 if s.ratio is None else s.ratio, "value_ratio": s.value_ratio}
    for name, value in ratios.items():
        if isinstance(value, str) or value is None or not 0 <= value < 1:
            raise ValueError(f"{name}={value} is outside [0, 1): the share of channels to drop, such as 0.4")
    if s.max_bytes is not None and (s.ratio is not None or not 0 < s.max_bytes < float("inf")):
        raise ValueError(f"max_bytes={s.max_bytes} must be above 0, and stands in place of ratio")
    for name, least in (("window", 1), ("recent", 1), ("block", 1), ("prompt", 1), ("kernel", 1)):
        value = getattr(s, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value}: a whole number, at least {least}, is needed")
    for name, options in (
        ("score_rows", ("thinned", "all")),
        ("mode", ("fused", "storage")),
        ("pooling", ("mean", "max")),
    ):
        if getattr(s, name) not in options:
            raise unknown(name, str(getattr(s, name)), options)
    if s.bits not in (None, 8, 4):
        raise ValueError(f"bits={s.bits}: 8 and 4 are known")
    if s.kernel % 2 == 0:
        raise ValueError(f"kernel={s.kernel} must be odd, so that a token stands in its middle")
    if s.bits and s.block and s.block % GROUP:
        raise ValueError(
            f"block={s.block} with bits={s.bits}: a multiple of {GROUP} is needed, whose keys share scales"
        )
    least = s.recent + max(s.window, GROUP if s.bits else 0)
    if s.budget is not None and s.budget < least:
        raise ValueError(f"budget={s.budget}: at least {least} tokens are needed, the recent ones and the window")
    _check_config(s, config)


def _check_config(s: Settings, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder: its decoder's cache is not thinned")
    types, _ = get_layer_types_and_kwargs(s.config)
    if "full_attention" not in types:
        raise ValueError(
            f"{config.model_type} has no full-attention layer ({', '.join(sorted(set(types)))}): none is thinned"
        )
    if "dummy" in types and getattr(s.config, "kv_sharing_modes", None) and (s.mode == "fused" or s.budget):
        raise ValueError(f"layers of {config.model_type} share their keys: use mode='storage' without budget")
    if s.max_bytes is not None:
        planned_bytes(config, tokens=1)  # what cannot be planned is refused at once
