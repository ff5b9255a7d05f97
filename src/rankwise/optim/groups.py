"""What the optimisers take: parameter groups made from a model, and every group checked before anything moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.models.targets import adapter_layers, linear_layers, stacked_experts
from rankwise.nearest import unknown

__all__ = ["galore_groups"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PROJECTIONS = ("std", "reverse_std", "left", "right", "full")
SVDS = ("subspace", "full", "random")
ON_REFRESH = ("keep", "reset", "rotate")
OPTIONS = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "update_gap",
    "scale",
    "proj_type",
    "on_refresh",
    "svd",
    "seed",
    "steps",
)
_PROJECTED = ("update_gap", "scale", "proj_type", "on_refresh", "svd")
_ALSO = ("params", "rank", "param_names", "name", "initial_lr", "differentiable")  # ours, torch's, and a label


def galore_groups(model: nn.Module, **options: Any) -> list[dict]:
    """Parameter groups of a model: the matrices of its blocks projected, everything else (embeddings, norms, head) not.

    Frozen parameters are left out: they stay as they are.

    Parameters
    ----------
    model : nn.Module
        With linear layers (``nn.Linear`` or GPT-2's ``Conv1D``) that train.
    **options
        ``rank`` and, if wanted, ``update_gap``, ``scale``, ``proj_type``, ``weight_decay`` … of the projected group.

    Raises
    ------
    ValueError
        The model has no linear layer, all of them are frozen (as under a PEFT adapter), or it keeps the matrices of
        experts in one parameter, which would get plain AdamW.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.optim import GaLoreAdamW, galore_groups
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> groups = galore_groups(LlamaForCausalLM(config), rank=4)
    >>> [len(group["params"]) for group in groups]  # 7 matrices a block; embedding, head and 5 norms
    [14, 7]
    >>> optimizer = GaLoreAdamW(groups, lr=1e-3)
    """
    matrices, rest = trained_parameters(model)
    return [{"params": matrices, **options}, *([{"params": rest}] if rest else [])]


def trained_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What trains of a model: the matrices of its linear layers, and the rest; errors are those of `galore_groups`."""
    layers, adapters = linear_layers(model), adapter_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is no gradient to project")
    if experts := [n for n, p in stacked_experts(model).items() if p.requires_grad]:
        raise ValueError(
            f"{type(model).__name__} keeps the matrices of its experts in one parameter ({experts[0]}), which is not "
            "projected: freeze it, or give groups of your own, where it trains by AdamW without a 'rank'"
        )
    # of an adapted layer this is the matrix under the adapter, whose own are thin already
    own = {id(m.weight): m.weight for m in layers.values() if m.weight.requires_grad}
    if not own:
        what = "it is wrapped by PEFT" if adapters else "they are frozen"
        raise ValueError(
            f"no matrix of {type(model).__name__}'s linear layers trains ({what}): there is no gradient to project; "
            "AdamW is the optimiser of adapters, with a LayerSampler if wanted"
        )
    return list(own.values()), [p for p in model.parameters() if p.requires_grad and id(p) not in own]


def split(params: Iterable[Any], rank: int | None) -> list[dict]:
    """Groups; plain parameters with a rank fall into matrices, projected, and the rest."""
    params = list(params)
    if not params:
        raise ValueError("the optimiser got an empty parameter list")
    if isinstance(params[0], dict):
        if rank is not None:
            raise ValueError(f"rank={rank} is for a plain list of parameters; give each group its own 'rank' key")
        return [{**g} for g in params]
    params = [p[1] if isinstance(p, tuple) else p for p in params]
    matrices = [p for p in params if p.dim() == 2 and rank is not None]
    chosen = {id(p) for p in matrices}
    rest = [p for p in params if id(p) not in chosen]
    return [*([{"params": matrices, "rank": rank}] if matrices else []), *([{"params": rest}] if rest else [])]


def check_keys(group: dict) -> None:
    """An error for a key that nothing reads: an unknown one, or one of projection where there is no rank."""
    for key in group:
        if key not in (*OPTIONS, *_ALSO):
            raise unknown("key of a parameter group", str(key), (*OPTIONS, "rank"))
        if key in _PROJECTED and not group.get("rank"):
            raise ValueError(f"{key}={group[key]} is of projected groups, and this one has no 'rank'")


def check_group(group: dict) -> None:
    """An error for a value out of range, and for a tensor that cannot be updated rightly."""
    for name, accepted in (("proj_type", PROJECTIONS), ("on_refresh", ON_REFRESH), ("svd", SVDS)):
        if group[name] not in accepted:
            raise unknown(name, str(group[name]), accepted)
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise ValueError(f"{name}={group[name]} must be finite and >= 0")
    if len(group["betas"]) != 2 or not all(0 <= b < 1 for b in group["betas"]):
        raise ValueError(f"betas={group['betas']} must be two numbers in [0, 1)")
    if group["scale"] is not None and not 0 < group["scale"] < math.inf:
        raise ValueError(f"scale={group['scale']} must be finite and > 0, or None for steps of full length")
    if not isinstance(group["update_gap"], int) or group["update_gap"] < 1:
        raise ValueError(f"update_gap={group['update_gap']}: at least 1 step")
    if not isinstance(group["seed"], int) or group["seed"] < 0:
        raise ValueError(f"seed={group['seed']}: a whole number, at least 0")
    _check_tensors(group["params"], group.get("rank"))


def _check_tensors(params: Sequence[Tensor], rank: Any) -> None:
    for p in params:
        sharded = hasattr(p, "device_mesh")  # a DTensor: each process holds a part of the matrix
        if p.dtype not in DTYPES or p.is_meta or sharded:
            kind = "sharded (DTensor)" if sharded else "on the meta device" if p.is_meta else p.dtype
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is {kind}; float32, float64, bfloat16 and float16 are updated"
                + (": train its real and its imaginary part" if p.is_complex() else "")
            )
        if rank is None:
            continue
        if p.dim() != 2:
            raise ValueError(
                f"a group with rank={rank} holds a tensor of shape {tuple(p.shape)}; only matrices can be projected: "
                "put it in a group without rank (galore_groups sorts a model's parameters)"
            )
        if not isinstance(rank, int) or not 1 <= rank <= max(p.shape):
            raise ValueError(f"rank={rank} is outside 1..{max(p.shape)} for a matrix of shape {tuple(p.shape)}")


def check_state(state: dict, groups: list[dict]) -> None:
    """An error for the state of another optimiser, or of parameters of other shapes; nothing has been loaded yet."""
    for saved in state["param_groups"]:
        if missing := [k for k in OPTIONS if k not in saved]:
            raise ValueError(
                f"this state is of another optimiser: its groups have no {', '.join(missing)}; only what GaLoreAdamW "
                "or OwLore wrote can be continued"
            )
    params = [p for g in groups for p in g["params"]]
    names = [n for g in state["param_groups"] for n in g["params"]]
    for p, name in zip(params, names, strict=False):  # torch says where the numbers differ
        held = state["state"].get(name, {})
        bases = {side: held[side] for side in ("left", "right") if side in held}
        fits = all(Q.shape[1] == p.shape[side == "right"] for side, Q in bases.items())
        if not fits or (not bases and held.get("exp_avg", p).shape != p.shape):
            raise ValueError(f"the state of parameter {name} does not fit its shape {tuple(p.shape)}")
