"""Which layers a method touches: by name pattern, by kind, or automatically."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

from torch import nn

from rankwise.nearest import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("auto", "attention", "mlp", "all-linear")
_ATTENTION = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|encoder_attn|cross_attn|crossattention)(\.|$)")
_HEADS = re.compile(r"(^|\.)(classifier|score|lm_head|qa_outputs|pooler|pre_classifier|proj_out|embeddings?)(\.|$)")
_BLOCK = re.compile(r"\.\d+\.")


def plain_modules(module: nn.Module, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Every module by the name it had before adapters: an adapter's layer stands for what it wraps."""
    seen = set() if seen is None else seen
    while hasattr(module, "adapter_layer_names"):  # PEFT's layers, and its copies of modules that train whole
        module = module.get_submodule("original_module" if hasattr(module, "original_module") else "base_layer")
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for child_name, child in module.named_children():
        yield from plain_modules(child, f"{name}.{child_name}" if name else child_name, seen)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer inside the model's repeated blocks, by name, in order; heads and poolers are left out.

    A linear layer is ``nn.Linear`` or GPT-2's ``Conv1D``; of an adapted model it is the layer under the adapter.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import linear_layers
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> [name.removeprefix("encoder.layer.0.") for name in linear_layers(BertModel(config))][:3]
    ['attention.self.query', 'attention.self.key', 'attention.self.value']
    """
    from transformers.pytorch_utils import Conv1D

    linear = {n: m for n, m in plain_modules(model) if isinstance(m, nn.Linear | Conv1D)}
    found = cast("dict[str, nn.Linear]", {n: m for n, m in linear.items() if not _HEADS.search(n)})
    in_blocks = {n: m for n, m in found.items() if _BLOCK.search(n)}
    return in_blocks or found


def stacked_experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters inside the blocks that hold a matrix an expert, ``(experts, …, …)``, by name.

    They are of no linear layer, so that `linear_layers` and `target_modules` do not see them.
    """
    return {
        f"{name}.{own}": p
        for name, module in model.named_modules()
        for own, p in module.named_parameters(recurse=False)
        if p.dim() >= 3 and min(p.shape[-2:]) > 1 and _BLOCK.search(f"{name}.{own}") and not _is_convolution(module)
    }


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def adapter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PEFT has wrapped, by name; none where PEFT was never imported."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return {}
    return {n: m for n, m in model.named_modules() if isinstance(m, tuners.BaseTunerLayer)}


def fused_experts(model: nn.Module) -> list[str]:
    """Names of the parameters that hold the weights of all experts at once, in matrices or in a stack of them."""
    from transformers.pytorch_utils import Conv1D

    return [
        f"{name}.{weight}"
        for name, module in plain_modules(model)
        if "expert" in f"{name}.{type(module).__name__}".lower() and not isinstance(module, nn.Linear | Conv1D)
        for weight, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and not weight.endswith("bias")
    ]


def refuse_fused_experts(model: nn.Module) -> None:
    """``ValueError`` where a choice of all feed-forward layers would leave the experts out."""
    if fused := fused_experts(model):
        raise ValueError(
            f"the experts of {type(model).__name__} are not linear layers but {len(fused)} parameters of several "
            f"matrices each ({fused[0]}, …), which cannot be targeted; choose the attention layers, or name the layers"
        )


def blocks(model: nn.Module, *, layers_attribute: str | None = None) -> tuple[str, nn.ModuleList]:
    """Name and list of the model's repeated layers (for an encoder-decoder the longer stack, of equals the last).

    Parameters
    ----------
    layers_attribute : str, optional
        Dotted name of the list, e.g. ``model.layers``, where it cannot be found.

    Raises
    ------
    ValueError
        No list of modules that hold linear layers, or ``layers_attribute`` names none; the lists there are are offered.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import blocks
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> name, layers = blocks(BertModel(config))
    >>> name, len(layers)
    ('encoder.layer', 2)
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if layers_attribute is not None:
        if layers_attribute not in lists:
            raise unknown("layers_attribute", layers_attribute, lists or ["none: the model has no list of layers"])
        return layers_attribute, lists[layers_attribute]
    names = linear_layers(model)
    with_linears = {n: m for n, m in lists.items() if any(name.startswith(f"{n}.") for name in names)}
    # a list inside a block (experts) is no list of blocks
    outer = {n: m for n, m in with_linears.items() if not any(n.startswith(f"{o}.") for o in with_linears)}
    if not outer:
        raise ValueError(
            f"{type(model).__name__} has no list of repeated layers; give layers_attribute, e.g. 'model.layers'"
            + (f" (its lists: {', '.join(lists)})" if lists else "")
        )
    name = max(reversed(list(outer)), key=lambda n: len(outer[n]))
    return name, outer[name]


def target_modules(model: PreTrainedModel | nn.Module, target: str = "auto", *, fused: bool = False) -> list[str]:
    """Full names of the layers to adapt, in the model's order.

    Parameters
    ----------
    target : str
        ``all-linear`` or ``auto`` (attention and feed-forward projections of every block), ``attention``, ``mlp``, or
        a comma-separated list of names and regular expressions matched against the end of each layer's name.
    fused : bool
        Whether the caller sees to experts that are fused into parameters itself: they are then no error.

    Raises
    ------
    ValueError
        Nothing matches (the nearest layer names are offered), or feed-forward layers are asked for and the model's
        experts are fused into parameters that no linear layer holds.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import target_modules
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> target_modules(BertModel(config), "query,value")
    ['encoder.layer.0.attention.self.query', 'encoder.layer.0.attention.self.value']
    """
    layers = linear_layers(model)
    if target in ("auto", "all-linear", "mlp") and not fused:
        refuse_fused_experts(model)
    if target in ("auto", "all-linear"):
        chosen = list(layers)
    elif target in ("attention", "mlp"):
        chosen = [n for n in layers if bool(_ATTENTION.search(n)) == (target == "attention")]
    else:
        patterns = [re.compile(rf"(.*\.)?({p.strip()})") for p in target.split(",") if p.strip()]
        chosen = [n for n in layers if any(p.fullmatch(n) for p in patterns)]
    if not chosen:
        ends = sorted({_BLOCK.split(n)[-1] for n in layers} | {n.rsplit(".", 1)[-1] for n in layers})
        near = get_close_matches(target, ends, n=4, cutoff=0.4) or ends[:8]
        raise ValueError(f"no linear layer matches target '{target}'; nearest: {', '.join([*near, *KINDS])}")
    return chosen
