"""Log-probabilities of many token sequences under a causal model, what they have in common computed once.

Requests are sorted by their tokens; neighbours that begin alike form a group whose common prefix goes through the model
once; what several prefixes share again goes through it once, and so on. Rows are padded on their right, where nothing
causal sees it. Between two levels the padding moves to the left, cache and mask alike,

    prefix | pad        →        pad | prefix || rest of the prompt | pad

so that a row's real tokens always stand side by side: a layer that attends to a window of the last places sees the
same tokens as without a cache. Models whose layers keep something else than keys and values (recurrent, compressed or
convolutional ones), and those that are not told their tokens' positions, get every sequence whole (`can_share`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_WORTH = 4  # tokens that are not worth a pass of their own


@dataclass(frozen=True)
class Request:
    """Tokens whose last ``scored`` are asked for; ``place`` is (prompt, continuation).

    Examples
    --------
    >>> from rankwise.prompting.shared_prefixes import Request
    >>> request = Request(ids=(5, 6, 7, 8), scored=2, place=(0, 0))  # log P(7 | 5 6) and log P(8 | 5 6 7)
    >>> request.ids[-request.scored :]
    (7, 8)
    """

    ids: tuple[int, ...]
    scored: int
    place: tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Requests that begin with the same ``shared`` tokens.

    Examples
    --------
    >>> from rankwise.prompting.shared_prefixes import Request, grouped
    >>> prompt = tuple(range(10, 20))
    >>> (group,) = grouped([Request((*prompt, 1), 1, (0, 0)), Request((*prompt, 2), 1, (0, 1))], size=8)
    >>> group.shared, len(group.requests)  # all but the token before the first scored one
    (9, 2)
    """

    shared: int
    requests: list[Request]


class _Seen(NamedTuple):
    """A cache whose padding stands on its left, and its mask ``(rows, tokens)``."""

    cache: DynamicCache
    mask: Tensor


def can_share(model: nn.Module) -> bool:
    """Whether the model continues from a cache of prefixes of different lengths: it is told its tokens' positions, and
    all that its layers keep of a token is its keys and values."""
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" not in accepted or _cache_name(accepted) is None or getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=getattr(model, "config", None)).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def batches(groups: Sequence[Group], *, rows: int, tokens: int, extra: int = 0) -> Iterator[list[Group]]:
    """Consecutive groups of at most ``rows`` sequences and ``tokens`` tokens (padding included, and ``extra`` more a
    sequence); a group goes alone where it must, and those that share nothing are not mixed with those that do."""
    batch: list[Group] = []
    n = width = 0
    for group in groups:
        more, longest = len(group.requests), extra + max(len(r.ids) for r in group.requests)
        full = n + more > rows or (n + more) * max(width, longest) > tokens
        if batch and (full or (batch[-1].shared > 0) != (group.shared > 0)):
            yield batch
            batch, n, width = [], 0, 0
        batch.append(group)
        n, width = n + more, max(width, longest)
    if batch:
        yield batch


def grouped(requests: Sequence[Request], size: int) -> list[Group]:
    """Neighbours in token order that begin alike, ``size`` at most; in order of length.

    A request joins the group before it unless that shortens what the group shares, or it has more in common with the
    request behind it, by more than a few tokens: what whole groups share is found one level up (`Scorer`).
    """
    ordered = sorted(requests, key=lambda r: r.ids)
    free = [len(r.ids) - r.scored - 1 for r in ordered]  # the token before the first scored one has to be computed
    shared = [_common(a.ids, b.ids, min(free[i : i + 2])) for i, (a, b) in enumerate(pairwise(ordered))] + [0]
    groups: list[Group] = []
    for i, request in enumerate(ordered):
        if groups and len(groups[-1].requests) < size:
            last = groups[-1]
            common = min(shared[i - 1], last.shared or shared[i - 1])
            if common > _WORTH and common + _WORTH >= max(last.shared, shared[i]):
                groups[-1] = Group(common, [*last.requests, request])
                continue
        groups.append(Group(0, [request]))
    return by_length(groups)


def by_length(groups: list[Group]) -> list[Group]:
    """Shortest first, those that share nothing before those that do."""
    return sorted(groups, key=lambda g: (g.shared > 0, len(g.requests[0].ids)))


