"""What a training run needs to know of its data: how rows become batches, and how outputs become scores."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (examples are plain dictionaries; models are only known at run time)

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rankwise.data import Corpus

Example = dict[str, object]


class Task(Protocol):
    """Text (`TextTask`) or speech (`rankwise.jobs.speech.SpeechTask`)."""

    @property
    def peft_type(self) -> str | None:
        """PEFT's task type of an adapter."""
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

    def evaluate(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> dict[str, float]:
        """Metrics, by name; ``score`` is the one to rank by, higher is better."""
        ...

    def loss(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> float:
        """The training loss on held-out examples."""
        ...


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
        For ``text-to-label``, in the order of the classes.
    question : str
        For ``text-to-label``: what stands between text and label.
    """

    kind: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    label_names: tuple[str, ...] = ()
    question: str = "\nLabel:"

    @property
    def peft_type(self) -> str:
        return "CAUSAL_LM" if self.kind in ("causal-lm", "text-to-label") else "SEQ_CLS"

    @cached_property
    def label_tokens(self) -> list[int]:
        """The token that begins each label's name, for ``text-to-label``: they must differ."""
        first = [self.tokenizer(f" {n}", add_special_tokens=False)["input_ids"][0] for n in self.label_names]
        if len(set(first)) < len(first):
            raise ValueError(f"labels {', '.join(self.label_names)} begin with the same token; rename them")
        return first

    def encode(self, corpus: Corpus) -> list[Example]:
        """Token ids and label of every row."""
        if self.kind == "text-to-label":
            return self._prompts(corpus)
        ids = self.tokenizer(corpus.texts, truncation=True, max_length=self.max_length)["input_ids"]
        if self.kind == "causal-lm":
            return [{"input_ids": i} for i in ids if len(i) > 1]
        return [{"input_ids": i, "label": y} for i, y in zip(ids, corpus.labels, strict=True)]

    def _prompts(self, corpus: Corpus) -> list[Example]:
        """The text, cut to leave room, a question, and the label's first token at the end."""
        ask = self.tokenizer(self.question, add_special_tokens=False)["input_ids"]
        room = self.max_length - len(ask) - 1
        if room < 1:
            raise ValueError(f"max_length={self.max_length} leaves no room for the text beside the question")
        ids = self.tokenizer(corpus.texts, truncation=True, max_length=room)["input_ids"]
        answers = [self.label_tokens[int(y)] for y in corpus.labels]
        return [{"input_ids": [*i, *ask, a], "label": y} for i, a, y in zip(ids, answers, corpus.labels, strict=True)]

    def length(self, example: Example) -> int:
        """Tokens."""
        return len(example["input_ids"])

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``(batch, seq)``, ``labels`` by kind."""
        ids = torch.full((len(examples), max(map(self.length, examples))), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            n = self.length(example)
            ids[row, :n], mask[row, :n] = torch.tensor(example["input_ids"]), 1
        if self.kind == "causal-lm":
            return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        if self.kind == "text-to-label":
            last = mask.cumsum(1) == mask.sum(1, keepdim=True)  # the answer is all there is to learn
            return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~(last & (mask == 1)), -100)}
        dtype = torch.float32 if self.kind == "regression" else torch.long
        labels = torch.tensor([e["label"] for e in examples], dtype=dtype)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> float:
        """Cross-entropy (squared error, for regression)."""
        return self.evaluate(model, examples, bf16=bf16)["loss"]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> dict[str, float]:
        """Metrics of a model on encoded examples.

        ``classification`` and ``text-to-label``: accuracy, macro F1, loss over the classes; ``regression``: Pearson
        correlation, RMSE, loss; ``causal-lm``: loss and perplexity per token. ``score`` is accuracy, correlation, or
        minus the loss.
        """
        device, training = next(model.parameters()).device, model.training
        model.eval()
        outputs, labels, losses = [], [], []
        for batch in batches(self, sorted(examples, key=self.length), 8 if self.kind == "causal-lm" else 32):
            wanted = batch.pop("labels").to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(**{k: v.to(device) for k, v in batch.items()}).logits.float()
            if self.kind == "causal-lm":
                losses.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), reduction="none"))
                labels.append(wanted[:, 1:].flatten() != -100)
            elif self.kind == "text-to-label":
                at = (wanted != -100).int().argmax(1)
                rows = torch.arange(len(at))
                outputs.append(logits[rows, at - 1][:, self.label_tokens].cpu())
                token = wanted[rows, at].cpu()[:, None]
                labels.append((token == torch.tensor(self.label_tokens)).int().argmax(1))
            else:
                outputs.append(logits.cpu())
                labels.append(wanted.cpu())
        model.train(training)
        if self.kind == "causal-lm":
            loss = float(torch.cat(losses).double().sum() / torch.cat(labels).sum().clamp(min=1))
            return {"score": -loss, "loss": loss, "perplexity": math.exp(min(loss, 700))}
        judged = _correlated if self.kind == "regression" else _classified
        return judged(torch.cat(outputs), torch.cat(labels))


def _correlated(values: Tensor, labels: Tensor) -> dict[str, float]:
    pair = torch.stack([values.flatten(), labels.float()])
    correlation = float(torch.corrcoef(pair)[0, 1].nan_to_num())
    loss = float(F.mse_loss(pair[0], pair[1]))
    return {"score": correlation, "pearson": correlation, "rmse": loss**0.5, "loss": loss}


def _classified(logits: Tensor, labels: Tensor) -> dict[str, float]:
    loss = float(F.cross_entropy(logits, labels))
    guess = logits.argmax(-1)
    f1 = []
    for c in labels.unique():
        hit = int(((guess == c) & (labels == c)).sum())
        f1.append(2 * hit / max(int((guess == c).sum() + (labels == c).sum()), 1))
    accuracy = float((guess == labels).float().mean())
    return {"score": accuracy, "accuracy": accuracy, "macro_f1": sum(f1) / len(f1), "loss": loss}
