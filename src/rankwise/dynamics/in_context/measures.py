"""How far an induction head has come, layer by layer and head by head, in any decoder that gives its attention.

In sequences ``item, label, item, label, …, target``:

* previous (ILA1): attention of a label to the item before it, mean over labels;
* match (TILA2): attention of the target to the labels of items that are its own, added up;
* labels (TLA2): attention of the target to all labels, added up;
* strength: attention of the target to a matching label less that to another one, means;
* context (CLA): share of predictions that are a label of the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.dynamics.in_context.network import AttentionOnlyNet
from rankwise.dynamics.in_context.task import InContextBatch
from rankwise.dynamics.in_context.theory import MinimalInductionHead

__all__ = ["Progress", "progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Means over sequences; of a stack of networks with a first dimension more.

    Attributes
    ----------
    previous, match, labels, strength : Tensor
        ``(layers, heads)``. ``match`` and ``strength`` are over sequences that hold the target's item; NaN without one.
    cla, accuracy : Tensor
        Shares: of predictions that stand in the context, and of right ones.

    Examples
    --------
    >>> from rankwise.dynamics import AttentionOnlyNet, InContextTask, progress
    >>> task = InContextTask(p_novel=1.0)
    >>> found = progress(AttentionOnlyNet(task), next(iter(task)))
    >>> found.previous.shape, 0 <= float(found.ila1) <= 1
    (torch.Size([2, 1]), True)
    """

    previous: Tensor
    match: Tensor
    labels: Tensor
    strength: Tensor
    cla: Tensor
    accuracy: Tensor

    @property
    def ila1(self) -> Tensor:
        """ILA1: ``previous`` of the first layer's best head."""
        return self.previous[..., 0, :].amax(-1)

    @property
    def tila2(self) -> Tensor:
        """TILA2: ``match`` of the second layer's best head."""
        return self.match[..., 1, :].amax(-1)

    @property
    def tla2(self) -> Tensor:
        """TLA2: ``labels`` of the second layer's best head."""
        return self.labels[..., 1, :].amax(-1)


def progress(model: nn.Module, batch: InContextBatch | Tensor, *, start: int = 0) -> Progress:
    """Measure an induction head on the way.

    Parameters
    ----------
    model : nn.Module
        An `AttentionOnlyNet`, a `MinimalInductionHead`, or a decoder of transformers with
        ``attn_implementation="eager"``; the others give no attention.
    batch : InContextBatch or Tensor
        Of a decoder: token ids ``(size, start + 2N + 1)``, where items and labels are a token each and the last one is
        the target. Items match where tokens are equal. What is right is then the label after the last match, and
        ``accuracy`` is over sequences that have one.
    start : int
        Tokens of a decoder's sequence before the first item, e.g. 1 for a token of the beginning.

    Raises
    ------
    ValueError
        A model that gives no attention, or a batch of another shape.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.dynamics import progress
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
    ...                          num_attention_heads=2, num_key_value_heads=1, attn_implementation="eager"))
    >>> ids = torch.tensor([[3, 30, 4, 31, 5, 32, 4]])  # 3→30 4→31 5→32 4→
    >>> progress(model, ids).match.shape  # layers, heads
    torch.Size([3, 2])
    """
    if isinstance(model, AttentionOnlyNet | MinimalInductionHead):
        if not isinstance(batch, InContextBatch):
            raise ValueError(f"a batch of {type(model).__name__} is an InContextBatch, not {type(batch).__name__}")
        if start:
            raise ValueError(f"start={start}: sequences of {type(model).__name__} begin with an item; leave it out")
        with torch.no_grad():
            attention = model.layers(batch.inputs)[1].unsqueeze(-3)  # one head
            said = model(batch.inputs).argmax(-1)
        return _measured(attention, batch.match, batch.context, batch.target, said)
    ids = _checked(model, batch, start)
    training = model.training
    try:
        with torch.no_grad():
            out: Any = model.eval()(input_ids=ids, output_attentions=True, use_cache=False)
    finally:
        model.train(training)
    if not out.attentions or any(a is None for a in out.attentions):
        raise ValueError(
            f"{type(model).__name__} gives no attention weights: decoders with eager attention are accepted"
        )
    attention = torch.stack(list(out.attentions), 1)[..., start:, start:]
    items, context = ids[:, start:-1:2], ids[:, start + 1 :: 2]
    match = items == ids[:, -1:]
    last = match.shape[-1] - 1 - match.flip(-1).long().argmax(-1)
    target = torch.where(match.any(-1), context.gather(-1, last[:, None])[:, 0], -1)
    return _measured(attention, match, context, target, out.logits[:, -1].argmax(-1))


def _checked(model: nn.Module, batch: Any, start: int) -> Tensor:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} is no AttentionOnlyNet, MinimalInductionHead or transformers decoder")
    kind = getattr(config, "_attn_implementation", None)
    if kind != "eager":
        raise ValueError(
            f"attention '{kind}' keeps no weights: load the model with attn_implementation='eager', or call "
            "model.set_attn_implementation('eager')"
        )
    if not isinstance(batch, Tensor) or batch.ndim != 2 or batch.is_floating_point() or not len(batch):
        raise ValueError("batch of a decoder: whole numbers (size, start + 2N + 1) are accepted, token ids")
    if start < 0 or (batch.shape[1] - start) % 2 == 0 or batch.shape[1] - start < 3:
        raise ValueError(
            f"batch of {batch.shape[1]} tokens, start={start}: an odd number of at least 3 is accepted after the "
            "start, pairs of item and label and the target"
        )
    return batch.to(next(model.parameters()).device)


def _measured(attention: Tensor, match: Tensor, context: Tensor, target: Tensor, said: Tensor) -> Progress:
    """Attention ``(…, size, layers, heads, tokens, tokens)``; the rest ``(…, size, N)`` or ``(…, size)``."""
    before = attention.diagonal(-1, -2, -1)[..., ::2]  # of token 1, 3, … to 0, 2, …
    seen = attention[..., -1, 1::2]  # (…, size, layers, heads, N)
    m, there = match[..., None, None, :].to(seen), match.any(-1)
    to_match = (seen * m).sum(-1)
    others = (1 - m).sum(-1)
    gap = to_match / m.sum(-1) - (seen * (1 - m)).sum(-1) / others.clamp(min=1)
    right = (said == target).to(seen)
    told = (target >= 0).to(seen)
    return Progress(
        previous=before.mean(-1).mean(-3),
        match=_mean_where(to_match, there),
        labels=seen.sum(-1).mean(-3),
        strength=_mean_where(gap, there),
        cla=(said[..., None] == context).any(-1).to(seen).mean(-1),
        accuracy=(right * told).sum(-1) / told.sum(-1),
    )


def _mean_where(values: Tensor, there: Tensor) -> Tensor:
    """Mean over sequences ``(…, size, layers, heads)`` that count; NaN where none does."""
    w = there[..., None, None].to(values)
    return torch.where(w > 0, values, 0).sum(-3) / w.sum(-3)
