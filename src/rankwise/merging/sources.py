"""The models of a merge, read lazily: folders of safetensors, hub ids, bundled names, LoRA adapters, state dicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rankwise.merging.low_rank import LowRank
from rankwise.merging.shards import Entry, checkpoint_entries, entries
from rankwise.models.loading import BUNDLED, resolve
from rankwise.reading import read_json

_EMBEDDING = re.compile(
    r"(^|\.)(embed\w*|wte|wpe|word_embeddings|position_embeddings|shared)\.(weight|\w*embeddings\.weight)$"
)
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output_layer)\.weight$")
LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers|layer|h|blocks|block)\.)(\d+)(\..*)$")


def is_embedding(name: str) -> bool:
    """Whether a tensor has a row a token (or position): embeddings and output layers."""
    return bool(_EMBEDDING.search(name) or _OUTPUT.search(name) or "embeddings." in name)


def is_output(name: str) -> bool:
    """Whether a tensor is a language model's output layer."""
    return bool(_OUTPUT.search(name))


@dataclass(frozen=True)
class Adapter:
    """The two factors of a layer's LoRA."""

    A: Entry | Tensor
    B: Entry | Tensor
    scale: float
    transposed: bool = False

    def read(self) -> LowRank:
        """``s B A`` in the orientation of the weight as stored."""
        A, B = _tensor(self.A), _tensor(self.B)
        return LowRank(B=A.mT, A=B.mT, scale=self.scale) if self.transposed else LowRank(B=B, A=A, scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One model.

    Attributes
    ----------
    label : str
        As the configuration names it.
    tensors : dict
        By name; an `Entry` of a file, or a tensor in memory.
    adapters : dict of Adapter
        Low-rank changes to some of the tensors.
    folder : Path, optional
        Where its configuration and tokenizer are.
    base_folder : Path, optional
        Of an adapter: where the model it changes is.
    """

    label: str
    tensors: Mapping[str, Entry | Tensor]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    folder: Path | None = None
    base_folder: Path | None = None

    @cached_property
    def config(self) -> dict:
        """``config.json``; empty for state dicts."""
        path = None if self.folder is None else self.folder / "config.json"
        return read_json(path) if path is not None and path.exists() else {}

    def name_of(self, name: str) -> str | None:
        """The tensor's name in this model; an output layer tied to the embedding is found there."""
        if name in self.tensors:
            return name
        if is_output(name) and self.config.get("tie_word_embeddings", True):
            tied = [n for n in self.tensors if _EMBEDDING.search(n) and "position" not in n and ".wpe" not in n]
            return tied[0] if len(tied) == 1 else None
        return None

    @property
    def ties(self) -> bool:
        """Whether its output layer is its embedding."""
        return self.config.get("tie_word_embeddings", not any(is_output(n) for n in self.tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, by its name here."""
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self.tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """The whole tensor, with the adapter's change added (then float32)."""
        plain = _tensor(self.tensors[name])
        if name not in self.adapters:
            return plain
        return plain.float() + self.adapters[name].read().dense().reshape(plain.shape)

    def fingerprint(self) -> str:
        """Changes when the files do."""
        files = {e.file for e in self.tensors.values() if isinstance(e, Entry)}
        files |= {e.file for a in self.adapters.values() for e in (a.A, a.B) if isinstance(e, Entry)}
        told = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _tensor(held: Entry | Tensor) -> Tensor:
    return held.read() if isinstance(held, Entry) else held


def open_source(reference: str | Mapping[str, Tensor], *, label: str | None = None) -> Source:
    """A model by what names it.

    Parameters
    ----------
    reference : str or mapping of Tensor
        A folder, a hub id, a bundled name, ``base+adapter``, an adapter's folder, or a state dict.
    label : str, optional
        What to call a state dict in messages.

    Raises
    ------
    ValueError
        Nothing that can be read, or an adapter other than plain LoRA.
    """
    if not isinstance(reference, str):
        return Source(label=label or "state dict", tensors=dict(reference))
    # a folder may have a plus in its name
    base, _, adapter = (reference, "", "") if Path(reference).expanduser().is_dir() else reference.partition("+")
    folder = _folder(base)
    if not adapter and (folder / "adapter_config.json").is_file():
        settings = read_json(folder / "adapter_config.json")
        named = settings.get("base_model_name_or_path")
        if not named:
            raise ValueError(f"{reference} is an adapter that does not say of which model: write model+{reference}")
        return _adapted(reference, _folder(_bundled(str(named))), folder)
    if adapter:
        return _adapted(reference, folder, _folder(adapter))
    return Source(label=reference, tensors=checkpoint_entries(folder), folder=folder)


def _bundled(named: str) -> str:
    """The bundled name of a cached folder, so that an adapter made here finds its base on another machine."""
    return next((n for n, b in BUNDLED.items() if f"{n}-{b.archive.version}" in named), named)


def _folder(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.is_dir():
        if not any((path / n).exists() for n in ("config.json", "adapter_config.json")):
            raise ValueError(f"{path} has neither config.json nor adapter_config.json: not a model folder")
        return path
    local = Path(resolve(reference))
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(reference, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))


def _adapted(label: str, base: Path, folder: Path) -> Source:
    settings = read_json(folder / "adapter_config.json")
    kind = str(settings.get("peft_type"))
    if kind != "LORA" or settings.get("use_dora") or settings.get("lora_bias"):
        what = "DoRA" if settings.get("use_dora") else "LoRA with biases" if settings.get("lora_bias") else kind
        raise ValueError(f"{label} is {what}, not plain LoRA; make it so: rankwise export {folder} --to lora")
    if not (folder / "adapter_model.safetensors").exists():
        raise ValueError(f"{folder} has no adapter_model.safetensors")
    tensors: dict[str, Entry | Tensor] = dict(checkpoint_entries(base))
    held = entries(folder / "adapter_model.safetensors")
    odd = [k for k, e in held.items() if "lora_" in k and (not re.search(r"\.lora_[AB]\.", k) or len(e.shape) != 2)]
    if odd:
        raise ValueError(
            f"{label} adapts more than linear layers ({odd[0]}); merge it first: rankwise export --to merged"
        )
    adapters = {}
    for key, A in held.items():
        module, found, _ = key.removeprefix("base_model.model.").partition(".lora_A")
        if not found:
            continue
        B = held[key.replace(".lora_A", ".lora_B")]
        name = _matching(f"{module}.weight", tensors, label)
        adapters[name] = Adapter(A, B, _scale(settings, module, A.shape[0]), bool(settings.get("fan_in_fan_out")))
    for key, entry in held.items():
        if "lora_" not in key:  # modules_to_save: whole tensors instead of the base's
            plain = key.removeprefix("base_model.model.")
            tensors[_matching(plain, tensors, label) if _near(plain, tensors) else plain] = entry
    if len(adapters) != sum(".lora_A" in k for k in held):
        raise ValueError(f"{label} adapts a layer twice")
    return Source(label=label, tensors=tensors, adapters=adapters, folder=base, base_folder=base)


def _near(name: str, tensors: Mapping[str, object]) -> list[str]:
    return [n for n in tensors if n == name or n.endswith(f".{name}") or name.endswith(f".{n}")]


def _matching(name: str, tensors: Mapping[str, object], label: str) -> str:
    """The base's name for an adapted tensor: the task model's may have a prefix more or less."""
    if name in tensors:
        return name
    near = _near(name, tensors)
    if len(near) != 1:
        raise ValueError(f"{label} adapts {name}, which its base does not have")
    return near[0]


def _scale(settings: dict, module: str, rank: int) -> float:
    patterns: dict[str, float] = settings.get("alpha_pattern") or {}
    alpha = next((a for p, a in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", module)), settings["lora_alpha"])
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
