"""S2-LoRA: one pair of low-rank factors shared by every matrix of a shape, and a sparse coefficient vector for each.

An adapter of a few thousand numbers: for each adapted weight ``W_m: (out, in)``

    W_m' = W_m + s · P diag(λ_m) Q,   P: (out, r), Q: (r, in) shared,   λ_m: (r,) its own,   s = alpha / r

trained with ``L = L_task + γ Σ_m ‖λ_m‖₁ / (M r) + μ (‖PᵀP - I‖_F² + ‖QQᵀ - I‖_F²) / r²``. The L1 term gives every
matrix its own effective rank. By default it is applied as a proximal step after each optimiser step,
``λ ← sign(λ) max(|λ| - η γ', 0)``, which reaches exact zeros; as a subgradient (``l1="penalty"``) it never does.

Source: Liu, Qin, Peng & Lee, "Sparsely Shared LoRA on Whisper for Child Speech Recognition", ICASSP 2024, arXiv
2309.11756. The paper has no public code: the normalisers, the orthogonality term (AdaLoRA's, arXiv 2303.10512), the
learning rate of λ and the sharing across several shapes are reconstructed.

What people get wrong: with ``λ = 0`` at the start, the first gradients of P and Q are zero and only λ moves. That is
the method, not a bug.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.models import target_modules
from rankwise.nearest import unknown
from rankwise.spectral import orthogonality_error
from rankwise.tuning import registration as _registration  # noqa: F401  (PeftType.S2LORA must exist)
from rankwise.tuning.injection import matched_modules, replace_module

SHARING = ("shape", "max", "role", "none")


@dataclass
class S2LoraConfig(PeftConfig):
    """Configuration of sparsely shared low-rank adaptation.

    Parameters
    ----------
    r : int
        Rank of the shared factors, 1 to ``min(out, in)``. Default 32: shared factors are cheap.
    lora_alpha : float, optional
        Scale numerator, ``s = lora_alpha / r``; ``r`` by default, so that ``s = 1``.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save, bias
        As in PEFT. Without ``target_modules``, every attention and feed-forward projection.
    sparsity : float
        ``γ'`` of the proximal step relative to the coefficients' learning rate, or ``γ`` of the penalty. Default 1e-3.
    l1 : {"proximal", "penalty"}
        How the L1 term acts.
    orthogonality : float
        ``μ``, default 0.1.
    lambda_lr_scale : float
        Learning rate of λ over that of the factors, default 10.
    dropout : float
        On the input of the factors, default 0.
    share : {"shape", "max", "role", "none"}
        One pair a shape (default), one pair cut from the largest shape, one a role (q, k, up, …) and shape, or one a
        matrix (the unshared ablation).
    train_shared : bool
        ``False`` freezes P and Q at their random start and trains λ alone (the VeRA-like ablation).
    pair_ranks : dict
        Rank of single pairs by key (``"384x1536"``), where it differs from ``r``.
    """

    r: int = field(default=32, metadata={"help": "rank of the shared factors"})
    lora_alpha: float | None = field(default=None, metadata={"help": "scale numerator; r by default"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "layers to adapt"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "layers to leave"})
    sparsity: float = field(default=1e-3, metadata={"help": "strength of the L1 term"})
    l1: str = field(default="proximal", metadata={"help": "proximal or penalty"})
    orthogonality: float = field(default=0.1, metadata={"help": "strength of the orthogonality term"})
    lambda_lr_scale: float = field(default=10.0, metadata={"help": "learning rate of the coefficients"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the factors' input"})
    share: str = field(default="shape", metadata={"help": "shape, max, role or none"})
    train_shared: bool = field(default=True, metadata={"help": "train P and Q, or leave them random"})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "set by the layer's type"})
    bias: str = field(default="none", metadata={"help": "none, all or s2lora_only"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layer indices"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the layer list"})
    pair_ranks: dict[str, int] = field(default_factory=dict, metadata={"help": "rank of single pairs by key"})
    lambda_modules: dict[str, list[str]] | None = field(
        default=None, metadata={"help": "matrices of each pair, the order of the saved coefficients; set when injected"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["S2LORA"]
        if self.r < 1:
            raise ValueError(f"r={self.r}; a rank of at least 1 is needed")
        for name in ("sparsity", "orthogonality"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; 0 switches the term off")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is outside [0, 1)")
        if self.lambda_lr_scale <= 0:
            raise ValueError(f"lambda_lr_scale={self.lambda_lr_scale} must be positive")
        if self.share not in SHARING:
            raise unknown("sharing", self.share, SHARING)
        if self.l1 not in ("proximal", "penalty"):
            raise unknown("l1", self.l1, ("proximal", "penalty"))
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]


class RankEntry(NamedTuple):
    """What one matrix uses of its pair: effective rank, mass ``Σ|λ|`` and the coefficients ``(r,)``."""

    rank: int
    mass: float
    coefficients: Tensor


def effective_rank(coefficients: Tensor, *, threshold: float = 1e-3) -> int:
    """``#{k : |λ_k| > threshold · max|λ|}``; 0 when all are zero."""
    size = coefficients.abs()
    return int((size > threshold * size.max()).sum())


