"""Carrying a merge out: a tensor of all models at a time, several at once, written as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import yaml
from torch import Tensor

from rankwise.files import write_json, write_text
from rankwise.merging import config as configuration
from rankwise.merging.alignment import TensorPlan, layers_of, plan
from rankwise.merging.config import MergeConfig
from rankwise.merging.low_rank import LowRank
from rankwise.merging.registry import METHODS, MergeMethod, find
from rankwise.merging.shards import ShardWriter, Slot
from rankwise.merging.sources import Source, is_output, open_source
from rankwise.merging.vocabulary import Vocabulary, aligned, differ, vocabulary
from rankwise.spectral import each

SHARD_SIZE = 5_000_000_000
_TOKENIZER = ("tokenizer", "special_tokens", "vocab", "merges", "added_tokens", "chat_template", "spiece")
Progress = Callable[[str, int, int], None]  # tensor just done, bytes written, bytes in all


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge that has been looked through and can be carried out.

    Attributes
    ----------
    config : MergeConfig
    method : MergeMethod
    sources : dict of Source
    tensors : list of TensorPlan
    vocabulary : Vocabulary, optional
    notes : list of str
        What the user should know.
    """

    config: MergeConfig
    method: MergeMethod
    sources: dict[str, Source]
    tensors: list[TensorPlan]
    vocabulary: Vocabulary | None
    notes: list[str]

    @property
    def cost(self) -> dict[str, int]:
        """Bytes to read and to write, and the most that two tensors at once hold in memory."""
        # a matrix's task vectors are whole in float32 then, with as much again to work in
        singular = self.method.matrix
        held = [
            t.read_bytes + t.bytes + (12 * len(t.experts) * prod(t.shape) if singular and t.matrix else 0)
            for t in self.tensors
        ]
        return {
            "tensors": len(self.tensors),
            "read_bytes": sum(t.read_bytes for t in self.tensors),
            "written_bytes": sum(t.bytes for t in self.tensors),
            "memory_bytes": sum(sorted(held)[-2:]),
        }

    def tensor(self, t: TensorPlan) -> Tensor:
        """One merged tensor.

        Raises
        ------
        ValueError
            NaN or Inf in a model (which, and which tensor), or numbers that the output dtype does not reach.
        """
        if t.copied:
            source, name = t.inputs[0]
            return source.read(name)
        sources = [s for s, _ in t.inputs]
        inputs: list[Tensor | LowRank] = [self._input(s, n, t) for s, n in t.inputs]
        if t.vocabulary and self.vocabulary is not None:
            order = list(self.sources.values())
            rows = [self.vocabulary.rows[order.index(s)] for s in sources]
            dense = [x for x in inputs if isinstance(x, Tensor)]
            inputs = list(aligned(dense, rows, 0 if t.base else None))
        base, experts = (inputs[0], inputs[1:]) if t.base else (None, inputs)
        extra: dict[str, object] = {"seed": _seed(self.config.seed, t.name)} if self.method.seeded else {}
        if self.method.matrix:
            extra["matrix"] = t.matrix
        try:
            merged = self.method.function(base, experts, dtype=t.dtype, **t.options, **extra)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{t.name}: {_blame(t, error)}") from error
        if t.dtype == torch.float16 and not torch.isfinite(merged).all():
            raise ValueError(f"{t.name}: values beyond float16's range; write bfloat16 or float32 (dtype)")
        return merged

    def _input(self, source: Source, name: str, t: TensorPlan) -> Tensor | LowRank:
        adapter = source.adapters.get(name)
        if adapter is None or not self.method.low_rank or t.base is None or t.vocabulary:
            return source.read(name)
        base = t.base[0]
        same = source.base_folder is not None and base.folder is not None and name not in base.adapters
        if same and source.base_folder.resolve() == base.folder.resolve():  # type: ignore[union-attr]
            return adapter.read()
        return source.read(name)


