"""EVA: start LoRA in the directions that explain most variance of each layer's inputs, and give ranks where it is.

For a layer with inputs ``x: (d_in,)`` gathered over the fine-tuning data:

    X - 1μᵀ = U diag(σ) V,     e_j = σ_j² / Σ_i σ_i²           (explained-variance ratios)
    A ← v_1 … v_r  (r, d_in),  B ← 0

The rank budget ``R = Σ_m r`` goes to the ``R`` largest ``e_mj`` of all layers, each layer offering ``round(ρ r)``; a
layer left without any loses its adapter. Scaling follows, ``alpha_m = alpha · r_m / r``. The result is a plain PEFT
LoRA that loads anywhere.

The spectra are exact: a second-moment matrix of every distinct input (`rankwise.models.activations`), each read until
its leading subspace holds still under twice the data. The same statistics start the shared Q of S2-LoRA (pooled over
the matrices that share it) and AdaLoRA.

Source: Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", arXiv
2410.07170; the authors' code inside PEFT is followed where it differs from the paper.

What people get wrong: comparing single vectors between batches. Where two singular values are close they rotate into
each other for ever; the energy that the old subspace captures under the new statistics settles. And reading the first
rows of a file that is sorted by class: the batches given should come in random order (``DataLoader(shuffle=True)``).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers.pytorch_utils import Conv1D

from rankwise.models import linear_layers, target_modules
from rankwise.models.activations import ActivationSpectra, Batch, gather
from rankwise.nearest import unknown
from rankwise.spectral import allocate
from rankwise.tuning.injection import matched_modules
from rankwise.tuning.s2lora import S2LoraConfig

__all__ = ["ActivationSpectra", "EvaConfig", "activation_spectra", "initialize"]


# Options of `peft.LoraConfig` that EVA's start contradicts, and why
CONTRADICTED = {
    "rank_pattern": "EVA deals the ranks",
    "alpha_pattern": "EVA keeps the scale the same for all layers",
    "loftq_config": "EVA is a start of its own",
    "eva_config": "EVA's options are fields of this configuration",
    "corda_config": "EVA is a start of its own",
    "lora_ga_config": "EVA is a start of its own",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "its factors are sampled",
    "arrow_config": "its factors are those of other adapters",
    "use_bdlora": "its A is block-diagonal",
    "use_qalora": "its A reads pooled inputs",
    "layer_replication": "the layers would be others than those that were read",
    "target_parameters": "parameters that no layer holds have no input to read",
    "megatron_config": "parallel layers hold parts of A",
}


@dataclass
class EvaConfig(LoraConfig):
    """LoRA whose start and ranks come from the data: give it to `initialize`, not to ``get_peft_model``.

    The options of `peft.LoraConfig` apply (targets, scale, dropout, DoRA, rank stabilisation, …) but for those that the
    start contradicts, which are refused: other starts, ``rank_pattern`` and ``alpha_pattern``, and variants whose A is
    not a plain matrix on the layer's input (`CONTRADICTED` says why).

    Parameters
    ----------
    r : int
        The average rank of the adapted layers. Default 16.
    rho : float
        At least 1: how many times its share a layer may take. 1 keeps all ranks equal. Default 2.
    tau : float
        In [0, 1]: reading stops when the leading subspaces found in half of the data capture at least ``tau²`` of the
        energy that those of all of it capture (PEFT asks for the cosine ``tau`` of every vector). Default 0.99; 1 reads
        ``max_batches``.
    max_batches : int
        Batches that are read at most. Default 32.
    center : bool
        Principal components (default) or the uncentred second moment, whose first direction is the mean.
    whiten : bool
        Divide row j of A by ``sqrt(σ_j)``; for vision. Default False.
    adjust_scaling_factors : bool
        Keep the scale ``alpha_m / r_m`` (``alpha_m / √r_m`` with ``use_rslora``) the same for all layers. Default True.
    use_label_mask, label_mask_value
        Drop positions whose label is masked. Default True, -100.
    directions : {"top", "bottom", "random"}
        Which directions of the spectrum start A: the leading ones, the last ones (a control that should be worse) or
        PEFT's random start on redistributed ranks (an ablation).

    Examples
    --------
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import EvaConfig, initialize
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> batches = [{"input_ids": torch.randint(1000, (8, 12))} for _ in range(4)]
    >>> model = initialize(BertModel(config), batches, EvaConfig(r=2))
    >>> sum(len(m.lora_A["default"].weight) for m in model.modules() if hasattr(m, "lora_A"))  # 12 layers, 2 on average
    24
    """

    r: int = 16
    rho: float = 2.0
    tau: float = 0.99
    max_batches: int = 32
    center: bool = True
    whiten: bool = False
    adjust_scaling_factors: bool = True
    use_label_mask: bool = True
    label_mask_value: int = -100
    directions: str = "top"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho < 1:
            raise ValueError(f"rho={self.rho}; at least 1 is needed (1 keeps all ranks equal)")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau} is outside [0, 1]")
        if self.max_batches < 1:
            raise ValueError(f"max_batches={self.max_batches}; at least 1 is needed")
        if self.directions not in ("top", "bottom", "random"):
            raise unknown("directions", self.directions, ("top", "bottom", "random"))
        if self.init_lora_weights is not True:
            raise ValueError(f"init_lora_weights={self.init_lora_weights!r}: EVA is a start of its own; leave it out")
        for name, reason in CONTRADICTED.items():
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} contradicts EVA ({reason}); leave it out")

    def plain(self, ranks: Mapping[str, int]) -> LoraConfig:
        """The `peft.LoraConfig` with these ranks: what is saved, and all that anyone needs to load the adapter."""
        given = {f.name: getattr(self, f.name) for f in fields(LoraConfig) if f.init}
        kept = {n: r for n, r in ranks.items() if r > 0}
        changed = {n: r for n, r in kept.items() if r != self.r}
        given |= {"target_modules": list(kept), "rank_pattern": changed, "init_lora_weights": True}
        if self.adjust_scaling_factors:
            power = 0.5 if self.use_rslora else 1.0
            given["alpha_pattern"] = {n: self.lora_alpha * (r / self.r) ** power for n, r in changed.items()}
        config = LoraConfig(**copy.deepcopy(given))
        config._custom_modules = self._custom_modules
        return config


def initialize(
    model: nn.Module,
    dataloader: Iterable[Batch] | None,
    config: PeftConfig | None = None,
    *,
    spectra: ActivationSpectra | None = None,
    adapter_name: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> PeftModel:
    """Wrap a model in an adapter that starts in the leading directions of its inputs.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A base model with ``config``, or a freshly made PEFT model with one adapter (its configuration and name are
        used; the adapter itself is made anew).
    dataloader : iterable of dict
        Batches of the fine-tuning data in random order: the first are read, until the statistics hold still (of a
        ``DataLoader`` in file order a warning says so). Not read when ``spectra`` are given.
    config : EvaConfig, S2LoraConfig or AdaLoraConfig
        `EvaConfig` gives a plain LoRA with redistributed ranks, `S2LoraConfig` shared Q from pooled statistics with
        ranks redistributed over the pairs at equal parameters (``pair_ranks`` fixes them), `AdaLoraConfig` its A.
    spectra : ActivationSpectra, optional
        Statistics gathered earlier (by `activation_spectra`, or loaded).
    adapter_name : str, optional
        Name of the adapter; by default the PEFT model's own, or ``default``.

    Raises
    ------
    ValueError
        A configuration of another kind, several adapters, too few rows, ``r · rho`` above a layer's width, a targeted
        layer that is not linear or that the spectra lack.

    Examples
    --------
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import EvaConfig, initialize
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> batches = [{"input_ids": torch.randint(1000, (8, 12))} for _ in range(4)]
    >>> model = initialize(BertModel(config), batches, EvaConfig(r=2, rho=1))
    >>> type(model).__name__, model.peft_config["default"].peft_type.value  # train and save it as any LoRA
    ('PeftModel', 'LORA')
    """
    if isinstance(model, PeftModel):
        if config is None and len(model.peft_config) > 1:
            raise ValueError(f"the model has {len(model.peft_config)} adapters; initialise a base model instead")
        own = next(iter(model.peft_config))
        config, adapter_name = config or model.peft_config[own], adapter_name or own
        model = model.unload()
    if not isinstance(config, EvaConfig | S2LoraConfig | AdaLoraConfig):
        raise ValueError(f"EVA starts EvaConfig, S2LoraConfig and AdaLoraConfig adapters, not {type(config).__name__}")
    if isinstance(config, AdaLoraConfig) and (config.init_lora_weights is not True or config.rank_pattern):
        raise ValueError("EVA starts AdaLoRA itself: leave init_lora_weights and rank_pattern out")
    names = _targets(model, config)
    if spectra is None:
        if dataloader is None:
            raise ValueError("EVA needs a dataloader, or spectra gathered earlier")
        spectra = activation_spectra(model, dataloader, config, layers=names, on_batch=on_batch)
    for name in names:
        if name not in spectra.leader:
            raise ValueError(f"the spectra lack the targeted layer {name}: gather them with layers that include it")
    start: Any = _start_s2lora if isinstance(config, S2LoraConfig) else _start_lora
    start = _start_adalora if isinstance(config, AdaLoraConfig) else start
    with torch.no_grad():
        return start(model, config, spectra, adapter_name or "default")


def activation_spectra(
    model: nn.Module,
    dataloader: Iterable[Batch],
    config: PeftConfig | None = None,
    *,
    layers: Iterable[str] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ActivationSpectra:
    """Spectra of the inputs of a model's linear layers (all of its blocks' by default) over some data.

    Parameters
    ----------
    dataloader : iterable of dict
        See `rankwise.models.activations.gather`: the first batches are read, so that their order should be random.

    Raises
    ------
    ValueError
        An empty loader, fewer rows than components, NaN activations, a layer that did not run.
    TypeError
        Batches that are no mappings.

    Examples
    --------
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import EvaConfig, activation_spectra
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    >>> batches = [{"input_ids": torch.randint(1000, (8, 12))} for _ in range(4)]
    >>> spectra = activation_spectra(BertModel(config), batches, EvaConfig(r=2))
    >>> spectra.leader["encoder.layer.0.attention.self.key"]  # it reads what the query reads
    'encoder.layer.0.attention.self.query'
    """
    config = EvaConfig() if config is None else config
    names = list(layers) if layers is not None else list(linear_layers(model))
    modules = {n: model.get_submodule(n) for n in names}
    k = _components(config)
    for name, module in modules.items() if isinstance(config, AdaLoraConfig) else ():
        width = _get_in_out_features(module)[0] or 0
        if k > width:
            raise ValueError(f"init_r={k} is more than the {width} inputs of layer {name}, which start its rows")
    eva = config if isinstance(config, EvaConfig) else EvaConfig(r=k, rho=1.0)
    settled = None if eva.tau >= 1 else _Settled(k, eva.tau)
    spectra = gather(
        model,
        dataloader,
        modules,
        n_components=k,
        center=eva.center,
        max_batches=eva.max_batches,
        settled=settled,
        label_mask_value=eva.label_mask_value if eva.use_label_mask else None,
        on_batch=on_batch,
    )
    _warn_of_file_order(dataloader, spectra.batches)
    for name, stream in spectra.streams.items():
        needed = min(k, stream.n_features)
        if stream.n_samples < needed:
            raise ValueError(
                f"layer {name} saw {int(stream.n_samples)} rows; {needed} components need at least {needed}"
            )
    return spectra


def _warn_of_file_order(dataloader: Any, batches: int) -> None:
    if isinstance(getattr(dataloader, "sampler", None), SequentialSampler) and batches < len(dataloader):
        warnings.warn(
            f"EVA read the first {batches} of {len(dataloader)} batches in the order of the data, which is often "
            "that of the classes; shuffle it (DataLoader(shuffle=True))",
            stacklevel=3,
        )


def redistribute(spectra: ActivationSpectra, names: Iterable[str], r: int, rho: float) -> dict[str, int]:
    """Ranks under the budget ``R = r · len(names)`` by explained-variance ratio; ties go to the earlier layer.

    A layer offers ``round(ρ r)`` directions, or as many as it has inputs; where all together offer fewer than ``R``,
    all are taken.
    """
    names = list(names)
    streams = {spectra.leader[n]: spectra.stream(n) for n in names}
    ratios = {n: s.explained_variance_ratio(min(round(r * rho), s.n_features)) for n, s in streams.items()}
    offers = [ratios[spectra.leader[n]] for n in names]
    return dict(zip(names, allocate(offers, r * len(names)), strict=True))


class _Settled:
    """Whether the leading subspaces of the previous look still capture ``tau²`` of the energy that the present ones do.

    A direction turned by an angle of cosine ``tau`` keeps that share of its energy at least.
    """

    def __init__(self, k: int, tau: float) -> None:
        self.k, self.tau = k, tau
        self.previous: dict[str, Tensor] = {}

    def __call__(self, spectra: ActivationSpectra, wanted: list[str]) -> set[str]:
        done = set()
        for name in wanted:
            stream = spectra.streams[name]
            if stream.n_samples < 10 * self.k or not math.isfinite(stream.total_variance):
                continue
            S, V = stream.components(min(self.k, stream.n_features))
            old = self.previous.get(name)
            if old is not None and stream.captured(old) >= self.tau**2 * float(S.square().sum()):
                done.add(name)
            self.previous[name] = V
        return done


def _targets(model: nn.Module, config: PeftConfig) -> list[str]:
    found = matched_modules(model, config, target_modules)
    for name, module in found.items():
        if not isinstance(module, nn.Linear | Conv1D) and not hasattr(module, "in_features"):
            raise ValueError(f"EVA starts linear layers; the targeted {name} is a {type(module).__name__}")
    return list(found)


def _components(config: Any) -> int:
    if isinstance(config, AdaLoraConfig):
        return config.init_r
    return round(config.r * config.rho) if isinstance(config, EvaConfig) else config.r * 2


def _start_lora(model, config: EvaConfig, spectra: ActivationSpectra, adapter_name: str) -> PeftModel:
    ranks = redistribute(spectra, _targets(model, config), config.r, config.rho)
    wrapped = get_peft_model(model, config.plain(ranks), adapter_name=adapter_name)
    if config.directions == "random":
        return wrapped
    for name, layer in _lora_layers(wrapped).items():
        stream, r = spectra.stream(name), ranks[name]
        if config.directions == "bottom":
            _, vectors = torch.linalg.eigh(stream.covariance())
            rows = vectors[:, :r].mT.float()
        else:
            S, V = stream.components(max(ranks[n] for n in ranks if spectra.leader[n] == spectra.leader[name]))
            rows = V[:r] / S[:r, None].sqrt().float() if config.whiten else V[:r]
        layer.lora_A[adapter_name].weight.copy_(rows)
    return wrapped


def _start_adalora(model, config: AdaLoraConfig, spectra: ActivationSpectra, adapter_name: str) -> PeftModel:
    wrapped = get_peft_model(model, config, adapter_name=adapter_name)
    for name, layer in _lora_layers(wrapped).items():
        layer.lora_A[adapter_name].copy_(spectra.stream(name).components(config.init_r)[1])
    return wrapped


def _start_s2lora(model, config: S2LoraConfig, spectra: ActivationSpectra, adapter_name: str) -> PeftModel:
    if config.share == "max":
        raise ValueError("EVA pools inputs of one width, and share='max' mixes widths; use another way to share")
    wrapped = get_peft_model(model, config, adapter_name=adapter_name)
    tuner: Any = wrapped.base_model
    members = tuner.peft_config[adapter_name].lambda_modules
    pooled = {key: _pooled(spectra, names) for key, names in members.items()}
    if len(pooled) > 1 and config.share == "shape" and not config.pair_ranks:
        P, Q = tuner.s2lora_P[adapter_name], tuner.s2lora_Q[adapter_name]
        sides = {key: (len(P[key]), Q[key].shape[1]) for key in pooled}
        cost = [sum(sides[key]) + len(members[key]) for key in pooled]
        most = [min(2 * config.r, *sides[key]) for key in pooled]
        ratios = [s.explained_variance_ratio(m) for s, m in zip(pooled.values(), most, strict=True)]
        spent = sum(c * min(config.r, *sides[key]) for c, key in zip(cost, pooled, strict=True))
        ranks = allocate(ratios, spent, cost=cost, min_rank=1)
        model = wrapped.unload()
        config = copy.deepcopy(config)
        config.pair_ranks = dict(zip(pooled, ranks, strict=True))
        wrapped = get_peft_model(model, config, adapter_name=adapter_name)
        tuner = wrapped.base_model
    for key, stream in pooled.items():
        Q = tuner.s2lora_Q[adapter_name][key]
        Q.copy_(stream.components(len(Q))[1])
    return wrapped


def _pooled(spectra: ActivationSpectra, names: list[str]):
    """One statistic over the inputs of several layers, each row counting once."""
    first, *others = dict.fromkeys(spectra.leader[n] for n in names)
    pooled = copy.deepcopy(spectra.streams[first])
    for other in others:
        pooled.merge(spectra.streams[other])
    return pooled


def _lora_layers(model: PeftModel) -> dict[str, Any]:
    prefix = "base_model.model."
    return {n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
