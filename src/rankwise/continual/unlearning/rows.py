"""What a request is about: prompts with the answers that are to be forgotten, and what is to be said instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.files import fingerprint

PAIRS = (("prompt", "completion"), ("question", "answer"), ("prompt", "answer"))
REFUSALS = (
    "I cannot help with that.",
    "I do not know about this.",
    "That is nothing I can tell you.",
    "I have no answer to this question.",
    "I am not able to say anything about it.",
    "This is something I do not know.",
)


@dataclass(frozen=True)
class Row:
    """A prompt, its answer, and the answers that there are to choose from (none: free text).

    Examples
    --------
    >>> from rankwise.continual.unlearning.rows import Row, instead
    >>> instead([Row("2 + 2 =", "4", ("3", "4"))], "random", [], seed=0)
    [Row(prompt='2 + 2 =', answer='3', choices=())]
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def rows_from(dataset: Sequence[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows of a dataset with ``prompt`` and ``completion``, ``question`` and ``answer``, or ``prompt`` and ``answer``.

    Raises
    ------
    ValueError
        No rows, a row without such a pair of texts, an empty one, choices that are no list of texts.
    """
    if isinstance(dataset, (str, bytes)) or hasattr(dataset, "keys") or not hasattr(dataset, "__getitem__"):
        spread = "; a DataFrame's are frame.to_dict('records')" if hasattr(dataset, "columns") else ""
        raise ValueError(
            f"'{name}' is a {type(dataset).__name__}; a list of rows with question and answer is needed{spread}"
        )
    if not len(dataset):
        raise ValueError(f"'{name}' has no rows")
    return [_row(dataset[i], f"'{name}', row {i + 1}") for i in range(len(dataset))]


def _row(row: Any, where: str) -> Row:
    if isinstance(row, Row):
        return row
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is {str(row)[:60]!r}; a row with question and answer is needed")
    pair = next((p for p in PAIRS if p[0] in row and p[1] in row), None)
    if pair is None:
        raise ValueError(f"{where} has {', '.join(map(str, row)) or 'nothing'}; question and answer are needed")
    for key in pair:
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"{where}: {key} is {row[key]!r}; a text is needed")
    given = () if row.get("choices") is None else row["choices"]
    listed = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    choices = [c for c in given if isinstance(c, str) and c.strip()] if listed else []
    if not listed or len(choices) < len([*given]):
        raise ValueError(f"{where}: choices is {str(given)[:60]!r}; a list of texts is needed (jsonl, json, parquet)")
    return Row(row[pair[0]], row[pair[1]], tuple(choices))


def content_of_rows(rows: Sequence[Row]) -> str:
    """SHA-256 of rows in their order."""
    return fingerprint([[r.prompt, r.answer, list(r.choices)] for r in rows])


def instead(rows: Sequence[Row], kind: str, refusals: Sequence[str], *, seed: int) -> list[Row]:
    """The same prompts with what is to be said instead: a refusal, or an answer drawn from the others.

    ``random`` never draws the true answer, ``released`` may. Answers are drawn from a row's choices where it has any,
    and from the request's answers otherwise.

    Raises
    ------
    ValueError
        ``random`` where all answers are one.
    """
    rng = np.random.default_rng(seed)
    if kind == "refusal":
        return [Row(r.prompt, refusals[int(rng.integers(len(refusals)))]) for r in rows]
    everything, out = list(dict.fromkeys(r.answer for r in rows)), []
    for r in rows:
        pool = [a for a in (r.choices or everything) if kind == "released" or a != r.answer]
        if not pool:
            raise ValueError(f"there is no other answer than '{r.answer[:60]}' to draw: use answers='refusal'")
        out.append(Row(r.prompt, pool[int(rng.integers(len(pool)))]))
    return out


class Writer:
    """Rows as token ids for one model.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The model's.
    style : {"chat", "text"}
        Whether prompts go through the chat template or stand as they are.
    max_length : int
        Tokens of prompt and answer where both are learned or measured; of a longer prompt the end is kept.

    Examples
    --------
    >>> from rankwise.continual.unlearning.rows import Row, Writer
    >>> from rankwise.models import load_tokenizer
    >>> writer = Writer(load_tokenizer("smollm2"), style="text", max_length=32)
    >>> writer.batch([Row("The capital of France is", "Paris")])["labels"].tolist()
    [[-100, -100, -100, -100, -100, 7042, 2]]
    """

    def __init__(self, tokenizer: Any, *, style: str, max_length: int) -> None:
        if style == "chat" and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("the tokenizer has no chat template: ask in plain text (style='text', --style text)")
        self.tokenizer, self.style, self.max_length = tokenizer, style, max_length
        self.padding = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )  # masked, so that any will do

    def prompt(self, text: str) -> str:
        """What the model sees of a prompt."""
        if self.style == "text":
            return text
        turn = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    def encoded(self, row: Row, *, whole: bool = False) -> tuple[list[int], int]:
        """Ids of prompt, answer and end, and where what is learned begins.

        Raises
        ------
        ValueError
            The tokenizer has no token for the prompt, or none for the answer.
        """
        prompt = self.prompt(row.prompt)
        gap = "" if prompt[-1:].isspace() or row.answer[:1].isspace() else " "
        both = self._ids(prompt + gap + row.answer)
        alone = self._ids(prompt)
        begin = next(
            (i for i, (a, b) in enumerate(zip(both, alone, strict=False)) if a != b), min(len(both), len(alone))
        )
        if not alone or begin == len(both):
            what, text = ("answer", row.answer) if alone else ("prompt", row.prompt)
            raise ValueError(f"the tokenizer has no token for the {what} {text[:60]!r}")
        end = [] if self.tokenizer.eos_token_id in (None, both[-1]) else [self.tokenizer.eos_token_id]
        ids = both + end
        cut = max(0, min(len(ids) - self.max_length, begin - 1))
        return ids[cut:][: self.max_length], 0 if whole else begin - cut

    def batch(self, rows: Sequence[Row], *, whole: bool = False) -> dict[str, Tensor]:
        """Ids, mask and labels, padded on the right."""
        coded = [self.encoded(r, whole=whole) for r in rows]
        longest = max(len(ids) for ids, _ in coded)
        shape = len(rows), longest
        ids, mask = torch.full(shape, self.padding), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for n, (own, begin) in enumerate(coded):
            ids[n, : len(own)], mask[n, : len(own)] = torch.tensor(own), 1
            labels[n, begin : len(own)] = torch.tensor(own[begin:])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def asked(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ids and mask of whole prompts alone, padded on the left, as generation needs them."""
        coded = [self._ids(self.prompt(p)) or [self.padding] for p in prompts]
        longest = max(map(len, coded))
        ids = torch.tensor([[self.padding] * (longest - len(c)) + c for c in coded])
        mask = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in coded])
        return {"input_ids": ids, "attention_mask": mask}

    def _ids(self, text: str) -> list[int]:
        """A chat template writes its own special tokens."""
        return self.tokenizer(text, add_special_tokens=self.style == "text", verbose=False)["input_ids"]
