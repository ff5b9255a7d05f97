"""What to merge, in mergekit's YAML conventions.

    merge_method: ties
    base_model: smollm2
    models:
      - model: runs/a                    # a folder, a hub id (owner/model@revision), a bundled name, or base+adapter
        parameters: {weight: 1.0, density: [0.2, 0.5]}        # a gradient over the layers
      - model: runs/b
        parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1.0}]}
    parameters: {normalize: true, lambda: 1.0}
    dtype: bfloat16
    tokenizer: {source: union}
    chat_template: auto
    ignore: ["^classifier"]              # ours: tensors to leave out

``slices`` with ``layer_range`` stack layers of several models. What is not read (``modules``, a base a slice, methods
that only mergekit has) is answered with an error that says what to do instead. What differs: arithmetic is in float32
whatever ``dtype`` says (it is the dtype of what is written), and options that are left out have the papers' defaults,
which the merge notes where they are not mergekit's.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankwise.merging.engine.templates import TEMPLATES
from rankwise.merging.registry import MergeMethod, Parameter, Scalar, find
from rankwise.nearest import unknown
from rankwise.reading import read_yaml

__all__ = ["MergeConfig"]

Value: TypeAlias = Scalar | list[Scalar]
Setting: TypeAlias = Value | list[dict[str, Value]] | dict[str, Value]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_IGNORED = {"int8_mask"}  # mergekit's memory saving; here there are no masks to store
_NOT_READ = {
    "modules": "models with several modules are merged whole: write models",
    "residual_weight": "leave it out (mergekit does not use it either)",
    "override_architecture": "the architecture is that of config.json; change it there",
    "name": "the result is named by --out; documents that build on each other are merged one after the other",
    "random_seed": "write seed",
    "out_shard_size": "write --shard-size on the command line",
}
_BESIDE = ("weight", "density", "revision")  # what people write beside ``model`` instead of in its parameters


def spelled(value: object) -> object:
    """A model in one string, ``model@revision+adapter@revision``, from that or from mergekit's mapping of its parts."""
    if not isinstance(value, Mapping):
        return value
    parts: dict[str, Any] = {str(k): v for k, v in value.items()}
    for key in parts:
        if key in _NOT_READ:
            raise ValueError(f"'{key}' is not read: {_NOT_READ[key]}")
        if key not in ("model", "path", "lora", "revision"):
            raise unknown("key of a model", key, ("model", "path", "lora", "revision"))
    model = spelled(parts.get("model", parts.get("path")))
    if not isinstance(model, str):
        raise ValueError(f"{reprlib.repr(value)} names no model: 'path' is needed")
    model += f"@{parts['revision']}" if parts.get("revision") else ""
    return f"{model}+{spelled(parts['lora'])}" if parts.get("lora") else model


