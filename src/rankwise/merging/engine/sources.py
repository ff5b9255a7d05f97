"""The models of a merge, read lazily: folders of safetensors, hub ids, bundled names, LoRA adapters, state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.files import content_of
from rankwise.merging.engine.adapters import Adapter, adapted, settings_of
from rankwise.merging.engine.names import LAYER, is_output, is_words
from rankwise.merging.shards import Entry, checkpoint_entries
from rankwise.models.loading import resolve
from rankwise.models.low_rank import KEY
from rankwise.models.names import BUNDLED, kept_as, model_fingerprint
from rankwise.reading import read_json

_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "tokenizer*"]
_LANGUAGE = ("text_config", "language_config", "llm_config", "text_model_config")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One model.

    Attributes
    ----------
    label : str
        What the configuration calls it.
    tensors : dict
        By name; an `Entry` of a file, or a tensor in memory.
    adapters : dict of Adapter
        Low-rank changes to some of the tensors.
    folder : Path, optional
        Where its configuration and tokenizer are; of an adapter, those of the model it changes.
    untied : bool
        An adapter changed the output layer, which the model's configuration ties to the embedding.
    notes : tuple of str
        What is odd about it, and may be meant: an adapter of other weights than those it is put on.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.sources import open_source
    >>> source = open_source({"model.layers.0.w": torch.zeros(2, 3)}, label="mine")  # or a folder, or a hub id
    >>> source.stacks, source.shape("model.layers.0.w")
    ({'model.layers.': 1}, (2, 3))
    """

    label: str
    tensors: Mapping[str, Entry | Tensor]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    folder: Path | None = None
    untied: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``; empty for state dicts."""
        path = None if self.folder is None else self.folder / "config.json"
        return read_json(path) if path is not None and path.exists() else {}

    @cached_property
    def layers(self) -> dict[tuple[str, int], list[str]]:
        """Of every layer, by what its names begin with and its number: what they end with."""
        found: dict[tuple[str, int], list[str]] = {}
        for name in self.tensors:
            if m := LAYER.match(name):
                found.setdefault((m[1], int(m[2])), []).append(m[3])
        return found

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Its stacks of layers, by what their names begin with (``model.layers.``), and how many layers each has."""
        found: dict[str, int] = {}
        for stack, i in self.layers:
            found[stack] = max(found.get(stack, 0), i + 1)
        return found

    @cached_property
    def words(self) -> str | None:
        """The name of its embedding of tokens."""
        return next((n for n in self.tensors if is_words(n)), None)

    @property
    def rows(self) -> int | None:
        """How many tokens its embedding has rows for."""
        return None if self.words is None else self.shape(self.words)[0]

    def name_of(self, name: str) -> str | None:
        """The tensor's name in this model; an output layer tied to the embedding is found there."""
        if name in self.tensors:
            return name
        return self.words if is_output(name) and self.ties else None

    @property
    def ties(self) -> bool:
        """Whether its output layer is its embedding."""
        said = [
            part["tie_word_embeddings"]
            for part in (self.config, language(self.config))
            if "tie_word_embeddings" in part
        ]
        return not self.untied and bool(said[0] if said else not any(is_output(n) for n in self.tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, by its name here."""
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self.tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """The whole tensor, with the adapter's change added (then float32)."""
        held = self.tensors[name]
        plain = held.read() if isinstance(held, Entry) else held
        if name not in self.adapters:
            return plain
        return plain.float() + self.adapters[name].read(plain).dense().reshape(plain.shape)

    def fingerprint(self) -> list[object]:
        """Changes when its files do: of weights by what the system says of the file, of small files by content."""
        files = {e.file for e in self.tensors.values() if isinstance(e, Entry)}
        files |= {e.file for a in self.adapters.values() for e in (a.A, a.B)}
        status = [f.stat() for f in files]
        found = sorted([s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in status)
        beside = [] if self.folder is None else sorted(p for p in self.folder.iterdir() if p.is_file())
        small = {p.name: content_of(p) for p in beside if p.suffix != ".safetensors" and p.stat().st_size < 1e8}
        adapters = {n: [a.scale, a.transposed, a.start] for n, a in self.adapters.items()}
        return [found, small, adapters]


def language(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model: a part of its own where there is also vision."""
    return next((config[k] for k in _LANGUAGE if isinstance(config.get(k), dict)), config)


def open_source(reference: str | Mapping[str, Tensor], *, label: str | None = None) -> Source:
    """A model by what names it.

    Parameters
    ----------
    reference : str or mapping of Tensor
        A folder, a hub id (``owner/model@revision``), a bundled name, ``base+adapter``, an adapter's folder, or a state
        dict.
    label : str, optional
        What to call a state dict in messages.

    Raises
    ------
    ValueError
        Nothing that can be read, a quantised or compressed model, or an adapter other than plain LoRA.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.merging.engine.sources import open_source
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertModel(config).save_pretrained(folder)
    ...     source = open_source(folder)  # headers alone are read
    ...     source.config["model_type"], source.shape("encoder.layer.0.intermediate.dense.weight")
    ('bert', (32, 16))
    """
    if not isinstance(reference, str):
        return Source(label=label or "state dict", tensors=dict(reference))
    # a folder may have a plus in its name
    base, _, adapter = (reference, "", "") if Path(reference).expanduser().is_dir() else reference.partition("+")
    folder = _folder(base)
    if adapter:
        return _adapted(reference, folder, _folder(adapter))
    if (folder / "adapter_config.json").is_file():
        settings = read_json(folder / "adapter_config.json")
        named = settings.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise ValueError(
                f"{folder / 'adapter_config.json'} does not say of which model this is an adapter: write "
                f"model+{reference}"
            )
        named = _bundled(named)
        local = named in BUNDLED or Path(named).expanduser().is_dir()
        revision = "" if local or not settings.get("revision") else f"@{settings['revision']}"
        return _adapted(reference, _folder(named + revision), folder)
    return _dense(Source(label=reference, tensors=checkpoint_entries(folder), folder=folder))


def _adapted(label: str, base: Path, folder: Path) -> Source:
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} has no adapter_config.json: not an adapter")
    settings = settings_of(folder, label)
    plain = _dense(Source(label=label, tensors=checkpoint_entries(base), folder=base))
    tensors, adapters = adapted(folder, settings, plain.tensors, label)
    untied = plain.ties and any(is_output(n) and n not in plain.tensors for n in tensors)
    return Source(
        label=label, tensors=tensors, adapters=adapters, folder=base, untied=untied, notes=_strange(label, base, folder)
    )


def _strange(label: str, base: Path, adapter: Path) -> tuple[str, ...]:
    """A note where the adapter says by content on which model it was trained, and this is another."""
    file = adapter / "rankwise.json"
    content = read_json(file).get("base_content") if file.is_file() else None
    if content is None or content == model_fingerprint(_bundled(str(base)), weights_only=True):
        return ()
    return (f"{label}: the adapter was trained on other weights than those of {base}, which it is added to",)


def _dense(source: Source) -> Source:
    """The source, if its tensors are the weights themselves."""
    config = source.config
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ValueError(
            f"{source.label} is quantised ({str(how or 'quantization_config')[:40]}): its numbers are codes, which "
            "cannot be averaged; give the model it was made from, or save it dequantised"
        )
    if KEY in config:
        raise ValueError(
            f"{source.label} is compressed into factors, which cannot be averaged: rankwise export {source.folder} "
            "--to dense makes it whole"
        )
    return source


def _bundled(named: str) -> str:
    """The bundled name of a cached folder, so that an adapter made here finds its base on another machine."""
    return next((n for n in BUNDLED if kept_as(n) in named), named)


def _folder(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.is_dir():
        if not any((path / n).exists() for n in ("config.json", "adapter_config.json")):
            raise ValueError(f"{path} has neither config.json nor adapter_config.json: not a model folder")
        return path
    name, _, revision = reference.partition("@")
    if revision and (name in BUNDLED or Path(name).expanduser().is_dir()):
        raise ValueError(f"{reference}: a revision is one of a hub id; {name} has none")
    local = Path(resolve(name))
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS))
