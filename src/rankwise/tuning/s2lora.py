"""S2-LoRA: one pair of low-rank factors shared by every matrix of a shape, and a sparse coefficient vector for each.

An adapter of a few thousand numbers: for each adapted weight ``W_m: (out, in)``

    W_m' = W_m + s · P diag(λ_m) Q,   P: (out, r), Q: (r, in) shared,   λ_m: (r,) its own,   s = alpha / r

trained with ``L = L_task + γ Σ_m ‖λ_m‖₁ / (M r) + μ (‖PᵀP - I‖_F² + ‖QQᵀ - I‖_F²) / r²``. The L1 term gives every
matrix its own effective rank. By default it is applied as a proximal step after each optimiser step,
``λ ← sign(λ) max(|λ| - η γ', 0)``, which reaches exact zeros; as a subgradient (``l1="penalty"``) it never does.

The terms beyond the task's loss belong to the optimiser's step (`rankwise.tuning.s2lora_step`): any loop, any Trainer
and any loss function trains S2-LoRA, and accumulated batches or several processes count the terms once.

Source: Liu, Qin, Peng & Lee, "Sparsely Shared LoRA on Whisper for Child Speech Recognition", ICASSP 2024, arXiv
2309.11756. The paper has no public code: the normalisers, the orthogonality term (AdaLoRA's, arXiv 2303.10512), the
learning rate of λ and the sharing across several shapes are reconstructed.

What people get wrong: with ``λ = 0`` at the start, the first gradients of P and Q are zero and only λ moves. That is
the method, not a bug.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftType
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.models import target_modules
from rankwise.models.targets import plain_modules
from rankwise.nearest import unknown
from rankwise.spectral import orthogonality_error
from rankwise.tuning import peft_types as _peft_types  # noqa: F401  (PeftType.S2LORA must exist)
from rankwise.tuning import s2lora_step
from rankwise.tuning.adapters import AdapterLayer, AdapterModel, check_linear
from rankwise.tuning.injection import TargetedConfig
from rankwise.tuning.shared_product import SharedProduct

__all__ = ["S2LoraConfig"]

SHARING = ("shape", "max", "role", "none")


@dataclass
class S2LoraConfig(TargetedConfig):
    """Configuration of sparsely shared low-rank adaptation.

    Parameters
    ----------
    r : int
        Rank of the shared factors, at least 1. Default 32: shared factors are cheap. A pair one of whose sides is
        shorter (a two-class head, a gate) has that side as its rank.
    lora_alpha : float, optional
        Scale numerator, ``s = lora_alpha / r``; ``r`` by default, so that ``s = 1``.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save, bias
        As in PEFT. Without ``target_modules``, every attention and feed-forward projection.
    sparsity : float
        ``γ'`` of the proximal step relative to the coefficients' learning rate, or ``γ`` of the penalty. Default 0.2.
        A step of Adam is the learning rate times the gradient's mean over its root mean square: coefficients where that
        ratio stays below ``γ'``, moved by noise alone, are held at zero. Under plain SGD ``γ'`` is the weight of
        ``Σ|λ|`` itself.
    l1 : {"proximal", "penalty"}
        Whether the L1 term acts as a proximal step after the optimiser's (default), which reaches exact zeros, or
        through its subgradient.
    orthogonality : float
        ``μ``, the weight of the factors' distance from orthonormal ones. Default 0.1; 0 switches the term off.
    lambda_lr_scale : float
        Learning rate of λ over that of the optimiser's group it is in, default 10. λ has no weight decay.
    dropout : float
        Probability with which an entry of the factors' input is dropped in training, in [0, 1). Default 0.
    share : {"shape", "max", "role", "none"}
        One pair a shape (default), one pair cut from the largest shape, one a role (q, k, up, …) and shape, or one a
        matrix (the unshared ablation).
    train_shared : bool
        ``False`` freezes P and Q at their random start and trains λ alone (the VeRA-like ablation).
    pair_ranks : dict
        Rank of single pairs by key (``"384x1536"``), where it differs from ``r``.
    init_weights : bool
        ``False`` starts from random coefficients instead of the base model: for tests.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import S2LoraConfig
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), S2LoraConfig(r=4))
    >>> sorted(model.base_model.s2lora_P["default"])  # one pair a shape, shared by both blocks
    ['16x16', '16x32', '32x16']
    >>> model.get_nb_trainable_parameters()[0]  # 4 · (32 + 48 + 48), and 4 coefficients for each of 12 matrices
    560
    """

    r: int = 32
    lora_alpha: float | None = None
    sparsity: float = 0.2
    l1: str = "proximal"
    orthogonality: float = 0.1
    lambda_lr_scale: float = 10.0
    dropout: float = 0.0
    share: str = "shape"
    train_shared: bool = True
    bias: str = "none"
    pair_ranks: dict[str, int] = field(default_factory=dict)
    # the matrices of each pair, in the order of the saved coefficients: written when the layers are put in
    lambda_modules: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["S2LORA"]
        for rank in (self.r, *self.pair_ranks.values()):
            if rank < 1:
                raise ValueError(f"r={rank}; a rank of at least 1 is needed")
        for name in ("sparsity", "orthogonality"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; 0 switches the term off")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is outside [0, 1)")
        for name in ("lambda_lr_scale", "lora_alpha"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name, accepted in (
            ("share", SHARING),
            ("l1", ("proximal", "penalty")),
            ("bias", ("none", "all", "s2lora_only")),
        ):
            if getattr(self, name) not in accepted:
                raise unknown(name, getattr(self, name), accepted)


class RankEntry(NamedTuple):
    """What one matrix uses of its pair: effective rank, mass ``Σ|λ|`` and the coefficients ``(r,)``.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import S2LoraConfig
    >>> twins = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    >>> model = get_peft_model(twins, S2LoraConfig(r=2, target_modules=["0", "1"]))
    >>> entry = model.base_model.rank_map()["0"]
    >>> entry.rank, entry.mass, entry.coefficients.shape  # nothing is trained yet
    (0, 0.0, torch.Size([2]))
    """

    rank: int
    mass: float
    coefficients: Tensor


def effective_rank(coefficients: Tensor, *, threshold: float = 1e-3) -> int:
    """``#{k : |λ_k| > threshold · max|λ|}``; 0 when all are zero.

    Examples
    --------
    >>> import torch
    >>> from rankwise.tuning.s2lora import effective_rank
    >>> effective_rank(torch.tensor([1.0, -0.5, 1e-4, 0.0]))
    2
    """
    size = coefficients.abs()
    return int((size > threshold * size.max()).sum())


def delta_weight(P: Tensor, coefficients: Tensor, Q: Tensor, scale: float) -> Tensor:
    """``s · P diag(λ) Q``, shape ``(out, in)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.tuning.s2lora import delta_weight
    >>> delta_weight(torch.eye(2), torch.tensor([1.0, 3.0]), torch.eye(2), scale=2.0).tolist()
    [[2.0, 0.0], [0.0, 6.0]]
    """
    return (P * (scale * coefficients)) @ Q


class S2LoraLayer(AdapterLayer):
    """A linear layer with coefficients of its own on factors that belong to the tuner model.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import S2LoraConfig
    >>> twins = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    >>> model = get_peft_model(twins, S2LoraConfig(r=2, target_modules=["0", "1"]))
    >>> first, second = model.base_model.model
    >>> P, coefficients, Q = first.factors("default")
    >>> P.shape, coefficients.shape, Q.shape, P.data_ptr() == second.factors("default")[0].data_ptr()
    (torch.Size([8, 2]), torch.Size([2]), torch.Size([2, 8]), True)
    """

    adapter_layer_names = ("s2lora_lambda",)
    other_param_names = ("s2lora_dropout", "scaling", "pair")

    def __init__(self, base_layer: nn.Module, shared: SharedProduct) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self.s2lora_lambda = nn.ParameterDict()
        self.s2lora_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.pair: dict[str, str] = {}
        self._shared = (shared,)  # in a tuple, so that the factors are not registered under every layer

    def update_layer(self, adapter_name: str, config: S2LoraConfig, name: str) -> None:
        """Add an adapter on the factors of the layer's pair; its coefficients start at zero."""
        self.pair[adapter_name] = next(key for key, names in (config.lambda_modules or {}).items() if name in names)
        make = torch.zeros if config.init_weights else torch.randn
        r = self._shared[0].pair(adapter_name, self.pair[adapter_name])[0].shape[1]
        self.s2lora_lambda[adapter_name] = nn.Parameter(make(r))
        self.s2lora_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.scaling[adapter_name] = 1.0 if config.lora_alpha is None else config.lora_alpha / config.r

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """``P: (out, r)``, ``λ: (r,)`` and ``Q: (r, in)`` of this matrix, cut to its shape."""
        P, Q = self._shared[0].pair(adapter_name, self.pair[adapter_name])
        return P[: self.out_features], self.s2lora_lambda[adapter_name], Q[:, : self.in_features]

    def base_tensor(self) -> nn.Parameter:
        """The base weight."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``s · P diag(λ) Q`` in the base weight's orientation."""
        wide = torch.promote_types(self.s2lora_lambda[adapter_name].dtype, torch.float32)
        P, coefficients, Q = (f.to(wide) for f in self.factors(adapter_name))
        delta = delta_weight(P, coefficients, Q, self.scaling[adapter_name])
        return delta.mT if self.fan_in_fan_out else delta

    def adapted(self, adapters: list[str], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """``W x + s P (λ ∘ (Q x))``, summed over the adapters."""
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in adapters:
            P, coefficients, Q = self.factors(name)
            h = self._shared[0].project(self, name, x, Q) * (self.scaling[name] * coefficients)
            if h.dtype == result.dtype:  # one pass over the output instead of two
                rows = result.reshape(-1, result.shape[-1])
                result = torch.addmm(rows, h.reshape(-1, h.shape[-1]), P.mT.to(h.dtype)).view(result.shape)
            else:
                result = result + F.linear(h, P.to(h.dtype))
        return result.to(dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: the delta has rank at most r."""
        return True


class S2LoraModel(AdapterModel):
    """The tuner: owns the shared factors, and is known to every optimiser's step.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import S2LoraConfig
    >>> twins = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    >>> model = get_peft_model(twins, S2LoraConfig(r=2, target_modules=["0", "1"], sparsity=0.0))
    >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    >>> model(torch.randn(4, 8)).square().mean().backward()
    >>> optimizer.step()  # the task's loss, and the terms that S2-LoRA adds to it
    >>> [entry.mass > 0 for entry in model.base_model.rank_map().values()]
    [True, True]
    """

    uses_shared_state = True
    s2lora_P: Any  # by adapter and pair, as s2lora_Q
    s2lora_Q: Any
    prefix = "s2lora_"
    tuner_layer_cls = S2LoraLayer

    def __init__(self, model: nn.Module, *args, **kwargs) -> None:
        super().__init__(model, *args, **kwargs)
        s2lora_step.remember(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        s2lora_step.remember(self)  # a copy trains like the original

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Check that the layers of an adapter from a file are there, then put its layers in."""
        config = self.peft_config[adapter_name]
        modules = dict(plain_modules(model))
        lost = [n for names in (config.lambda_modules or {}).values() for n in names if n not in modules]
        if lost and "_injected" not in vars(config):
            raise ValueError(
                f"the adapter has layers that this base model lacks: {', '.join(lost[:5])}"
                f"{' …' if len(lost) > 5 else ''}; it was made for another model"
            )
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def default_targets(model: nn.Module) -> list[str]:
        """Every attention and feed-forward projection."""
        return target_modules(model)

    def check_target(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """A target is a linear layer that its parent calls."""
        check_linear(self, "S2-LoRA", name, module, parent)

    def prepare(self, adapter_name: str, config: S2LoraConfig, found: dict[str, nn.Module]) -> None:
        """Make the adapter's shared factors."""
        if not hasattr(self, "s2lora_P"):
            self.s2lora_P, self.s2lora_Q = nn.ModuleDict(), nn.ModuleDict()
            self._shared = SharedProduct(self.s2lora_P, self.s2lora_Q, self.model)
        shapes = {n: _shape(m) for n, m in found.items()}
        members: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            members.setdefault(_pair_key(name, shape, config.share), []).append(name)
        self._check_members(config, members)
        config.lambda_modules = members
        vars(config)["_injected"] = True  # no field: it is not saved
        factors = nn.ParameterDict(), nn.ParameterDict()
        for key, names in members.items():
            sides = [max(shapes[n][i] for n in names) for i in (0, 1)]
            r = config.pair_ranks.get(key, min(config.r, *sides))
            if r > min(sides):
                raise ValueError(f"pair_ranks[{key!r}]={r} is larger than {min(sides)}, the shorter side of the pair")
            weight: Any = found[names[0]].weight
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
            P, Q = (_random_orthonormal(side, r).to(weight.device, dtype) for side in sides)
            factors[0][key] = nn.Parameter(P, config.train_shared)
            factors[1][key] = nn.Parameter(Q.mT.contiguous(), config.train_shared)
        self.s2lora_P[adapter_name], self.s2lora_Q[adapter_name] = factors

    @staticmethod
    def _check_members(config: S2LoraConfig, members: dict[str, list[str]]) -> None:
        """The pairs are those of the adapter's file, every named one exists, and each is shared."""
        if config.lambda_modules is not None and config.lambda_modules != members:
            if "_injected" in vars(config):
                raise ValueError("this configuration belongs to an adapter on other layers; make one for every adapter")
            raise ValueError("the adapter's layers have other shapes in this base model; it was made for another model")
        for key in config.pair_ranks:
            if key not in members:
                raise unknown("pair", key, members)
        for key, names in members.items():
            if len(names) == 1 and config.share != "none":
                warnings.warn(f"only one targeted matrix has the shape {key}: nothing is shared there", stacklevel=3)

    def new_layer(self, base_layer: nn.Module) -> S2LoraLayer:
        """A layer on the tuner's factors."""
        return S2LoraLayer(base_layer, self._shared)

    def train(self, mode: bool = True) -> S2LoraModel:
        """As of any module; refuses training under an engine that gives the optimiser copies of the parameters."""
        if mode:
            s2lora_step.refuse_copies()
        return super().train(mode)

    def regularization_loss(self, adapter_name: str | None = None) -> Tensor:
        """``μ (‖PᵀP - I‖² + ‖QQᵀ - I‖²) / r²`` over the pairs, and the L1 penalty where ``l1="penalty"``; a scalar.

        Its gradient is added at every optimiser step: a loss that contained it would count it twice.
        """
        adapter_name = adapter_name or self.active_adapters[0]
        config = self.peft_config[adapter_name]
        loss = torch.zeros((), device=next(self.s2lora_P[adapter_name].parameters()).device)
        for key in self.s2lora_P[adapter_name] if config.train_shared and config.orthogonality else ():
            P, Q = self._shared.pair(adapter_name, key)
            loss = loss + config.orthogonality * (_gram_error(P) + _gram_error(Q.mT)) / P.shape[1] ** 2
        if config.l1 == "penalty":
            size = torch.cat([c.abs().to(loss.device) for c in self.coefficients(adapter_name)])
            loss = loss + config.sparsity * size.mean()
        return loss

    def rank_map(self, adapter_name: str | None = None) -> dict[str, RankEntry]:
        """Effective rank, mass and coefficients of every adapted matrix, by layer name, in the model's order."""
        name = adapter_name or self.active_adapters[0]
        out = {}
        for layer_name, layer in self.adapted_layers(name).items():
            coefficients = layer.s2lora_lambda[name].detach().float().cpu()
            out[layer_name] = RankEntry(effective_rank(coefficients), float(coefficients.abs().sum()), coefficients)
        return out

    def orthogonality(self, adapter_name: str | None = None) -> dict[str, float]:
        """``‖PᵀP - I‖_F`` of every pair: how far the factors are from orthonormal."""
        name = adapter_name or self.active_adapters[0]
        return {key: float(orthogonality_error(P.detach())) for key, P in self.s2lora_P[name].items()}

    def adapted_layers(self, adapter_name: str) -> dict[str, S2LoraLayer]:
        """The layers of an adapter, by name."""
        named = self.model.named_modules()
        return {n: m for n, m in named if isinstance(m, S2LoraLayer) and adapter_name in m.s2lora_lambda}

    def coefficients(self, adapter_name: str) -> list[nn.Parameter]:
        """λ of every adapted matrix, in the model's order."""
        return [layer.s2lora_lambda[adapter_name] for layer in self.adapted_layers(adapter_name).values()]

    def tensors(self, adapter_name: str) -> list[nn.Parameter]:
        """Everything an adapter may train: coefficients, then shared factors."""
        return [*self.coefficients(adapter_name), *(p for f in self._factors(adapter_name) for p in f.values())]

    # PEFT switches adapters layer by layer; the factors live here and must follow

    def _factors(self, adapter_name: str) -> Iterator[nn.ParameterDict]:
        for side in (self.s2lora_P, self.s2lora_Q):
            if adapter_name in side:
                yield side[adapter_name]

    def _sync_shared(self, inference_mode: bool = False) -> None:
        for name, config in self.peft_config.items():
            for factors in self._factors(name):
                factors.requires_grad_(name in self.active_adapters and config.train_shared and not inference_mode)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for factors in self._factors(adapter_name):
            for factor in factors.values() if autocast_adapter_dtype else ():
                factor.data = factor.data.to(torch.promote_types(factor.dtype, torch.float32))

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
            for factors in self._factors(name):
                factors.requires_grad_(requires_grad and self.peft_config[name].train_shared)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its shared factors."""
        super().delete_adapter(adapter_name)
        self.forget(adapter_name)
        self._sync_shared()

    def forget(self, adapter_name: str) -> None:
        """Drop an adapter's shared factors."""
        for side in (self.s2lora_P, self.s2lora_Q):
            side.pop(adapter_name)

    def _unload_and_optionally_merge(self, *args, **kwargs):
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._shared.release()
        return model

    # on disk: each pair once, and the coefficients of its matrices stacked as (M, r)

    @classmethod
    def _get_adapter_state_dict(cls, model, config: Any, adapter_name, state_dict, unwanted_adapter_names):
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        end = f".s2lora_lambda.{adapter_name}"
        out = {k: v for k, v in found.items() if not k.endswith(end)}
        for key, names in config.lambda_modules.items():
            rows = [found[next(k for k in (f"base_model.model.{n}{end}", f"{n}{end}") if k in found)] for n in names]
            out[f"base_model.s2lora_lambda.{key}"] = torch.stack(rows)
        return out

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config: Any, adapter_name, state_dict):
        flat = dict(state_dict)
        for key, names in config.lambda_modules.items():
            rows = flat.pop(f"base_model.s2lora_lambda.{key}", None)
            if rows is None or len(rows) != len(names):
                raise ValueError(f"the adapter's file lacks coefficients of the pair {key}: it is damaged")
            for name, row in zip(names, rows, strict=True):
                flat[f"base_model.model.{name}.s2lora_lambda"] = row.clone()
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, flat)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """``(out, in)``."""
    inputs, outputs = _get_in_out_features(layer)
    return int(outputs or 0), int(inputs or 0)


def _pair_key(name: str, shape: tuple[int, int], share: str) -> str:
    if share == "none":
        return name.replace(".", "/")
    if share == "max":
        return "max"
    size = f"{shape[0]}x{shape[1]}"
    return size if share == "shape" else f"{re.split(r'[.][0-9]+[.]', name)[-1].replace('.', '/')}:{size}"


def _random_orthonormal(d: int, r: int) -> Tensor:
    """Orthonormal columns ``(d, r)`` from N(0, 0.02²) by QR, float32."""
    return torch.linalg.qr(torch.randn(d, r) * 0.02).Q.contiguous()


def _gram_error(P: Tensor) -> Tensor:
    P = P.to(torch.promote_types(P.dtype, torch.float32))
    return (P.mT @ P - torch.eye(P.shape[1], device=P.device)).square().sum()
