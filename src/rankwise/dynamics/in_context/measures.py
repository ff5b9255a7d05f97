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
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.dynamics.in_context.network import AttentionOnlyNet
from rankwise.dynamics.in_context.task import InContextBatch
from rankwise.dynamics.in_context.theory import MinimalInductionHead
from rankwise.models.loading import most_tokens
from rankwise.models.passes import evaluating

__all__ = ["Progress", "progress"]

ROWS = 64  # of a decoder's batch at once, whose attention and logits are then let go


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Means over sequences; of a stack of networks with a first dimension more.

    Attributes
    ----------
    previous, match, labels, strength : Tensor
        ``(layers, heads)``, float32 at least. ``match`` is over sequences that hold the target's item, ``strength``
        over those that hold others too; NaN without one.
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
        return self._of_second(self.match)

    @property
    def tla2(self) -> Tensor:
        """TLA2: ``labels`` of the second layer's best head."""
        return self._of_second(self.labels)

    @staticmethod
    def _of_second(measure: Tensor) -> Tensor:
        if measure.shape[-2] < 2:
            raise ValueError("TILA2 and TLA2 are of the second layer, and the model has one; see match and labels")
        return measure[..., 1, :].amax(-1)


def progress(model: nn.Module, batch: InContextBatch | Tensor, *, start: int = 0) -> Progress:
    """Measure an induction head on the way.

    Parameters
    ----------
    model : nn.Module
        An `AttentionOnlyNet`, a `MinimalInductionHead`, or a decoder of transformers with a head for the next token and
        ``attn_implementation="eager"``; the others give no attention. Every layer has to attend, with as many heads.
    batch : InContextBatch or Tensor
        Of a decoder: token ids ``(size, start + 2N + 1)``, where items and labels are a token each and the last one is
        the target, without padding. Items match where tokens are equal. What is right is then the label after the last
        match, and ``accuracy`` is over sequences that have one.
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
        return _measured(*_looks(attention), batch.match, batch.context, batch.target, said)
    ids = _checked(model, batch, start)
    with torch.no_grad(), evaluating(model):
        parts = [_of_decoder(model, rows, start) for rows in ids.split(ROWS)]
    before, seen, said = (torch.cat(part) for part in zip(*parts, strict=True))
    items, context = ids[:, start:-1:2], ids[:, start + 1 :: 2]
    match = items == ids[:, -1:]
    last = match.shape[-1] - 1 - match.flip(-1).long().argmax(-1)
    target = torch.where(match.any(-1), context.gather(-1, last[:, None])[:, 0], -1)
    return _measured(before, seen, match, context, target, said)


def _of_decoder(model: nn.Module, ids: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """`_looks` of a decoder, and the token that it says next, ``(size,)``."""
    out: Any = model(input_ids=ids, output_attentions=True, use_cache=False)
    attentions, name = getattr(out, "attentions", None) or (), type(model).__name__
    layers = getattr(cast("Any", model.config).get_text_config(), "num_hidden_layers", len(attentions))
    there = [a for a in attentions if a is not None]
    if not there:
        raise ValueError(f"{name} gives no attention weights: decoders with eager attention are accepted")
    if len(there) != layers or len({a.shape for a in there}) > 1:
        heads = sorted({a.shape[1] for a in there})
        raise ValueError(
            f"{name}: {len(there)} of {layers} layers attend, with {heads} heads: decoders whose layers all attend, "
            "with as many heads, are accepted"
        )
    attention = torch.stack(there, 1)
    if attention[..., 0, 1:].any():
        raise ValueError(f"{name} attends to later tokens: a decoder, which looks back alone, is accepted")
    return *_looks(attention[..., start:, start:]), out.logits[:, -1].argmax(-1)


def _looks(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``(…, tokens, tokens)`` what is measured, ``(…, N)`` each: labels to their items, and the target to labels."""
    attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
    return attention.diagonal(-1, -2, -1)[..., ::2], attention[..., -1, 1::2]


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
    if getattr(config, "is_encoder_decoder", False) or not cast("Any", model).can_generate():
        raise ValueError(f"{type(model).__name__} says no next token: a decoder with a head for it is accepted")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError("the model's adapter puts tokens of its own before the sequence: unload it, or merge another")
    return _checked_ids(model, config.get_text_config().pad_token_id, batch, start)


def _checked_ids(model: Any, pad: int | None, batch: Any, start: int) -> Tensor:
    kind = f"{batch.dtype} {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
    whole = isinstance(batch, Tensor) and not (batch.is_floating_point() or batch.is_complex())
    if not whole or batch.dtype == torch.bool or batch.ndim != 2 or not len(batch):
        raise ValueError(
            f"batch of a decoder: whole numbers (size, start + 2N + 1) are accepted, a Tensor of token ids, not {kind}"
        )
    if isinstance(start, bool) or not isinstance(start, int):
        raise ValueError(f"start={start!r}: a whole number of at least 0 is accepted")
    tokens = batch.shape[1]
    if start < 0 or (tokens - start) % 2 == 0 or tokens - start < 3:
        raise ValueError(
            f"batch of {tokens} tokens, start={start}: an odd number of at least 3 is accepted after the "
            "start, pairs of item and label and the target"
        )
    most, table = most_tokens(model), model.get_input_embeddings().weight
    if most is not None and tokens > most:
        raise ValueError(f"batch of {tokens} tokens: the model takes at most {most}")
    ids = batch.to(table.device, torch.long)
    if ids.min() < 0 or ids.max() >= len(table):
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}: 0 to {len(table) - 1} are the model's")
    padded = ((ids[:, start] == pad) | (ids[:, -1] == pad)).nonzero().flatten().tolist() if pad is not None else []
    if padded:
        raise ValueError(
            f"row {padded[0]} begins or ends with padding, token {pad}: sequences of one length are accepted; measure "
            "each length by itself"
        )
    return ids


def _measured(before: Tensor, seen: Tensor, match: Tensor, context: Tensor, target: Tensor, said: Tensor) -> Progress:
    """Attention ``(…, size, layers, heads, N)``, of `_looks`; the rest ``(…, size, N)`` or ``(…, size)``."""
    m, there = match[..., None, None, :].to(seen), match.any(-1)
    to_match = (seen * m).sum(-1)
    gap = to_match / m.sum(-1) - (seen * (1 - m)).sum(-1) / (1 - m).sum(-1)
    right = (said == target).to(seen)
    told = (target >= 0).to(seen)
    return Progress(
        previous=before.mean(-1).mean(-3),
        match=_mean_where(to_match, there),
        labels=seen.sum(-1).mean(-3),
        strength=_mean_where(gap, there & ~match.all(-1)),
        cla=(said[..., None] == context).any(-1).to(seen).mean(-1),
        accuracy=(right * told).sum(-1) / told.sum(-1),
    )


def _mean_where(values: Tensor, there: Tensor) -> Tensor:
    """Mean over sequences ``(…, size, layers, heads)`` that count; NaN where none does."""
    w = there[..., None, None].to(values)
    return torch.where(w > 0, values, 0).sum(-3) / w.sum(-3)
