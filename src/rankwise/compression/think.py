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

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, CacheLayerMixin, get_layer_types_and_kwargs

from rankwise.compression.held_rows import GROUP, Bits, HeldRows
from rankwise.compression.thin_attention import FUSED, NAMES, SINKS, Part
from rankwise.nearest import unknown

__all__ = ["ThinKCache", "fitting_ratio", "planned_bytes"]

Rows = Literal["thinned", "all"]
Mode = Literal["fused", "storage"]
DRAFTED = 64  # tokens that may be taken back before a prompt is scored: so many more queries are held until then
NEEDED = "call model.set_attn_implementation('think'), or use `with thinking(model):`"


@dataclass
class _Settings:
    """What the layers of a cache share; the fields are the options of `ThinKCache`."""

    ratio: float | None
    window: int
    recent: int
    score_rows: Rows
    value_ratio: float
    mode: Mode
    block: int | None
    budget: int | None
    pooling: Literal["mean", "max"]
    kernel: int
    bits: Bits | None
    prompt: int | None
    max_bytes: float | None
    config: PreTrainedConfig
    fitted: dict[tuple, float] = field(default_factory=dict)

    def ratio_of(self, keys: Tensor) -> float:
        """The share of channels to drop; the smallest that fits where bytes are given."""
        if self.ratio is not None:
            return self.ratio
        told = (keys.shape[0], keys.shape[2], keys.dtype)
        if told not in self.fitted:
            self.fitted[told] = fitting_ratio(
                self.config, tokens=told[1], bytes=float(self.max_bytes or 0), batch=told[0], dtype=told[2],
                value_ratio=self.value_ratio, recent=self.recent, budget=self.budget, bits=self.bits,
            )  # fmt: skip
        return self.fitted[told]


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
        self.settings = _Settings(
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

    def bytes(self) -> int:
        """Bytes of all tensors that are held: the sum over their storages, each counted once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.layers)}
        return sum(storages.values())


class ThinKLayer(CacheLayerMixin):
    """One layer: old rows with fewer channels, and a whole tail.

    Attributes
    ----------
    keys, values : Tensor
        The tail ``(batch, key heads, rows, dim)``; of a layer that is not thin yet, everything.
    old_keys, old_values : HeldRows
        The thin part.
    channels, value_channels : Tensor
        ``(batch, key heads, kept)``, ascending; None for all channels.
    positions : Tensor
        With SnapKV: the position of every row, ``(batch, key heads, rows)``; None where none is missing.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import ThinKCache
    >>> config = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    >>> layer = ThinKCache(config, ratio=0.5).layers[0]
    >>> layer.is_thin, layer.get_seq_length()
    (False, 0)
    """

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, settings: _Settings) -> None:
        super().__init__()
        self.settings, self.record_past = settings, False
        self.reset()

    def reset(self) -> None:
        """Drop everything: the next prompt is scored anew."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.queries: Tensor | None = None
        self.valid: Tensor | None = None
        self.positions: Tensor | None = None
        self.channels: Tensor | None = None
        self.value_channels: Tensor | None = None
        self.old_keys: HeldRows | None = None
        self.old_values: HeldRows | None = None
        self.is_initialized, self.seen, self.heads = False, 0, 0
        self.scaling: float | None = None
        self.softcap: float | None = None
        self.model_config: Any = None
        self.shown = True  # whether the attention function saw the last update
        self.handed: tuple[Tensor, Tensor] | None = None  # what the attention function is to be given
        self.behind: Tensor | None = None  # by how much a row's positions lag behind its rows: its padding

    # -- what transformers asks of a layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the shapes and the device."""
        self.device, self.dtype = key_states.device, key_states.dtype
        self.shape = (*key_states.shape[:2], key_states.shape[-1], value_states.shape[-1])
        self.heads, self.is_initialized = key_states.shape[1], True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take new rows; the rows that the attention function needs are returned."""
        return UNCOMPILED(self, key_states, value_states, kwargs.get("kwargs"))

    def append(self, keys: Tensor, values: Tensor) -> None:
        """New rows at the end of the tail."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._check_update(keys)
        if self.record_past:
            self._settle()
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 2)
        self.values = values if self.values is None else torch.cat([self.values, values], 2)
        if self.positions is not None:
            at = torch.arange(self.seen, self.seen + keys.shape[2], dtype=self.positions.dtype, device=self.device)
            self.positions = torch.cat([self.positions, at.expand(*self.shape[:2], -1)], 2)
        self.seen += keys.shape[2]

    def get_seq_length(self) -> int:
        """Tokens seen, those that SnapKV dropped included: the position of the next one."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Rows that the model's mask has, and the first one's position."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Without a bound."""
        return -1

    def activate_past_recording(self) -> None:
        """Wait with thinning until the next tokens come: what was drafted in between may be cropped."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens, from the thin part too."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): a negative number of tokens to remove is needed")
        n = min(-tokens_to_remove, self.seen)
        if not n or self.keys is None or self.values is None:
            return
        if self.positions is not None:
            gone = self.positions >= self.seen - n
            if not bool(gone[..., -n:].all()) or gone.shape[-1] < n:
                raise ValueError(f"crop({tokens_to_remove}) reaches into the tokens that SnapKV chose by head")
            self.positions = self.positions[..., :-n].clone()
        self.seen -= n
        if self.queries is not None:
            self.queries = self.queries[:, :, :-n] if n < self.queries.shape[2] else None
        self.valid = None if self.valid is None else self.valid[:, : self.seen]
        tail = self.keys.shape[2]
        if n <= tail:
            self.keys, self.values = (x[:, :, : tail - n].clone() for x in (self.keys, self.values))
        elif self.old_keys is not None and self.old_values is not None:
            keys = self.old_keys.drop_last(n - tail)
            first, new = len(self.old_keys), len(self.old_values) - (n - tail)
            values = self.old_values.read()[:, :, first:new].clone()
            self.old_values.drop_last(len(self.old_values) - first)
            self.keys = filled(keys, self.channels, self.shape[2])
            self.values = filled(values, self.value_channels, self.shape[3])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the batch in another order."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row of the batch so many times."""
        self._each(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some rows of the batch."""
        self._each(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        """To the CPU."""
        self._each(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Back to the model's device."""
        if self.is_initialized:
            self._each(lambda x: x.to(self.device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(self, name, change(held))
            elif isinstance(held, HeldRows):
                held.each(change)
        if self.keys is not None:
            self.shape = (self.keys.shape[0], *self.shape[1:])

    # -- what the attention function asks of a layer

    @property
    def is_thin(self) -> bool:
        """Whether the prompt has been thinned."""
        return self.old_keys is not None

    @property
    def is_fused(self) -> bool:
        """Whether attention is to be computed on `parts`."""
        return self.is_thin and self.settings.mode == "fused"

    def parts(self) -> list[Part]:
        """Keys and values with their channels, the oldest first."""
        assert self.old_keys is not None and self.old_values is not None  # noqa: PT018
        assert self.keys is not None and self.values is not None  # noqa: PT018
        old = (self.old_keys.read(), self.old_values.read(), self.channels, self.value_channels)
        return [old, (self.keys, self.values, None, None)]

    def mask_of(self, mask: Any, heads: int) -> Any:
        """The model's mask for the rows that are left, for so many heads; as it is where none is missing."""
        if self.positions is None or mask is None:
            return mask
        if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1] != 1:
            raise ValueError("budget= needs a mask of shape (batch, 1, queries, tokens)")
        rows = self.positions.repeat_interleave(heads // self.heads, 1).long()[:, :, None]
        rows = rows.expand(-1, -1, mask.shape[2], -1)
        return mask.expand(rows.shape[0], rows.shape[1], -1, -1).gather(-1, rows)

    def check_attention(
        self, module: nn.Module, attention: str, given: dict[str, Any], read: tuple[Tensor, Tensor]
    ) -> None:
        """Refuse another prompt in a used cache, other keys than it gave, and what the fused computation ignores."""
        self.model_config = getattr(module, "config", None)
        self._check_read(type(module).__name__, *read)
        self._check_positions(given.get("position_ids"))
        if self.settings.mode != "fused":
            return
        if attention not in FUSED:
            raise ValueError(f"mode='fused' stands in for {' or '.join(FUSED)}, not for '{attention}': mode='storage'")
        if strange := [k for k in (*SINKS, "position_bias") if given.get(k) is not None]:
            raise ValueError(
                f"{type(module).__name__} gives {strange[0]} to its attention: only mode='storage' knows it"
            )

    @torch.no_grad()
    def observe(self, query: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
        """See the queries of the last update ``(batch, query heads, queries, dim)``; thin what is due."""
        self.handed = None
        self.shown = True
        if not self.is_thin:
            s, before = self.settings, self.queries
            self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.softcap = softcap
            query = query[:, :, -s.window - DRAFTED :]
            queries = query if before is None else torch.cat([before, query], 2)
            self.queries = queries[:, :, -s.window - DRAFTED :].clone()
            self.valid = _tokens(mask)
            if query.shape[2] == 1 and s.block is None and self.seen > 1:
                return
        if not self.record_past:
            self._settle()

    # -- thinning

    def _settle(self) -> None:
        """Thin the prompt when it is all there, and what has left the recent part since."""
        s = self.settings
        if not self.is_thin:
            if self.queries is not None and self.seen >= max(s.window + s.recent, s.prompt or 0):
                self._thin()
        elif s.block and self.keys is not None:
            self._move((self.keys.shape[2] - s.recent) // s.block * s.block)

    def _thin(self) -> None:
        s, Q, K, V, valid = self.settings, self.queries, self.keys, self.values, self.valid
        assert Q is not None and K is not None and V is not None  # noqa: PT018
        Q = Q[:, :, -s.window :]
        n = min(s.budget or K.shape[2], K.shape[2]) - s.recent
        n -= n % GROUP if s.bits else 0
        if n <= 0:
            return
        if valid is not None and not bool(valid[:, -Q.shape[2] :].any(1).all()):
            row = int((~valid[:, -Q.shape[2] :].any(1)).nonzero()[0])
            raise ValueError(f"row {row} has no token among the last {Q.shape[2]}: pad prompts on the left")
        ratio = s.ratio_of(K)
        seen = None if valid is None else valid[:, -Q.shape[2] :]
        rows = None if valid is None else valid[:, None].expand(-1, K.shape[1], -1)
        P = None
        if s.budget or s.value_ratio:
            P = attention_of(Q, K, scaling=self.scaling, softcap=self.softcap, valid=valid)
        if s.budget and s.budget < K.shape[2] and P is not None:
            at = snapkv(P, s.budget, pooling=s.pooling, kernel=s.kernel)
            self.positions = at.int()
            rows = None if rows is None else rows.gather(2, at)
            K, V = (x.gather(2, at[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (K, V))
            P = P.gather(-1, at[:, :, None].expand(-1, -1, P.shape[2], -1))
        scored = n if s.score_rows == "thinned" else K.shape[2]
        rows = None if rows is None else rows[..., :scored]
        scores = channel_scores(Q, K[:, :, :scored], queries=seen, keys=rows)
        self.channels = kept(scores, ratio)
        if s.value_ratio and P is not None:
            self.value_channels = kept(value_scores(P[..., :scored], V[:, :, :scored], rows), s.value_ratio)
        self.old_keys = HeldRows(picked(K[:, :, :n], self.channels), bits=s.bits)
        self.old_values = HeldRows(picked(V[:, :, :n], self.value_channels), bits=s.bits, shared="channels")
        self.keys, self.values = K[:, :, n:].clone(), V[:, :, n:].clone()
        self.queries = self.valid = None

    def _move(self, n: int) -> None:
        """The n oldest rows of the tail, thinned, to the thin part."""
        if n <= 0 or self.keys is None or self.values is None or self.old_keys is None or self.old_values is None:
            return
        self.old_keys.add(picked(self.keys[:, :, :n], self.channels))
        self.old_values.add(picked(self.values[:, :, :n], self.value_channels))
        self.keys, self.values = self.keys[:, :, n:].clone(), self.values[:, :, n:].clone()

    def whole(self) -> tuple[Tensor, Tensor]:
        """All rows with all channels, zero where one was dropped."""
        assert self.keys is not None and self.values is not None  # noqa: PT018
        if self.old_keys is None or self.old_values is None:
            return self.keys, self.values
        K = filled(self.old_keys.read(), self.channels, self.shape[2])
        V = filled(self.old_values.read(), self.value_channels, self.shape[3])
        return torch.cat([K, self.keys], 2), torch.cat([V, self.values], 2)

    # -- refusals

    def _check_update(self, keys: Tensor) -> None:
        if keys.shape[0] != self.shape[0]:
            raise ValueError(
                f"the cache holds a batch of {self.shape[0]}, not of {keys.shape[0]}: reset() it before another prompt"
            )
        used = getattr(self.model_config, "_attn_implementation", None)
        if not self.shown or (used is not None and used not in NAMES.values()):
            raise ValueError(f"ThinKCache needs an attention that shows it the queries, not '{used}': {NEEDED}")

    def _check_read(self, name: str, keys: Tensor, values: Tensor) -> None:
        """Refuse models that make others of the keys and values between the cache and the attention."""
        handed, self.handed = self.handed, None
        if handed is None:
            return
        if not _same(handed[0], keys):
            raise ValueError(f"{name} does not attend to the keys of its cache as they are: they cannot be thinned")
        if not _same(handed[1], values) and (self.settings.mode == "fused" or self.settings.value_ratio):
            raise ValueError(
                f"{name} does not attend to the values of its cache as they are: use mode='storage' without value_ratio"
            )

    def _check_positions(self, at: Tensor | None) -> None:
        if at is None or at.dim() != 2 or at.shape[1] == 1:
            return  # of one token nothing is read, which would cost a synchronisation a layer
        behind = self.seen - 1 - at[:, -1]
        padding = at[:, -1] == at[:, 0]  # nothing else came yet
        behind = behind.masked_fill(padding, torch.iinfo(at.dtype).max).expand(self.shape[0])
        if self.behind is None:
            self.behind = behind.clone()
        elif not bool((behind > self.behind).any()):
            self.behind = torch.minimum(behind, self.behind)
        else:
            raise ValueError(
                f"the cache holds {self.seen - at.shape[1]} tokens, and positions of another prompt came: reset() it"
            )


def taken(layer: ThinKLayer, new_keys: Tensor, new_values: Tensor, shared: dict | None) -> tuple[Tensor, Tensor]:
    """Append rows to a layer, and tell the attention function of the layer through the keywords it will be given."""
    layer.append(new_keys, new_values)
    if shared is None:
        if not layer.is_thin:
            told = "this model tells its cache nothing of the attention (no kwargs): its keys stay whole"
            warnings.warn(told, stacklevel=4)
        return layer.whole()
    layer.shown, shared["think_layer"] = False, layer
    keys, values = layer.keys, layer.values
    if keys is None or values is None or not layer.is_fused:
        keys, values = layer.whole()
    layer.handed = keys, values
    return keys, values


UNCOMPILED: Any = torch.compiler.disable(taken)  # a layer's Python changes with its rows


# -- the mathematics


def channel_scores(Q: Tensor, K: Tensor, *, queries: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
    """``s: (batch, key heads, dim)``: mean square of a channel over queries times that over keys, in float32.

    Parameters
    ----------
    Q : Tensor
        ``(batch, query heads, window, dim)``, after RoPE; consecutive query heads share a key head.
    K : Tensor
        ``(batch, key heads, rows, dim)``.
    queries, keys : Tensor, optional
        ``(batch, window)`` and ``(batch, key heads, rows)``, False for padding.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.think import channel_scores
    >>> Q, K = torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0], [1.0, 0.0]]]])
    >>> channel_scores(Q, K).tolist()
    [[[9.0, 2.0]]]
    """
    q = Q.float().square().unflatten(1, (K.shape[1], -1))
    return _mean(q, None if queries is None else queries[:, None, None], (2, 3)) * _mean(K.float().square(), keys, (2,))


def _mean(x: Tensor, valid: Tensor | None, dims: tuple[int, ...]) -> Tensor:
    """Over some axes; where ``valid`` (all but the last axis) says so."""
    if valid is None:
        return x.mean(dims)
    valid = valid.expand(x.shape[:-1])[..., None]
    return x.masked_fill(~valid, 0).sum(dims) / valid.sum(dims).clamp_min(1)


def kept(scores: Tensor, ratio: float) -> Tensor:
    """The channels to keep, ``(…, D - ⌊ratio · D⌋)``, ascending: those of largest score.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.think import kept
    >>> kept(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5).tolist()
    [0, 2]
    """
    D = scores.shape[-1]
    return scores.topk(D - int(ratio * D), -1).indices.sort(-1).values


def attention_of(
    Q: Tensor, K: Tensor, *, scaling: float | None, softcap: float | None = None, valid: Tensor | None = None
) -> Tensor:
    """Attention of the last queries, mean over a group: ``(batch, key heads, window, rows)``; zero for padding."""
    group, rows, window = Q.unflatten(1, (K.shape[1], -1)), K.shape[2], Q.shape[2]
    logits = (group @ K[:, :, None].mT).float() * (K.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    hidden = ~torch.ones(window, rows, dtype=torch.bool, device=K.device).tril(rows - window)
    P = _softmax(logits, hidden if valid is None else hidden | ~valid[:, None, None, None])
    return P if valid is None else P.masked_fill(~valid[:, None, -window:, None], 0)


def _softmax(logits: Tensor, hidden: Tensor) -> Tensor:
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0).mean(2)


def value_scores(P: Tensor, V: Tensor, valid: Tensor | None = None) -> Tensor:
    """``(batch, key heads, dim)``: the squared norm of each channel of ``P V``, what the window reads of it."""
    V = V.float() if valid is None else V.float().masked_fill(~valid[..., None], 0)
    return (P @ V).square().sum(2)


def snapkv(P: Tensor, budget: int, *, pooling: str = "mean", kernel: int = 5) -> Tensor:
    """Positions that SnapKV keeps, ``(batch, key heads, budget)``, ascending: the window, and what it attends to most.

    Parameters
    ----------
    P : Tensor
        ``(batch, key heads, window, rows)``, attention of the last queries.
    budget : int
        At least the window.
    pooling : {"mean", "max"}
        Over ``kernel`` neighbours.
    kernel : int
        Odd.
    """
    window, rows = P.shape[2:]
    votes = P[..., : rows - window].sum(2)
    pool = F.avg_pool1d if pooling == "mean" else F.max_pool1d
    best = pool(votes, kernel, stride=1, padding=kernel // 2).topk(budget - window, -1).indices.sort(-1).values
    last = torch.arange(rows - window, rows, device=P.device).expand(*best.shape[:2], -1)
    return torch.cat([best, last], -1)


def picked(rows: Tensor, channels: Tensor | None) -> Tensor:
    """Rows ``(batch, heads, n, dim)`` with some channels each; all for None."""
    return rows if channels is None else rows.gather(-1, channels[:, :, None].expand(-1, -1, rows.shape[2], -1))


def filled(rows: Tensor, channels: Tensor | None, dim: int) -> Tensor:
    """The opposite of `picked`: zero where a channel is missing."""
    if channels is None:
        return rows
    wide = rows.new_zeros(*rows.shape[:-1], dim)
    return wide.scatter_(-1, channels[:, :, None].expand(-1, -1, rows.shape[2], -1), rows)


# -- planning


def planned_bytes(
    config: PreTrainedConfig, *, tokens: int, ratio: float = 0.4, value_ratio: float = 0.0, recent: int = 32,
    budget: int | None = None, bits: Bits | None = None, batch: int = 1, dtype: torch.dtype | None = None,
) -> int:  # fmt: skip
    """Bytes of a `ThinKCache` right after a prompt.

    Parameters
    ----------
    config : PreTrainedConfig
        ``model.config``; its attention layers are full or sliding, and have ordinary keys.
    tokens : int
        Of the prompt, padding included.
    ratio, value_ratio, recent, budget, bits
        As of the cache.
    batch : int
        Prompts at once. Default 1.
    dtype : torch.dtype, optional
        Of keys and values. Default: the model's, float32 where it names none.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import planned_bytes
    >>> config = LlamaConfig(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    >>> round(planned_bytes(config, tokens=2048) / planned_bytes(config, tokens=2048, ratio=0), 3)
    0.808
    """
    text = config.get_text_config(decoder=True)
    size = torch.empty(0, dtype=dtype or getattr(text, "dtype", None) or torch.float32).element_size()
    types, options = get_layer_types_and_kwargs(text)
    if strange := set(types) - {"full_attention", "sliding_attention", "chunked_attention", "dummy"}:
        raise ValueError(f"bytes of {sorted(strange)[0]} layers cannot be planned: give ratio= in place of bytes")
    if getattr(text, "kv_lora_rank", None):
        raise ValueError("bytes of multi-head latent attention cannot be planned: give ratio= in place of bytes")
    total = 0
    for kind, option, layer in zip(types, options, text.per_layer_config, strict=True):
        heads, dim = _key_heads(layer)
        if kind == "full_attention":
            rows = min(tokens, budget or tokens)
            old = max(0, rows - recent) // (GROUP if bits else 1) * (GROUP if bits else 1)
            k, v = dim - int(ratio * dim), dim - int(value_ratio * dim)
            whole = (rows - old) * 2 * dim * size
            chosen = (8 * k + (8 * v if value_ratio else 0)) * bool(old) + (4 * rows if rows < tokens else 0)
            total += batch * (8 + heads * (whole + chosen + _held(old, k, v, bits, size)))
        elif kind != "dummy":
            total += batch * heads * min(tokens, option["sliding_window"] - 1) * 2 * dim * size
    return total


def _held(rows: int, keys: int, values: int, bits: Bits | None, size: int) -> int:
    if bits is None:
        return rows * (keys + values) * size
    a_row = keys + values if bits == 8 else -(-keys // 2) + -(-values // 2)
    return rows * a_row + rows // GROUP * keys * 2 * size + rows * 2 * size


def _key_heads(layer: PreTrainedConfig) -> tuple[int, int]:
    heads = layer.num_attention_heads
    dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return getattr(layer, "num_key_value_heads", None) or heads, dim


def fitting_ratio(config: PreTrainedConfig, *, tokens: int, bytes: float, **options: Any) -> float:
    """The smallest ratio with which a prompt's cache takes at most so many bytes.

    Parameters
    ----------
    config : PreTrainedConfig
        ``model.config``.
    tokens : int
        Of the prompt.
    bytes : float
        What the cache may take.
    **options
        Of `planned_bytes`.

    Raises
    ------
    ValueError
        No ratio is enough; what the largest would leave is named.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import fitting_ratio
    >>> config = LlamaConfig(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    >>> fitting_ratio(config, tokens=8192, bytes=300e6)
    0.421875
    """
    layers = config.get_text_config(decoder=True).per_layer_config
    dim = max(_key_heads(layer)[1] for layer in layers)
    for dropped in range(dim):
        if planned_bytes(config, tokens=tokens, ratio=dropped / dim, **options) <= bytes:
            return dropped / dim
    least = planned_bytes(config, tokens=tokens, ratio=(dim - 1) / dim, **options)
    raise ValueError(
        f"a prompt of {tokens} tokens does not fit {bytes:,.0f} bytes with any ratio: the values, and one channel of "
        f"the keys, take {least:,}; give value_ratio=, budget= or bits=, or allow more"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr())


def _tokens(mask: Any) -> Tensor | None:
    """Which rows are no padding, ``(batch, rows)``: those that the last query sees."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise ValueError(f"a mask of two or four dimensions is needed, got {type(mask).__name__}: use sdpa attention")
    if mask.dim() == 4:
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    valid = mask.bool()
    return None if bool(valid.all()) else valid.clone()


def _tensors(held: Any) -> list[Tensor]:
    """All tensors of layers, wherever they keep them."""
    if isinstance(held, Tensor):
        return [held]
    if isinstance(held, dict):
        return [t for x in held.values() for t in _tensors(x)]
    if isinstance(held, (list, tuple)):
        return [t for x in held for t in _tensors(x)]
    return _tensors(vars(held)) if isinstance(held, (CacheLayerMixin, HeldRows)) or hasattr(held, "conv_states") else []


def _check(s: _Settings, config: PreTrainedConfig) -> None:
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


def _check_config(s: _Settings, config: PreTrainedConfig) -> None:
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