class Scorer:
    """Runs groups of requests through a model.

    Parameters
    ----------
    model : Module
        A causal language model of `transformers`.
    pad : int
        The token that padding is made of; any one.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.prompting.shared_prefixes import Request, Scorer, grouped
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> scorer, prompt = Scorer(LlamaForCausalLM(config).eval(), pad=0), tuple(range(10, 20))
    >>> groups = grouped([Request((*prompt, token), 1, (0, token)) for token in range(64)], size=64)
    >>> with torch.no_grad():
    ...     found = torch.tensor([logp for _, logp in scorer.scored(groups)])
    >>> round(float(found.exp().sum()), 3)  # over all tokens that may follow
    1.0
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self.pad = model, pad
        accepted = inspect.signature(model.forward).parameters
        self._cache_name, self._keeps = _cache_name(accepted), "logits_to_keep" in accepted

    def scored(self, groups: Sequence[Group]) -> Iterator[tuple[Request, list[float]]]:
        """Log-probabilities of what is asked for, all requests of the groups in one batch."""
        seen = None
        if all(g.shared for g in groups):
            seen = self._rows(self._prefixes([g.requests[0].ids[: g.shared] for g in groups]), groups)
        requests = [(g.shared, r) for g in groups for r in g.requests]
        # a token's probability stands in the place before it
        places = [range(len(r.ids) - shared - r.scored - 1, len(r.ids) - shared - 1) for shared, r in requests]
        columns = sorted({c for p in places for c in p})
        logits = self._forward(groups, seen, columns)
        column = {c: k for k, c in enumerate(columns)}
        rows = [i for i, p in enumerate(places) for _ in p]
        chosen = logits[rows, [column[c] for p in places for c in p]].float()
        targets = torch.tensor([t for _, r in requests for t in r.ids[-r.scored :]], device=logits.device)
        found = iter((chosen.gather(1, targets[:, None])[:, 0] - chosen.logsumexp(1)).tolist())
        for _, request in requests:
            yield request, [next(found) for _ in range(request.scored)]

    def reads_ahead(self) -> bool:
        """Whether a token's probability depends on those behind it, so that it is none."""
        ids = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 3, 2, 1]], device=self.model.device)
        first, second = self.model(input_ids=ids).logits[:, :3].float()
        return bool((first - second).abs().max() > 1e-3 * first.std())

    @cached_property
    def feels_length(self) -> bool:
        """Whether a token's probability depends on how many stand behind it, whichever they are, so that no row may be
        padded: ProphetNet's does."""
        ids = torch.tensor([[1, 2, 3, 1, 2]], device=self.model.device)
        alone, followed = self.model(input_ids=ids[:, :3]).logits, self.model(input_ids=ids).logits[:, :3]
        rounding = max(1e-3, 64 * torch.finfo(alone.dtype).eps)  # products of other shapes are summed in another order
        return bool((followed - alone).abs().max() > rounding * alone.float().std())

    def _forward(self, groups: Sequence[Group], seen: _Seen | None, columns: list[int] | None) -> Tensor:
        """Logits of the requests' rests in these columns, or of the last one while ``seen`` takes them in."""
        rests = [r.ids[g.shared :] for g in groups for r in g.requests]
        device, width = self.model.device, max(map(len, rests))
        ids = torch.tensor([list(r) + [self.pad] * (width - len(r)) for r in rests], device=device)
        options: dict[str, Any] = {"use_cache": seen is not None}
        if seen is not None:
            options[str(self._cache_name)] = seen.cache
            before = torch.tensor([g.shared for g in groups for _ in g.requests], device=device)[:, None]
            ends = torch.tensor([len(r) - 1 for r in rests], device=device)[:, None]
            options["position_ids"] = before + torch.arange(width, device=device).minimum(ends)
            options["attention_mask"] = torch.cat([seen.mask, torch.ones_like(ids)], 1)
        keep = 1 if columns is None else torch.tensor(columns, device=device)
        if self._keeps:
            return self.model(input_ids=ids, logits_to_keep=keep, **options).logits
        logits = self.model(input_ids=ids, **options).logits
        return logits if columns is None else logits[:, keep]

    def _prefixes(self, prefixes: list[tuple[int, ...]]) -> _Seen:
        """The cache of every prefix; what prefixes themselves share is again computed once."""
        groups = grouped([Request(p, 0, (i, 0)) for i, p in enumerate(prefixes)], len(prefixes))
        if all(g.shared for g in groups):
            seen = self._rows(self._prefixes([g.requests[0].ids[: g.shared] for g in groups]), groups)
        else:
            groups = [Group(0, [r for g in groups for r in g.requests])]
            seen = _Seen(DynamicCache(), torch.ones(len(prefixes), 0, dtype=torch.long, device=self.model.device))
        self._forward(groups, seen, None)
        requests = [(g.shared, r) for g in groups for r in g.requests]
        lengths = torch.tensor([len(r.ids) - shared for shared, r in requests], device=self.model.device)
        moved = _to_the_right(seen, lengths)
        places = [r.place[0] for _, r in requests]
        return self._select(moved, sorted(range(len(places)), key=places.__getitem__))

    def _rows(self, seen: _Seen, groups: Sequence[Group]) -> _Seen:
        return self._select(seen, [k for k, g in enumerate(groups) for _ in g.requests])

    def _select(self, seen: _Seen, rows: list[int]) -> _Seen:
        index = torch.tensor(rows, device=self.model.device)
        seen.cache.batch_select_indices(index)
        return _Seen(seen.cache, seen.mask[index])


def _to_the_right(seen: _Seen, lengths: Tensor) -> _Seen:
    """After rests of these lengths, padded on their right, went in: the same with the padding on the left, and no more
    of it than the longest row leaves."""
    before, real = seen.mask.shape[1], seen.mask.sum(1) + lengths
    place = torch.arange(int(real.max()), device=real.device) - real.max()
    index = (place + (before + lengths)[:, None]).clamp(min=0)[:, None, :, None]
    for layer in seen.cache.layers:
        kept = cast(DynamicLayer, layer)  # `can_share` looked
        keys, values = cast(Tensor, kept.keys), cast(Tensor, kept.values)  # a prefix went in
        kept.keys, kept.values = keys.take_along_dim(index, 2), values.take_along_dim(index, 2)
    return _Seen(seen.cache, (place >= -real[:, None]).long())


def _cache_name(accepted: Any) -> str | None:
    """What the model's ``forward`` calls its cache: that has changed within `transformers` 5."""
    return next((name for name in ("cache", "past_key_values") if name in accepted), None)


def _common(a: tuple[int, ...], b: tuple[int, ...], limit: int) -> int:
    n = 0
    while n < limit and a[n] == b[n]:
        n += 1
    return n
