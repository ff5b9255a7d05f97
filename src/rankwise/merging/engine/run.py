"""Carrying a merge out: a tensor of all models at a time, several at once, written as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise import __version__
from rankwise.files import check_output, drafted
from rankwise.merging.engine import config as configuration_file
from rankwise.merging.engine.agreement import agree
from rankwise.merging.engine.alignment import TensorPlan, plan
from rankwise.merging.engine.companions import chat_template, configuration, to_copy, write_beside
from rankwise.merging.engine.config import MergeConfig
from rankwise.merging.engine.names import is_output
from rankwise.merging.engine.sources import Source, open_source
from rankwise.merging.engine.vocabulary import Vocabulary, aligned, compared, joined_vocabulary
from rankwise.merging.low_rank import LowRank
from rankwise.merging.registry import MergeMethod, find
from rankwise.merging.shards import ShardWriter, Slot
from rankwise.spectral import each

__all__ = ["Merge", "merge", "merge_checkpoints", "prepare"]

SHARD_SIZE = 5_000_000_000
_MOST_WORKERS = 8  # by default: more would hold more tensors than they save time
Progress = Callable[[str, int, int], None]  # tensor just done, bytes written, bytes in all


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge that has been looked through and can be carried out.

    Attributes
    ----------
    config : MergeConfig
        What was asked for.
    method : MergeMethod
        The method that merges a tensor.
    sources : dict of Source
        The models, by what the configuration calls them.
    lead : Source
        The base, or the first model: its configuration and files are the result's.
    tensors : list of TensorPlan
        What the result consists of, and what each tensor is merged from.
    vocabulary : Vocabulary, optional
        The tokens of the result, where they are joined.
    template : str, optional
        The chat template that is written, if one was asked for.
    configuration : dict
        What the result's ``config.json`` holds.
    files : list of Path
        Files of the lead's folder that are copied beside the weights.
    notes : list of str
        What the user should know.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import prepare
    >>> from rankwise.merging.engine.sources import open_source
    >>> models = {n: open_source({"w": torch.zeros(2, 2)}, label=n) for n in ("base", "one")}
    >>> asked = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "one"}]}
    >>> ready = prepare(asked, models)
    >>> ready.cost(workers=1)["written_bytes"], ready.tensor(ready.tensors[0]).tolist()
    (16, [[0.0, 0.0], [0.0, 0.0]])
    """

    config: MergeConfig
    method: MergeMethod
    sources: dict[str, Source]
    lead: Source
    tensors: list[TensorPlan]
    vocabulary: Vocabulary | None = None
    template: str | None = None
    configuration: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cost(self, workers: int | None = None) -> dict[str, int]:
        """Bytes to read and to write, and the most that as many tensors at once as there are workers hold in memory."""
        workers = workers or default_workers()
        return {
            "tensors": len(self.tensors),
            "read_bytes": sum(t.read_bytes for t in self.tensors),
            "written_bytes": sum(t.bytes for t in self.tensors),
            "workers": workers,
            "memory_bytes": sum(sorted(map(self._held, self.tensors))[-workers:]),
        }

    def _held(self, t: TensorPlan) -> int:
        """Bytes in memory while a tensor is merged: what is read, what is made, and of a matrix's decomposition."""
        work, entries = 0, prod(t.shape)
        if self.method.matrix and t.matrix:
            entries = prod(t.shape[1:]) if t.stack else entries
            work = 4 * entries * (3 * len(t.experts) + 4) + 8 * 4 * min(t.shape[-2:]) ** 2
        elif self.method.whole and not t.copied:
            work = 4 * entries * (len(t.experts) + 7)
        return t.read_bytes + t.bytes + work

    @cached_property
    def rations(self) -> dict[str, dict[str, int]]:
        """What a method shares out between the tensors, by tensor: it has to have looked at all of them."""
        if self.method.survey is None:
            return {}
        found: dict[str, tuple[float, int, int]] = {}
        for t in (t for t in self.tensors if t.matrix and not t.copied):
            base, *experts = (source.read(name) for source, name in t.inputs)
            number = self.method.survey(base, experts, **t.options)
            if number is None:
                return {}
            small = min(t.shape[1:]) if t.stack else min(base.flatten(1).shape)
            found[t.name] = (number, small, len(experts))
        assert self.method.rations is not None
        return dict(zip(found, self.method.rations(list(found.values())), strict=True))

    def tensor(self, t: TensorPlan) -> Tensor:
        """One merged tensor.

        Raises
        ------
        ValueError
            NaN or Inf in a model (which, and which tensor), or numbers that the output dtype does not reach.
        """
        if t.copied:
            source, name = t.inputs[0]
            return _own(source.read(name), source, name)
        inputs: list[Tensor | LowRank] = [self._input(s, n, t) for s, n in t.inputs]
        if t.tokens is not None:
            inputs = list(self._aligned(t, inputs))
        base, experts = (inputs[0], inputs[1:]) if t.base else (None, inputs)
        try:
            if self.method.matrix and t.stack and t.matrix:
                parts = zip(*(x for x in inputs if isinstance(x, Tensor)), strict=True)
                merged = torch.stack([self._merged(t, b, list(e)) for b, *e in parts])
            else:
                merged = self._merged(t, base, experts)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{t.name}: {_blame(t, error)}") from error
        if t.dtype == torch.float16 and not torch.isfinite(merged).all():
            raise ValueError(f"{t.name}: values beyond float16's range; write bfloat16 or float32 (dtype)")
        return _own(merged, *t.inputs[-1])

    def _merged(self, t: TensorPlan, base: Tensor | LowRank | None, experts: Sequence[Tensor | LowRank]) -> Tensor:
        extra: dict[str, object] = dict(self.rations.get(t.name, {}))
        if self.method.seeded:
            extra["seed"] = (self.config.seed, t.name)
        if self.method.matrix:
            extra["matrix"] = t.matrix
        return self.method.function(base, experts, dtype=t.dtype, **t.options, **extra)

    def _aligned(self, t: TensorPlan, inputs: Sequence[Tensor | LowRank]) -> list[Tensor]:
        assert self.vocabulary is not None
        assert t.tokens is not None
        v, order = self.vocabulary, list(self.sources.values())
        given = {
            token: (None if g.model is None else self._row(t, order[g.model], g.row), g.force)
            for token, g in v.given.items()
        }
        moved = [x.movedim(t.tokens, 0) for x in inputs if isinstance(x, Tensor)]
        rows = [v.rows[order.index(s)] for s, _ in t.inputs]
        found = aligned(moved, rows, 0 if t.base else None, given=given, size=v.size)
        return [x.movedim(0, t.tokens).contiguous() for x in found]

    def _row(self, t: TensorPlan, source: Source, row: int) -> Tensor:
        name = next((n for s, n in t.inputs if s is source), source.name_of(t.name))
        if name is None or t.tokens is None:
            raise ValueError(f"{source.label} has no {t.name}, from which a token's row is to come")
        return source.read(name).movedim(t.tokens, 0)[row]

    def _input(self, source: Source, name: str, t: TensorPlan) -> Tensor | LowRank:
        adapter = source.adapters.get(name)
        if adapter is None or not self.method.low_rank or t.base is None or t.tokens is not None:
            return source.read(name)
        base, at = t.base
        held, other = source.tensors[name], base.tensors[at]
        if at in base.adapters or isinstance(held, Tensor) or isinstance(other, Tensor) or not held.same(other):
            return source.read(name)  # it is low-rank to another model's weight
        return adapter.read(held.read() if adapter.start else None)