Reference = Annotated[str, BeforeValidator(spelled)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        if not isinstance(data, dict):
            raise ValueError(f"a mapping is needed, not {reprlib.repr(data)}")
        for key in data:
            if key in _NOT_READ and key not in cls.model_fields:
                raise ValueError(f"'{key}' is not read: {_NOT_READ[key]}")
            if key not in cls.model_fields and not (key in _BESIDE and "model" in cls.model_fields):
                raise unknown("key", str(key)[:80], cls.model_fields)
        return data


class Input(_Strict):
    """A model, and its own parameters.

    Examples
    --------
    >>> from rankwise.merging import MergeConfig
    >>> models = [{"model": "owner/one", "weight": 0.3}, {"model": "owner/two"}]
    >>> config = MergeConfig(merge_method="linear", models=models)
    >>> config.models[0].model, config.models[0].parameters
    ('owner/one', {'weight': 0.3})
    """

    model: Reference
    parameters: dict[str, Setting] = {}

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, data: object) -> object:
        """What stands beside ``model`` is moved to where it belongs."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "revision" in data:
            data["model"] = spelled({"model": data.get("model"), "revision": data.pop("revision")})
        moved = {k: data.pop(k) for k in _BESIDE if k in data}
        if moved:
            data["parameters"] = moved | dict(data.get("parameters") or {})
        return {k: v for k, v in data.items() if k != "parameters" or v is not None}


class SliceInput(Input):
    """Layers ``[first, last)`` of a model.

    Examples
    --------
    >>> from rankwise.merging.engine.config import SliceInput
    >>> SliceInput(model="owner/one", layer_range=[0, 8]).layer_range
    (0, 8)
    """

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _some(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"layer_range {list(value)} holds no layer")
        return value


class Slice(_Strict):
    """Output layers, merged from equally many layers of several models.

    Examples
    --------
    >>> from rankwise.merging import MergeConfig
    >>> first = {"sources": [{"model": "owner/one", "layer_range": [0, 8]}]}
    >>> second = {"sources": [{"model": "owner/two", "layer_range": [4, 12]}]}
    >>> config = MergeConfig(merge_method="passthrough", slices=[first, second])
    >>> [piece.sources[0].layer_range for piece in config.slices]
    [(0, 8), (4, 12)]
    """

    sources: list[SliceInput] = Field(min_length=1)
    parameters: dict[str, Setting] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_base(cls, data: object) -> object:
        if isinstance(data, dict) and "base_model" in data:
            raise ValueError("base_model of a slice is not read: give one base_model for the merge")
        return data

    @field_validator("sources")
    @classmethod
    def _equal(cls, value: list[SliceInput]) -> list[SliceInput]:
        lengths = {s.layer_range[1] - s.layer_range[0] for s in value}
        if len(lengths) != 1:
            raise ValueError(f"the sources of a slice have {sorted(lengths)} layers; the same number is needed")
        return value


class TokenSource(_Strict):
    """Where a token's row comes from: zeros, or a token of a model.

    Examples
    --------
    >>> from rankwise.merging.engine.config import TokenSource
    >>> TokenSource(kind="model_token", model="owner/one", token="<|im_end|>").token
    '<|im_end|>'
    """

    kind: str
    model: Reference | None = None
    token: str | None = None
    token_id: int | None = None

    @model_validator(mode="after")
    def _whole(self) -> TokenSource:
        if self.kind not in ("zero", "model_token", "model"):
            raise unknown("kind of token source", self.kind, ("zero", "model_token"))
        if self.kind == "model_token" and (self.model is None or (self.token is None) == (self.token_id is None)):
            raise ValueError("kind: model_token needs a model, and token or token_id")
        return self


def _token_source(value: object) -> object:
    """A model instead of a mapping with ``kind``: that model's row of the same token."""
    if value is None or isinstance(value, TokenSource) or (isinstance(value, Mapping) and "kind" in value):
        return value
    return {"kind": "model", "model": spelled(value)}


class TokenConfig(_Strict):
    """One token: where its row comes from in models that lack it, or, with ``force``, in all.

    Examples
    --------
    >>> from rankwise.merging.engine.config import TokenConfig
    >>> TokenConfig(source="owner/one", force=True).source.kind  # that model's own row, in all models
    'model'
    """

    source: Annotated[TokenSource | None, BeforeValidator(_token_source)] = None
    force: bool = False


class TokenizerConfig(_Strict):
    """Whose tokens the result has, what single tokens mean, and a multiple to which the table is filled up.

    Examples
    --------
    >>> from rankwise.merging.engine.config import TokenizerConfig
    >>> asked = TokenizerConfig(source="union", tokens={"<|im_start|>": {"source": "owner/one"}}, pad_to_multiple_of=64)
    >>> asked.source, list(asked.tokens)
    ('union', ['<|im_start|>'])
    """

    source: Reference = "union"
    tokens: dict[str, TokenConfig] = {}
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=65536)


def _dtype(value: object) -> object:
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and not (isinstance(name, str) and name in DTYPES):
        raise unknown("dtype", str(value)[:80], DTYPES)
    return name


