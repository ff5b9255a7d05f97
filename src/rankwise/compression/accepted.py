"""Which models compression takes: those whose matrices are dense, finite and their own."""

from __future__ import annotations

import torch
from torch import nn

from rankwise.files import fingerprint
from rankwise.models.low_rank import KEY, low_rank_layers
from rankwise.models.targets import adapter_layers, linear_layers, stacked_experts, target_modules


def components(model: nn.Module, target: str) -> dict[str, nn.Module]:
    """The matrices that a target names, each once (tied weights are one), by name.

    Raises
    ------
    ValueError
        A model that is compressed already or wrapped by PEFT, no linear layer, experts in one parameter that the target
        would cover, and weights that are quantised, complex, sharded, on the meta device, or not finite (named).
    """
    check_plain(model)
    layers = linear_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is nothing to compress")
    experts = stacked_experts(model)
    if experts and target in ("auto", "all-linear", "mlp"):
        held = sum(p.numel() for p in experts.values()) / sum(p.numel() for p in model.parameters())
        raise ValueError(
            f"{next(iter(experts))} and {len(experts) - 1} other parameters hold the matrices of all experts "
            f"({held:.0%} of the model): they are no linear layers and are not compressed; target 'attention' leaves "
            "them as they are"
        )
    chosen: dict[int, str] = {}
    for name in target_modules(model, target):
        check_weight(name, layers[name].weight)
        chosen.setdefault(id(layers[name].weight), name)
    return {n: layers[n] for n in chosen.values()}


def check_plain(model: nn.Module) -> None:
    """``ValueError`` for a model that is compressed already or wrapped by PEFT."""
    if low_rank_layers(model) or getattr(getattr(model, "config", None), KEY, None):
        raise ValueError("the model is compressed already; export it to dense first, or start from the original")
    if adapters := adapter_layers(model):
        raise ValueError(
            f"the model is wrapped by PEFT ({len(adapters)} layers, {next(iter(adapters))} …): merge_and_unload() or "
            "unload() it first; a compressed model takes adapters"
        )


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def content_of(weight: torch.Tensor) -> str:
    """What a weight is by dtype, shape and the sums of its rows' bits: to know it again, not to guard it.

    Sums of integers are exact on every device, and reading a weight once costs nothing beside its decomposition, which
    a hash of all its bytes does.
    """
    sums = weight.detach().contiguous().view(_BITS[weight.element_size()]).sum(1)
    return fingerprint([str(weight.dtype), list(weight.shape), sums.tolist()])


def check_weight(name: str, weight: torch.Tensor) -> None:
    """``ValueError`` for a weight that is not whole, dense and finite."""
    if weight.is_meta or hasattr(weight, "device_mesh"):
        raise ValueError(f"{name} is {'on the meta device' if weight.is_meta else 'sharded'}: a whole weight is needed")
    if not weight.dtype.is_floating_point or weight.element_size() < 2:
        kind = "complex" if weight.is_complex() else "quantised"
        raise ValueError(f"{name} is {kind} ({weight.dtype}): dense float weights are needed")
    # a finite sum is cheap and settles it; an overflowing one is looked at entry by entry
    if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
        raise ValueError(f"{name} has NaN or Inf in its weight")
