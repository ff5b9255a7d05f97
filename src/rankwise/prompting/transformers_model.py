"""A causal model of `transformers` as a `LanguageModel`, with the cache of shared prompt prefixes reused.

Requests are sorted by their tokens; neighbours that begin alike form a group whose common prefix goes through the model
once; what several prefixes share again goes through it once, and so on. At every level a batch is padded on its left,
so that gaps lie in the middle, masked, and every row's scored tokens stand at its end:

    [pad … prefix | pad … rest of the prompt | pad … continuation]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rankwise.models.loading import load, load_tokenizer, pretrained, resolve
from rankwise.prompting.language_model import Generation, OnResult, Prompt, Sampling, Score

_WORTH = 4  # tokens that are not worth a pass of their own


@dataclass(frozen=True)
class _Request:
    """Tokens whose last ``scored`` are asked for; ``place`` is (prompt, continuation)."""

    ids: tuple[int, ...]
    scored: int
    place: tuple[int, int]


@dataclass(frozen=True)
class _Group:
    """Requests that begin with the same ``shared`` tokens."""

    shared: int
    requests: list[_Request]


class _Seen(NamedTuple):
    """A cache, and its mask ``(rows, tokens)``."""

    cache: DynamicCache
    mask: Tensor


class TransformersModel:
    """A local model.

    Parameters
    ----------
    model : str or PreTrainedModel
        ``smollm2``, a folder, a hub id, or a loaded causal model (any device, any floating dtype).
    tokenizer : PreTrainedTokenizerBase, optional
        Needed with a loaded model.
    batch_size : int
        Sequences at a time.
    batch_tokens : int
        The most tokens of a batch, padding and cached prefix included: bounds the cache's memory.
    share_prefixes : bool
        False computes every sequence from its first token.
    """

    def __init__(
        self,
        model: str | PreTrainedModel = "smollm2",
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 32,
        batch_tokens: int = 16_384,
        share_prefixes: bool = True,
    ) -> None:
        if isinstance(model, str):
            import transformers

            self.name, self.tokenizer = model, tokenizer or load_tokenizer(model)
            config = pretrained(transformers.AutoConfig, resolve(model))
        elif tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer=")
        else:
            self.tokenizer, self.name, config = tokenizer, model.config.name_or_path or "model", model.config
        self._given = model
        self.batch_size, self.batch_tokens, self.share_prefixes = batch_size, batch_tokens, share_prefixes
        self.context: int | None = getattr(config, "max_position_embeddings", None)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, read when they are first needed: to count tokens they are not."""
        model = load(self._given, task="causal-lm") if isinstance(self._given, str) else self._given
        return model.eval()

    def render(self, prompt: Prompt) -> str:
        """The text the model sees: chat messages through its template, up to where its turn begins."""
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer.chat_template is None:
            return "".join(f"{m['content']}\n" for m in prompt)
        return self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)  # type: ignore[return-value]

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        return len(self._ids(prompt))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`. With a temperature, a batch's draws depend on what is drawn beside them.

        Raises
        ------
        ValueError
            A prompt that leaves no room for ``max_new_tokens``.
        """
        sampling = sampling or Sampling()
        new, requests = sampling.max_new_tokens, []
        for i, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            self._fits(len(ids) + new, f"prompt {i} and {new} new tokens")
            requests.append(_Request(tuple(ids), 0, (i, 0)))
        out: list[Generation | None] = [None] * len(prompts)
        for batch in self._batches(_grouped(requests, False, 1), extra=new):
            rows = [r for g in batch for r in g.requests]
            for request, found in zip(rows, self._continued([r.ids for r in rows], sampling), strict=True):
                out[request.place[0]] = found
                if on_result:
                    on_result(request.place[0], found)
        return out  # type: ignore[return-value]

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        on_result: OnResult | None = None,
    ) -> list[list[Score]]:
        """See `LanguageModel`.

        Raises
        ------
        ValueError
            An empty prompt or continuation, or more tokens than the model's context.
        """
        requests = list(self._requests(prompts, continuations))
        out: list[list[Score | None]] = [[None] * len(c) for c in continuations]
        left = [len(c) for c in continuations]
        groups = _grouped(requests, self.share_prefixes, self.batch_size)
        for batch in self._batches(groups):
            for request, logprobs in self._scored(batch):
                i, j = request.place
                out[i][j] = Score(logprobs=tuple(logprobs))
                left[i] -= 1
                if on_result and not left[i]:
                    on_result(i, out[i])
        return out  # type: ignore[return-value]

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer(self.render(prompt), add_special_tokens=isinstance(prompt, str))["input_ids"]  # type: ignore[return-value]

    def _fits(self, tokens: int, what: str) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(f"{what} have {tokens} tokens; {self.name} takes {self.context}: drop examples")

    def _batches(self, groups: list[_Group], *, extra: int = 0) -> Iterator[list[_Group]]:
        """Consecutive groups, within ``batch_size`` and ``batch_tokens`` (``extra`` more a sequence); a group goes
        alone where it must, and those that share nothing are not mixed with those that do."""
        batch: list[_Group] = []
        sequences = total = 0
        for group in groups:
            n = len(group.requests)
            tokens = n * (max(len(r.ids) for r in group.requests) + extra)
            full = sequences + n > self.batch_size or total + tokens > self.batch_tokens
            if batch and (full or (batch[-1].shared > 0) != (group.shared > 0)):
                yield batch
                batch, sequences, total = [], 0, 0
            batch.append(group)
            sequences, total = sequences + n, total + tokens
        if batch:
            yield batch

    def _requests(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> Iterator[_Request]:
        for i, (prompt, given) in enumerate(zip(prompts, continuations, strict=True)):
            start = self._ids(prompt)
            if not start:
                raise ValueError(f"prompt {i} is empty: the first token of a continuation needs one before it")
            for j, text in enumerate(given):
                end = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                if not end:
                    raise ValueError(f"continuation {j} of prompt {i} is empty")
                self._fits(len(start) + len(end), f"prompt {i} and its continuation {j}")  # type: ignore[arg-type]
                yield _Request((*start, *end), len(end), (i, j))  # type: ignore[arg-type, misc]

    def _scored(self, groups: list[_Group]) -> Iterator[tuple[_Request, list[float]]]:
        """Log-probabilities of what is asked for, all requests of the groups in one batch."""
        requests = [r for g in groups for r in g.requests]
        asked = max(r.scored for r in requests)
        logits, ids, _ = self._forward(groups, keep=asked + 1, last=True)
        targets = ids[:, -asked:]
        logits = logits[:, :-1].float()
        logprobs = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
        for request, values in zip(requests, logprobs.tolist(), strict=True):
            yield request, values[asked - request.scored :]

    def _forward(self, groups: list[_Group], *, keep: int, last: bool = False) -> tuple[Tensor, Tensor, _Seen | None]:
        """Run the groups' requests, what each group shares once: logits of the last ``keep`` places, the tokens that
        were put in, and what the model has seen then (None where nothing follows it)."""
        device, pad = self.model.device, self.tokenizer.pad_token_id
        rests = [r.ids[g.shared :] for g in groups for r in g.requests]
        width = max(map(len, rests))
        ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rests], device=device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rests], device=device)
        before = torch.tensor([g.shared for g in groups for _ in g.requests], device=device)
        positions = (before[:, None] + mask.cumsum(1) - 1).clamp(min=0)
        cache = None if last else DynamicCache(config=self.model.config)
        if all(g.shared for g in groups):
            seen = self._prefixes([g.requests[0].ids[: g.shared] for g in groups])
            rows = torch.tensor([k for k, g in enumerate(groups) for _ in g.requests], device=device)
            cache, mask = seen.cache, torch.cat([seen.mask[rows], mask], 1)
            cache.batch_select_indices(rows)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        ).logits
        return logits, ids, None if cache is None else _Seen(cache, mask)

    def _prefixes(self, prefixes: list[tuple[int, ...]]) -> _Seen:
        """The cache of every prefix; what prefixes themselves share is again computed once."""
        groups = _grouped([_Request(p, 0, (i, 0)) for i, p in enumerate(prefixes)], True, len(prefixes))
        if not all(g.shared for g in groups):
            groups = [_Group(0, [r for g in groups for r in g.requests])]
        _, _, seen = self._forward(groups, keep=1)
        assert seen is not None
        places = [r.place[0] for g in groups for r in g.requests]
        back = torch.tensor(sorted(range(len(places)), key=places.__getitem__), device=self.model.device)
        seen.cache.batch_select_indices(back)
        return _Seen(seen.cache, seen.mask[back])

    def _continued(self, batch: list[tuple[int, ...]], sampling: Sampling) -> Iterator[Generation]:
        width, pad = max(map(len, batch)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(b)) + list(b) for b in batch], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(b)) + [1] * len(b) for b in batch], device=self.model.device)
        return continuations(self.model, self.tokenizer, {"input_ids": ids, "attention_mask": mask}, sampling)


def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor], sampling: Sampling
) -> Iterator[Generation]:
    """What ``model.generate`` continues a left-padded batch with, and how likely its tokens were.

    Parameters
    ----------
    model, tokenizer
    inputs : dict of Tensor
        ``input_ids`` and ``attention_mask`` ``(batch, length)``, and whatever else the model reads (pixels).
    sampling : Sampling
    """
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    stopping = {"stop_strings": list(sampling.stop), "tokenizer": tokenizer} if sampling.stop else {}
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        found = cast(Callable, model.generate)(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
            **(drawn if sampling.temperature > 0 else greedy),
            **stopping,
        )
    new = found.sequences[:, inputs["input_ids"].shape[1] :]
    logp = [step.float().log_softmax(-1) for step in found.logits]
    top = torch.stack([step.amax(-1) for step in logp], 1)
    chosen = torch.stack([step.gather(1, new[:, t, None])[:, 0] for t, step in enumerate(logp)], 1)
    ends = cast(Any, model.generation_config).eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    for row, tokens in enumerate(new.tolist()):
        length = next((t + 1 for t, token in enumerate(tokens) if token in ends), len(tokens))
        kept = tokens[: _stopped(tokens[:length], sampling.stop, tokenizer)]
        text = str(tokenizer.decode(kept, skip_special_tokens=True))
        cut = [text.index(s) for s in sampling.stop if s in text]
        yield Generation(
            text=text[: min(cut)] if cut else text,
            tokens=tuple(tokenizer.convert_ids_to_tokens(kept)),
            logprobs=tuple(chosen[row, : len(kept)].tolist()),
            top_logprobs=tuple(top[row, : len(kept)].tolist()),
            special=tuple(t in tokenizer.all_special_ids for t in kept),
            prompt_tokens=int(inputs["attention_mask"][row].sum()),
        )


def _stopped(tokens: list[int], stop: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens up to the one that completes a stop string: others of the batch may have gone on."""
    if stop:
        for length in range(1, len(tokens) + 1):
            text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
            if any(s in text for s in stop):
                return length
    return len(tokens)


def _grouped(requests: list[_Request], share: bool, size: int) -> list[_Group]:
    """Neighbours in token order that begin alike, ``size`` at most; in order of length.

    A request joins the group before it unless that shortens what the group shares, or it has more in common with the
    request behind it, by more than a few tokens: what whole groups share is found one level up (`_prefixes`).
    """
    ordered = sorted(requests, key=lambda r: r.ids)
    free = [len(r.ids) - r.scored - 1 for r in ordered]  # the token before the first scored one has to be computed
    shared = [_common(a.ids, b.ids, min(free[i : i + 2])) for i, (a, b) in enumerate(pairwise(ordered))] + [0]
    groups: list[_Group] = []
    for i, request in enumerate(ordered):
        if share and groups and len(groups[-1].requests) < size:
            last = groups[-1]
            common = min(shared[i - 1], last.shared or shared[i - 1])
            if common > _WORTH and common + _WORTH >= max(last.shared, shared[i]):
                groups[-1] = _Group(common, [*last.requests, request])
                continue
        groups.append(_Group(0, [request]))
    return sorted(groups, key=lambda g: (g.shared > 0, len(g.requests[0].ids)))


def _common(a: tuple[int, ...], b: tuple[int, ...], limit: int) -> int:
    n = 0
    while n < limit and a[n] == b[n]:
        n += 1
    return n
