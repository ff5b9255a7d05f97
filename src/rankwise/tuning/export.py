"""Export: any low-rank adapter as a plain LoRA that stock PEFT, vLLM and llama.cpp's converter read.

PEFT's LoRA computes ``W + (alpha / r) B A`` with ``A: (r, in)``, ``B: (out, r)``. A method whose delta has rank at most
r converts without loss: its coefficients are folded into B. One ``alpha`` serves all layers, and the factor
``r_m / alpha`` goes into ``B_m``, so that readers that know a rank for each layer but only one alpha agree with PEFT.

Directions with coefficient zero are dropped first; layers left with none are dropped too. ``pad`` fills all layers with
zeros up to one rank from the set that serving engines accept. Truncation changes the model and happens only on request.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera import VeraLayer
from safetensors.torch import save_file
from torch import Tensor

from rankwise.files import whole_folder
from rankwise.spectral import truncated_svd
from rankwise.tuning.s2lora import S2LoraLayer

SERVING_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class LoraExport(NamedTuple):
    """What an export wrote: the rank of every kept layer, and the largest relative error of truncation (else 0)."""

    ranks: dict[str, int]
    error: float


def low_rank_factors(layer: BaseTunerLayer, adapter_name: str = "default") -> tuple[Tensor, Tensor]:
    """``A: (r, in)`` and ``B: (out, r)``, float32, with the layer's delta equal to ``B A`` and zero directions dropped.

    Raises
    ------
    TypeError
        The layer's method has no exact low-rank form.
    """
    if isinstance(layer, S2LoraLayer):
        P, coefficients, Q = layer.factors(adapter_name)
        A, B, size = Q, P, layer.scaling[adapter_name] * coefficients
    elif isinstance(layer, AdaLoraLayer):
        A, B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        size = layer.lora_E[adapter_name].flatten() * layer.scaling[adapter_name]
        size = size / (layer.ranknum[adapter_name] + 1e-5)
    elif isinstance(layer, VeraLayer):
        size = layer.vera_lambda_d[adapter_name]
        A = layer.vera_A[adapter_name][:, : layer.in_features]
        B = layer.vera_B[adapter_name][: layer.out_features] * layer.vera_lambda_b[adapter_name][:, None]
    elif isinstance(layer, LoraLayer) and not layer.use_dora.get(adapter_name, False):
        A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        size = torch.full((len(A),), float(layer.scaling[adapter_name]), device=A.device)
    else:
        raise TypeError(f"{type(layer).__name__} has no exact low-rank form; export it merged instead")
    used = size != 0
    return A[used].detach().float().cpu(), (B * size)[:, used].detach().float().cpu()


def export_lora(
    model: PeftModel,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    pad: bool = False,
    max_rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoraExport:
    """Write an adapter as a plain LoRA in PEFT's format.

    Parameters
    ----------
    model : PeftModel
        Holding a LoRA, AdaLoRA, EVA, S2-LoRA or VeRA adapter.
    folder : path
        Replaced as a whole.
    pad : bool
        One rank for all layers, the next of 8, 16, 32, 64, …; else each its own by ``rank_pattern``.
    max_rank : int, optional
        Truncate each delta to this rank by SVD; the error is returned.

    Raises
    ------
    TypeError
        A method without an exact low-rank form (BitFit, DoRA).
    ValueError
        Every coefficient is zero: the adapter is the base model.
    """
    layers = {
        n.removeprefix("base_model.model."): m
        for n, m in model.named_modules()
        if isinstance(m, BaseTunerLayer) and adapter_name in m._get_available_adapters()
    }
    factors = {n: low_rank_factors(m, adapter_name) for n, m in layers.items()}
    error = 0.0
    if max_rank is not None:
        errors = {}
        for name, (A, B) in factors.items():
            factors[name], errors[name] = _truncated(A, B, max_rank)
        error = max(errors.values())
    factors = {n: (A, B) for n, (A, B) in factors.items() if len(A)}
    if not factors:
        raise ValueError(
            "every coefficient of the adapter is zero: it equals the base model, there is nothing to export"
        )
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
    source = model.peft_config[adapter_name]
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


def _head(model: PeftModel, adapter_name: str, layers: list[BaseTunerLayer]) -> dict[str, Tensor]:
    """What the adapter saves besides its low-rank parts: the task head and other trained modules."""
    own = {f".{part}." for m in layers for part in (*m.adapter_layer_names, *m.other_param_names)}
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    prefix = model.base_model.prefix
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
