"""What a training run needs to know of its data: how rows become batches, and how outputs become scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.data import Corpus
from rankwise.jobs.items import Items, metrics
from rankwise.models.loading import most_tokens

Example = dict[str, Any]
CONTINUATION = 40  # tokens that a language model adds to a text


class Task(Protocol):
    """Text (`TextTask`) or speech (`rankwise.jobs.speech.SpeechTask`)."""

    @property
    def peft_type(self) -> str | None:
        """PEFT's task type of an adapter."""
        ...

    @property
    def counts_tokens(self) -> bool:
        """Whether the model divides its loss by the tokens of the whole batch, over all processes."""
        ...

    def encode(self, corpus: Corpus) -> list[Example]:
        """Every row as the model's numbers."""
        ...

    def length(self, example: Example) -> int:
        """What batches of similar length are made by."""
        ...

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """A padded batch: keyword arguments of the model, ``labels`` among them."""
        ...

    def items(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> Items:
        """What every example got, in the order given."""
        ...

    def evaluate(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> dict[str, float]:
        """Metrics of the items, by name; ``score`` is the one to rank by, higher is better."""
        ...

    def loss(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> float:
        """The training loss on held-out examples."""
        ...


def sample(examples: list[Example], n: int, *, seed: int) -> list[Example]:
    """``n`` examples in random order (all, where there are fewer); files are often sorted by class."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    return [examples[i] for i in order[:n]]


def batches(task: Task, examples: list[Example], size: int) -> Iterator[dict[str, Tensor]]:
    """Padded batches in the given order."""
    for start in range(0, len(examples), size):
        yield task.collate(examples[start : start + size])


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Texts with labels.

    Attributes
    ----------
    kind : {"classification", "regression", "causal-lm", "text-to-label"}
        For ``causal-lm`` the label is the text itself; ``text-to-label`` is classification by a language model, which
        continues the text by the label's name.
    tokenizer : PreTrainedTokenizerBase
        With a padding token.
    max_length : int
        Tokens an example.
    label_names : tuple of str
        The classes in their order, where there are classes.
    question : str
        For ``text-to-label``: what stands between text and label.
    chat : bool
        For ``causal-lm``: texts to continue are messages of a user, in the tokenizer's template.
    """

    kind: str
    tokenizer: Any
    max_length: int
    label_names: tuple[str, ...] = ()
    question: str = "\nLabel:"
    chat: bool = False

    @property
    def peft_type(self) -> str:
        return "CAUSAL_LM" if self.kind in ("causal-lm", "text-to-label") else "SEQ_CLS"

    @property
    def counts_tokens(self) -> bool:
        return self.kind in ("causal-lm", "text-to-label")

    @cached_property
    def label_tokens(self) -> list[int]:
        """The token that begins each label's name, for ``text-to-label``: they must differ."""
        first = [self.tokenizer(f" {n}", add_special_tokens=False)["input_ids"][0] for n in self.label_names]
        if len(set(first)) < len(first):
            raise ValueError(f"labels {', '.join(self.label_names)} begin with the same token; rename them")
        return first

    def encode(self, corpus: Corpus) -> list[Example]:
        """Token ids and label of every row, and whether its text was ``cut``; causal-lm drops rows of one token."""
        found = self._tokens(corpus.texts, self._room())
        if self.kind == "causal-lm":
            return [e for e in found if len(e["input_ids"]) > 1]
        for example, y in zip(found, corpus.labels, strict=True):
            example["label"] = y
            if self.kind == "text-to-label":
                example["input_ids"] = [*example["input_ids"], *self._question, self.label_tokens[int(y)]]
        return found

    def _tokens(self, texts: list[str], room: int) -> list[Example]:
        encoded = self.tokenizer(texts, truncation=True, max_length=room)
        cut = [bool(e.overflowing) for e in encoded.encodings] if encoded.encodings else [False] * len(texts)
        return [{"input_ids": i, "cut": c} for i, c in zip(encoded["input_ids"], cut, strict=True)]

    @cached_property
    def _question(self) -> list[int]:
        return self.tokenizer(self.question, add_special_tokens=False)["input_ids"]

    def _room(self) -> int:
        """Tokens of a text, beside the question and the label's first token."""
        room = self.max_length - (len(self._question) + 1 if self.kind == "text-to-label" else 0)
        if room < 1:
            raise ValueError(f"max_length={self.max_length} leaves no room for the text beside the question")
        return room

    def length(self, example: Example) -> int:
        """Tokens."""
        return len(example["input_ids"])

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``(batch, seq)``, ``labels`` by kind."""
        padded = self._padded(examples)
        ids, mask = padded["input_ids"], padded["attention_mask"]
        if self.kind == "causal-lm":
            return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        if self.kind == "text-to-label":
            last = mask.cumsum(1) == mask.sum(1, keepdim=True)  # the answer is all there is to learn
            return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~(last & (mask == 1)), -100)}
        dtype = torch.float32 if self.kind == "regression" else torch.long
        labels = torch.tensor([e["label"] for e in examples], dtype=dtype)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _padded(self, examples: list[Example]) -> dict[str, Tensor]:
        ids = torch.full((len(examples), max(map(self.length, examples))), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            n = self.length(example)
            ids[row, :n], mask[row, :n] = torch.tensor(example["input_ids"]), 1
        return {"input_ids": ids, "attention_mask": mask}

    def loss(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> float:
        """Cross-entropy (squared error, for regression)."""
        return self.evaluate(model, examples, bf16=bf16)["loss"]

    def evaluate(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> dict[str, float]:
        """Metrics of a model on encoded examples (`rankwise.jobs.items.metrics`)."""
        return metrics(self.items(model, examples, bf16=bf16))

    @torch.no_grad()
    def items(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> Items:
        """What every example got, in the order given (`rankwise.jobs.items`)."""
        device, training = next(model.parameters()).device, model.training
        model.eval()
        order = sorted(range(len(examples)), key=lambda i: self.length(examples[i]))
        columns: dict[str, list[float]] = {}
        for batch in batches(self, [examples[i] for i in order], 8 if self.kind == "causal-lm" else 32):
            wanted = batch.pop("labels")
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(**{k: v.to(device) for k, v in batch.items()}).logits.float()
            for name, column in self._judged(logits, wanted.to(device)).items():
                columns.setdefault(name, []).extend(column.tolist())
        model.train(training)
        back = torch.tensor(order).argsort().tolist()
        return {name: [column[i] for i in back] for name, column in columns.items()}

    def _judged(self, logits: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """A batch's columns."""
        if self.kind == "regression":
            return {"value": wanted, "said": logits.flatten()}
        if self.kind == "causal-lm":
            nll, tokens = summed(logits[:, :-1], wanted[:, 1:])
            return {"nll": nll, "tokens": tokens}
        if self.kind == "text-to-label":
            at, rows = (wanted != -100).int().argmax(1), torch.arange(len(wanted))
            names = torch.tensor(self.label_tokens, device=wanted.device)
            logits = logits[rows, at - 1][:, self.label_tokens]
            wanted = (wanted[rows, at][:, None] == names).int().argmax(1)
        return {
            "label": wanted, "said": logits.argmax(-1), "nll": F.cross_entropy(logits, wanted, reduction="none")
        }  # fmt: skip

    @torch.no_grad()
    def answer(self, model: nn.Module, texts: list[str]) -> list[dict[str, Any]]:
        """What a model says of each text: ``label`` and ``probability``, a ``value``, or a ``continuation``."""
        model.eval()
        if self.kind == "causal-lm":
            return [{"continuation": self._continued(model, text)} for text in texts]
        found: list[dict[str, Any]] = []
        for start in range(0, len(texts), 32):
            rows = self._tokens(texts[start : start + 32], self._room())
            if self.kind == "text-to-label":
                rows = [{"input_ids": [*e["input_ids"], *self._question]} for e in rows]
            batch = {k: v.to(next(model.parameters()).device) for k, v in self._padded(rows).items()}
            logits = model(**batch).logits.float()
            if self.kind == "regression":
                found += [{"value": value} for value in logits.flatten().tolist()]
                continue
            if self.kind == "text-to-label":
                logits = logits[torch.arange(len(logits)), batch["attention_mask"].sum(1) - 1][:, self.label_tokens]
            best = logits.softmax(-1).max(-1)
            for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                found.append({"label": self.label_names[i], "probability": p})
        return found

    def _continued(self, model: nn.Module, text: str) -> str:
        tokenizer, generate = self.tokenizer, cast("Any", model).generate
        if self.chat:
            message = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            ids = tokenizer(text, return_tensors="pt")
        n, most = ids["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
        if n == 0 or (most and n + CONTINUATION > most):
            raise ValueError(f"the text has {n} tokens; between 1 and {(most or 0) - CONTINUATION} can be continued")
        ids = ids.to(next(model.parameters()).device)
        out = generate(**ids, max_new_tokens=CONTINUATION, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.decode(out[0, n:], skip_special_tokens=True)


def summed(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and number of the labelled tokens of each row, ``(batch,)``; others have label -100."""
    nll = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return nll.view(labels.shape).double().sum(1), (labels != -100).sum(1)


def check_lengths(task: TextTask, model: nn.Module, examples: list[Example]) -> None:
    """``ValueError`` where a text has more tokens than the model has positions."""
    longest, most = max(map(task.length, examples), default=0), most_tokens(model)
    if most is not None and longest > most:
        raise ValueError(
            f"max_length={task.max_length}: there are texts of {longest} tokens, and the model takes {most}; give "
            f"max_length={most} or less"
        )