Dtype = Annotated[str | None, BeforeValidator(_dtype)]


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
        Parameters for all models; a model's own come first.
    dtype, out_dtype : str, optional
        Of what is written (``out_dtype`` wins): float32, bfloat16, float16; by default the base's, tensor by tensor.
    tokenizer_source : str, optional
        ``base``, ``union``, or a model: vocabularies may differ then. Short for ``tokenizer: {source: …}``.
    tokenizer : TokenizerConfig, optional
        The same as ``tokenizer_source``, and where rows of single tokens come from.
    chat_template : str, optional
        A Jinja template to write, the name of a known one, or ``auto``: the one that most of the models have.
    ignore : list of str
        Regular expressions; tensors whose names one is found in are left out of the result.
    seed : int
        Decides the draws of methods that draw at random.

    Examples
    --------
    >>> import yaml
    >>> from rankwise.merging import MergeConfig
    >>> text = '''
    ... merge_method: ties
    ... base_model: owner/base
    ... models: [{model: owner/one, parameters: {weight: 0.7}}, {model: owner/two}]
    ... parameters: {density: 0.3}
    ... '''
    >>> MergeConfig.model_validate(yaml.safe_load(text)).references
    ['owner/base', 'owner/one', 'owner/two']
    """

    merge_method: str
    base_model: Reference | None = None
    models: list[Input] | None = None
    slices: list[Slice] | None = None
    parameters: dict[str, Setting] = {}
    dtype: Dtype = None
    out_dtype: Dtype = None
    tokenizer_source: Reference | None = None
    tokenizer: TokenizerConfig | None = None
    chat_template: str | None = None
    ignore: list[str] = []
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: object) -> object:
        """A key with nothing behind it is as good as none."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        method = find(self.merge_method)
        if (self.models is None) == (self.slices is None):
            raise ValueError("give exactly one of models and slices")
        if not (self.models or self.slices):
            raise ValueError("the list of models is empty: there is nothing to merge")
        if method.needs_base and self.base_model is None:
            raise ValueError(f"{self.merge_method} works on what was learned since a base: base_model is needed")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give one of tokenizer and tokenizer_source")
        template = self.chat_template
        if template is not None and template not in (*TEMPLATES, "auto") and "{" not in template:
            raise ValueError(
                f"chat_template '{template[:80]}': a Jinja template is needed, auto, or one of {', '.join(TEMPLATES)}"
            )
        for group in self.groups:
            self._check(method, group)
        return self

    def _check(self, method: MergeMethod, group: Group) -> None:
        experts, least = self.experts(group), max(1, method.least)
        if len(experts) < least or (method.most is not None and len(experts) > method.most):
            number = f"exactly {least}" if method.most == least else f"at least {least}"
            besides = " besides the base" if method.needs_base else ""
            raise ValueError(f"{method.name} needs {number} models{besides}, not {len(experts)}")
        for own in (e.parameters for e in group.sources):
            for key in own:
                if not _parameter(method, key).per_model:
                    raise ValueError(f"{key} is one for the whole merge: write it in `parameters` at the top")
        for key in (*group.parameters, *self.parameters):
            _parameter(method, key)

    @property
    def groups(self) -> list[Group]:
        """The slices; whole models are one slice of all layers."""
        if self.slices is not None:
            return [Group(list(s.sources), s.parameters) for s in self.slices]
        return [Group(list(self.models or ()), {})]

    def experts(self, group: Group) -> list[Input]:
        """The inputs that are merged: all but the base, which methods without a base take like any other."""
        needs_base = find(self.merge_method).needs_base
        return [s for s in group.sources if not (needs_base and s.model == self.base_model)]

    @property
    def references(self) -> list[str]:
        """Every model that is read, each once, the base first."""
        listed = [s.model for g in self.groups for s in g.sources]
        base = [self.base_model] if self.base_model is not None else []
        return list(dict.fromkeys([*base, *listed]))

    @property
    def tokens(self) -> TokenizerConfig | None:
        """``tokenizer``, or what ``tokenizer_source`` is short for."""
        short = self.tokenizer_source
        return self.tokenizer if short is None else TokenizerConfig(source=short)

    @property
    def notes(self) -> list[str]:
        """Where the same file means something else to mergekit, or to a reader."""
        method, notes = find(self.merge_method), []
        for key, parameter in method.parameters.items():
            scopes = [(e.parameters, g.parameters, self.parameters) for g in self.groups for e in self.experts(g)]
            silent = [s for s in scopes if not any(n in p for n in _names(method, key) for p in s)]
            if silent and parameter.theirs not in (None, parameter.default):
                theirs = "true (l1)" if key == "rescale" else parameter.theirs
                notes.append(f"{key} is left out: {parameter.default} is taken, where mergekit takes {theirs}")
        base = [s for g in self.groups for s in g.sources if method.needs_base and s.model == self.base_model]
        if any(s.parameters for s in base):
            notes.append("parameters of the base are not used: it is what the others are compared with")
        if self.base_model is not None and method.name == "linear" and not self._lists_base():
            notes.append(
                "base_model is not among the models: it gives configuration and tokenizer alone, where mergekit would "
                "average it in"
            )
        return notes

    def _lists_base(self) -> bool:
        return all(any(s.model == self.base_model for s in g.sources) for g in self.groups)

    def options(
        self, method: MergeMethod, group: Group, name: str, t: float, inputs: Sequence[str] | None = None
    ) -> dict[str, object]:
        """The method's options for one tensor.

        Parameters
        ----------
        method : MergeMethod
            The method whose options are wanted.
        group : group of models
            The slice that the tensor belongs to.
        name : str
            The tensor's name in the result, for filters.
        t : float
            Where its layer lies in the slice, 0 for the first and 1 for the last; for gradients.
        inputs : sequence of str, optional
            The tensor's name in each expert, for filters of parameters that are the models' own.
        """
        experts = self.experts(group)
        out: dict[str, object] = {}
        for key, parameter in method.parameters.items():
            shared, names = (group.parameters, self.parameters), _names(method, key)
            if parameter.per_model:
                found = [
                    _first(names, parameter, (e.parameters, *shared), n, t)
                    for e, n in zip(experts, inputs or [name] * len(experts), strict=True)
                ]
                if any(v is not None for v in found):
                    out[key] = [parameter.default if v is None else v for v in found]
            else:
                value = _first(names, parameter, shared, name, t)
                if value is not None:
                    out[key] = value
        return out


