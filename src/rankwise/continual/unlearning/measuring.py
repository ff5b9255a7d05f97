"""How well answers are known: teacher-forced, one pass a batch, and what a membership attack makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankwise.continual.unlearning.router import auroc
from rankwise.continual.unlearning.rows import Row, Writer
from rankwise.models.passes import evaluating

__all__ = ["membership_auc"]

GENERAL = tuple(
    Row(prompt, answer)
    for prompt, answer in (
        ("The capital of France is", "Paris"),
        ("The capital of Japan is", "Tokyo"),
        ("The capital of Italy is", "Rome"),
        ("The opposite of hot is", "cold"),
        ("The opposite of up is", "down"),
        ("Two plus two is", "four"),
        ("A week has seven", "days"),
        ("Water freezes and becomes", "ice"),
        ("The sun rises in the", "east"),
        ("The Earth goes around the", "sun"),
        ("Bees make", "honey"),
        ("Cows give us", "milk"),
        ("The author of Romeo and Juliet is William", "Shakespeare"),
        ("The largest planet of the solar system is", "Jupiter"),
        ("The first month of the year is", "January"),
        ("Snow is white and grass is", "green"),
        ("The chemical formula of water is", "H2O"),
        ("A triangle has three", "sides"),
        ("The past tense of go is", "went"),
        ("The language that people speak in Brazil is", "Portuguese"),
    )
)  # what everybody knows: a measure of use where the user gives none


@dataclass(frozen=True)
class Known:
    """How well a model knows answers.

    Attributes
    ----------
    nll : array, ``(rows,)``
        Nats a token of the answer, its end left out.
    right : array of bool, ``(rows,)``
        Whether every token of the answer is the most likely one.

    Examples
    --------
    >>> from rankwise.continual.unlearning.measuring import GENERAL, known
    >>> from rankwise.continual.unlearning.rows import Writer
    >>> from rankwise.models import load, load_tokenizer
    >>> writer = Writer(load_tokenizer("smollm2"), style="text", max_length=32)
    >>> bool(known(load("smollm2"), writer, GENERAL[:2]).right.all())  # the capitals of France and Japan
    True
    """

    nll: NDArray[np.float64]
    right: NDArray[np.bool_]


@torch.no_grad()
def known(
    model: nn.Module,
    writer: Writer,
    rows: Sequence[Row],
    *,
    around: Callable[[Sequence[Row]], AbstractContextManager] = lambda rows: nullcontext(),
    batch_size: int = 32,
) -> Known:
    """How well the answers of rows are known; each batch in a context of its own."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    nll, right = np.zeros(len(rows)), np.zeros(len(rows), bool)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            part = [rows[i] for i in at]
            with around(part):
                losses, hits, mask = token_losses(model, writer.batch(part), ends=False)
            nll[at] = ((losses * mask).sum(1) / mask.sum(1)).double().cpu().numpy()
            right[at] = (hits | ~mask).all(1).cpu().numpy()
    return Known(nll, right)


def token_losses(model: nn.Module, batch: dict[str, Tensor], *, ends: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Of every label its loss, whether it is the most likely token, and where labels are: ``(rows, columns)`` each.

    Columns without a label cost no logits. ``ends=False`` leaves each row's last label out.
    """
    device = next(model.parameters()).device
    ids, attended, labels = (batch[k].to(device) for k in ("input_ids", "attention_mask", "labels"))
    wanted = labels[:, 1:]
    if not ends:
        last = attended.sum(1) - 2
        alone = (wanted != -100).sum(1) == 1  # an answer of nothing but its end stays
        wanted = wanted.scatter(
            1, last[:, None], torch.where(alone, wanted.gather(1, last[:, None])[:, 0], -100)[:, None]
        )
    columns = (wanted != -100).any(0).nonzero()[:, 0]
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": attended, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = model(**options, logits_to_keep=columns).logits.float()
    else:
        logits = model(**options).logits[:, columns].float()
    wanted = wanted[:, columns]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=-100)
    return losses, logits.argmax(-1) == wanted, wanted != -100


def membership_auc(members: Sequence[float] | NDArray, others: Sequence[float] | NDArray) -> float:
    """How well losses tell what was learned from what was not: 0.5 where they do not, which is the aim.

    Below 0.5, what was learned has *larger* losses than what was never seen: it was unlearned too far, which an
    attacker can see as well.

    Parameters
    ----------
    members, others : sequence of float
        Losses of texts that were learned once, and of texts of the same kind that never were.

    Examples
    --------
    >>> from rankwise.continual import membership_auc
    >>> membership_auc([0.1, 0.2], [0.9, 0.8]), membership_auc([1, 2], [2, 1])
    (1.0, 0.5)
    """
    return auroc(-np.asarray(members, np.float64), -np.asarray(others, np.float64))
