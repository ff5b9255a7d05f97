"""``slices``: a model of layers that are taken from several models.

One stack of layers is cut; of a model that sees and speaks that is the language model's, and what lies outside (the
eyes, the embeddings, the head) is merged as in the first slice where it comes before the layers, and as in the last
where it comes after. Models with two stacks of one rank, encoder and decoder, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from rankwise.merging.engine.agreement import per_layer
from rankwise.merging.engine.config import Group, MergeConfig, SliceInput
from rankwise.merging.engine.names import is_embedding, is_output
from rankwise.merging.engine.sources import Source
from rankwise.merging.registry import find


class Place(NamedTuple):
    """A tensor of the result: its name, t, its name in the base, and in each expert.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.config import parse
    >>> from rankwise.merging.engine.slices import Stacked
    >>> from rankwise.merging.engine.sources import open_source
    >>> layers = {f"model.layers.{i}.w": torch.zeros(2) for i in range(2)}
    >>> twice = [{"sources": [{"model": "one", "layer_range": [1, 2]}]}] * 2
    >>> config = parse({"merge_method": "passthrough", "slices": twice})
    >>> places = Stacked(config, {"one": open_source(layers, label="one")}).places()
    >>> [(place.name, place.experts) for place, group in places]
    [('model.layers.0.w', ['model.layers.1.w']), ('model.layers.1.w', ['model.layers.1.w'])]
    """

    name: str
    t: float
    base: str
    experts: list[str]


class Stacked:
    """The layers that a configuration stacks.

    Parameters
    ----------
    config : MergeConfig
        A configuration with ``slices``.
    sources : mapping of Source
        Its models, by what it calls them.

    Raises
    ------
    ValueError
        No layers, or two stacks of them; layers that a model does not have; layers of different kinds that meet, or
        that the result's configuration could not tell apart.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.config import parse
    >>> from rankwise.merging.engine.slices import Stacked
    >>> from rankwise.merging.engine.sources import open_source
    >>> layers = {f"model.layers.{i}.w": torch.zeros(2) for i in range(2)}
    >>> twice = [{"sources": [{"model": "one", "layer_range": [0, 2]}]}] * 2
    >>> config = parse({"merge_method": "passthrough", "slices": twice})
    >>> stacked = Stacked(config, {"one": open_source(layers, label="one")})
    >>> [layer for source, layer in stacked.layers]
    [0, 1, 0, 1]
    """

    def __init__(self, config: MergeConfig, sources: Mapping[str, Source]) -> None:
        self.config, self.sources = config, sources
        self.lead = sources[config.references[0]]
        self.stack = _only_stack(self.lead)
        for group in config.groups:
            for source, first in self._members(group):
                has = source.stacks.get(self.stack, 0)
                if first + self._depth(group) > has:
                    span = [first, first + self._depth(group)]
                    raise ValueError(f"layer_range {span}: {source.label} has {has} layers in {self.stack}")
            self._check_kinds(group)
        if self.lead.config:
            _check_told(self.lead, self.stack)

    @cached_property
    def layers(self) -> list[tuple[Source, int]]:
        """For each layer of the result the layer, of the base or the first source, whose place it takes."""
        firsts = [(self._members(g)[0], self._depth(g)) for g in self.config.groups]
        return [(source, first + j) for (source, first), depth in firsts for j in range(depth)]

    def places(self) -> Iterator[tuple[Place, Group]]:
        """Every tensor of the result, and the slice it belongs to."""
        groups = self.config.groups
        for group, entry in ((groups[0], True), (groups[-1], False)):
            members = [source for source, _ in self._members(group)]
            for n in dict.fromkeys(n for s in members for n in s.tensors if not n.startswith(self.stack)):
                if (is_embedding(n) and not is_output(n)) == entry:
                    yield Place(n, 0.0, n, [n] * len(self.config.experts(group))), group
        offset = 0
        for group in groups:
            depth = self._depth(group)
            for j in range(depth):
                for place in self._layer(group, j, offset + j, j / (depth - 1) if depth > 1 else 1.0):
                    yield place, group
            offset += depth

    def _layer(self, group: Group, j: int, at: int, t: float) -> Iterator[Place]:
        members = self._members(group)
        experts = [e.layer_range[0] + j for e in self.config.experts(group) if isinstance(e, SliceInput)]
        for rest in dict.fromkeys(r for s, first in members for r in s.layers.get((self.stack, first + j), ())):
            names = [f"{self.stack}{i}{rest}" for i in experts]
            yield Place(f"{self.stack}{at}{rest}", t, f"{self.stack}{members[0][1] + j}{rest}", names)

    def _members(self, group: Group) -> list[tuple[Source, int]]:
        """Who takes part in a slice, and with which first layer; the base first, which has the first source's layers
        where it is not listed."""
        spans = [s for s in group.sources if isinstance(s, SliceInput)]
        base = self.config.base_model
        listed = [(self.sources[s.model], s.layer_range[0]) for s in spans if s.model == base]
        if base is not None and not listed and find(self.config.merge_method).needs_base:
            listed = [(self.sources[base], spans[0].layer_range[0])]
        return [*listed, *((self.sources[s.model], s.layer_range[0]) for s in spans if s.model != base)]

    def _depth(self, group: Group) -> int:
        first = next(s for s in group.sources if isinstance(s, SliceInput))
        return first.layer_range[1] - first.layer_range[0]

    def _check_kinds(self, group: Group) -> None:
        (base, start), *others = self._members(group)
        mine = per_layer(base, self.stack)
        for other, first in others:
            theirs = per_layer(other, self.stack)
            for key in set(mine) & set(theirs):
                for j in range(self._depth(group)):
                    a, b = mine[key][start + j], theirs[key][first + j]
                    if a != b:
                        raise ValueError(
                            f"layer {start + j} of {base.label} and layer {first + j} of {other.label} are of two "
                            f"kinds ({key}: {str(a)[:40]}, {str(b)[:40]})"
                        )


def _only_stack(lead: Source) -> str:
    found = lead.stacks
    if len(found) > 1:
        found = {p: n for p, n in found.items() if "language_model." in p or "text_model." in p}
    if len(found) == 1:
        return next(iter(found))
    said = ", ".join(f"{p}0 to {n - 1}" for p, n in list(lead.stacks.items())[:4]) or "none"
    raise ValueError(f"slices stack the layers of one stack, {lead.label} has {said}: merge whole models with `models`")


def _check_told(lead: Source, stack: str) -> None:
    """Where layers have different tensors, a list of the configuration tells which has which."""
    tensors = {i: frozenset(lead.layers.get((stack, i), ())) for i in range(lead.stacks[stack])}
    if len(set(tensors.values())) == 1:
        return
    for values in per_layer(lead, stack).values():
        if len({(str(v), tensors[i]) for i, v in enumerate(values)}) == len({str(v) for v in values}):
            return
    raise ValueError(
        f"{lead.label} has layers of different tensors, and no list in config.json that tells which: not sliced"
    )
