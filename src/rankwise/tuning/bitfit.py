"""BitFit: train the biases and nothing else.

Every bias ``b`` of the model becomes ``b + δ`` with a trained ``δ`` that starts at zero:

    y = W x + (b + δ)          (linear layers)
    y = γ x̂ + (β + δ)          (layer norms)

about one parameter in a thousand. Source: Ben Zaken, Ravfogel & Goldberg, "BitFit", ACL 2022, arXiv 2106.10199.

What people get wrong: many decoders (Llama's family) have no biases at all, so there is nothing for BitFit to train.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from rankwise.tuning import registration as _registration  # noqa: F401  (PeftType.BITFIT must exist)
from rankwise.tuning.injection import matched_modules, replace_module


@dataclass
class BitFitConfig(PeftConfig):
    """Configuration of bias-only fine-tuning.

    Parameters
    ----------
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT; without ``target_modules``, every module of the model's blocks that has a bias.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules whose bias is trained"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to leave"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layer indices"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the layer list"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


def biased_modules(model: nn.Module) -> dict[str, Tensor]:
    """The biases BitFit trains by default: of every module inside the model's repeated blocks, by module name."""
    return {
        name: module.bias
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter) and any(p.isdigit() for p in name.split("."))
    }


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A module whose bias has a trained offset."""

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str) -> None:
        """Add an adapter with offset zero, in float32."""
        bias = self.get_base_layer().bias
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros(bias.shape, device=bias.device))
        self.set_adapter(self.active_adapters)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the offsets to the base bias; with ``safe_merge``, only if the sum is finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.bitfit_bias:
                merged = self.get_base_layer().bias.data + self.bitfit_bias[name].data.to(self.bias.dtype)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"merging adapter '{name}' gives biases that are not finite")
                self.get_base_layer().bias.data = merged
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what was merged."""
        while self.merged_adapters:
            self.get_base_layer().bias.data -= self.bitfit_bias[self.merged_adapters.pop()].data.to(self.bias.dtype)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(*args, **kwargs)
        if not (self.disable_adapters or self.merged):
            for name in self.active_adapters:
                if name in self.bitfit_bias:
                    result = result + self.bitfit_bias[name].to(result.dtype)
        return result


class BitFitModel(BaseTuner):
    """The tuner: wraps every module that has a bias."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict) -> BitFitConfig:
        if peft_config.target_modules is None:
            names = set(biased_modules(self.model))
            if not names:
                raise ValueError("BitFit trains biases and this model has none; use a low-rank method instead")
            peft_config.target_modules = names  # type: ignore[assignment]
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Check that every target has a bias, then inject."""
        for name, module in matched_modules(self, model, self.peft_config[adapter_name]).items():
            if not isinstance(getattr(module, "bias", None), nn.Parameter):
                raise ValueError(f"BitFit trains biases and the targeted module {name} has none")
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs):
        if not isinstance(target, BitFitLayer):
            wrapped = target
            target = BitFitLayer(wrapped)
            target._active_adapter = self.active_adapters
            replace_module(parent, target_name, target, wrapped)
        target.update_layer(adapter_name)
