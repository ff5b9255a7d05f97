"""Which tensor of each model meets which: the plan of a merge, and everything that is wrong with it, said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

from rankwise.merging.engine.config import DTYPES, Group, MergeConfig
from rankwise.merging.engine.names import LAYER, is_buffer, is_embedding, is_output, is_stack, position, token_axis
from rankwise.merging.engine.slices import Place, Stacked
from rankwise.merging.engine.sources import Source
from rankwise.merging.engine.vocabulary import Vocabulary
from rankwise.merging.registry import MergeMethod, checked_options, find
from rankwise.reading import matching

__all__ = ["Conflict"]


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One tensor of the result.

    Attributes
    ----------
    name : str
        What it is called in the result.
    shape : tuple of int
        Its shape in the result.
    dtype : torch.dtype
        Its dtype in the result.
    base : (Source, str), optional
        The base and the tensor's name there.
    experts : list of (Source, str)
        The experts and the tensor's name in each.
    options : dict
        The method's options for this tensor, a list for those that are the models' own.
    copied : bool
        It is taken as it is: integers and booleans.
    matrix : bool
        Whether it is a 2-d weight that is no embedding.
    stack : bool
        ``(E, …, …)``, E matrices that are merged one by one.
    tokens : int, optional
        The axis along which its entries are tokens, to be put in one order.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import prepare
    >>> from rankwise.merging.engine.sources import open_source
    >>> models = {n: open_source({"w": torch.zeros(2, 2)}, label=n) for n in ("base", "one", "other")}
    >>> asked = {"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}, {"model": "other"}]}
    >>> (tensor,) = prepare(asked, models).tensors
    >>> tensor.name, tensor.shape, tensor.read_bytes, tensor.options["density"]
    ('w', (2, 2), 48, [0.2, 0.2])
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    base: tuple[Source, str] | None
    experts: list[tuple[Source, str]]
    options: dict[str, object]
    copied: bool
    matrix: bool
    stack: bool = False
    tokens: int | None = None

    @property
    def inputs(self) -> list[tuple[Source, str]]:
        """The base, if any, and the experts."""
        return [*([self.base] if self.base else []), *self.experts]

    @property
    def read_bytes(self) -> int:
        """What has to be read for it."""
        inputs = self.inputs[:1] if self.copied else self.inputs
        return sum(prod(s.shape(n)) * s.dtype(n).itemsize for s, n in inputs)

    @property
    def bytes(self) -> int:
        """Of the result."""
        return prod(self.shape) * self.dtype.itemsize


class Conflict(ValueError):
    """The models do not fit; the message lists every place.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import merge
    >>> merge([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}], method="linear")
    Traceback (most recent call last):
    rankwise.merging.engine.alignment.Conflict: the models do not fit at 1 tensors:
      w  ...
    """

    def __init__(self, rows: Sequence[tuple[str, str]], hint: str = "") -> None:
        self.rows = list(rows)
        width = max(len(n) for n, _ in rows)
        shown = "\n".join(f"  {n.ljust(width)}  {what}" for n, what in rows[:200])
        more = f"\n  and {len(rows) - 200} more" if len(rows) > 200 else ""
        super().__init__(f"the models do not fit at {len(rows)} tensors:\n{shown}{more}{hint}")


@dataclass(frozen=True)
class Plan:
    """All tensors of the result, in the base's order.

    Attributes
    ----------
    tensors : list of TensorPlan
        What is merged from what.
    stacked : Stacked, optional
        The layers, where the configuration has ``slices``.
    notes : list of str
        What the user should know.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.alignment import plan
    >>> from rankwise.merging.engine.config import parse
    >>> from rankwise.merging.engine.sources import open_source
    >>> models = {n: open_source({"w": torch.zeros(2, 2)}, label=n) for n in ("base", "one")}
    >>> config = parse({"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}]})
    >>> [tensor.name for tensor in plan(config, models).tensors]
    ['w']
    """

    tensors: list[TensorPlan]
    stacked: Stacked | None = None
    notes: list[str] = field(default_factory=list)


def plan(config: MergeConfig, sources: Mapping[str, Source], vocabulary: Vocabulary | None = None) -> Plan:
    """What is to be done.

    Raises
    ------
    Conflict
        Tensors that are missing, of another shape, or of another kind; all of them in one message.
    ValueError
        Options out of range, a layer that no model has.
    """
    method = find(config.merge_method)
    base = sources[config.base_model] if config.base_model is not None else None
    lead = base or sources[config.references[0]]
    stacked = None if config.slices is None else Stacked(config, sources)
    places = list(_whole(config, sources, lead) if stacked is None else stacked.places())
    ignored = _ignored(config.ignore, [p.name for p, _ in places])
    out, wrong, notes = [], [], []
    for place, group in places:
        experts = [sources[e.model] for e in config.experts(group)]
        found = _homes(place, experts, base if method.needs_base else None, lead)
        if place.name in ignored or found is None:
            continue
        held = [(s, n) for s, n in found if n is not None]
        own = None if base is None or stacked is not None else base.name_of(place.base)
        anchor = [(base, own)] if base is not None and own is not None else held[:1]
        complaint = _missing(found) or _misfit([*anchor, *held], place.name, vocabulary)
        if complaint and any(is_buffer(n, s.shape(n)) for s, n in [*anchor, *held]):
            continue  # worked out anew when the model is loaded
        complaint = complaint or _differing([*anchor, *held], place.name, notes)
        if complaint:
            wrong.append((place.name, complaint))
            continue
        given = config.options(method, group, place.name, place.t, place.experts)
        try:
            options = checked_options(method, given, len(experts))
        except ValueError as error:
            raise ValueError(f"{place.name}: {error}") from error
        out.append(_planned(config, method, place.name, held, anchor[0], options, vocabulary))
    if wrong:
        raise Conflict(wrong, _hint(wrong))
    if not out:
        raise ValueError("the models have no tensor in common")
    return Plan(out, stacked, notes)


def _homes(
    place: Place, experts: Sequence[Source], base: Source | None, lead: Source
) -> list[tuple[Source, str | None]] | None:
    """Where the base's and the experts' tensor is; None for an output layer that is everyone's embedding."""
    found = [(s, s.name_of(n)) for s, n in zip(experts, place.experts, strict=True)]
    if base is not None:
        found.insert(0, (base, base.name_of(place.base)))
    return None if is_output(place.name) and all(s.ties for s in (lead, *experts)) else found


def _ignored(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    return {n for p in patterns for n in matching(rf"[\s\S]*?(?:{p})[\s\S]*", names, source="ignore")}


def _hint(wrong: Sequence[tuple[str, str]]) -> str:
    if any(is_embedding(n) and "shape" in what for n, what in wrong):
        return "\nvocabularies differ: give tokenizer_source: union, base, or a model"
    if any(what.startswith("missing") for _, what in wrong):
        return "\nwhat only some of the models have can be left out of the result: ignore: [regular expressions]"
    return ""


def _planned(
    config: MergeConfig,
    method: MergeMethod,
    name: str,
    found: list[tuple[Source, str]],
    anchor: tuple[Source, str],
    options: dict[str, object],
    vocabulary: Vocabulary | None,
) -> TensorPlan:
    """A tensor whose shape, dtype and integers are the anchor's: the base's, whether or not it is merged."""
    lead, at = anchor
    stored, shape = lead.dtype(at), list(lead.shape(at))
    wanted = config.out_dtype or config.dtype
    copied = not stored.is_floating_point
    tokens = None if vocabulary is None else token_axis(at, shape, lead.rows)
    if vocabulary is not None and tokens is not None:
        shape[tokens] = vocabulary.size
    stack = is_stack(at, shape)
    return TensorPlan(
        name=name,
        shape=tuple(shape),
        dtype=stored if copied or wanted is None else DTYPES[wanted],
        base=found[0] if method.needs_base else (anchor if copied else None),
        experts=found[1:] if method.needs_base else found,
        options=options,
        copied=copied,
        matrix=len(shape) >= 2 and min(shape[1:] if stack else shape) > 1 and not is_embedding(at),
        stack=stack,
        tokens=tokens,
    )


def _missing(found: Sequence[tuple[Source, str | None]]) -> str | None:
    absent = dict.fromkeys(s.label for s, n in found if n is None)
    return f"missing in {', '.join(absent)}" if absent else None


def _misfit(found: Sequence[tuple[Source, str]], name: str, vocabulary: Vocabulary | None) -> str | None:
    """What speaks against merging these tensors, by what their headers say."""
    (first, first_name), *_ = found
    shape, floats = list(first.shape(first_name)), first.dtype(first_name).is_floating_point
    axes = [None if vocabulary is None else token_axis(n, s.shape(n), s.rows) for s, n in found]
    for (s, n), axis in zip(found, axes, strict=True):
        there = list(s.shape(n))
        if axis != axes[0] or _without(there, axis) != _without(shape, axis):
            return f"shape {shape} in {first.label}, {there} in {s.label}"
        if s.dtype(n).is_floating_point != floats:
            return f"{first.dtype(first_name)} in {first.label}, {s.dtype(n)} in {s.label}"
        if s.dtype(n).is_floating_point and s.dtype(n).itemsize < 2:
            return f"quantised in {s.label}: dense float weights are needed"
    if vocabulary is None or axes[0] is not None or LAYER.match(name) or first.words is None or not floats:
        return None
    if shape and shape[0] == first.rows and first.rows not in first.shape(first.words)[1:]:
        return f"has {shape[0]} entries, as many as there are tokens, and a name that does not tell whether they are"
    return None


def _without(shape: list[int], axis: int | None) -> list[int]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _differing(found: Sequence[tuple[Source, str]], name: str, notes: list[str]) -> str | None:
    """Whether integers, which are copied, say something else in one of the models."""
    (first, first_name), *others = found
    if first.dtype(first_name).is_floating_point or is_buffer(name, first.shape(first_name)):
        return None
    held = first.read(first_name)
    unlike = [s.label for s, n in others if s is not first and not torch.equal(held, s.read(n))]
    if unlike and held.ndim > 1:
        return f"integers that differ in {', '.join(unlike)}: codes of packed weights cannot be averaged"
    if unlike:
        notes.append(f"{name} is copied from {first.label}; {', '.join(unlike)} has other integers")
    return None


def _whole(config: MergeConfig, sources: Mapping[str, Source], lead: Source) -> Iterator[tuple[Place, Group]]:
    """Places of the result for whole models, in the lead's names."""
    (group,) = config.groups
    experts = [sources[e.model] for e in config.experts(group)]
    into, depth = [_translation(lead, s) for s in experts], dict[str, int]()
    names = dict.fromkeys(lead.tensors)
    for s in experts:
        back = _translation(s, lead)
        names |= dict.fromkeys(n for n in map(back, s.tensors) if n not in names)
        depth |= s.stacks
    depth |= lead.stacks
    for n in names:
        yield Place(n, position(n, depth), n, [to(n) for to in into]), group


def _translation(one: Source, other: Source) -> Callable[[str], str]:
    """From names of one model to those of another, which may have a prefix (``bert.``) more or less."""
    if not set(one.stacks) & set(other.stacks):
        for mine in one.stacks:
            for theirs in other.stacks:
                if theirs.endswith(mine):
                    more = theirs.removesuffix(mine)
                    return lambda name: f"{more}{name}" if f"{more}{name}" in other.tensors else name
                if mine.endswith(theirs):
                    less = mine.removesuffix(theirs)
                    return lambda name: name.removeprefix(less)
    return lambda name: name
