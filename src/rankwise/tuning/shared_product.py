"""S2-LoRA's factors as its layers see them, and the product ``Q x`` that the readers of one input share.

The query, key and value of a block read the same input with the same Q: their three products become one. A product is
kept only while a forward pass of the model runs (or a backward pass that repeats one), so that it is never older than
the factors, and only for the region of a checkpoint that computed it, which is repeated without the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from rankwise.tuning.s2lora import S2LoraLayer


class SharedProduct:
    """The factors ``P`` and ``Q`` by adapter and pair, and the last product of each pair.

    Parameters
    ----------
    P, Q : nn.ModuleDict
        By adapter, each a ``ParameterDict`` by pair.
    model : nn.Module
        The base model: its forward passes are watched until `release`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from rankwise.tuning.shared_product import SharedProduct
    >>> P = nn.ModuleDict({"default": nn.ParameterDict({"4x3": torch.zeros(4, 2)})})
    >>> Q = nn.ModuleDict({"default": nn.ParameterDict({"4x3": torch.zeros(2, 3)})})
    >>> shared = SharedProduct(P, Q, nn.Linear(3, 4))  # an adapted model's tuner makes it
    >>> [tuple(factor.shape) for factor in shared.pair("default", "4x3")]
    [(4, 2), (2, 3)]
    >>> shared.release()
    """

    def __init__(self, P: nn.ModuleDict, Q: nn.ModuleDict, model: nn.Module) -> None:
        self.P, self.Q = P, Q
        self.running, self.last = False, {}
        self._handles = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        )

    def pair(self, adapter: str, key: str) -> tuple[Tensor, Tensor]:
        """``P: (out, r)`` and ``Q: (r, in)`` of an adapter's pair."""
        P, Q = (cast(nn.ParameterDict, side[adapter]) for side in (self.P, self.Q))
        return P[key], Q[key]

    def project(self, layer: S2LoraLayer, adapter: str, x: Tensor, Q: Tensor) -> Tensor:
        """``Q x`` of the layer's input after its dropout, from the last reader of ``x`` where there was one."""
        dropout = layer.s2lora_dropout[adapter]
        fixed = isinstance(dropout, nn.Identity) or not layer.training
        repeating = torch._C._current_graph_task_id() != -1  # in a backward pass, that is: checkpointing
        if not fixed or torch.compiler.is_compiling() or not (self.running or repeating):
            return F.linear(layer._cast_input_dtype(dropout(x), Q.dtype), Q)
        key, grad = (adapter, layer.pair[adapter]), torch.is_grad_enabled()
        version, region = 0 if x.is_inference() else x._version, _region()
        known = self.last.get(key)
        if known is not None and known[0] is x and known[1:4] == (version, grad, region):
            return known[4]
        h = F.linear(layer._cast_input_dtype(x, Q.dtype), Q)
        self.last[key] = (x, version, grad, region, h)
        return h

    def release(self) -> None:
        """Watch the model no longer."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: object) -> None:
        self.last, self.running = {}, True

    def _end(self, *_: object) -> None:
        self.last, self.running = {}, False

    def __getstate__(self) -> dict:
        return self.__dict__ | {"last": {}, "running": False}  # products hold graphs, which are not copied


def _region() -> object:
    """What packs the tensors that are saved here: another one in every checkpoint and in every repetition of it."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]  (private)
    return None if hooks is None else hooks[0]
