"""Batches through a frozen model: what a batch may be, which rows of an input count, in pieces of similar length.

A batch is a mapping of the model's keyword arguments. Positions that are padding or whose label is masked are dropped
wherever an input is laid out as the batch is; every row counts of inputs that are not (a pooled vector, an expert's
share of the tokens). In an encoder-decoder the encoder's positions and the decoder's have masks of their own: an input
belongs to the encoder while it runs, and where it is the encoder's output (the keys and values of cross-attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = Mapping[str, Any]
Reader = Callable[[Tensor], None]
_CHUNK_ROWS = 8


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block; every module's own mode comes back."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def identity(x: Tensor) -> tuple:
    """What two tensors have in common that are the same one."""
    return x.data_ptr(), x.shape, x.stride()


class Passes:
    """Forward passes over batches that hand the rows of layers' inputs to readers.

    Parameters
    ----------
    model : nn.Module
        On any device but ``meta``; batches are moved to it.
    label_mask_value : int, optional
        Positions with this label are dropped; ``None`` keeps them.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.passes import Passes
    >>> model, seen = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), []
    >>> Passes(model).run({"input": torch.randn(5, 4)}, {model[1]: lambda rows: seen.append(tuple(rows.shape))})
    >>> seen  # the rows of the second layer's input
    [(5, 3)]
    """

    def __init__(self, model: nn.Module, label_mask_value: int | None = None) -> None:
        self.model, self.label_mask_value = model, label_mask_value
        self.device = next(model.parameters()).device
        if self.device.type == "meta":
            raise ValueError("the model is on the meta device: load its weights before gathering activations")
        two_sided = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        self.encoder = cast("PreTrainedModel", model).get_encoder() if two_sided else None
        self._in_encoder, self._encoded = False, None
        self._masks: tuple[Tensor | None, Tensor | None] = None, None

    def run(
        self, batch: Batch, readers: Mapping[nn.Module, Reader], calls: Mapping[nn.Module, float] | None = None
    ) -> None:
        """One batch. A reader gets ``(rows, width)`` at every call of its layer.

        Parameters
        ----------
        calls : mapping, optional
            How often each layer is called in a pass; the pass ends when all have been.

        Raises
        ------
        TypeError
            A batch that is no mapping.
        """
        for piece in self._pieces(self._on_device(batch)):
            left = dict(calls) if calls is not None else dict.fromkeys(readers, math.inf)

            def hook(module: nn.Module, args: tuple, kwargs: dict, left: dict = left) -> None:
                x = _input(args, kwargs)
                readers[module](self._rows(x))
                left[module] -= 1
                if all(n <= 0 for n in left.values()):
                    raise _Finished

            self._forward(piece, dict.fromkeys(readers, hook))

    def probe(self, batch: Batch, layers: Mapping[str, nn.Module]) -> tuple[dict[str, str], dict[str, int]]:
        """One row of a batch: for every layer the first that reads the same input, and how often each is called.

        A layer that does not run in it (an expert) reads its own.
        """
        batch = self._on_device(batch)
        row = {k: v[:1] if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()}
        seen: dict[tuple, str] = {}
        kept: list[Tensor] = []  # so that no address is used twice
        leader, calls = {n: n for n in layers}, dict.fromkeys(layers, 0)

        def note(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                x = _input(args, kwargs)
                kept.append(x)
                first = seen.setdefault(identity(x), name)
                leader[name] = first if calls[name] == 0 else leader[name]
                calls[name] += 1

            return hook

        self._forward(row if _rows(batch) is not None else batch, {m: note(n) for n, m in layers.items()})
        if not any(calls.values()):
            raise ValueError("none of the targeted layers ran in the forward pass")
        return leader, calls

    def _forward(self, batch: Batch, hooks: Mapping[nn.Module, Callable]) -> None:
        self._in_encoder, self._masks = False, self._both_masks(batch)
        self._encoded = identity(batch["encoder_outputs"][0]) if "encoder_outputs" in batch else None
        labelled = self.encoder is not None and not any(k.startswith("decoder_inp") for k in batch)
        with ExitStack() as stack:
            for module, hook in hooks.items():
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if self.encoder is not None:
                stack.callback(self.encoder.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(self.encoder.register_forward_hook(self._leave).remove)
            try:
                # elsewhere labels only add a loss that nobody reads
                self.model(**{k: v for k, v in batch.items() if k != "labels" or labelled})
            except _Finished:
                return

    def _enter(self, *_: object) -> None:
        self._in_encoder = True

    def _leave(self, module: nn.Module, args: object, output: Any) -> None:
        self._in_encoder, self._encoded = False, identity(output[0])

    def _rows(self, x: Tensor) -> Tensor:
        encoder_side = self.encoder is None or self._in_encoder or identity(x) == self._encoded
        mask = self._masks[0 if encoder_side else 1]
        flat = x.reshape(-1, x.shape[-1])
        if mask is not None and (x.shape[:-1] == mask.shape or (x.dim() == 2 and len(x) == mask.numel())):
            return flat[mask.flatten()]
        return flat

    def _both_masks(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Positions that count of the encoder (or of a model of one stack) and of the decoder."""
        source, target = _mask(batch.get("attention_mask")), _mask(batch.get("decoder_attention_mask"))
        labels = batch.get("labels")
        shape = next((batch[k].shape for k in ("decoder_input_ids", "input_ids") if k in batch), None)
        if self.encoder is not None and "decoder_input_ids" not in batch:
            shape = None if labels is None or labels.dim() != 2 else labels.shape
            target = source if target is None and shape is None else target
        if self.label_mask_value is None or labels is None or labels.is_floating_point() or labels.shape != shape:
            return source, target
        labelled = labels != self.label_mask_value
        if self.encoder is None:
            return labelled if source is None else source & labelled, None
        return source, labelled if target is None else target & labelled

    def _on_device(self, batch: Batch) -> Batch:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a batch is a dict of the model's keyword arguments, not a {type(batch).__name__}; "
                'for example ({"input_ids": x} for x, _ in loader)'
            )
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        """The batch in pieces of similar length, each cut to its longest row, where it is padded on the right."""
        mask = batch.get("attention_mask")
        if mask is None or self.encoder is not None or not _can_be_cut(batch, mask):
            yield batch
            return
        lengths = mask.shape[1] - mask.flip(1).long().argmax(1)
        for rows in lengths.argsort().split(_CHUNK_ROWS):
            longest = int(lengths[rows].max())
            yield {k: _cut(k, v, rows, longest, mask.shape) for k, v in batch.items()}


class _Finished(Exception):
    """Everything wanted of this forward pass has been read."""


def _input(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _rows(batch: Batch) -> int | None:
    """How many rows a batch has; ``None`` where it cannot be cut: not all its tensors have one entry a row."""
    if any(isinstance(v, list | tuple | Mapping) for v in batch.values()):
        return None
    sizes = {len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def _can_be_cut(batch: Batch, mask: Tensor) -> bool:
    if _rows(batch) is None or mask.dim() != 2 or bool(mask.all()) or not bool(mask[:, 0].all()):
        return False
    others = [v for k, v in batch.items() if isinstance(v, Tensor) and v.dim() > 2 and k != "inputs_embeds"]
    return all(v.shape[:2] != mask.shape for v in others)  # of those one cannot tell whether they are by position


def _cut(key: str, value: Any, rows: Tensor, longest: int, shape: torch.Size) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    by_position = value.shape == shape or key == "inputs_embeds"
    return value[rows, :longest] if by_position else value[rows]


def _mask(value: Tensor | None) -> Tensor | None:
    return None if value is None or value.dim() != 2 else value.bool()
