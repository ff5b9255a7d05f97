"""A linear layer as two thin ones, and checkpoints that hold such layers.

    y = B (A x) + b,   A: (k, in),  B: (out, k),   k (in + out) numbers instead of in · out

A compressed model is a `transformers` model in which some linear layers are `LowRankLinear`; its ``config.json`` says
which, under ``rankwise_compression``, so that it loads without the model it came from. A loader that does not know of
factors would start those layers from random weights. Therefore a checkpoint also holds, under the name of each dense
weight, its mark: one number (the rank), whose shape stops such a loader with an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEY = "rankwise_compression"
Dense = nn.Linear  # or GPT-2's Conv1D, whose weight is transposed


class Record(TypedDict):
    """What ``config.json`` says: the rank of every factorised layer, and which of them were ``Conv1D``.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import compress
    >>> from rankwise.models.low_rank import record_of
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> _ = compress(model, ratio=0.7, method="uniform")
    >>> record_of(model.config)["ranks"]["model.layers.0.self_attn.q_proj"]
    5
    """

    ranks: dict[str, int]
    conv1d: list[str]


class LowRankLinear(nn.Module):
    """``nn.Linear`` of rank k, as the product of two.

    Parameters
    ----------
    in_features, out_features : int
        The width of an input, and of an output.
    rank : int
        At least 1. Below ``in · out / (in + out)`` it is smaller and faster than the dense layer.
    bias : bool
        Whether the layer has a bias, which belongs to its second factor.
    conv1d : bool
        Whether it stands for GPT-2's ``Conv1D``: ``to_dense`` gives one then.

    Attributes
    ----------
    A, B : nn.Linear
        ``(rank, in)`` without bias, and ``(out, rank)``: PEFT adapts them like any other.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.low_rank import LowRankLinear
    >>> layer, x = LowRankLinear(16, 12, rank=3), torch.randn(2, 16)
    >>> sum(p.numel() for p in layer.parameters()), layer(x).shape  # 3 · (16 + 12), and 12 of the bias
    (96, torch.Size([2, 12]))
    >>> torch.allclose(layer.to_dense()(x), layer(x), atol=1e-5)
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        conv1d: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: at least 1")
        self.A = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.B = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        self.conv1d, self.marked = conv1d, True

    @property
    def rank(self) -> int:
        """k."""
        return self.A.out_features

    @property
    def weight(self) -> Tensor:
        """The dense ``(out, in)`` weight, multiplied out anew: for code that asks a layer for its dtype or device."""
        return self.B.weight @ self.A.weight

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.marked:
            destination[f"{prefix}weight"] = self.A.weight.new_full((1,), self.rank)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        state_dict.pop(f"{prefix}weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return self.B(self.A(x))

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """The same map as one layer (``nn.Linear``, or ``Conv1D`` where it was one), in the factors' dtype."""
        weight = (self.B.weight.double() @ self.A.weight.double()).to(self.A.weight.dtype)
        bias = self.B.bias
        if self.conv1d:
            from transformers.pytorch_utils import Conv1D

            conv = Conv1D(self.B.out_features, self.A.in_features).to(weight.device, weight.dtype)
            conv.weight.copy_(weight.mT)
            conv.bias.copy_(bias if bias is not None else torch.zeros_like(conv.bias))
            return conv
        dense = nn.Linear(*weight.shape[::-1], bias=bias is not None, device=weight.device, dtype=weight.dtype)
        dense.weight.copy_(weight)
        if bias is not None:
            dense.bias.copy_(bias)
        return dense

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"{self.A.in_features}, {self.B.out_features}, rank={self.rank}"


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The factorised layers of a model, by name.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.low_rank import LowRankLinear, low_rank_layers
    >>> list(low_rank_layers(torch.nn.Sequential(torch.nn.Linear(4, 4), LowRankLinear(4, 4, rank=1))))
    ['1']
    """
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}


def dense_shape(layer: nn.Module) -> tuple[int, int]:
    """``(out, in)`` of a linear layer or ``Conv1D``."""
    rows, columns = layer.get_parameter("weight").shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)


def replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put new modules wherever the old ones stand, in one walk: a shared module has several parents."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])


def install(model: PreTrainedModel, record: Record) -> None:
    """Swap the recorded layers for empty `LowRankLinear`, ready to take the weights of a checkpoint, but not marks."""
    from transformers.pytorch_utils import Conv1D

    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for name, rank in record["ranks"].items():
        found = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in modules), None)
        if found is None:
            raise ValueError(f"the checkpoint's compressed layer {name} is not in a {type(model).__name__}")
        old = modules[found]
        if not isinstance(old, nn.Linear | Conv1D):
            raise ValueError(f"the checkpoint's compressed layer {name} is a {type(old).__name__}, not a linear layer")
        out_features, in_features = dense_shape(old)
        new = LowRankLinear(
            in_features,
            out_features,
            int(rank),
            bias=old.bias is not None,
            conv1d=name in record["conv1d"],
            dtype=old.get_parameter("weight").dtype,
        )
        new.marked = False
        replacements[old] = new
    replace(model, replacements)


def record_of(config: PretrainedConfig) -> Record | None:
    """What a configuration says of compression; a malformed entry is an error."""
    entry = getattr(config, KEY, None)
    if entry is None:
        return None
    ranks, conv1d = (entry.get("ranks"), entry.get("conv1d", [])) if isinstance(entry, dict) else (None, [])
    if (
        isinstance(ranks, dict)
        and isinstance(conv1d, list)
        and all(isinstance(r, int) and r >= 1 and re.fullmatch(r"[\w.]+", n) for n, r in ranks.items())
    ):
        return Record(ranks=ranks, conv1d=conv1d)
    raise ValueError(f"config.json: '{KEY}' must hold 'ranks', a mapping of layer names to positive ranks")


def compressed_class(cls: type[PreTrainedModel], record: Record) -> type[PreTrainedModel]:
    """``cls``, whose constructor installs the recorded layers: for ``from_pretrained``."""

    def __init__(self, config, *args, **kwargs):
        cls.__init__(self, config, *args, **kwargs)
        install(self, record)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})
