"""What S2-LoRA adds to an optimiser's step, whatever loop, Trainer or loss function trains it.

    before:  ∇P, ∇Q += μ ∇(‖PᵀP - I‖² + ‖QQᵀ - I‖²) / r²,   ∇λ += γ ∇(Σ_m ‖λ_m‖₁ / (M r))   (``l1="penalty"``)
    during:  λ at ``lambda_lr_scale`` times its group's learning rate, without weight decay
    after:   λ ← sign(λ) max(|λ| - η γ', 0)                                                  (``l1="proximal"``)

The terms do not depend on the data. Added to the loss they would count once a micro-batch and once a process, and be
lost where a Trainer computes its own loss; added to the gradient they count once a step. They are not clipped.

Every `torch.optim.Optimizer` calls these hooks, and they leave those alone that hold no coefficient of an S2-LoRA
adapter. Between steps the optimiser's groups are as its owner made them: schedulers and checkpoints see nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

if TYPE_CHECKING:
    from rankwise.tuning.s2lora import S2LoraModel

_TUNERS: WeakSet[S2LoraModel] = WeakSet()
_MARK, _SAVED = "s2lora", "_s2lora_groups"


def remember(tuner: S2LoraModel) -> None:
    """Let every optimiser's step know a tuner, for as long as the tuner lives."""
    _TUNERS.add(tuner)


def soft_threshold(x: Tensor, amount: float) -> Tensor:
    """``sign(x) max(|x| - amount, 0)``, the proximal operator of ``amount · ‖x‖₁``."""
    return x.sign() * (x.abs() - amount).clamp(min=0)


def refuse_copies(called: str = "S2-LoRA") -> None:
    """``RuntimeError`` under engines whose optimiser steps on copies of the parameters, where no term would arrive."""
    from accelerate.state import PartialState

    engine = getattr(PartialState._shared_state.get("distributed_type"), "value", "NO")
    if engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise RuntimeError(
            f"{called} needs an optimiser over whole parameters, which {engine} has not; train it with DDP"
        )


def _adapters(optimizer: Optimizer) -> Iterator[tuple[S2LoraModel, str, dict[int, nn.Parameter]]]:
    """The adapters that this step moves: tuner, name, and their tensors that the optimiser holds, by identity."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for tuner in list(_TUNERS):
        for name in tuner.peft_config:
            own = {id(p): p for p in tuner.tensors(name) if id(p) in held}
            if own:
                yield tuner, name, own


def _add_gradients(optimizer: Optimizer) -> None:
    scale = getattr(optimizer, "grad_scale", None)  # of a loss scaler that leaves unscaling to a fused step
    for tuner, name, own in _adapters(optimizer):
        moved = {p: p.grad for p in own.values() if p.grad is not None}
        with torch.enable_grad():
            loss = tuner.regularization_loss(name)
        found = torch.autograd.grad(loss, [*moved], allow_unused=True) if moved and loss.requires_grad else ()
        for (p, grad), g in zip(moved.items(), found, strict=False):
            if g is not None:
                grad += (g if scale is None else g * scale).to(p.dtype)  # in place: it is the parameter's own


def _apart(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimiser's groups with the coefficients in groups of their own."""
    scales = {
        i: tuner.peft_config[name].lambda_lr_scale
        for tuner, name, own in _adapters(optimizer)
        for i in own.keys() & {id(c) for c in tuner.coefficients(name)}
    }
    groups = []
    for group in optimizer.param_groups:
        groups.append(group | {"params": [p for p in group["params"] if id(p) not in scales]})
        for scale in sorted(set(scales.values())):
            mine = [p for p in group["params"] if scales.get(id(p)) == scale]
            groups.append(group | {"params": mine, "lr": group["lr"] * scale, "weight_decay": 0.0, _MARK: True})
    return [g for g in groups if g["params"]] if scales else []


def _before(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    _restore(optimizer)  # a step that raised has left its groups behind
    if not _TUNERS or any(_MARK in g for g in optimizer.param_groups):  # the latter: inside a wrapper's step
        return None
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        _add_gradients(optimizer)
    if groups := _apart(optimizer):
        setattr(optimizer, _SAVED, optimizer.param_groups[:])
        optimizer.param_groups[:] = groups
    return None if closure is None else (args[:1], kwargs | {"closure": _with_terms(optimizer, closure)})


def _with_terms(optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
    """A closure that computes the loss's gradient, followed by the terms'."""

    def both() -> Any:
        loss = closure()
        _add_gradients(optimizer)
        return loss

    return both


@torch.no_grad()
def _after(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    if _SAVED not in vars(optimizer):
        return
    rates = {id(p): float(g["lr"]) for g in optimizer.param_groups if _MARK in g for p in g["params"]}
    _restore(optimizer)
    skipped = getattr(optimizer, "found_inf", None)  # a loss scaler's: the fused step did nothing
    for tuner, name, own in _adapters(optimizer) if not skipped else ():
        config = tuner.peft_config[name]
        for i, p in own.items() if config.l1 == "proximal" else ():
            if i in rates and p.grad is not None:
                p.copy_(soft_threshold(p, rates[i] * config.sparsity))


def _restore(optimizer: Optimizer) -> None:
    if _SAVED in vars(optimizer):
        optimizer.param_groups[:] = vars(optimizer).pop(_SAVED)


register_optimizer_step_pre_hook(_before)
register_optimizer_step_post_hook(_after)