def prepare(config: MergeConfig | Mapping[str, object], models: Mapping[str, Source] | None = None) -> Merge:
    """Open every model, match the tensors and check the options; nothing is merged.

    Raises
    ------
    Conflict
        Tensors that do not fit, all in one message.
    ValueError
        Anything else that is wrong with the configuration or a model.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import prepare
    >>> from rankwise.merging.engine.sources import open_source
    >>> models = {n: open_source({"w": torch.zeros(2, 2)}, label=n) for n in ("base", "one")}
    >>> ready = prepare({"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}]}, models)
    >>> ready.method.title, ready.notes  # what to look at before anything is merged
    ('TIES', ['density is left out: 0.2 is taken, where mergekit takes 1.0'])
    """
    if not isinstance(config, MergeConfig):
        config = configuration_file.parse(config)
    sources = dict(models or {r: open_source(r) for r in config.references})
    everyone, base = list(sources.values()), None if config.base_model is None else sources[config.base_model]
    lead = base or sources[config.references[0]]
    notes = [*config.notes, *agree(everyone, lead)]
    notes += [note for s in everyone for note in s.notes]
    notes += [f"{s.label} is the base itself: it adds nothing" for s in everyone if s is not base and _same(s, base)]
    tokens = None if config.tokens is None else joined_vocabulary(everyone, config.tokens, base)
    planned = plan(config, sources, tokens)
    if tokens is None:
        notes += compared(everyone)
    template = None if config.chat_template is None else chat_template(config.chat_template, everyone, lead)
    code = [] if lead.folder is None else sorted(p.name for p in lead.folder.glob("*.py"))
    if code:
        notes.append(f"code is not copied: {', '.join(code[:4])}; look at it before you put it beside the result")
    return Merge(
        config=config,
        method=find(config.merge_method),
        sources=sources,
        lead=lead,
        tensors=planned.tensors,
        vocabulary=tokens,
        template=template,
        configuration=configuration(
            lead,
            dtype=config.out_dtype or config.dtype,
            stacked=planned.stacked,
            vocabulary=tokens,
            untied=any(is_output(t.name) for t in planned.tensors),
        ),
        files=to_copy(lead, everyone, tokenizer=tokens is None, template=template is None),
        notes=[*notes, *planned.notes],
    )


