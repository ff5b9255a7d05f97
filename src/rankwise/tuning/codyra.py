"""CoDyRA: low-rank adaptation whose ranks are chosen while it learns, so that no more is changed than the task needs.

Every direction of every adapted weight ``W: (out, in)`` has a gate:

    y = W x + B (g ∘ (A x)),   A: (r, in) Kaiming-uniform with a = √5,   B: (out, r) zero,   g: (r,) ~ N(0, 1)

After a dense first part of the T steps, each step of the optimiser, ``ĝ = g - η ∇L``, is followed by the proximal step
of ``κ_t Σ ‖g‖₁``:

    g ← 1(|ĝ| > κ_t) (ĝ - sign(ĝ) κ_t),   κ_t rising from 0 to κ_max in 50 levels

A gate at zero takes its direction out: the rank of each weight is what is left. The smaller ``ΔW = B diag(g) A``, the
less is forgotten: ``‖ΔW‖_F ≤ √ρ ‖B diag(g)‖₂ ‖A‖₂`` with ρ the rank. `rankwise.continual.CodyraLearner` learns task
after task so; here is the adapter, which any training can use: `CodyraModel.gate_step` around the optimiser's step, or
`CodyraCallback` in a Trainer. Without one of the two every gate stays open.

Source: Lu, Zhao, Xue, Yao, Moore & Gong, "Take Only What You Need: Rank Minimization as an Implicit Forgetting
Regularizer in Continual Learning" (first "Adaptive Rank, Reduced Forgetting"), arXiv 2412.01004.

The released code differs from the paper, and ``released=True`` follows it: it sets to zero what the paper leaves below
2κ, and with fewer than 50 sparse steps it never prunes, without a word. What people get wrong: ``κ_t`` is no rate times
a penalty; gates shrink by κ_t itself, by 0.65 over the 250 steps of the default ramp, in which Adam at 5e-4 moves one
by some hundredths, so that about half of those drawn from N(0, 1) are gone whatever the task is. And a zero is not
final: Adam's momentum moves the gate again, unless ``freeze_zero``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftType
from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.models import target_modules
from rankwise.tuning import peft_types as _peft_types  # noqa: F401  (PeftType.CODYRA must exist)
from rankwise.tuning.adapters import AdapterLayer, AdapterModel, check_linear
from rankwise.tuning.injection import TargetedConfig
from rankwise.tuning.s2lora_step import soft_threshold

__all__ = ["CodyraConfig", "KeptRank", "kappa"]


@dataclass
class CodyraConfig(TargetedConfig):
    """Configuration of low-rank adaptation with gated directions.

    Parameters
    ----------
    r : int
        Directions of each weight before pruning, at least 1. Default 16.
    max_kappa : float
        The last and largest threshold, not negative; 0 prunes nothing. Default 0.005.
    dense_share : float
        Share of the steps before the first threshold, in [0, 1]. Default 0.5.
    kappa_steps : int
        Levels of the threshold from 0 to ``max_kappa``, at least 2. Default 50.
    freeze_zero : bool
        Hold a gate that has become zero there. By default Adam's momentum may open it again.
    released : bool
        The threshold and the schedule of the released code instead of the paper's.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT. Without ``target_modules``, every attention and feed-forward projection; of a CLIP in both towers.
    init_weights : bool
        ``False`` starts from a random B instead of the base model: for tests.

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.tuning import CodyraConfig
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = get_peft_model(BertModel(config), CodyraConfig(r=4))
    >>> kept = model.base_model.rank_map()["encoder.layer.0.attention.self.query"]
    >>> kept.rank, kept.of, kept.norm  # nothing is pruned, and nothing learned
    (4, 4, 0.0)
    """

    r: int = 16
    max_kappa: float = 0.005
    dense_share: float = 0.5
    kappa_steps: int = 50
    freeze_zero: bool = False
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["CODYRA"]
        if self.r < 1:
            raise ValueError(f"r={self.r}; a rank of at least 1 is needed")
        if not 0 <= self.max_kappa < math.inf:
            raise ValueError(f"max_kappa={self.max_kappa}: a finite threshold is needed; 0 prunes nothing")
        if not 0 <= self.dense_share <= 1:
            raise ValueError(f"dense_share={self.dense_share} is outside [0, 1]")
        if self.kappa_steps < 2:
            raise ValueError(f"kappa_steps={self.kappa_steps}; at least 2 levels are needed, of which the first is 0")


class KeptRank(NamedTuple):
    """Of one weight: its open gates, how many there are in all, and ``‖B diag(g) A‖_F``.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import CodyraConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> get_peft_model(net, CodyraConfig(r=2, target_modules=["0"])).base_model.rank_map()
    {'0': KeptRank(rank=2, of=2, norm=0.0)}
    """

    rank: int
    of: int
    norm: float


def kappa_index(step: int, total_steps: int, config: CodyraConfig) -> int:
    """Which of the levels the threshold has after step ``step``, counted from 0, of ``total_steps``.

    The levels share the sparse steps equally, the first growth being at their start. The released code takes whole
    steps for each, and grows at multiples of that length.

    Examples
    --------
    >>> from rankwise.tuning import CodyraConfig
    >>> from rankwise.tuning.codyra import kappa_index
    >>> [kappa_index(step, 500, CodyraConfig()) for step in (249, 250, 254, 255, 490, 499)]
    [0, 1, 1, 2, 49, 49]
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} of {total_steps}: steps are counted from 0")
    start = config.dense_share * total_steps
    sparse = total_steps - start
    if step < start or sparse <= 0:
        return 0
    if config.released:
        length = int(sparse / config.kappa_steps)
        grown = step // length - math.ceil(start / length) + 1 if length else 0
    else:
        grown = 1 + int((step - start) * config.kappa_steps // sparse)
    return min(grown, config.kappa_steps - 1)


def kappa(step: int, total_steps: int, config: CodyraConfig) -> float:
    """The threshold applied after step ``step``, counted from 0: 0 until the step that ends the dense part.

    Examples
    --------
    >>> from rankwise.tuning import CodyraConfig, kappa
    >>> [round(kappa(step, 500, CodyraConfig()), 6) for step in (250, 251, 499)]
    [0.0, 0.000102, 0.005]
    """
    index = kappa_index(step, total_steps, config)
    return config.max_kappa * index / (config.kappa_steps - 1) if step > config.dense_share * total_steps else 0.0


def schedule_note(total_steps: int, config: CodyraConfig) -> str:
    """What is to be said of a training that is too short for the levels of its threshold; empty where it is not."""
    sparse = total_steps - config.dense_share * total_steps
    if not config.max_kappa or not 0 < sparse < config.kappa_steps:
        return ""
    what = "nothing is ever pruned" if config.released else "a step takes several at once"
    return (
        f"{total_steps} steps leave {sparse:g} for {config.kappa_steps} levels of the threshold: {what}; train longer, "
        "or lower kappa_steps"
    )


def check_schedule(total_steps: int, config: CodyraConfig) -> None:
    """Warn of `schedule_note`."""
    if note := schedule_note(total_steps, config):
        warnings.warn(note, stacklevel=3)


def released_threshold(x: Tensor, amount: float) -> Tensor:
    """The released code's: zero below ``2 · amount``, but for sizes of exactly ``amount``, which stay.

    Examples
    --------
    >>> import torch
    >>> from rankwise.tuning.codyra import released_threshold
    >>> released_threshold(torch.tensor([-2.0, 0.5, 0.75, 3.0]), 0.5).tolist()
    [-1.5, 0.5, 0.0, 2.5]
    """
    x = x - amount * (x > amount)
    x = x + amount * (x < -amount)
    return x.masked_fill(x.abs() < amount, 0.0)


def factored_norm(A: Tensor, B: Tensor) -> float:
    """``‖B A‖_F`` by the Gram matrices of the factors ``A: (r, in)`` and ``B: (out, r)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.tuning.codyra import factored_norm
    >>> factored_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0], [0.0]]))
    10.0
    """
    A, B = A.detach().double(), B.detach().double()
    return float(((A @ A.mT) * (B.mT @ B)).sum().clamp(min=0).sqrt())


class CodyraLayer(AdapterLayer):
    """A linear layer with gated low-rank factors.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import CodyraConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> layer = get_peft_model(net, CodyraConfig(r=2, target_modules=["0"])).base_model.model[0]
    >>> A, gates, B = layer.factors("default")
    >>> A.shape, gates.shape, B.shape
    (torch.Size([2, 4]), torch.Size([2]), torch.Size([3, 2]))
    """

    adapter_layer_names = ("codyra_A", "codyra_g", "codyra_B")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = (int(side or 0) for side in _get_in_out_features(self.get_base_layer()))
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self.codyra_A, self.codyra_g, self.codyra_B = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: CodyraConfig, name: str) -> None:
        """Add an adapter that changes nothing yet: B is zero."""
        A = torch.empty(config.r, self.in_features)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        make = torch.zeros if config.init_weights else torch.randn
        self.codyra_A[adapter_name] = nn.Parameter(A)
        self.codyra_g[adapter_name] = nn.Parameter(torch.randn(config.r))
        self.codyra_B[adapter_name] = nn.Parameter(make(self.out_features, config.r))

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """``A: (r, in)``, ``g: (r,)`` and ``B: (out, r)``."""
        return self.codyra_A[adapter_name], self.codyra_g[adapter_name], self.codyra_B[adapter_name]

    def base_tensor(self) -> nn.Parameter:
        """The base weight."""
        return cast(nn.Parameter, self.get_base_layer().weight)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """``B diag(g) A`` in the base weight's orientation."""
        A, gates, B = (f.to(torch.promote_types(f.dtype, torch.float32)) for f in self.factors(adapter_name))
        delta = (B * gates) @ A
        return delta.mT if self.fan_in_fan_out else delta

    def adapted(self, adapters: list[str], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """``W x + B (g ∘ (A x))``, summed over the adapters."""
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in adapters:
            A, gates, B = self.factors(name)
            result = result + F.linear(gates * F.linear(x.to(A.dtype), A), B)
        return result.to(dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Yes: gates are folded into B."""
        return True


class CodyraModel(AdapterModel):
    """The tuner, which prunes around an optimiser's steps.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from rankwise.tuning import CodyraConfig
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> model = get_peft_model(net, CodyraConfig(r=8, target_modules=["0"], max_kappa=10.0))
    >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    >>> for step in range(100):
    ...     model(torch.ones(2, 4)).square().mean().backward()
    ...     with model.base_model.gate_step(step, 100):
    ...         optimizer.step()
    >>> model.base_model.rank_map()["0"].rank  # a threshold that is larger than any gate
    0
    """

    prefix = "codyra_"
    tuner_layer_cls = CodyraLayer

    @staticmethod
    def default_targets(model: nn.Module) -> list[str]:
        """Every attention and feed-forward projection."""
        return target_modules(model)

    def check_target(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """A target is a linear layer that its parent calls."""
        check_linear(self, "CoDyRA", name, module, parent)

    def adapted_layers(self, adapter_name: str | None = None) -> dict[str, CodyraLayer]:
        """The layers of an adapter (the active one by default), by name, in the model's order."""
        wanted = adapter_name or self.active_adapters[0]
        named = self.model.named_modules()
        return {n: m for n, m in named if isinstance(m, CodyraLayer) and wanted in m.codyra_g}

    def gates(self, adapter_name: str | None = None) -> dict[str, nn.Parameter]:
        """The gates of every adapted weight, by layer name."""
        wanted = adapter_name or self.active_adapters[0]
        return {n: layer.codyra_g[wanted] for n, layer in self.adapted_layers(wanted).items()}

    def rank_map(self, adapter_name: str | None = None) -> dict[str, KeptRank]:
        """What is left of every adapted weight, by layer name."""
        out = {}
        for name, layer in self.adapted_layers(wanted := adapter_name or self.active_adapters[0]).items():
            A, gates, B = layer.factors(wanted)
            out[name] = KeptRank(int(gates.count_nonzero()), len(gates), factored_norm(A, B * gates))
        return out

    @contextmanager
    def gate_step(self, step: int, total_steps: int, adapter_name: str | None = None) -> Iterator[float]:
        """Prune after the optimiser's step that stands in the block.

        Parameters
        ----------
        step, total_steps : int
            Which step of the training it is, counted from 0, and of how many.
        adapter_name : str, optional
            The active adapter by default.

        Yields
        ------
        float
            The threshold that will be applied.
        """
        config = self.peft_config[adapter_name or self.active_adapters[0]]
        amount, gates = kappa(step, total_steps, config), [*self.gates(adapter_name).values()]
        closed = [g == 0 for g in gates] if config.freeze_zero else []
        yield amount
        threshold = released_threshold if config.released else soft_threshold
        with torch.no_grad():
            for g in gates if amount else ():
                g.copy_(threshold(g, amount))
            for g, zero in zip(gates, closed, strict=False):
                g.masked_fill_(zero, 0.0)
