"""LoRA adapters as what they stand for: low-rank changes to tensors of the model they were trained on.

    W' = W + s B A,    s = α / r,  or α / √r with rank-stabilised scaling

What people get wrong: adding B A to the full W where the adapter's start had been taken out of it. PiSSA and OLoRA
begin with leading directions P of W and train beside the residual W - P, so that the adapted weight is
``W - P + s B A``. P is W's best rank-r approximation (PiSSA), or s times the first r steps of its QR decomposition
(OLoRA).
Starts that also change the base but cannot be worked out again from it are refused.

Sources: Hu et al., LoRA, arXiv 2106.09685; Meng et al., PiSSA, arXiv 2404.02948; Büyükakyüz, OLoRA, arXiv 2406.01775;
what is taken out follows PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.merging.engine.names import is_output, is_words
from rankwise.merging.low_rank import LowRank
from rankwise.merging.shards import Entry, entries
from rankwise.reading import matching, read_json
from rankwise.spectral import truncated_svd

_KEPT = {True, False, None, "gaussian", "eva", "orthogonal", "mica"}  # starts that leave the base as it is
_REBUILT = {"pissa", "olora"}
# settings that say how an adapter was trained, or are read below; any other that is set changes what it computes
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
    "ensure_weight_tying", "runtime_config",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The two factors of a layer's LoRA.

    Attributes
    ----------
    A, B : Entry
        Where the factors lie: ``(r, in)`` and ``(out, r)``.
    scale : float
        The number s that their product is multiplied with.
    transposed : bool
        The weight is stored as ``(in, out)``.
    start : {None, "pissa", "olora"}
        What was taken out of the weight at the start.

    Examples
    --------
    >>> import tempfile
    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.merging.engine.sources import open_source
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertModel(config).save_pretrained(f"{folder}/base")
    ...     tuned = get_peft_model(BertModel(config), LoraConfig(r=2, target_modules=["query"]))
    ...     tuned.save_pretrained(f"{folder}/lora")
    ...     source = open_source(f"{folder}/base+{folder}/lora")
    ...     change = source.adapters["encoder.layer.0.attention.self.query.weight"].read()
    >>> change.B.shape, change.A.shape, change.scale
    (torch.Size([16, 2]), torch.Size([2, 16]), 4.0)
    """

    A: Entry
    B: Entry
    scale: float
    transposed: bool = False
    start: str | None = None

    def read(self, weight: Tensor | None = None) -> LowRank:
        """The change in the orientation of the weight as stored, which ``weight`` is, where a start is taken out."""
        A, B, scale = self.A.read(), self.B.read(), self.scale
        if self.start is not None:
            assert weight is not None
            into, back = _taken_out(weight.float().mT if self.transposed else weight.float(), len(A), self.start)
            size = 1.0 if self.start == "pissa" else scale
            A, B, scale = torch.cat([scale * A.float(), -size * back]), torch.cat([B.float(), into], 1), 1.0
        return LowRank(B=A.mT, A=B.mT, scale=scale) if self.transposed else LowRank(B=B, A=A, scale=scale)


def _taken_out(W: Tensor, r: int, start: str) -> tuple[Tensor, Tensor]:
    """``(out, r)`` and ``(r, in)`` whose product, times s for OLoRA, PEFT subtracts when training starts."""
    if start == "olora":
        Q, R = torch.linalg.qr(W)
        return Q[:, :r], R[:r]
    leading = truncated_svd(W, r, method="full")
    return leading.U * leading.S, leading.Vh


def settings_of(folder: Path, label: str) -> dict[str, Any]:
    """An adapter's settings, if all that they ask for is understood.

    Raises
    ------
    ValueError
        Not plain LoRA, a start that cannot be worked out again, a setting that is not known, pickled weights.
    """
    path = folder / "adapter_config.json"
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA" or settings.get("use_dora") or settings.get("lora_bias"):
        what = (
            "DoRA" if settings.get("use_dora") else "LoRA with biases" if settings.get("lora_bias") else str(kind)[:40]
        )
        raise ValueError(
            f"{label} is {what}, not plain LoRA; make it so: rankwise export {folder} --to lora (or merged)"
        )
    start = settings.get("init_lora_weights")
    if not isinstance(start, str | bool | None) or start not in _KEPT | _REBUILT:
        raise ValueError(
            f"{label} was started by init_lora_weights={str(start)[:40]!r}, which changed the base in a way that "
            f"{path} does not hold: save it as plain LoRA (path_initial_model_for_weight_conversion in PEFT)"
        )
    if start == "olora" and settings.get("fan_in_fan_out"):
        raise ValueError(f"{label}: OLoRA of a transposed layer is not read; merge it into its model in PEFT first")
    odd = sorted(k for k, v in settings.items() if k not in _KNOWN and v not in (None, False, [], {}))
    if odd:
        raise ValueError(f"{label} has {odd[0][:60]} in {path}, which is not understood; merge it into its model first")
    if not isinstance(settings.get("lora_alpha"), int | float) or isinstance(settings["lora_alpha"], bool):
        raise ValueError(f"{path}: lora_alpha must be a number")
    if not (folder / "adapter_model.safetensors").exists():
        hint = "; adapter_model.bin is pickled and is not opened" if (folder / "adapter_model.bin").exists() else ""
        raise ValueError(f"{folder} has no adapter_model.safetensors{hint}")
    return settings


