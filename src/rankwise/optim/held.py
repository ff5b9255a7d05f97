"""What an optimiser changes in a model besides its weights: taken by one at a time, and given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor


def undo_of(owner: object) -> ExitStack:
    """A stack of what undoes the owner's changes; closed when the owner says so, or when it is collected."""
    stack = ExitStack()  # closing it twice does nothing the second time
    weakref.finalize(owner, stack.close).atexit = False
    return stack


class Holders:
    """Who holds which parameters for one purpose (``what``): two at once would undo each other.

    Examples
    --------
    >>> import torch
    >>> from rankwise.optim.held import Holders
    >>> layer, updating = torch.nn.Linear(2, 2), Holders("updates these parameters")
    >>> one, other = torch.optim.SGD(layer.parameters()), torch.optim.SGD(layer.parameters())
    >>> updating.take(one, layer.parameters())
    >>> updating.take(other, layer.parameters())
    Traceback (most recent call last):
    ValueError: another SGD updates these parameters: call its release() first
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._held: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()

    def take(self, owner: Any, parameters: Iterable[Tensor]) -> None:
        """Hold these too.

        Raises
        ------
        ValueError
            Another owner holds one of them.
        """
        wanted = {id(p) for p in parameters}
        for other, held in list(self._held.items()):
            if other is not owner and wanted & held:
                raise ValueError(f"another {type(other).__name__} {self.what}: call its release() first")
        self._held.setdefault(owner, set()).update(wanted)

    def give_back(self, owner: Any) -> None:
        """Hold nothing any more."""
        self._held.pop(owner, None)


def refuse_replicas(what: str) -> None:
    """An error where `torch.distributed` runs several processes, whose copies of the weights would drift apart."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"{what} runs in one process, not in {dist.get_world_size()}: replicas average only the gradients that "
            "all of them expect; use GaLoreAdamW without step_in_backward, which gets whole averaged gradients"
        )


def refuse_loss_scaling() -> None:
    """An error where an enabled ``GradScaler`` lives: gradients are used up before it could divide them again."""
    scalers = (o for o in gc.get_objects() if issubclass(type(o), torch.amp.GradScaler))
    if any(scaler.is_enabled() for scaler in scalers):
        raise RuntimeError(
            "there is an enabled GradScaler: it multiplies the loss, and updates in the backward pass come before it "
            "divides the gradients. Use bfloat16, which needs no scaling, or update in step "
            "(OwLore(in_backward=False)); delete the scaler if it is of an earlier training"
        )
