"""What a model of `transformers` continues a batch with, greedily or drawn, and how likely its tokens were.

Draws are made by Gumbel noise, ``argmax_w (log p_w / T + G_w)``, of a generator of the row's own, seeded by the row's
tokens and the seed: what a prompt is continued with does not depend on what stands beside it in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from rankwise.prompting.language_model import Generation, Sampling


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor], sampling: Sampling
) -> Iterator[Generation]:
    """What ``model.generate`` continues a left-padded batch with, and how likely its tokens were.

    Of the settings that come with the model's weights only the tokens that end a text count: no penalty, no truncation
    that ``sampling`` does not name.

    Parameters
    ----------
    model, tokenizer
        A generating model of `transformers`, and the tokenizer that made the inputs.
    inputs : dict of Tensor
        ``input_ids`` and ``attention_mask`` ``(batch, length)``, and whatever else the model reads (pixels).
    sampling : Sampling
        How many tokens are written, and how they are drawn.
    """
    drawn = LogitsProcessorList([Drawn(inputs, sampling)] if sampling.temperature > 0 else [])
    start = inputs["input_ids"].shape[1]
    stopping = StoppingCriteriaList([_Stopping(start, sampling.stop, tokenizer)] if sampling.stop else [])
    with _plain_settings(model, padding(tokenizer)) as ends:
        generate: Any = model.generate
        found = generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            logits_processor=drawn,
            return_dict_in_generate=True,
            output_logits=True,
            stopping_criteria=stopping,
        )
    new = found.sequences[:, start:]
    logp = [step.float().log_softmax(-1) for step in found.logits]
    top = torch.stack([step.amax(-1) for step in logp], 1)
    chosen = torch.stack([step.gather(1, new[:, t, None])[:, 0] for t, step in enumerate(logp)], 1)
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


class Drawn(LogitsProcessor):
    """Temperature, nucleus and Gumbel noise: the largest is then a draw, decided by the row and the seed alone.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting import Sampling
    >>> from rankwise.prompting.encoding import Drawn
    >>> inputs = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    >>> sampling, logits = Sampling(temperature=0.7, seed=3), torch.zeros(1, 100)
    >>> one, again = (Drawn(inputs, sampling)(inputs["input_ids"], logits).argmax() for _ in range(2))
    >>> bool(one == again)  # the row and the seed decide
    True
    """

    def __init__(self, inputs: dict[str, Tensor], sampling: Sampling) -> None:
        self.temperature, self.nucleus = sampling.temperature, TopPLogitsWarper(sampling.top_p)
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        self.generators = [_generator([t for t, real in zip(*row, strict=True) if real], sampling.seed) for row in rows]

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor) -> Tensor:
        kept = self.nucleus(input_ids, cast(torch.FloatTensor, scores.float() / self.temperature))
        waits = [torch.empty(kept.shape[1]).exponential_(generator=g) for g in self.generators]
        return kept - torch.stack(waits).log().to(kept.device)


class _Stopping(StoppingCriteria):
    """A row has ended when a stop string stands in what was written, whatever the tokenizer is like."""

    def __init__(self, start: int, stop: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> None:
        self.start, self.stop, self.tokenizer = start, stop, tokenizer

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor([any(s in text for s in self.stop) for text in texts], device=input_ids.device)


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with, which is masked or hidden by causality: which one does not matter."""
    ends = tokenizer.pad_token_id, tokenizer.eos_token_id
    return next((int(t) for t in ends if isinstance(t, int)), 0)


def _generator(tokens: list[int], seed: int) -> torch.Generator:
    said = hashlib.sha256(repr((seed, tokens)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(said[:8], "big") >> 1)


@contextmanager
def _plain_settings(model: Any, pad: int) -> Iterator[set[int]]:
    """Generate with none of the model's own settings but the tokens that end a text, which are given."""
    own = getattr(model, "generation_config", None)
    given = getattr(own, "eos_token_id", None)
    ends: set[int] = {given} if isinstance(given, int) else set(given or ())
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=pad)
    try:
        yield ends
    finally:
        model.generation_config = own


def _stopped(tokens: list[int], stop: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens up to the one that completes a stop string: others of the batch may have gone on."""
    if stop:
        for length in range(1, len(tokens) + 1):
            text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
            if any(s in text for s in stop):
                return length
    return len(tokens)
