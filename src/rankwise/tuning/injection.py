"""Which layers an adapter goes to: PEFT's options, read once for all of rankwise's methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from peft.config import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankwise.models.targets import plain_modules
from rankwise.nearest import unknown


@dataclass
class TargetedConfig(PeftConfig):
    """The options by which PEFT's methods choose layers, with PEFT's meaning and PEFT's refusals.

    Parameters
    ----------
    target_modules, exclude_modules : list of str or str, optional
        Names or ends of names, a regular expression, or ``all-linear``.
    layers_to_transform, layers_pattern : optional
        Indices of the blocks to adapt, and the name of the list of blocks; not beside a regular expression.
    modules_to_save : list of str, optional
        Other modules to train whole and save.
    init_weights : bool
        ``False`` starts from random values instead of the base model: for tests.

    Examples
    --------
    >>> from rankwise.tuning import BitFitConfig, S2LoraConfig
    >>> sorted(S2LoraConfig(target_modules=["query", "value"]).target_modules)
    ['query', 'value']
    >>> BitFitConfig(target_modules="all-linear", layers_pattern="layer")
    Traceback (most recent call last):
    ValueError: layers_pattern='layer' has no effect on target_modules='all-linear'; name the layers in a list
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect on target_modules='{self.target_modules}'; "
                    "name the layers in a list"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} has no effect without layers_to_transform")


def matched_modules(
    model: nn.Module, config: PeftConfig, default: Callable[[nn.Module], Iterable[str]]
) -> dict[str, nn.Module]:
    """Base layers that ``config`` targets, by name, in the model's order, whether or not they have adapters already.

    Parameters
    ----------
    default : callable
        Names of the targets of a model, where the configuration has none; its other options choose among them.

    Raises
    ------
    ValueError
        No layer matches; the nearest layer names are offered.
    """
    modules = dict(plain_modules(model))
    found = {n: modules[n] for n in _names(model, modules, config, default)}
    if found:
        return found
    targets = vars(config)["target_modules"]
    if targets is None:
        options = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
        given = ", ".join(f"{o}={v!r}" for o in options if (v := getattr(config, o, None)) is not None)
        raise ValueError(f"{given or 'the default'} leaves no layer of {type(model).__name__} to adapt")
    seen = targets if isinstance(targets, str) else ", ".join(sorted(targets)[:5])
    layers = [n for n, m in modules.items() if n and hasattr(m, "weight")]
    raise unknown("target module", seen, {n.rsplit(".", 1)[-1] for n in layers} | set(layers[-40:]))


def _names(model: nn.Module, modules: dict[str, nn.Module], config: PeftConfig, default: Callable) -> list[str]:
    targets = vars(config)["target_modules"]
    if targets is None:
        return [n for n in default(model) if _left(config, n)]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return [n for n in all_linear(model, modules, config.task_type) if _left(config, n)]
    return [n for n in modules if n and check_target_module_exists(config, n)]


def _left(config: PeftConfig, name: str) -> bool:
    """Whether a default target survives the other options, at which PEFT looks only where given an end of a name."""
    probe = copy.copy(config)
    vars(probe)["target_modules"] = {name.rpartition(".")[2]}
    return bool(check_target_module_exists(probe, name))


def all_linear(model: nn.Module, modules: dict[str, nn.Module], task_type: str | None) -> list[str]:
    """PEFT's ``all-linear``: every linear layer but the output layer, or but the head of a classifier."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    heads = set()
    if output is not None:
        heads = {n for n, m in modules.items() if m is dict(plain_modules(output))[""]}
    elif isinstance(model, PreTrainedModel) and task_type == "SEQ_CLS":
        heads = {n for n in SEQ_CLS_HEAD_NAMES if hasattr(model, n)}
    return [n for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and n not in heads]
