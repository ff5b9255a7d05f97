"""ViDA's adapter: a narrow and a wide branch beside each attention projection, each with a scale that can be set.

A narrow bottleneck keeps what domains share, a wide one takes what is of a domain alone. For a weight ``W: (out, in)``

    y = W x + s_low · U₁ D₁ x + s_high · U₂ D₂ x,    D: (r, in),  U: (out, r),  without a non-linearity between them

``D`` starts from N(0, (1/r²)²) and ``U`` at zero, so that the adapted model starts as the base model. Both scales are 1
until they are set; `rankwise.continual.TestTimeAdapter` sets them by how sure the model is.

Source: Liu, Yang et al., "ViDA: Homeostatic Visual Domain Adapter for Continual Test Time Adaptation", ICLR 2024, arXiv
2306.04344. The released code adapts timm's fused ``qkv``; on a model with three projections ``fuse_qkv=True`` shares
``D`` among them, which is the same function. There, setting the scales never reaches the wide branch; here it does.

What people get wrong: an adapter is merged at the scales that it has then. Scales that move with every batch, or that
each picture has of its own, cannot be folded into one weight. And the wide branch is still a bottleneck (128 of 768 in
the paper's own example, though its text says "at least the width"), whose start of 1/128² makes it all but silent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftType
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.models import target_modules
from rankwise.tuning import peft_types as _peft_types  # noqa: F401  (PeftType.VIDA must exist)
from rankwise.tuning.adapters import AdapterLayer, AdapterModel, check_linear
from rankwise.tuning.injection import TargetedConfig

__all__ = ["VidaConfig"]

BRANCHES = ("low", "high")
# names of a query's, a key's and a value's projection side by side, and of layers that hold all three
TRIPLES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
FUSED = ("qkv", "c_attn", "query_key_value", "qkv_proj", "Wqkv")

Scale = float | Tensor  # a number, or one a row of the batch


@dataclass
class VidaConfig(TargetedConfig):
    """Configuration of the homeostatic visual domain adapter.

    Parameters
    ----------
    r : int
        Rank of the narrow branch, default 1; 0 leaves the branch out.
    r_high : int
        Rank of the wide branch, default 128; 0 leaves the branch out.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT. Without ``target_modules``, every projection of the attention blocks.
    fuse_qkv : bool
        Whether the query's, the key's and the value's projection of one block share ``D`` (default no): the function of
        an adapter on a fused layer.
    scale_low, scale_high : float
        ``s_low`` and ``s_high``, default 1; `VidaModel.set_scales` writes what they are, so that they are saved.
    init_weights : bool
        ``False`` starts from random ``U`` instead of the base model: for tests.

    Raises
    ------
    ValueError
        A rank below 0, both of rank 0, or a scale that is not finite.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.tuning import VidaConfig
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4)
    >>> model = get_peft_model(ViTForImageClassification(config), VidaConfig(r=1, r_high=8))
    >>> model.get_nb_trainable_parameters()[0]  # four projections of 16 x 16, each (1 + 8) · (16 + 16)
    1152
    """

    r: int = 1
    r_high: int = 128
    fuse_qkv: bool = False
    scale_low: float = 1.0
    scale_high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["VIDA"]
        for name in ("r", "r_high"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name}={getattr(self, name)}; a rank from 0 on is needed, and 0 leaves the branch out"
                )
        if not self.r + self.r_high:
            raise ValueError("r=0 and r_high=0 leave nothing to train; one of them must be at least 1")
        for name in ("scale_low", "scale_high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} is not finite")


def delta_weight(D: Tensor, U: Tensor, scale: float) -> Tensor:
    """``s · U D``, shape ``(out, in)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.tuning.vida import delta_weight
    >>> delta_weight(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [3.0]]), 0.5).tolist()
    [[0.5, 1.0], [1.5, 3.0]]
    """
    return scale * (U @ D)


class VidaLayer(AdapterLayer):
    """A linear layer with two branches beside it.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import VidaConfig
    >>> config = VidaConfig(r=1, r_high=4, target_modules=["0"])
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 8)), config)
    >>> [(D.shape, U.shape) for D, U, _ in model.base_model.model[0].branches("default").values()]
    [(torch.Size([1, 6]), torch.Size([8, 1])), (torch.Size([4, 6]), torch.Size([8, 4]))]
    """

    adapter_layer_names = ("vida_low_down", "vida_low_up", "vida_high_down", "vida_high_up")
    other_param_names = ("scaling", "leader")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = (int(n or 0) for n in _get_in_out_features(self.get_base_layer()))
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.scaling: dict[str, tuple[Scale, Scale]] = {}
        self.leader: dict[str, VidaLayer] = {}  # whose D is this layer's too; a plain dict, which registers nothing

    def update_layer(self, adapter_name: str, config: VidaConfig, name: str) -> None:
        """Add an adapter: ``D`` from N(0, (1/r²)²), ``U`` zero."""
        for branch, r in zip(BRANCHES, (config.r, config.r_high), strict=True):
            if r:
                make = torch.zeros if config.init_weights else torch.randn
                self._side(branch, "down")[adapter_name] = nn.Parameter(torch.randn(r, self.in_features) / r**2)
                self._side(branch, "up")[adapter_name] = nn.Parameter(make(self.out_features, r))
        self.scaling[adapter_name] = config.scale_low, config.scale_high

    def _side(self, branch: str, side: str) -> nn.ParameterDict:
        return cast(nn.ParameterDict, self.get_submodule(f"vida_{branch}_{side}"))

    def follow(self, leader: VidaLayer, adapter_name: str) -> None:
        """Take ``D`` from another layer instead of one's own."""
        self.leader[adapter_name] = leader
        for branch in BRANCHES:
            if adapter_name in (own := self._side(branch, "down")):
                del own[adapter_name]

    def branches(self, adapter_name: str) -> dict[str, tuple[Tensor, Tensor, Scale]]:
        """``D: (r, in)``, ``U: (out, r)`` and the scale of each branch that there is: ``low``, ``high``."""
        source = self.leader.get(adapter_name, self)
        return {
            branch: (source._side(branch, "down")[adapter_name], self._side(branch, "up")[adapter_name], scale)
            for branch, scale in zip(BRANCHES, self.scaling[adapter_name], strict=True)
            if adapter_name in self._side(branch, "up")
        }

    def base_tensor(self) -> nn.Parameter:
        """The base weight."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``s_low U₁ D₁ + s_high U₂ D₂`` in the base weight's orientation, at the scales of this moment."""
        delta = torch.zeros((), device=self.base_tensor().device)
        for D, U, scale in self.branches(adapter_name).values():
            if isinstance(scale, Tensor):
                raise ValueError(
                    "scales of single pictures cannot be merged into one weight: set_scales with two numbers first"
                )
            wide = torch.promote_types(D.dtype, torch.float32)
            delta = delta + delta_weight(D.to(wide), U.to(wide), scale)
        return delta.mT if self.fan_in_fan_out else delta

    def adapted(self, adapters: list[str], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """``W x + s_low U₁ D₁ x + s_high U₂ D₂ x``, summed over the adapters."""
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in adapters:
            downs, ups, scales = zip(*self.branches(name).values(), strict=True)
            h = F.linear(self._cast_input_dtype(x, downs[0].dtype), torch.cat(downs))
            parts = h.split([len(D) for D in downs], -1)
            h = torch.cat([part * _by_row(s, part) for part, s in zip(parts, scales, strict=True)], -1)
            result = result + F.linear(h, torch.cat(ups, 1).to(h.dtype))
        return result.to(dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: the delta has rank at most r + r_high."""
        return True


def _by_row(scale: Scale, h: Tensor) -> Scale:
    """A scale as what multiplies ``h``; of one a row, repeated where the batch is several copies of those rows."""
    if not isinstance(scale, Tensor):
        return scale
    times, rest = divmod(len(h), len(scale))
    if rest or not times:
        raise ValueError(f"{len(scale)} scales for a batch of {len(h)} rows")
    return scale.to(h.dtype).repeat(times).view(-1, *[1] * (h.dim() - 1))


class VidaModel(AdapterModel):
    """The tuner: puts the branches in place, and sets their scales.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import VidaConfig
    >>> config = VidaConfig(r=1, r_high=4, target_modules=["0"], init_weights=False)
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 8)), config)
    >>> model.base_model.set_scales(0.9, 1.1)
    >>> model.peft_config["default"].scale_high  # as it is saved
    1.1
    """

    prefix = "vida_"
    tuner_layer_cls = VidaLayer

    @staticmethod
    def default_targets(model: nn.Module) -> list[str]:
        """Every projection of the attention blocks."""
        return target_modules(model, "attention")

    def check_target(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """A target is a linear layer that its parent calls."""
        check_linear(self, "ViDA", name, module, parent)

    def prepare(self, adapter_name: str, config: VidaConfig, found: dict[str, nn.Module]) -> None:
        """Refuse ``fuse_qkv`` where it would do nothing, or half of what it says."""
        if not config.fuse_qkv:
            return
        triples = _triples(found)
        for triple in triples:
            sides = {_get_in_out_features(found[name])[0] for name in triple if name in found}
            if len(sides) > 1 or not all(name in found for name in triple):
                raise ValueError(
                    f"fuse_qkv=True shares D among {', '.join(n.rpartition('.')[2] for n in triple)}: all three must "
                    f"be targeted and read the same width, which is not so at {triple[0].rpartition('.')[0]}"
                )
        if not triples and not any(name.rpartition(".")[2] in FUSED for name in found):
            raise ValueError("fuse_qkv=True has no effect: no target is a query's, key's or value's projection")

    def _post_injection_hook(self, model: nn.Module, config: VidaConfig, adapter_name: str) -> None:
        """The key's and the value's layer take the query's ``D``."""
        if config.fuse_qkv:
            mine = {n: m for n, m in model.named_modules() if isinstance(m, VidaLayer) and adapter_name in m.scaling}
            for query, *others in _triples(mine):
                for name in others:
                    mine[name].follow(mine[query], adapter_name)

    def set_scales(self, low: Scale, high: Scale, *, adapter_name: str | None = None) -> None:
        """Set ``s_low`` and ``s_high`` of every layer of an adapter.

        Parameters
        ----------
        low, high : float or Tensor
            Numbers, which are saved with the adapter; or one a row of the batch, ``(batch,)``, for forward passes over
            these rows, or over copies of all of them one after another.
        adapter_name : str, optional
            The active one by default.

        Raises
        ------
        ValueError
            The adapter is merged, at other scales.
        """
        name = adapter_name or self.active_adapters[0]
        layers = [m for m in self.model.modules() if isinstance(m, VidaLayer) and name in m.scaling]
        if any(name in layer.merged_adapters for layer in layers):
            raise ValueError(f"adapter '{name}' is merged at its scales: unmerge it before they are set")
        for layer in layers:
            layer.scaling[name] = low, high
        if not isinstance(low, Tensor) and not isinstance(high, Tensor):
            # a copy, which is this model's alone: the configuration may serve another adapter
            self.peft_config[name] = config = copy.copy(self.peft_config[name])
            config.scale_low, config.scale_high = float(low), float(high)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Within the block the active adapters are in the weights, at their present scales: passes cost what the base
        costs.

        For passes without gradients. At its end the weights are what they were, bit for bit.
        """
        kept: list[tuple[VidaLayer, Tensor]] = []
        try:
            for layer in (m for m in self.model.modules() if isinstance(m, VidaLayer) and m.working()):
                kept.append((layer, layer.base_tensor().data))
                layer.merge()
            yield
        finally:
            for layer, weight in kept:
                layer.base_tensor().data = weight
                layer.merged_adapters.clear()


def _triples(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Query, key and value of every block of which at least one is named, as full names."""
    found: dict[tuple[str, ...], None] = {}
    for name in names:
        parent, dot, last = name.rpartition(".")
        for triple in TRIPLES:
            if last in triple:
                found[tuple(f"{parent}{dot}{part}" for part in triple)] = None
    return list(found)
