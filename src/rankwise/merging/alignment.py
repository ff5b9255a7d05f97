"""Which tensor of each model meets which: the plan of a merge, and everything that is wrong with it, said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from rankwise.merging.config import DTYPES, MergeConfig, SliceInput
from rankwise.merging.registry import MergeMethod, checked_options, find
from rankwise.merging.sources import LAYER, Source, is_embedding, is_output
from rankwise.merging.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One tensor of the result.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : torch.dtype
        Of the result.
    base : (Source, str), optional
        Where the base's is.
    experts : list of (Source, str)
        Where the experts' are.
    options : dict
        Of the method, for this tensor.
    copied : bool
        It is taken as it is: integers and booleans.
    matrix : bool
        A 2-d weight that is no embedding.
    vocabulary : bool
        Its rows are tokens, to be put in one order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    base: tuple[Source, str] | None
    experts: list[tuple[Source, str]]
    options: dict[str, object]
    copied: bool
    matrix: bool
    vocabulary: bool

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
    """The models do not fit; the message lists every place."""

    def __init__(self, rows: Sequence[tuple[str, str]], hint: str = "") -> None:
        self.rows = list(rows)
        width = max(len(n) for n, _ in rows)
        shown = "\n".join(f"  {n.ljust(width)}  {what}" for n, what in rows[:200])
        more = f"\n  and {len(rows) - 200} more" if len(rows) > 200 else ""
        super().__init__(f"the models do not fit at {len(rows)} tensors:\n{shown}{more}{hint}")


def plan(config: MergeConfig, sources: Mapping[str, Source], vocabulary: Vocabulary | None = None) -> list[TensorPlan]:
    """Every tensor of the result, in the base's order.

    Raises
    ------
    Conflict
        Tensors that are missing, of another shape, or of another kind; all of them in one message.
    ValueError
        Options out of range, a layer that no model has.
    """
    method = find(config.merge_method)
    base = sources[config.base_model] if config.base_model is not None else None
    out: list[TensorPlan] = []
    wrong: list[tuple[str, str]] = []
    for names, group in _layout(config, sources, base):
        experts = config.experts(group)
        for name, t, at in names:
            homes = [(sources[e.model], sources[e.model].name_of(at(i))) for i, e in enumerate(experts)]
            anchor = None if base is None else (base, base.name_of(at(None)))
            if is_output(name) and all(s.ties for s, _ in [*homes, *([anchor] if anchor else [])]):
                continue  # the embedding is the output layer too: merged once
            everyone = [*([anchor] if anchor and method.needs_base else []), *homes]
            absent = [s.label for s, n in everyone if n is None]
            if absent:
                wrong.append((name, f"missing in {', '.join(dict.fromkeys(absent))}"))
                continue
            found = [(s, n) for s, n in everyone if n is not None]
            complaint = _misfit(found, name, vocabulary)
            if complaint:
                wrong.append((name, complaint))
                continue
            lead, lead_name = anchor if anchor and anchor[1] else found[0]
            assert lead_name is not None
            try:
                options = checked_options(method, config.options(method, group, name, t), len(experts))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            out.append(_planned(config, method, name, (lead, lead_name), found, options, vocabulary))
    if wrong:
        tokens = any(is_embedding(n) and "shape" in what for n, what in wrong)
        hint = "\nvocabularies differ: give tokenizer_source: union, base, or a model" if tokens else ""
        raise Conflict(wrong, hint)
    if not out:
        raise ValueError("the models have no tensor in common")
    return out


def _planned(config, method: MergeMethod, name, lead, found, options, vocabulary) -> TensorPlan:
    stored = lead[0].dtype(lead[1])
    wanted = config.out_dtype or config.dtype
    copied = not stored.is_floating_point
    shape = lead[0].shape(lead[1])
    tokens = vocabulary is not None and _is_vocabulary(name, lead[0], lead[1])
    return TensorPlan(
        name=name,
        shape=(vocabulary.size, *shape[1:]) if tokens and vocabulary is not None else shape,
        dtype=stored if copied or wanted is None else DTYPES[wanted],
        base=found[0] if method.needs_base else (lead if copied else None),
        experts=found[1:] if method.needs_base else found,
        options=options,
        copied=copied,
        matrix=len(shape) >= 2 and min(shape) > 1 and not is_embedding(name),
        vocabulary=tokens,
    )


def _is_vocabulary(name: str, source: Source, at: str) -> bool:
    return (
        is_embedding(name)
        and "position" not in name
        and "wpe" not in name
        and len(source.shape(at)) == 2
        and ("token_type" not in name)
    )


def _misfit(found: Sequence[tuple[Source, str]], name: str, vocabulary: Vocabulary | None) -> str | None:
    first, first_name = found[0]
    shape, floats = first.shape(first_name), first.dtype(first_name).is_floating_point
    for s, n in found[1:]:
        there, skip = s.shape(n), int(vocabulary is not None and _is_vocabulary(name, s, n))
        if there[skip:] != shape[skip:]:
            return f"shape {list(shape)} in {first.label}, {list(there)} in {s.label}"
        if s.dtype(n).is_floating_point != floats:
            return f"{first.dtype(first_name)} in {first.label}, {s.dtype(n)} in {s.label}"
    narrow = next((s for s, n in found if s.dtype(n).is_floating_point and s.dtype(n).itemsize < 2), None)
    return f"quantised in {narrow.label}: dense float weights are needed" if narrow else None


def _layout(config: MergeConfig, sources: Mapping[str, Source], base: Source | None):
    """Names of the result by group: ``(names, group)``, a name with its t and its name in the i-th expert."""
    if config.slices is None:
        (group,) = config.groups
        everyone = [*([base] if base else []), *(sources[e.model] for e in config.experts(group))]
        names = list(dict.fromkeys(n for s in everyone for n in s.tensors))
        depth = 1 + max((int(m[2]) for n in names if (m := LAYER.match(n))), default=0)
        yield [(n, _position(n, depth), lambda i, n=n: n) for n in names], group
        return
    first = base or sources[config.groups[0].sources[0].model]
    offset = 0
    layered = {n: m for n in first.tensors if (m := LAYER.match(n))}
    outside = [n for n in first.tensors if n not in layered]
    entry = [n for n in outside if is_embedding(n) and not is_output(n)]
    patterns = list(dict.fromkeys((m[1], m[3]) for m in layered.values()))
    for group in config.groups:
        spans = [s.layer_range for s in config.experts(group) if isinstance(s, SliceInput)]
        of_base = (s for s in group.sources if isinstance(s, SliceInput) and s.model == config.base_model)
        own = next((s.layer_range for s in of_base), spans[0])
        depth = spans[0][1] - spans[0][0]
        names = []
        for j in range(depth):
            for prefix, rest in patterns:

                def at(i: int | None, j=j, prefix=prefix, rest=rest, spans=spans, own=own) -> str:
                    return f"{prefix}{(own if i is None else spans[i])[0] + j}{rest}"

                names.append((f"{prefix}{offset + j}{rest}", j / (depth - 1) if depth > 1 else 1.0, at))
        yield names, group
        offset += depth
    # what comes before the layers is merged as the first slice says, what comes after as the last
    yield [(n, 0.0, lambda i, n=n: n) for n in entry], config.groups[0]
    yield [(n, 0.0, lambda i, n=n: n) for n in outside if n not in entry], config.groups[-1]


def _position(name: str, depth: int) -> float:
    """t of a tensor: 0 for the first layer, 1 for the last, 0 outside the layers."""
    found = LAYER.match(name)
    if found is None:
        return 0.0
    return int(found[2]) / (depth - 1) if depth > 1 else 1.0


def layers_of(plans: Sequence[TensorPlan]) -> int:
    """How many layers the result has."""
    return 1 + max((int(m[2]) for p in plans if (m := LAYER.match(p.name))), default=-1)