class Group:
    """The sources of a slice and its parameters.

    Examples
    --------
    >>> from rankwise.merging import MergeConfig
    >>> config = MergeConfig(merge_method="linear", models=[{"model": "owner/one"}, {"model": "owner/two"}])
    >>> (group,) = config.groups  # whole models are one slice
    >>> [source.model for source in group.sources]
    ['owner/one', 'owner/two']
    """

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
    """A configuration from what YAML gave.

    Examples
    --------
    >>> from rankwise.merging.engine.config import parse
    >>> parse({"merge_method": "linear", "models": [{"model": "owner/one", "density": 0.3}]})
    Traceback (most recent call last):
    ValueError: the configuration: ...density...
    """
    try:
        return MergeConfig.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(x)[:80] for x in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {place + ': ' if place else ''}{said}") from error


def _names(method: MergeMethod, key: str) -> tuple[str, ...]:
    """What a parameter is called in a file: λ, which is ``scale`` here, is mergekit's ``lambda``."""
    return ("lambda", key) if key == "scale" and not method.parameters[key].per_model else (key,)


def _parameter(method: MergeMethod, key: str) -> Parameter:
    if key in _IGNORED:
        return Parameter(default=False, per_model=True)
    for name, parameter in method.parameters.items():
        if key in _names(method, name):
            return parameter
    accepted = [n for name in method.parameters for n in _names(method, name)]
    raise ValueError(f"{unknown(f'parameter of {method.name}', key, accepted)} It is for other methods: leave it out")


def _first(
    names: Sequence[str], parameter: Parameter, settings: Sequence[Mapping[str, Setting]], name: str, t: float
) -> Scalar | None:
    for setting in settings:
        for alias in names:
            if alias in setting:
                value = _at(setting[alias], parameter, alias, name, t)
                if value is not None:
                    return value
    return None


def _at(setting: Setting, parameter: Parameter, key: str, name: str, t: float) -> Scalar | None:
    """A setting's value for one tensor: a number, a gradient over the layers, or the first filter that matches."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if setting and all(isinstance(x, dict) for x in setting):
        for condition in setting:
            assert isinstance(condition, dict)
            if "value" not in condition or set(condition) - {"filter", "value"}:
                raise ValueError(f"{reprlib.repr(condition)}: a condition has 'value' and, if any, 'filter'")
            wanted = condition.get("filter")
            if wanted is None or wanted == "*" or str(wanted) in name:
                return _at(condition["value"], parameter, key, name, t)
        return None
    if not setting:
        return None
    position = t * (len(setting) - 1)
    if parameter.choices or isinstance(parameter.default, bool):  # words and switches are not mixed
        return parameter.checked(key, setting[int(position)])
    low = int(position)
    high = min(len(setting) - 1, low + 1)
    first, last = (float(parameter.checked(key, setting[i])) for i in (low, high))
    return (1 - (position - low)) * first + (position - low) * last
