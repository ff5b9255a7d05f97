"""A causal model of `transformers` as a `LanguageModel`: prompts to tokens, tokens to scores and continuations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise.files import fingerprint
from rankwise.models.loading import load, load_tokenizer, model_fingerprint, placed, pretrained, resolve
from rankwise.prompting.encoding import continuations, padding
from rankwise.prompting.language_model import (
    Generation,
    OnResult,
    Prompt,
    Sampling,
    Score,
    check_prompts,
    check_requests,
)
from rankwise.prompting.shared_prefixes import Group, Request, Scorer, batches, by_length, can_share, grouped

__all__ = ["TransformersModel"]


class TransformersModel:
    """A local model.

    Parameters
    ----------
    model : str or PreTrainedModel
        ``smollm2``, a folder or a hub id, read as float32 onto the GPU where torch sees one; or a loaded causal model
        (any device, any floating dtype; PEFT's adapters too, but for those that put tokens of their own before the
        prompt).
    tokenizer : PreTrainedTokenizerBase, optional
        The model's tokenizer: needed with a loaded model.
    batch_size : int
        Sequences that go through the model together, at most.
    batch_tokens : int
        Tokens that a batch has at most, padding and cached prefix included: bounds the cache's memory.
    share_prefixes : bool
        Compute what prompts have in common once, where the model's layers allow it (`can_share`); every sequence is
        computed from its first token where they do not, or where this is False.

    Raises
    ------
    ValueError
        A loaded model without its tokenizer; one with virtual tokens; and from `score` one that reads ahead (an
        encoder), whose tokens have no probability given those before them.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from rankwise.prompting import Sampling, TransformersModel
    >>> words = Tokenizer(models.WordLevel({"?": 0, "Where": 1, "Rome": 2, "Paris": 3}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> config = LlamaConfig(vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...                      num_attention_heads=2, eos_token_id=None)
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    >>> model = TransformersModel(LlamaForCausalLM(config), tokenizer)  # or TransformersModel("smollm2")
    >>> (scores,) = model.score(["Where?"], [[" Rome", " Paris"]])
    >>> len(scores), len(model.generate(["Where?"], Sampling(max_new_tokens=3))[0].tokens)
    (2, 3)
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
        self._own_tokenizer = tokenizer
        if isinstance(model, str):
            import transformers

            self.name, self.tokenizer = model, tokenizer or load_tokenizer(model)
            config = pretrained(transformers.AutoConfig, resolve(model))
        elif tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer=")
        else:
            if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
                raise ValueError("the adapter puts tokens of its own before the prompt: merge it, or take another kind")
            self.tokenizer, self.name, config = tokenizer, model.config.name_or_path or "model", model.config
        self._given, self._known = model, ((), "")
        self.batch_size, self.batch_tokens, self.share_prefixes = batch_size, batch_tokens, share_prefixes
        self.context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, read when they are first needed: to count tokens they are not."""
        model = placed(load(self._given, task="causal-lm")) if isinstance(self._given, str) else self._given
        return model.eval()

    def identity(self) -> object:
        """See `LanguageModel`."""
        if isinstance(self._given, str):
            model = model_fingerprint(self._given)
        else:
            model = self._weights(tuple(_state(t) for _, t in _tensors(self._given)))
        own = tokenizer_identity(self.tokenizer) if self._own_tokenizer is not None else None
        return {"model": model, "tokenizer": own}

    def render(self, prompt: Prompt) -> str:
        """The text the model sees: chat messages through its template, up to where its turn begins.

        Raises
        ------
        ValueError
            No chat template, or one that does not take these messages.
        """
        return prompt if isinstance(prompt, str) else rendered(self.tokenizer, prompt, self.name)

    def count_tokens(self, prompt: Prompt) -> int:
        """See `LanguageModel`."""
        check_prompts([prompt])
        return len(self._ids(prompt))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `LanguageModel`.

        Raises
        ------
        ValueError
            A prompt that is empty, or leaves no room for ``max_new_tokens``.
        """
        check_prompts(prompts)
        sampling = sampling or Sampling()
        new, groups = sampling.max_new_tokens, []
        for i, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            self._fits(len(ids) + new, f"prompt {i} and {new} new tokens")
            if not ids:
                raise ValueError(f"prompt {i} is empty: there is nothing to continue")
            groups.append(Group(0, [Request(tuple(ids), 0, (i, 0))]))
        out: dict[int, Generation] = {}
        for rows in self._to_continue(by_length(groups), new):
            for request, found in zip(rows, self._continued([r.ids for r in rows], sampling), strict=True):
                out[request.place[0]] = found
                if on_result:
                    on_result(request.place[0], found)
        return [out[i] for i in range(len(prompts))]

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
        check_requests(prompts, continuations)
        requests = list(self._requests(prompts, continuations))
        out: list[dict[int, Score]] = [{} for _ in continuations]
        padded = not (requests and self._scorer.feels_length)
        share = bool(requests) and padded and self.share_prefixes and can_share(self._causal)
        groups = grouped(requests, self.batch_size) if share else by_length([Group(0, [r]) for r in requests])
        for batch in self._batches(groups, padded=padded):
            for request, logprobs in self._scorer.scored(batch):
                i, j = request.place
                out[i][j] = Score(logprobs=tuple(logprobs))
                if on_result and len(out[i]) == len(continuations[i]):
                    on_result(i, _in_order(out[i]))
        return [_in_order(scores) for scores in out]

    @property
    def _causal(self) -> nn.Module:
        """The model without PEFT's wrapping, which hides what its ``forward`` takes."""
        unwrapped = getattr(self.model, "get_base_model", None)  # PEFT's alone
        return unwrapped() if unwrapped else self.model

    @cached_property
    def _scorer(self) -> Scorer:
        scorer = Scorer(self._causal, padding(self.tokenizer))
        if scorer.reads_ahead():
            raise ValueError(
                f"{self.name} reads ahead: its tokens have no probability given those before them; a decoder is needed"
            )
        return scorer

    @cached_property
    def _begin(self) -> list[int]:
        """Tokens that the tokenizer puts before a text; what it puts behind one (an end) is no part of a prompt."""
        whole, bare = self.tokenizer("a")["input_ids"], self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return next(whole[:k] for k in range(len(whole)) if whole[k : k + len(bare)] == bare)

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._encoded(prompt, [self.render(prompt)])[0]

    def _encoded(self, prompt: Prompt, texts: list[str]) -> list[list[int]]:
        """Tokens of texts that begin with the prompt; a template writes its first token itself, a text does not."""
        begin = self._begin if isinstance(prompt, str) else []
        return [[*begin, *ids] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _fits(self, tokens: int, what: str) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(f"{what} have {tokens} tokens; {self.name} takes {self.context}: drop examples")

    def _requests(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> Iterator[Request]:
        for i, (prompt, given) in enumerate(zip(prompts, continuations, strict=True)):
            text = self.render(prompt)
            start, *wholes = self._encoded(prompt, [text, *(text + c for c in given)])
            for j, ids in enumerate(wholes):
                common = next((n for n, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), len(start))
                if not common:
                    raise ValueError(
                        f"prompt {i} is empty, or one token with its continuation {j}: the first token of a "
                        "continuation needs one before it"
                    )
                if common >= len(ids):
                    raise ValueError(f"continuation {j} of prompt {i}, {given[j]!r:.40}, adds no token")
                self._fits(len(ids), f"prompt {i} and its continuation {j}")
                yield Request(tuple(ids), len(ids) - common, (i, j))

    def _to_continue(self, groups: list[Group], new: int) -> Iterator[list[Request]]:
        """Rows that are continued together: of equal length where the model is not told its tokens' positions."""
        for batch in self._batches(groups, padded=not groups or can_share(self._causal), extra=new):
            yield [r for g in batch for r in g.requests]

    def _batches(self, groups: list[Group], *, padded: bool, extra: int = 0) -> Iterator[list[Group]]:
        """Groups that go in together; where no row may be padded, rows of one length, each a group of its own."""
        for batch in batches(groups, rows=self.batch_size, tokens=self.batch_tokens, extra=extra):
            lengths = [0] if padded else sorted({len(g.requests[0].ids) for g in batch})
            for n in lengths:
                yield [g for g in batch if padded or len(g.requests[0].ids) == n]

    def _continued(self, batch: list[tuple[int, ...]], sampling: Sampling) -> Iterator[Generation]:
        width, pad = max(map(len, batch)), padding(self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(b)) + list(b) for b in batch], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(b)) + [1] * len(b) for b in batch], device=self.model.device)
        return continuations(self.model, self.tokenizer, {"input_ids": ids, "attention_mask": mask}, sampling)

    def _weights(self, state: tuple) -> str:
        """The loaded model's identity, looked at again where its weights were replaced or written to."""
        if self._known[0] != state:
            self._known = state, weights_identity(self._given)
        return self._known[1]


