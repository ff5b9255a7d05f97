"""What to merge, in mergekit's YAML conventions.

    merge_method: ties
    base_model: smollm2
    models:
      - model: runs/a                    # a folder, a hub id, a bundled name, or base+adapter
        parameters: {weight: 1.0, density: [0.2, 0.5]}        # a gradient over the layers
      - model: runs/b
        parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1.0}]}
    parameters: {normalize: true, lambda: 1.0}
    dtype: bfloat16
    tokenizer_source: union

``slices`` with ``layer_range`` stack layers of several models. Not read: ``modules``, ``tokenizer``, and methods that
only mergekit has; each is answered with an error that says so. What differs: arithmetic is in float32 whatever
``dtype`` says (it is the dtype of what is written), and options that are left out have the papers' defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from rankwise.merging.registry import MergeMethod, Scalar, find
from rankwise.nearest import unknown
from rankwise.reading import read_yaml

Value: TypeAlias = Scalar | list[Scalar]
Setting: TypeAlias = Value | list[dict[str, Value]] | dict[str, Value]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_ALIASES = {"lambda": "scale"}
_IGNORED = {"int8_mask"}  # mergekit's memory saving; here there are no masks to store
_NOT_READ = {
    "modules": "models with several modules are not merged here",
    "tokenizer": "use tokenizer_source: base, union or a model",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        if not isinstance(data, dict):
            raise ValueError(f"a mapping is needed, not {data!r}")
        for key in data:
            if key in _NOT_READ and key not in cls.model_fields:
                raise ValueError(f"'{key}' is not read: {_NOT_READ[key]}")
            if key not in cls.model_fields:
                raise unknown("key", str(key), cls.model_fields)
        return data


class Input(_Strict):
    """A model, and its own parameters."""

    model: str
    parameters: dict[str, Setting] = {}


class SliceInput(Input):
    """Layers ``[first, last)`` of a model."""

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _some(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"layer_range {list(value)} holds no layer")
        return value


class Slice(_Strict):
    """Output layers, merged from equally many layers of several models."""

    sources: list[SliceInput]
    parameters: dict[str, Setting] = {}

    @field_validator("sources")
    @classmethod
    def _equal(cls, value: list[SliceInput]) -> list[SliceInput]:
        lengths = {s.layer_range[1] - s.layer_range[0] for s in value}
        if len(lengths) != 1:
            raise ValueError(f"the sources of a slice have {sorted(lengths)} layers; the same number is needed")
        return value


class MergeConfig(_Strict):
    """A merge.

    Attributes
    ----------
    merge_method : str
        A name of `rankwise.merging.METHODS`.
    base_model : str, optional
        What the task vectors are taken against.
    models, slices : list
        Exactly one: whole models, or stacked layers.
    parameters : dict
        For all models; a model's own come first.
    dtype, out_dtype : str, optional
        Of what is written (``out_dtype`` wins): float32, bfloat16, float16; by default the base's, tensor by tensor.
    tokenizer_source : str, optional
        ``base``, ``union``, or a model: vocabularies may differ then.
    chat_template : str, optional
        A Jinja template to write.
    seed : int
        Of methods that draw at random.
    """

    merge_method: str
    base_model: str | None = None
    models: list[Input] | None = None
    slices: list[Slice] | None = None
    parameters: dict[str, Setting] = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        method = find(self.merge_method)
        if (self.models is None) == (self.slices is None):
            raise ValueError("give exactly one of models and slices")
        if not (self.models or self.slices):
            raise ValueError("the list of models is empty: there is nothing to merge")
        if method.needs_base and self.base_model is None:
            raise ValueError(f"{self.merge_method} works on what was learned since a base: base_model is needed")
        for name in (self.dtype, self.out_dtype):
            if name is not None and name not in DTYPES:
                raise unknown("dtype", name, DTYPES)
        if self.chat_template is not None and "{" not in self.chat_template:
            raise ValueError(f"chat_template '{self.chat_template}': a Jinja template is needed")
        for group in self.groups:
            experts = self.experts(group)
            least = max(1, method.least)
            if len(experts) < least:
                raise ValueError(f"{method.name} needs at least {least} models besides the base, not {len(experts)}")
            for source in (*(e.parameters for e in group.sources), group.parameters, self.parameters):
                for key in source:
                    if _ALIASES.get(key, key) not in method.parameters and key not in _IGNORED:
                        accepted = [*method.parameters, "lambda"] if "scale" in method.parameters else method.parameters
                        raise unknown(f"parameter of {self.merge_method}", key, accepted)
        return self

    @property
    def groups(self) -> list[_Group]:
        """The slices; whole models are one slice of all layers."""
        if self.slices is not None:
            return [_Group(list(s.sources), s.parameters) for s in self.slices]
        return [_Group(list(self.models or ()), {})]

    def experts(self, group: _Group) -> list[Input]:
        """The inputs that are merged: all but the base, which methods without a base take like any other."""
        needs_base = find(self.merge_method).needs_base
        return [s for s in group.sources if not (needs_base and s.model == self.base_model)]

    @property
    def references(self) -> list[str]:
        """Every model that is read, each once, the base first."""
        listed = [s.model for g in self.groups for s in g.sources]
        base = [self.base_model] if self.base_model is not None else []
        return list(dict.fromkeys([*base, *listed]))

    def options(self, method: MergeMethod, group: _Group, name: str, t: float) -> dict[str, object]:
        """The method's options for one tensor.

        Parameters
        ----------
        method : MergeMethod
        group : group of models
        name : str
            Of the tensor, for filters.
        t : float
            Where its layer lies in the slice, 0 for the first and 1 for the last; for gradients.
        """
        experts = self.experts(group)
        out: dict[str, object] = {}
        for key, parameter in method.parameters.items():
            shared = (group.parameters, self.parameters)
            if parameter.per_model:
                found = [_first(key, (e.parameters, *shared), name, t) for e in experts]
                if any(v is not None for v in found):
                    out[key] = [parameter.default if v is None else v for v in found]
            else:
                value = _first(key, shared, name, t)
                if value is not None:
                    out[key] = value
        return out


class _Group:
    def __init__(self, sources: Sequence[Input], parameters: Mapping[str, Setting]) -> None:
        self.sources, self.parameters = sources, parameters


def read(path: Path) -> MergeConfig:
    """A configuration file, by YAML's safe loader.

    Raises
    ------
    ValueError
        Not YAML, unknown keys (the nearest is offered), values out of range.
    """
    return parse(read_yaml(path), str(path))


def parse(loaded: object, where: str = "the configuration") -> MergeConfig:
    """A configuration from what YAML gave."""
    try:
        return MergeConfig.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(x) for x in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {place + ': ' if place else ''}{said}") from error


def _first(key: str, settings: Sequence[Mapping[str, Setting]], name: str, t: float) -> Scalar | None:
    names = [k for k, v in _ALIASES.items() if v == key] + [key]
    for setting in settings:
        for alias in names:
            if alias in setting:
                value = _at(setting[alias], name, t)
                if value is not None:
                    return value
    return None


def _at(setting: Setting, name: str, t: float) -> Scalar | None:
    """A setting's value for one tensor: a number, a gradient over the layers, or the first filter that matches."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if setting and all(isinstance(x, dict) for x in setting):
        for condition in setting:
            assert isinstance(condition, dict)
            if "value" not in condition or set(condition) - {"filter", "value"}:
                raise ValueError(f"{condition}: a condition has 'value' and, if any, 'filter'")
            wanted = condition.get("filter")
            if wanted is None or wanted == "*" or str(wanted) in name:
                return _at(condition["value"], name, t)
        return None
    if not setting:
        return None
    if not all(isinstance(x, float | int) and not isinstance(x, bool) for x in setting):
        return setting[int(t * (len(setting) - 1))]  # type: ignore[return-value]
    position = t * (len(setting) - 1)
    low = int(position)
    high = min(len(setting) - 1, low + 1)
    return (1 - (position - low)) * float(setting[low]) + (position - low) * float(setting[high])  # type: ignore[arg-type]