def prepare(config: MergeConfig | Mapping[str, object], models: Mapping[str, Source] | None = None) -> Merge:
    """Open every model, match the tensors and check the options; nothing is merged.

    Raises
    ------
    Conflict
        Tensors that do not fit, all in one message.
    ValueError
        Anything else that is wrong with the configuration or a model.
    """
    if not isinstance(config, MergeConfig):
        config = configuration.parse(config)
    sources = dict(models or {r: open_source(r) for r in config.references})
    base = sources[config.base_model] if config.base_model is not None else None
    notes = [
        f"{s.label} is the base itself: it adds nothing"
        for r, s in sources.items()
        if base is not None and s is not base and s.folder and s.folder == base.folder and not s.adapters
    ]
    tokens = None
    if config.tokenizer_source is not None:
        tokens = vocabulary(list(sources.values()), config.tokenizer_source, base)
    tensors = plan(config, sources, tokens)
    if tokens is None and len(sources) > 1 and differ(list(sources.values())):
        notes.append("the tokenizers differ: without tokenizer_source, rows of different tokens are merged")
    return Merge(
        config=config,
        method=find(config.merge_method),
        sources=sources,
        tensors=tensors,
        vocabulary=tokens,
        notes=notes,
    )


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
        Of the result; by default the base's, tensor by tensor. Arithmetic is in float32.
    seed : int
        For methods that draw at random.
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
    stated = {n: d for n, d in configuration.DTYPES.items() if d == dtype}
    if dtype is not None and not stated:
        raise ValueError(f"dtype {dtype} is not written; accepted: {', '.join(configuration.DTYPES)}")
    config = {
        "merge_method": method,
        "base_model": base_name,
        "models": inputs,
        "parameters": {k: v for k, v in options.items() if k not in lists},
        "dtype": next(iter(stated), None),
        "seed": seed,
    }
    ready = prepare(config, sources)
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
    same call is made again. The folder appears under its name only when it is whole.

    Parameters
    ----------
    config : MergeConfig, mapping, or path of a YAML file
    out : path
        Must not exist, or be an earlier merge's (then it is replaced).
    shard_size : int
        The most bytes a file.
    workers : int, optional
        Tensors merged at once; ``torch.get_num_threads()`` by default.
    progress : callable
        ``(tensor, bytes done, bytes in all)``.

    Raises
    ------
    Conflict, ValueError
        As `prepare`; also a folder that is something else.
    OSError
        The disk is full (found when the files are laid out, before anything is computed).
    """
    if isinstance(config, Path | str):
        config = configuration.read(Path(config))
    ready, out = prepare(config), Path(out)
    if out.exists() and any(out.iterdir()) and not (out / "merge.json").exists():
        raise ValueError(f"{out} exists and is not a merge's folder; give another")
    draft = out.parent / f".{out.name}.partial"
    _resume_or_clear(draft, _fingerprint(ready, shard_size))
    slots = [Slot(t.name, t.dtype, t.shape) for t in ready.tensors]
    writer = ShardWriter(draft, slots, shard_size=shard_size)
    left = [t for t in ready.tensors if t.name not in writer.done]
    done = sum(t.bytes for t in ready.tensors) - sum(t.bytes for t in left)

    def work(t: TensorPlan) -> TensorPlan:
        writer.write(t.name, ready.tensor(t))
        return t

    finished = False
    try:
        for t in each(work, left, workers=workers):
            done += t.bytes
            progress(t.name, done, writer.total)
        finished = True
    finally:
        writer.close(finished=finished)
    _accompany(ready, draft)
    (draft / "fingerprint").unlink()
    if out.exists():
        shutil.rmtree(out)
    os.replace(draft, out)
    return ready


def _resume_or_clear(draft: Path, fingerprint: str) -> None:
    mark = draft / "fingerprint"
    if draft.exists() and (not mark.exists() or mark.read_text() != fingerprint):
        shutil.rmtree(draft)  # left by another merge
    draft.mkdir(parents=True, exist_ok=True)
    write_text(mark, fingerprint)


def _fingerprint(ready: Merge, shard_size: int) -> str:
    told = [ready.config.model_dump(mode="json"), shard_size, [s.fingerprint() for s in ready.sources.values()]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _seed(seed: int, name: str) -> int:
    """A tensor's own seed, whatever the order and the place it is merged in."""
    return (seed << 32) + zlib.crc32(name.encode())


def _blame(t: TensorPlan, error: Exception) -> str:
    for source, name in t.inputs:
        if not torch.isfinite(source.read(name)).all():
            held = source.tensors[name]
            where = f" ({held.file})" if not isinstance(held, Tensor) else ""
            return f"{source.label}{where} has NaN or Inf"
    return str(error)


def _accompany(ready: Merge, draft: Path) -> None:
    """Configuration, tokenizer, model card, recipe and report beside the weights."""
    c = ready.config
    lead = ready.sources[c.base_model] if c.base_model is not None else next(iter(ready.sources.values()))
    config = dict(lead.config)
    if config:
        wanted = c.out_dtype or c.dtype
        config |= {"dtype": wanted} if wanted else {}
        config.pop("torch_dtype", None)
        if c.slices is not None:
            key = next(k for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config)
            config[key] = layers_of(ready.tensors)
            config.pop("layer_types", None)
        if ready.vocabulary is not None:
            config["vocab_size"] = ready.vocabulary.size
        if any(is_output(t.name) for t in ready.tensors):
            config["tie_word_embeddings"] = False
        write_json(draft / "config.json", config)
    if lead.folder is not None:
        kept = _TOKENIZER if ready.vocabulary is None else ()
        for path in lead.folder.iterdir():
            if path.name.startswith(("generation_config", *kept)):
                shutil.copyfile(path, draft / path.name)
    if ready.vocabulary is not None:
        ready.vocabulary.tokenizer.save_pretrained(draft)
    if c.chat_template is not None:
        write_text(draft / "chat_template.jinja", c.chat_template)
    recipe = yaml.safe_dump(c.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    write_text(draft / "merge.yaml", recipe)
    write_text(draft / "README.md", _card(ready, recipe))
    write_json(draft / "merge.json", report(ready))


def report(ready: Merge) -> dict:
    """What went into every tensor, for JSON."""
    return {
        "method": ready.config.merge_method,
        **ready.cost,
        "notes": ready.notes,
        "models": [s.label for s in ready.sources.values()],
        "merged": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": str(t.dtype).removeprefix("torch."),
                **({"copied_from": t.inputs[0][0].label} if t.copied else {"options": t.options}),
            }
            for t in ready.tensors
        ],
    }


def _card(ready: Merge, recipe: str) -> str:
    newline, models = "\n", [f"* {s.label}" for s in ready.sources.values()]
    title = METHODS[ready.config.merge_method]
    front = {"library_name": "transformers", "tags": ["merge", "rankwise", ready.config.merge_method]}
    hub = [s for s in ready.sources if s.count("/") == 1 and not Path(s).exists()]
    if hub:
        front["base_model"] = hub
    return f"""---
{yaml.safe_dump(front, sort_keys=False).rstrip()}
---

# Merged by {title.title}

{len(ready.tensors)} tensors of {len(models)} models, merged by {title.title} ({title.paper}) with
[rankwise](https://pypi.org/project/rankwise/).

## Models

{newline.join(models)}

## Recipe

```yaml
{recipe.rstrip()}
```
"""
