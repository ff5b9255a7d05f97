"""What rankwise's PEFT types share: layers that add something to a base tensor, and the tuner that puts them in place.

A type's file says what it adds and where; switching, merging, mixed batches and refusals are here, once.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.nearest import unknown
from rankwise.tuning.injection import TargetedConfig, matched_modules

BASE = "__base__"  # PEFT's name for no adapter in a mixed batch
# modules that use their children's weights without calling them (always, or in evaluation)
READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A layer whose adapters each add `get_delta_weight` to one tensor of the base layer.

    Attributes of the base layer that the adapter does not have are the base layer's.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import BitFitConfig
    >>> from rankwise.tuning.adapters import AdapterLayer
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), BitFitConfig())
    >>> sum(isinstance(m, AdapterLayer) for m in model.modules())  # every module of the block that has a bias
    8
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @abstractmethod
    def update_layer(self, adapter_name: str, config: TargetedConfig, name: str) -> None:
        """Add an adapter to the layer called ``name``."""

    @abstractmethod
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What the adapter adds to `base_tensor`, in its orientation."""

    @abstractmethod
    def base_tensor(self) -> nn.Parameter:
        """The parameter of the base layer that adapters add to."""

    @abstractmethod
    def adapted(self, adapters: list[str], *args: object, **kwargs: object) -> Tensor:
        """The layer's output with these adapters (which it has) added to the base layer."""

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        active = self.working()
        if adapter_names is not None:
            return self._mixed(adapter_names, *args, **kwargs)
        return self.adapted(active, *args, **kwargs)

    def working(self) -> list[str]:
        """The adapters that a forward pass adds; where adapters are disabled, what was merged is taken out first."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return [] if self.disable_adapters or self.merged else self._present(self.active_adapters)

    def _mixed(self, adapter_names: list[str], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Every row with its own adapter."""
        if self.merged:
            raise ValueError("adapter_names with merged adapters: unmerge them first (unmerge_adapter)")
        result = None
        for name in dict.fromkeys(adapter_names):
            rows = [i for i, n in enumerate(adapter_names) if n == name]
            part = self.adapted(self._present([name]), x[rows], *args, **kwargs)
            if result is None:
                result = part.new_empty(len(x), *part.shape[1:])
            result[rows] = part
        assert result is not None
        return result

    def _present(self, names: Iterable[str]) -> list[str]:
        mine = self._get_available_adapters()
        return [n for n in names if n in mine]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base tensor; with ``safe_merge``, only while the sum is finite."""
        for name in self._present(check_adapters_to_merge(self, adapter_names)):
            base = self.base_tensor()
            if not base.is_floating_point():
                raise TypeError("the base layer is quantised: export the adapter instead of merging it")
            merged = self._sum(base, self.get_delta_weight(name))
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"merging adapter '{name}' gives weights that are not finite")
            base.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what was merged: the base tensor returns to within one rounding of its dtype."""
        base = self.base_tensor()
        while self.merged_adapters:
            base.data = self._sum(base, -self.get_delta_weight(self.merged_adapters.pop()))

    @staticmethod
    def _sum(base: nn.Parameter, delta: Tensor) -> Tensor:
        wide = torch.promote_types(base.dtype, torch.float32)
        return (base.data.to(wide) + delta.detach().to(wide)).to(base.dtype)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class AdapterModel(BaseTuner):
    """A tuner that checks its targets before it changes the model, and serves mixed batches.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import BitFitConfig
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), BitFitConfig()).eval()
    >>> texts = torch.tensor([[5, 6, 7], [5, 6, 7]])  # the first with the adapter, the second without
    >>> model(input_ids=texts, adapter_names=["default", "__base__"]).last_hidden_state.shape
    torch.Size([2, 3, 16])
    """

    peft_config: dict[str, Any]  # by adapter name; whatever the method's configuration is
    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    @staticmethod
    @abstractmethod
    def default_targets(model: nn.Module) -> Iterable[str]:
        """Names of the layers adapted where the configuration names none."""

    @abstractmethod
    def check_target(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Raise, by name, for a layer that this method cannot adapt."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Find and check the targets, then put the layers in."""
        config = self.peft_config[adapter_name]
        found = matched_modules(model, _as_given(config), self.default_targets)
        for name, module in found.items():
            self.check_target(name, module, model.get_submodule(name.rpartition(".")[0]))
        _take(config, set(found))
        self.prepare(adapter_name, config, found)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            self.forget(adapter_name)
            raise

    def _prepare_adapter_config(self, peft_config: TargetedConfig, model_config: dict) -> TargetedConfig:
        return copy.copy(peft_config)  # PEFT shortens long lists of targets in place

    def prepare(self, adapter_name: str, config: TargetedConfig, found: dict[str, nn.Module]) -> None:
        """What a method makes for all layers together, before they are put in."""

    def forget(self, adapter_name: str) -> None:
        """The inverse of `prepare`."""

    def new_layer(self, base_layer: nn.Module) -> AdapterLayer:
        """The method's layer around another, without adapters."""
        return self.tuner_layer_cls(base_layer)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs):
        if not isinstance(target, self.tuner_layer_cls):
            layer = self.new_layer(target)
            layer._active_adapter = self.active_adapters
            layer.train(target.training)
            setattr(parent, target_name, layer)
            target = layer
        target.update_layer(adapter_name, peft_config, current_key)
        target._move_adapter_to_device_of_base_layer(adapter_name)
        target.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs) -> Iterator[None]:
        """Pass ``adapter_names``, one a row of the batch, to every layer for the length of a forward pass."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_mixed(names)
        copies = {1, _copies(self.model, kwargs)}

        def add_names(module: nn.Module, given: tuple, options: dict) -> tuple[tuple, dict]:
            times, rest = divmod(len(given[0]), len(names))
            if rest or times not in copies:
                raise ValueError(f"{len(names)} adapter_names for a batch of {len(given[0])} rows")
            return given, options | {"adapter_names": [n for n in names for _ in range(times)]}

        layers = [m for m in self.model.modules() if isinstance(m, AdapterLayer | AuxiliaryTrainingWrapper)]
        handles = [m.register_forward_pre_hook(add_names, with_kwargs=True) for m in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_mixed(self, names: list[str]) -> None:
        if self.training:
            raise ValueError("adapter_names mixes adapters in a batch for inference: call eval() first")
        for name in [*names] or [""]:
            if name != BASE and name not in self.peft_config:
                raise unknown("adapter", name, [*self.peft_config, BASE])
        for name, module in self.model.named_modules():
            if isinstance(module, READERS) and any(isinstance(c, AdapterLayer) for c in module.children()):
                raise ValueError(f"adapter_names: {name} ({type(module).__name__}) cannot mix adapters in a batch")


def check_linear(tuner: BaseTuner, called: str, name: str, module: nn.Module, parent: nn.Module) -> None:
    """Raise, by name, for a target that is no linear layer, or one that its parent does not call."""
    if not isinstance(module, nn.Linear | Conv1D) and not hasattr(module, "in_features"):
        raise TypeError(f"{called} adapts linear layers; {name} is a {type(module).__name__}")
    if isinstance(parent, READERS):
        raise TypeError(
            f"{name} cannot be adapted: {type(parent).__name__} reads its weight without calling it; leave it out "
            "of target_modules"
        )
    # PEFT's own refusal, for Mamba's fused kernels, asks for the type: these are as LoRA there
    tuner._check_target_module_compatiblity(LoraConfig(), tuner.model, name.rpartition(".")[2])


def _as_given(config: TargetedConfig) -> TargetedConfig:
    """The configuration as its owner wrote it, where `_take` has filled its targets in."""
    given = copy.copy(config)
    filled, asked = vars(config).get("_filled", (None, None))
    if filled is not None and config.target_modules == filled:
        given.target_modules = asked
    return given


def _take(config: TargetedConfig, names: set[str]) -> None:
    """Write the names of the targets into a configuration that leaves them open, once.

    Raises
    ------
    ValueError
        It has been given to an adapter on other layers: both would be saved with the same names.
    """
    asked = _as_given(config).target_modules
    if "_filled" in vars(config) and asked != config.target_modules and names != config.target_modules:
        raise ValueError("this configuration belongs to an adapter on other layers; make one for every adapter")
    if asked is None or str(asked).lower() == "all-linear":
        config.target_modules = cast("list[str]", names)  # PEFT keeps them as a set
        vars(config)["_filled"] = names, asked  # no field: it is not saved


def _copies(model: nn.Module, options: dict) -> int:
    """How many rows `generate` makes of each: beams, or the sequences asked for."""
    settings = options.get("generation_config") or getattr(model, "generation_config", None)
    wanted = [options.get(n, getattr(settings, n, None)) for n in ("num_beams", "num_return_sequences")]
    return max([1, *(int(n) for n in wanted if n)])
