"""One layer of a `rankwise.compression.ThinKCache`: what `transformers` asks of it, and when it is thinned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from rankwise.compression.thin.attention import FUSED, NAMES, SINKS, Part
from rankwise.compression.thin.planning import fitting_ratio
from rankwise.compression.thin.rows import GROUP, Bits, HeldRows
from rankwise.compression.thin.scores import attention_of, channel_scores, filled, kept, picked, snapkv, value_scores

Rows = Literal["thinned", "all"]
Mode = Literal["fused", "storage"]
DRAFTED = 64  # tokens that may be taken back before a prompt is scored: so many more queries are held until then
NEEDED = "call model.set_attn_implementation('think'), or use `with thinking(model):`"


@dataclass
class Settings:
    """What the layers of a cache share; the fields are the options of `ThinKCache`.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> from rankwise.compression import ThinKCache
    >>> ThinKCache(LlamaConfig(num_hidden_layers=1)).settings.ratio
    0.4
    """

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

    def __init__(self, settings: Settings) -> None:
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