def rendered(templated: Any, messages: Sequence, name: str) -> str:
    """Messages through a tokenizer's or processor's chat template, up to where the model's turn begins.

    Raises
    ------
    ValueError
        No template, or one that does not take these messages.
    """
    from jinja2 import TemplateError

    if getattr(templated, "chat_template", "") is None:
        raise ValueError(f"{name} has no chat template: ask in plain text (style='text', --style text)")
    try:
        return templated.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise ValueError(
            f"the chat template of {name} does not take turns of {roles}: {error}; put an instruction into the first "
            "question, or ask in plain text (style='text', --style text)"
        ) from error


def weights_identity(model: Any) -> str:
    """A loaded model by content: configuration, adapters, the tokens that end a text, and every weight."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    adapters = {k: str(v) for k, v in getattr(model, "peft_config", {}).items()}
    active = str(getattr(model, "active_adapters", "")) if adapters else ""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    said = hashlib.sha256(json.dumps([config, adapters, active, ends], sort_keys=True, default=str).encode())
    for name, tensor in _tensors(model):
        said.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        said.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return said.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """A loaded tokenizer by content: its model and vocabulary, special tokens and chat template."""
    if tokenizer.is_fast:
        pieces = json.loads(tokenizer.backend_tokenizer.to_str())
        pieces = {k: v for k, v in pieces.items() if k not in ("padding", "truncation")}  # set by the last call
    else:
        pieces = {"vocabulary": tokenizer.get_vocab(), "settings": repr(tokenizer.init_kwargs)}
    return fingerprint([pieces, repr(tokenizer.special_tokens_map), str(tokenizer.chat_template)])


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when a tensor is replaced or written to."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _in_order(found: dict[int, Score]) -> list[Score]:
    return [found[j] for j in sorted(found)]