def default_workers() -> int:
    """Tensors merged at once: a thread each, at most 8."""
    return min(_MOST_WORKERS, torch.get_num_threads())


def _same(source: Source, base: Source | None) -> bool:
    if base is None or source.folder is None or base.folder is None or source.adapters:
        return False
    return source.folder.resolve() == base.folder.resolve()


def _own(x: Tensor, source: Source, name: str) -> Tensor:
    """A copy, where it would be the user's own tensor."""
    return x.clone() if x is source.tensors[name] else x


def merge(
    models: Sequence[str | Mapping[str, Tensor]],
    *,
    base: str | Mapping[str, Tensor] | None = None,
    method: str = "rtsvm",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    **options: object,
) -> dict[str, Tensor]:
    """Merge models in memory.

    Parameters
    ----------
    models : sequence of str or mapping of Tensor
        The experts: state dicts, folders, hub ids, bundled names, adapters. Any float dtype; CPU or GPU.
    base : str or mapping of Tensor, optional
        What they were fine-tuned from; most methods need it.
    method : str
        A name of `METHODS`.
    dtype : torch.dtype, optional
        The dtype of the result; by default the base's, tensor by tensor. Arithmetic is in float32.
    seed : int
        Decides the draws of methods that draw at random.
    **options
        The method's, e.g. ``density=0.2``, ``weight=[1, 0.5]``, ``scale=0.3``; a list has a value a model.

    Returns
    -------
    dict of Tensor
        A state dict.

    Raises
    ------
    Conflict
        Tensors that do not fit, all in one message.
    ValueError
        No models, unknown options (the nearest is offered), NaN or Inf in a model.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging import merge
    >>> base = torch.nn.Linear(4, 4).state_dict()
    >>> experts = [{name: x + step for name, x in base.items()} for step in (1.0, 2.0)]
    >>> merged = merge(experts, base=base, method="task_arithmetic", weight=[1.0, 0.5])
    >>> torch.allclose(merged["weight"], base["weight"] + 2.0)
    True
    """
    names = [m if isinstance(m, str) else f"model {i}" for i, m in enumerate(models, 1)]
    sources = {n: open_source(m, label=n) for n, m in zip(names, models, strict=True)}
    base_name = None
    if base is not None:
        base_name = base if isinstance(base, str) else "base"
        sources = {base_name: open_source(base, label=base_name), **sources}
    per_model = {n for n, p in find(method).parameters.items() if p.per_model}
    lists = {k: v for k, v in options.items() if k in per_model and isinstance(v, Sequence) and not isinstance(v, str)}
    for key, values in lists.items():
        if len(values) != len(names):
            raise ValueError(f"{key} has {len(values)} values for {len(names)} models")
    inputs = [{"model": n, "parameters": {k: v[i] for k, v in lists.items()}} for i, n in enumerate(names)]
    stated = {n: d for n, d in configuration_file.DTYPES.items() if d == dtype}
    if dtype is not None and not stated:
        raise ValueError(f"dtype {dtype} is not written; accepted: {', '.join(configuration_file.DTYPES)}")
    config = {
        "merge_method": method,
        "base_model": base_name,
        "models": inputs,
        "parameters": {k: v for k, v in options.items() if k not in lists},
        "dtype": next(iter(stated), None),
        "seed": seed,
    }
    ready = prepare(config, sources)
    _ = ready.rations  # once, before the threads ask for it
    return dict(zip((t.name for t in ready.tensors), each(ready.tensor, ready.tensors), strict=True))


