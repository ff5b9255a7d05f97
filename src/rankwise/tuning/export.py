"""Export: any low-rank adapter as a plain LoRA in PEFT's format.

PEFT's LoRA computes ``W + (alpha / r) B A`` with ``A: (r, in)``, ``B: (out, r)``. A method whose delta has rank at most
r converts without loss: its coefficients are folded into B. Directions with coefficient zero are dropped first; layers
left with none are dropped too. Truncation changes the model and happens only on request.

By default all layers are filled with zeros up to one rank, the next of 8, 16, 32, …, and ``alpha`` equals it. Every
reader of the format then finds the same scale of 1, whichever rank it divides by:

| reader divides ``lora_alpha`` by | unpadded files |
|---|---|
| the layer's rank in ``rank_pattern``, else ``r``: PEFT | right |
| the tensor's own rank | right |
| ``r`` for all layers; ``rank_pattern`` is not read | wrong |

PEFT is the reader that the tests run; the other two rules are applied there to the written file. A reader that knows of
factors alone has no place for a saved head (``modules_to_save``): merge such an adapter into the model instead.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera import VeraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.files import whole_folder
from rankwise.spectral import truncated_svd
from rankwise.tuning.codyra import CodyraLayer
from rankwise.tuning.s2lora import S2LoraLayer
from rankwise.tuning.vida import VidaLayer

__all__ = ["export_lora", "low_rank_factors"]

Factors = tuple[Tensor, Tensor]  # A: (r, in) and B: (out, r)

# few sizes, as servers set memory aside for
SERVING_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# variants of LoRA whose forward pass is plain LoRA's: they differ in training alone
PLAIN_VARIANTS = ("velora_config",)
# other options of LoRA that a plain LoRA on the same base model cannot say
UNSAYABLE = {
    "lora_bias": "a bias beside B",
    "use_qalora": "an A that reads pooled inputs",
    "target_parameters": "factors of parameters that are no layer's weight",
    "trainable_token_indices": "trained rows of the embedding",
    "layer_replication": "a base model with other layers",
    "megatron_config": "factors split over parallel layers",
}
# starts that take the adapter's first product out of the base weights
BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraExport(NamedTuple):
    """What an export wrote: the rank of every kept layer, and the largest relative error of truncation (else 0).

    Examples
    --------
    >>> import tempfile
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import S2LoraConfig, export_lora
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), S2LoraConfig(r=4, init_weights=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = export_lora(model, f"{folder}/lora")
    >>> len(written.ranks), set(written.ranks.values()), written.error  # padded to a rank that servers take
    (12, {8}, 0.0)
    """

    ranks: dict[str, int]
    error: float


def low_rank_factors(layer: Any, adapter_name: str = "default") -> tuple[Tensor, Tensor]:
    """``A: (r, in)`` and ``B: (out, r)``, float32, with the layer's delta equal to ``B A`` and zero directions dropped.

    Raises
    ------
    TypeError
        The layer's method has no exact low-rank form on a linear layer.

    Examples
    --------
    >>> import torch
    >>> from peft import LoraConfig, get_peft_model
    >>> from rankwise.tuning import low_rank_factors
    >>> lora = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    >>> layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 4)), lora).base_model.model[0]
    >>> A, B = low_rank_factors(layer)
    >>> A.shape, B.shape, torch.allclose(B @ A, layer.get_delta_weight("default"), atol=1e-5)
    (torch.Size([2, 6]), torch.Size([4, 2]), True)
    """
    kind, base = type(layer), layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D) and not hasattr(base, "in_features"):
        raise TypeError(f"the adapter of a {type(base).__name__} is no pair of matrices; merge it instead")
    if issubclass(kind, S2LoraLayer):
        P, coefficients, Q = layer.factors(adapter_name)
        A, B, size = Q, P, layer.scaling[adapter_name] * coefficients
    elif issubclass(kind, VidaLayer):
        downs, ups, scales = zip(*layer.branches(adapter_name).values(), strict=True)
        if any(isinstance(scale, Tensor) for scale in scales):
            raise TypeError("scales of single pictures have no low-rank form: set_scales with two numbers first")
        A, B = torch.cat(downs), torch.cat(ups, 1)
        size = torch.cat([torch.full((len(D),), s, device=A.device) for D, s in zip(downs, scales, strict=True)])
    elif issubclass(kind, CodyraLayer):
        A, size, B = layer.factors(adapter_name)
    elif issubclass(kind, AdaLoraLayer):
        A, B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        size = layer.lora_E[adapter_name].flatten() * layer.scaling[adapter_name]
        size = size / (layer.ranknum[adapter_name] + 1e-5)
    elif issubclass(kind, VeraLayer):
        size = layer.vera_lambda_d[adapter_name]
        A = layer.vera_A[adapter_name][:, : layer.in_features]
        B = layer.vera_B[adapter_name][: layer.out_features] * layer.vera_lambda_b[adapter_name][:, None]
    elif issubclass(kind, LoraLayer) and isinstance(layer.lora_A[adapter_name], nn.Linear):
        A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        size = torch.full((len(A),), float(layer.scaling[adapter_name]), device=A.device)
    else:
        raise TypeError(f"{kind.__name__} has no exact low-rank form; export it merged instead")
    used = size != 0
    return A[used].detach().float().cpu(), (B * size)[:, used].detach().float().cpu()


def export_lora(
    model: PeftModel,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    pad: bool = True,
    max_rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoraExport:
    """Write an adapter as a plain LoRA in PEFT's format.

    Parameters
    ----------
    model : PeftModel
        Holding a LoRA, AdaLoRA, CoDyRA, EVA, S2-LoRA, VeRA or ViDA adapter, the last at the scales that it has.
    folder : path
        Where the adapter is written; an earlier export there is replaced as a whole.
    pad : bool
        One rank for all layers, the next of 8, 16, 32, 64, … (default). ``False`` gives each its own by
        ``rank_pattern``: a smaller file, misread where one scale is taken for all layers.
    max_rank : int, optional
        Truncate each delta to this rank by SVD; the error is returned.

    dtype : torch.dtype
        The dtype of the written factors. Default float32.

    Raises
    ------
    TypeError
        A method, or a variant of LoRA, that plain LoRA cannot say (BitFit, DoRA, a trained bias, …), by name.
    ValueError
        Every coefficient is zero: the adapter is the base model. Or a factor that is not finite, in the adapter or in
        ``dtype``.

    Examples
    --------
    >>> import tempfile
    >>> from peft import PeftModel, get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import S2LoraConfig, export_lora
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), S2LoraConfig(r=4, init_weights=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_lora(model, f"{folder}/lora")
    ...     plain = PeftModel.from_pretrained(BertModel(config), f"{folder}/lora")
    >>> plain.peft_config["default"].peft_type.value, plain.peft_config["default"].r
    ('LORA', 8)
    """
    check_exportable(model.peft_config[adapter_name])
    layers = {
        n.removeprefix("base_model.model."): m
        for n, m in model.named_modules()
        if isinstance(m, BaseTunerLayer) and adapter_name in m._get_available_adapters()
    }
    factors, error = _kept({n: low_rank_factors(m, adapter_name) for n, m in layers.items()}, max_rank)
    ranks = {n: len(A) for n, (A, _) in factors.items()}
    alpha = max(ranks.values())
    if pad:
        alpha = next((r for r in SERVING_RANKS if r >= alpha), alpha)
        factors = {n: _padded(A, B, alpha) for n, (A, B) in factors.items()}
        ranks = dict.fromkeys(ranks, alpha)
    tensors = _head(model, adapter_name, list(layers.values()))
    for name, (A, B) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.to(dtype).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = (B * (ranks[name] / alpha)).to(dtype).contiguous()
    _check_finite(tensors)
    source: Any = model.peft_config[adapter_name]
    config = LoraConfig(
        r=alpha,
        lora_alpha=alpha,
        target_modules=list(ranks),
        rank_pattern={n: r for n, r in ranks.items() if r != alpha},
        modules_to_save=source.modules_to_save,
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        fan_in_fan_out=any(getattr(m, "fan_in_fan_out", False) for m in layers.values()),
        inference_mode=True,
    )
    with whole_folder(Path(folder), made_by="export") as draft:
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(draft))
    return LoraExport(ranks, error)


def _kept(factors: dict[str, Factors], max_rank: int | None) -> tuple[dict[str, Factors], float]:
    """The layers that are left, at no more than this rank, and the largest relative error of truncation."""
    error = 0.0
    if max_rank is not None:
        truncated = {n: _truncated(A, B, max_rank) for n, (A, B) in factors.items()}
        factors, error = {n: pair for n, (pair, _) in truncated.items()}, max(e for _, e in truncated.values())
    kept = {n: (A, B) for n, (A, B) in factors.items() if len(A)}
    if not kept:
        raise ValueError(
            "every coefficient of the adapter is zero: it equals the base model, there is nothing to export"
        )
    return kept, error


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has NaN or Inf entries in {tensor.dtype}: nothing was written")


def check_exportable(config: PeftConfig) -> None:
    """``TypeError``, by name, for an adapter that a plain LoRA on the same base model cannot say."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in ("LORA", "ADALORA", "VERA", "S2LORA", "VIDA", "CODYRA"):
        raise TypeError(f"{kind} adapters have no exact low-rank form; export it merged instead")
    variants = {f.name: "a variant of LoRA" for f in fields(config) if f.metadata.get("is_lora_variant")}
    for name, what in (UNSAYABLE | variants).items():
        if name not in PLAIN_VARIANTS and getattr(config, name, None):
            raise TypeError(
                f"{name}={getattr(config, name)!r} is {what}, which plain LoRA cannot say; export it merged"
            )
    if (bias := getattr(config, "bias", "none")) != "none":
        raise TypeError(f"bias={bias!r} trains biases of the base model, which plain LoRA cannot say; merge it")
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(BASE_CHANGED):
        raise TypeError(
            f"init_lora_weights='{start}' changes the base weights: the factors do not belong to the original model; "
            "save the adapter by PEFT's save_pretrained with path_initial_model_for_weight_conversion, or merge it"
        )


def _head(model: PeftModel, adapter_name: str, layers: list[BaseTunerLayer]) -> dict[str, Tensor]:
    """What the adapter saves besides its low-rank parts: the task head and other trained modules."""
    own = {f".{part}." for m in layers for part in (*m.adapter_layer_names, *m.other_param_names)}
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    prefix = str(model.base_model.prefix)
    head = {k: v for k, v in state.items() if prefix not in k and not any(part in f"{k}." for part in own)}
    return {k: v.detach().cpu().contiguous() for k, v in head.items()}


def _padded(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - len(A)
    return (
        torch.cat([A, A.new_zeros(missing, A.shape[1])]),
        torch.cat([B, B.new_zeros(B.shape[0], missing)], dim=1),
    )


def _truncated(A: Tensor, B: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """The best factors of ``B A`` at a lower rank (by SVD of the small core), and the relative error."""
    if len(A) <= rank:
        return (A, B), 0.0
    QA, RA = torch.linalg.qr(A.double().mT)
    QB, RB = torch.linalg.qr(B.double())
    svd = truncated_svd(RB @ RA.mT, rank, method="full")
    root = svd.S.sqrt()
    return ((root[:, None] * svd.Vh @ QA.mT).float(), (QB @ svd.U * root).float()), float(svd.error)