def adapted(
    folder: Path, settings: Mapping[str, Any], base: Mapping[str, Entry | Tensor], label: str
) -> tuple[dict[str, Entry | Tensor], dict[str, Adapter]]:
    """A base's tensors, some replaced as a whole (``modules_to_save``), and the low-rank changes to others.

    Raises
    ------
    ValueError
        Layers other than linear ones, factors that do not fit, tensors that the base does not have.
    """
    file = folder / "adapter_model.safetensors"
    held, tensors = entries(file), dict(base)
    odd = [k for k, e in held.items() if "lora_" in k and (not re.search(r"\.lora_[AB]\.", k) or len(e.shape) != 2)]
    if odd:
        raise ValueError(
            f"{label} adapts more than linear layers ({odd[0]}); merge it first: rankwise export --to merged"
        )
    names = {k: k.removeprefix("base_model.model.") for k in held}
    modules = {k: n.partition(".lora_A")[0] for k, n in names.items() if ".lora_A." in n}
    scales = _scales(settings, list(modules.values()), folder)
    adapters: dict[str, Adapter] = {}
    for key, module in modules.items():
        A, B = held[key], held.get(key.replace(".lora_A.", ".lora_B."))
        if B is None:
            raise ValueError(f"{file} has {key} without its lora_B")
        name = _in_base(f"{module}.weight", tensors, label)
        start = settings.get("init_lora_weights")
        made = Adapter(
            A=A, B=B, scale=scales[module] / max(A.shape[0], 1) ** (0.5 if settings.get("use_rslora") else 1.0),
            transposed=bool(settings.get("fan_in_fan_out")), start=start if start in _REBUILT else None,
        )  # fmt: skip
        shape = (A.shape[1], B.shape[0]) if made.transposed else (B.shape[0], A.shape[1])
        if A.shape[0] != B.shape[1] or tuple(tensors[name].shape) != shape or not A.shape[0]:
            raise ValueError(
                f"{label}: factors {list(B.shape)} and {list(A.shape)} do not fit {name} {list(tensors[name].shape)}"
            )
        if name in adapters:
            raise ValueError(f"{label} adapts {name} twice")
        adapters[name] = made
    if lone := [k for k in held if ".lora_B." in k and k.replace(".lora_B.", ".lora_A.") not in held]:
        raise ValueError(f"{file} has {lone[0]} without its lora_A")
    for key, entry in held.items():
        if "lora_" not in key:  # modules_to_save, biases: whole tensors instead of the base's
            plain = names[key]
            tensors[_in_base(plain, tensors, label) if _near(plain, tensors) else plain] = entry
    return tensors, adapters


def _near(name: str, tensors: Mapping[str, object]) -> list[str]:
    return [n for n in tensors if n == name or n.endswith(f".{name}") or name.endswith(f".{n}")]


def _in_base(name: str, tensors: dict[str, Entry | Tensor], label: str) -> str:
    """The base's name for an adapted tensor: the task model's may have a prefix more or less.

    An output layer that the base ties to its embedding becomes a tensor of its own.
    """
    if name in tensors:
        return name
    near = _near(name, tensors)
    if len(near) == 1:
        return near[0]
    words = [n for n in tensors if is_words(n)]
    if is_output(name) and len(words) == 1:
        tensors[name] = tensors[words[0]]
        return name
    raise ValueError(f"{label} adapts {name}, which its base does not have")


def _scales(settings: Mapping[str, Any], modules: list[str], folder: Path) -> dict[str, float]:
    """α of each module; as in PEFT the first pattern that matches the end of its name decides."""
    alphas = {m: float(settings["lora_alpha"]) for m in modules}
    patterns = settings.get("alpha_pattern") or {}
    path = str(folder / "adapter_config.json")
    if not isinstance(patterns, dict) or not all(isinstance(a, int | float) for a in patterns.values()):
        raise ValueError(f"{path}: alpha_pattern must map patterns to numbers")
    for pattern, alpha in reversed(patterns.items()):
        whole = rf"(.*\.)?({pattern})"
        plain = re.fullmatch(r"[\w.-]*", pattern)  # most are, and need no process of their own to be safe
        for module in (
            [m for m in modules if re.fullmatch(whole, m)] if plain else matching(whole, modules, source=path)
        ):
            alphas[module] = float(alpha)
    return alphas
