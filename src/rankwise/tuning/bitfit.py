"""BitFit: train the biases and nothing else.

Every bias ``b`` of the model becomes ``b + δ`` with a trained ``δ`` that starts at zero:

    y = W x + (b + δ)          (linear layers)
    y = γ x̂ + (β + δ)          (layer norms)

and in the same way of any other module with a parameter called ``bias``: convolutions, batch norms, routers. About one
parameter in a thousand. Source: Ben Zaken, Ravfogel & Goldberg, "BitFit", ACL 2022, arXiv 2106.10199.

What people get wrong: many decoders (Llama's family) have no biases at all, so there is nothing for BitFit to train.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftType
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.models.targets import plain_modules
from rankwise.tuning import peft_types as _peft_types  # noqa: F401  (PeftType.BITFIT must exist)
from rankwise.tuning.adapters import AdapterLayer, AdapterModel
from rankwise.tuning.injection import TargetedConfig

__all__ = ["BitFitConfig"]


@dataclass
class BitFitConfig(TargetedConfig):
    """Configuration of bias-only fine-tuning.

    Parameters
    ----------
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT; without ``target_modules``, every module of the model's blocks that has a parameter ``bias``. Biases
        under other names (``in_proj_bias``) are not trained, and a warning names them.
    init_weights : bool
        ``False`` starts from random offsets instead of the base model: for tests.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import BitFitConfig
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), BitFitConfig())
    >>> model.get_nb_trainable_parameters()[0]  # 7 biases of 16 and one of 32 a block
    288
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]


def biased_modules(model: nn.Module) -> dict[str, Tensor]:
    """The biases BitFit trains by default: of every module inside the model's repeated blocks, by module name.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning.bitfit import biased_modules
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> len(biased_modules(BertModel(config)))
    8
    """
    return {
        name: bias
        for name, module in plain_modules(model)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter) and any(p.isdigit() for p in name.split("."))
    }


class BitFitLayer(AdapterLayer):
    """A module whose bias has a trained offset.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import BitFitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), BitFitConfig(target_modules=["0"]))
    >>> layer = model.base_model.model[0]
    >>> layer.bitfit_bias["default"].shape, torch.equal(layer.bias, layer.base_layer.bias)
    (torch.Size([3]), True)
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_bias = nn.ParameterDict()
        with warnings.catch_warnings():  # PEFT warns of modules whose sides it does not know
            warnings.simplefilter("ignore")
            sides = _get_in_out_features(self.get_base_layer())
        self.in_features, self.out_features = (s or self.base_tensor().numel() for s in sides)

    def update_layer(self, adapter_name: str, config: TargetedConfig, name: str) -> None:
        """Add an adapter with offset zero."""
        make = torch.zeros if config.init_weights else torch.randn
        self.bitfit_bias[adapter_name] = nn.Parameter(make(self.base_tensor().shape))

    def base_tensor(self) -> nn.Parameter:
        """The base bias."""
        return cast(nn.Parameter, self.get_base_layer().bias)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The offset δ."""
        return self.bitfit_bias[adapter_name]

    @property
    def bias(self) -> Tensor:
        """``b + δ`` of the active adapters, for modules that read a child's bias instead of calling the child."""
        return self._shifted(self.working())

    def adapted(self, adapters: list[str], *args: object, **kwargs: object) -> Tensor:
        """The module's own output with the shifted bias: right wherever the bias goes."""
        if adapters and not isinstance(self.base_layer, nn.Linear | nn.LayerNorm | Conv1D):
            return torch.func.functional_call(self.base_layer, {"bias": self._shifted(adapters)}, args, kwargs)
        result = self.base_layer(*args, **kwargs)
        for name in adapters:  # these add their bias last: so can the offset be
            result = result + self.bitfit_bias[name].to(result.dtype)
        return result

    def _shifted(self, adapters: Iterable[str]) -> Tensor:
        bias = self.base_tensor()
        return sum((self.bitfit_bias[n].to(bias.dtype) for n in adapters), start=bias)


class BitFitModel(AdapterModel):
    """The tuner: wraps every module that has a bias.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import BitFitConfig
    >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), BitFitConfig(target_modules=["0"]))
    >>> type(model.base_model).__name__, type(model.merge_and_unload()[0]).__name__
    ('BitFitModel', 'Linear')
    """

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    @staticmethod
    def default_targets(model: nn.Module) -> list[str]:
        """Every module with a bias in the model's blocks."""
        found = list(biased_modules(model))
        if not found:
            raise ValueError("BitFit trains biases and this model has none; use a low-rank method instead")
        left = [
            f"{name}.{p}"
            for name, module in plain_modules(model)
            for p, _ in module.named_parameters(recurse=False)
            if p.endswith("_bias")
        ]
        if left:
            shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            warnings.warn(f"BitFit trains parameters called bias; it leaves {shown}", stacklevel=2)
        return found

    def check_target(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """A target needs a parameter called ``bias``."""
        if not isinstance(getattr(module, "bias", None), nn.Parameter):
            raise ValueError(f"BitFit trains biases and the targeted module {name} has none")