def merge_checkpoints(
    config: MergeConfig | Mapping[str, object] | Path | str,
    out: Path | str,
    *,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Merge:
    """Merge checkpoints of any size into a folder that `transformers` loads.

    Every tensor is written to its place as soon as it is merged; a merge that was killed goes on where it was when the
    same call is made again, on the same files. The folder appears under its name only when it is whole.

    Parameters
    ----------
    config : MergeConfig, mapping, or path of a YAML file
        What to merge and how.
    out : path
        Must not exist, be empty, or be an earlier merge's (then it is replaced; files that were put there since are
        not, and have to be moved first).
    shard_size : int
        Bytes that a file of weights has at most.
    workers : int, optional
        Tensors merged at once; ``torch.get_num_threads()`` by default, at most 8.
    progress : callable
        ``(tensor, bytes done, bytes in all)``.

    Raises
    ------
    Conflict, ValueError
        As `prepare`; also a folder that is something else, or that another merge is writing.
    OSError
        The disk is full (found when the files are laid out, before anything is computed).

    Examples
    --------
    >>> import tempfile
    >>> from transformers import AutoModel, BertConfig, BertModel
    >>> from rankwise.merging import merge_checkpoints
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("one", "two"):
    ...         BertModel(config).save_pretrained(f"{folder}/{name}")
    ...     models = [{"model": f"{folder}/one"}, {"model": f"{folder}/two"}]
    ...     done = merge_checkpoints({"merge_method": "linear", "models": models}, f"{folder}/merged")
    ...     model = AutoModel.from_pretrained(f"{folder}/merged")
    >>> len(done.tensors) == len(model.state_dict())
    True
    """
    given = [Path(config)] if isinstance(config, Path | str) else []
    if not isinstance(config, MergeConfig):
        config = configuration_file.read(given[0]) if given else configuration_file.parse(config)
    check_output(Path(out), made_by="merge", inputs=[*given, *config.references])
    ready = prepare(config)
    inputs = [*given, *(s.folder for s in ready.sources.values() if s.folder is not None)]
    fingerprints = [s.fingerprint() for s in ready.sources.values()]
    told = [__version__, ready.config.model_dump(mode="json"), shard_size, fingerprints]
    with drafted(Path(out), made_by="merge", told=told, inputs=inputs) as draft:
        _write_weights(ready, draft, shard_size, workers or default_workers(), progress)
        write_beside(ready, draft)
    return ready


def _write_weights(ready: Merge, draft: Path, shard_size: int, workers: int, progress: Progress) -> None:
    slots = [Slot(t.name, t.dtype, t.shape) for t in ready.tensors]
    writer = ShardWriter(draft, slots, shard_size=shard_size)
    left = [t for t in ready.tensors if t.name not in writer.done]
    done = sum(t.bytes for t in ready.tensors) - sum(t.bytes for t in left)

    def work(t: TensorPlan) -> TensorPlan:
        writer.write(t.name, ready.tensor(t))
        return t

    finished = False
    try:
        _ = ready.rations  # once, before the threads ask for it
        for t in each(work, left, workers=workers):
            done += t.bytes
            progress(t.name, done, writer.total)
        finished = True
    finally:
        writer.close(finished=finished)


def _blame(t: TensorPlan, error: Exception) -> str:
    for source, name in t.inputs:
        if not torch.isfinite(source.read(name)).all():
            held = source.tensors[name]
            where = f" ({held.file})" if not isinstance(held, Tensor) else ""
            return f"{source.label}{where} has NaN or Inf"
    return str(error)
