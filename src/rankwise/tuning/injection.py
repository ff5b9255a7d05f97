"""What rankwise's PEFT tuners share: finding target layers, and swapping them for tuner layers."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn

from rankwise.nearest import unknown


def matched_modules(tuner: BaseTuner, model: nn.Module, config: PeftConfig) -> dict[str, nn.Module]:
    """Base layers that ``config`` targets, by name, in the model's order, before or after earlier injections.

    Raises
    ------
    ValueError
        No layer matches; the nearest layer names are offered.
    """
    config = tuner._prepare_adapter_config(config, tuner.get_model_config(model))
    config = _maybe_include_all_linear_layers(config, model)
    found: dict[str, nn.Module] = {}
    wrapped: list[str] = []
    candidates = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(w) for w in wrapped):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped.append(name + ".")
            module = module.get_base_layer()
        if hasattr(module, "weight"):
            candidates.append(name)
        if tuner._check_target_module_exists(config, name):
            found[name] = module
    if not found:
        seen = (
            str(config.target_modules)
            if isinstance(config.target_modules, str)
            else ", ".join(sorted(config.target_modules or [])[:5])
        )
        raise unknown("target module", seen, {c.rsplit(".", 1)[-1] for c in candidates} | set(candidates[-40:]))
    return found


def replace_module(parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
    """Put a tuner layer where the layer it wraps was (the wrapped layer keeps its device)."""
    setattr(parent, child_name, new_module)
    new_module.train(child.training)