def soft_threshold(x: Tensor, amount: float) -> Tensor:
    """``sign(x) max(|x| - amount, 0)``, the proximal operator of ``amount · ‖x‖₁``."""
    return x.sign() * (x.abs() - amount).clamp(min=0)


def delta_weight(P: Tensor, coefficients: Tensor, Q: Tensor, scale: float) -> Tensor:
    """``s · P diag(λ) Q``, shape ``(out, in)``."""
    return (P * (scale * coefficients)) @ Q


class S2LoraLayer(nn.Module, BaseTunerLayer):
    """A linear layer with coefficients of its own on factors that belong to the tuner model."""

    adapter_layer_names = ("s2lora_lambda",)
    other_param_names = ("s2lora_dropout", "scaling", "pair")

    def __init__(self, base_layer: nn.Module, shared: _Shared) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self.s2lora_lambda = nn.ParameterDict()
        self.s2lora_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.pair: dict[str, str] = {}
        self._shared = (shared,)  # in a tuple, so that the factors are not registered under every layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, pair: str, r: int, config: S2LoraConfig) -> None:
        """Add an adapter whose factors are the pair named ``pair``; its coefficients start at zero, in float32."""
        weight = self.get_base_layer().weight
        self.s2lora_lambda[adapter_name] = nn.Parameter(torch.zeros(r, device=weight.device))
        self.s2lora_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.scaling[adapter_name] = 1.0 if config.lora_alpha is None else config.lora_alpha / config.r
        self.pair[adapter_name] = pair
        self.set_adapter(self.active_adapters)

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """``P: (out, r)``, ``λ: (r,)`` and ``Q: (r, in)`` of this matrix, cut to its shape."""
        P, Q = self._shared[0].pair(adapter_name, self.pair[adapter_name])
        return P[: self.out_features], self.s2lora_lambda[adapter_name], Q[:, : self.in_features]

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``s · P diag(λ) Q`` in the base weight's orientation."""
        delta = delta_weight(*(f.float() for f in self.factors(adapter_name)), self.scaling[adapter_name])
        return delta.mT if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' deltas to the base weight; with ``safe_merge``, only if the sum is finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.s2lora_lambda:
                continue
            weight = self.get_base_layer().weight
            if not weight.is_floating_point():
                raise TypeError("the base layer is quantised: export the adapter instead of merging it")
            merged = (weight.data.float() + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"merging adapter '{name}' gives weights that are not finite")
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what was merged: the base weight returns to within one rounding of its dtype."""
        weight = self.get_base_layer().weight
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            weight.data = (weight.data.float() - delta).to(weight.dtype)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.s2lora_lambda:
                P, coefficients, Q = self.factors(name)
                h = self._shared[0].project(self, name, x, Q) * (self.scaling[name] * coefficients)
                if h.dtype == result.dtype:  # one pass over the output instead of two
                    flat = torch.addmm(result.flatten(0, -2), h.flatten(0, -2), P.mT.to(h.dtype))
                    result = flat.view(result.shape)
                else:
                    result = result + F.linear(h, P)
        return result.to(dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class _Shared:
    """The tuner's factors as its layers see them, with the last projection ``Q x`` kept for the next reader of ``x``.

    The query, key and value of a block read the same input with the same Q: their three products become one.
    """

    def __init__(self, P: nn.ModuleDict, Q: nn.ModuleDict) -> None:
        self.P, self.Q = P, Q
        self.last: dict[tuple[str, str], tuple[Tensor, int, bool, Tensor]] = {}

    def pair(self, adapter: str, key: str) -> tuple[Tensor, Tensor]:
        return self.P[adapter][key], self.Q[adapter][key]  # type: ignore[index,return-value]

    def project(self, layer: S2LoraLayer, adapter: str, x: Tensor, Q: Tensor) -> Tensor:
        dropout = layer.s2lora_dropout[adapter]
        reusable = isinstance(dropout, nn.Identity) or not layer.training
        if not reusable or x.is_inference() or torch.compiler.is_compiling():
            return F.linear(layer._cast_input_dtype(dropout(x), Q.dtype), Q)
        key, grad = (adapter, layer.pair[adapter]), torch.is_grad_enabled()
        known = self.last.get(key)
        if known is not None and known[0] is x and known[1:3] == (x._version, grad):
            return known[3]
        h = F.linear(layer._cast_input_dtype(x, Q.dtype), Q)
        self.last[key] = (x, x._version, grad, h)
        return h


class S2LoraModel(BaseTuner):
    """The tuner: owns the shared factors, injects the layers, and adds the regularisers to the training loss."""

    uses_shared_state = True
    prefix = "s2lora_"
    tuner_layer_cls = S2LoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_adapter_config(self, peft_config: S2LoraConfig, model_config: dict) -> S2LoraConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(target_modules(self.model))  # type: ignore[assignment]
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Make the adapter's shared factors, then inject its layers."""
        self._make_pairs(model, self.peft_config[adapter_name], adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _make_pairs(self, model: nn.Module, config: S2LoraConfig, adapter_name: str) -> None:
        if not hasattr(self, "s2lora_P"):
            self.s2lora_P, self.s2lora_Q = nn.ModuleDict(), nn.ModuleDict()
            self._shared_view = _Shared(self.s2lora_P, self.s2lora_Q)
        try:
            found = matched_modules(self, model, config)
        except ValueError as error:
            if config.lambda_modules is None:
                raise
            raise ValueError(
                "none of the adapter's layers is in this base model; it was made for another model"
            ) from error
        shapes = {n: _get_in_out_features(m)[::-1] for n, m in found.items()}
        members: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            members.setdefault(_pair_key(name, shape, config.share), []).append(name)
        if config.lambda_modules is not None and config.lambda_modules != members:
            have = {n for names in members.values() for n in names}
            lost = [n for names in config.lambda_modules.values() for n in names if n not in have]
            raise ValueError(
                f"the adapter has layers that this base model lacks: {', '.join(lost[:5]) or 'other shapes'}"
                f"{' …' if len(lost) > 5 else ''}; it was made for another model"
            )
        config.lambda_modules = members
        factors = {"P": nn.ParameterDict(), "Q": nn.ParameterDict()}
        for key, names in members.items():
            self._check_pair(key, [shapes[n] for n in names], config)
            out_features, in_features = (max(shapes[n][i] for n in names) for i in (0, 1))
            r = config.pair_ranks.get(key, config.r)
            device = next(model.parameters()).device
            factors["P"][key] = nn.Parameter(_random_orthonormal(out_features, r, device), config.train_shared)
            factors["Q"][key] = nn.Parameter(
                _random_orthonormal(in_features, r, device).mT.contiguous(), config.train_shared
            )
        self.s2lora_P[adapter_name], self.s2lora_Q[adapter_name] = factors["P"], factors["Q"]

    @staticmethod
    def _check_pair(key: str, shapes: list[tuple[int, int]], config: S2LoraConfig) -> None:
        r, limit = config.pair_ranks.get(key, config.r), min(min(s) for s in shapes)
        if r > limit:
            raise ValueError(f"r={r} is larger than {limit}, the smaller side of a targeted matrix of shape {key}")
        if len(shapes) == 1 and config.share != "none":
            warnings.warn(f"only one targeted matrix has the shape {key}: nothing is shared there", stacklevel=3)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs):
        layers = peft_config.lambda_modules
        pair = next(key for key, names in layers.items() if current_key in names)
        if not isinstance(target, S2LoraLayer):
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            if not isinstance(base, nn.Linear | Conv1D) and not hasattr(base, "in_features"):
                raise TypeError(f"S2-LoRA adapts linear layers; {current_key} is a {type(base).__name__}")
            wrapped = target
            target = S2LoraLayer(target, self._shared_view)
            target._active_adapter = self.active_adapters
            replace_module(parent, target_name, target, wrapped)
        target.update_layer(adapter_name, pair, peft_config.pair_ranks.get(pair, peft_config.r), peft_config)

    def forward(self, *args, **kwargs):
        try:
            outputs = self.model(*args, **kwargs)
        finally:
            self._shared_view.last.clear()
        if self.training and isinstance(getattr(outputs, "loss", None), Tensor):
            outputs.loss = outputs.loss + self.regularization_loss()
        return outputs

    def regularization_loss(self) -> Tensor:
        """``μ (‖PᵀP - I‖² + ‖QQᵀ - I‖²) / r²`` over the pairs, and the L1 penalty where ``l1="penalty"``; a scalar.

        Counted once, however many layers share a pair. Added by `forward` in training mode; custom loops that compute
        their own loss add it themselves.
        """
        loss = torch.zeros((), device=next(self.s2lora_P.parameters()).device)
        for name in self.active_adapters:
            config = self.peft_config[name]
            for key in self.s2lora_P[name] if config.train_shared and config.orthogonality else ():
                P, Q = self._shared_view.pair(name, key)
                error = _gram_error(P) + _gram_error(Q.mT)
                loss = loss + config.orthogonality * error / P.shape[1] ** 2
            if config.l1 == "penalty":
                size = [layer.s2lora_lambda[name].abs() for layer in self._layers(name).values()]
                loss = loss + config.sparsity * torch.cat(size).mean()
        return loss

    def proximal_step(self, learning_rates: dict[int, float]) -> None:
        """Shrink every coefficient by ``η γ'``; ``learning_rates`` maps ``id(λ)`` to its current ``η``."""
        with torch.no_grad():
            for name in self.active_adapters:
                config = self.peft_config[name]
                for layer in self._layers(name).values() if config.l1 == "proximal" else ():
                    coefficients = layer.s2lora_lambda[name]
                    rate = learning_rates.get(id(coefficients), 0.0)
                    coefficients.copy_(soft_threshold(coefficients, rate * config.sparsity))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """Optimiser groups: λ with its own learning rate and no weight decay (a second shrinkage), then the rest."""
        name = self.active_adapters[0]
        config = self.peft_config[name]
        own = [layer.s2lora_lambda[name] for layer in self._layers(name).values()]
        ids = {id(p) for p in own}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in ids]
        return [
            {"params": own, "lr": lr * config.lambda_lr_scale, "weight_decay": 0.0},
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
        ]

    def rank_map(self, adapter_name: str | None = None) -> dict[str, RankEntry]:
        """Effective rank, mass and coefficients of every adapted matrix, by layer name, in the model's order."""
        name = adapter_name or self.active_adapters[0]
        out = {}
        for layer_name, layer in self._layers(name).items():
            coefficients = layer.s2lora_lambda[name].detach().float().cpu()
            out[layer_name] = RankEntry(effective_rank(coefficients), float(coefficients.abs().sum()), coefficients)
        return out

    def orthogonality(self, adapter_name: str | None = None) -> dict[str, float]:
        """``‖PᵀP - I‖_F`` of every pair: how far the factors are from orthonormal."""
        name = adapter_name or self.active_adapters[0]
        return {key: float(orthogonality_error(P.detach())) for key, P in self.s2lora_P[name].items()}

    def _layers(self, adapter_name: str) -> dict[str, S2LoraLayer]:
        named = self.model.named_modules()
        return {n: m for n, m in named if isinstance(m, S2LoraLayer) and adapter_name in m.s2lora_lambda}

    # PEFT switches adapters layer by layer; the factors live here and must follow

    def _sync_shared(self, inference_mode: bool = False) -> None:
        for name, config in self.peft_config.items():
            if name in self.s2lora_P:
                on = name in self.active_adapters and config.train_shared and not inference_mode
                for factors in (self.s2lora_P[name], self.s2lora_Q[name]):
                    factors.requires_grad_(on)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; their shared factors become trainable unless ``inference_mode``."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._sync_shared(inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self._sync_shared(inference_mode=not enabled)

    def set_requires_grad(self, adapter_names, requires_grad: bool = True) -> None:
        """Enable or disable gradients of adapters, shared factors included."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.s2lora_P:
                on = requires_grad and self.peft_config[name].train_shared
                self.s2lora_P[name].requires_grad_(on)
                self.s2lora_Q[name].requires_grad_(on)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its shared factors."""
        super().delete_adapter(adapter_name)
        del self.s2lora_P[adapter_name], self.s2lora_Q[adapter_name]

    # on disk: each pair once, and the coefficients of its matrices stacked as (M, r)

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        end = f".s2lora_lambda.{adapter_name}"
        out = {k: v for k, v in found.items() if not k.endswith(end)}
        for key, names in config.lambda_modules.items():
            rows = [found[next(k for k in (f"base_model.model.{n}{end}", f"{n}{end}") if k in found)] for n in names]
            out[f"base_model.s2lora_lambda.{key}"] = torch.stack(rows)
        return out

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        flat = dict(state_dict)
        for key, names in config.lambda_modules.items():
            rows = flat.pop(f"base_model.s2lora_lambda.{key}", None)
            for name, row in zip(names, rows if rows is not None else (), strict=False):
                flat[f"base_model.model.{name}.s2lora_lambda"] = row.clone()
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, flat)


def _pair_key(name: str, shape: tuple[int, int], share: str) -> str:
    if share == "none":
        return name.replace(".", "/")
    if share == "max":
        return "max"
    size = f"{shape[0]}x{shape[1]}"
    return size if share == "shape" else f"{re.split(r'[.][0-9]+[.]', name)[-1].replace('.', '/')}:{size}"


def _random_orthonormal(d: int, r: int, device: torch.device) -> Tensor:
    """Orthonormal columns ``(d, r)`` from N(0, 0.02²) by QR."""
    return torch.linalg.qr(torch.randn(d, r) * 0.02).Q.contiguous().to(device)


def _gram_error(P: Tensor) -> Tensor:
    P = P.float()
    return (P.mT @ P - torch.eye(P.shape[1], device=P.device)).square().sum()
