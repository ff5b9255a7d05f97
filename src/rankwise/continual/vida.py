"""ViDA: a deployed classifier follows a changing domain, batch by batch, and does not forget where it came from.

Beside each attention projection lie a narrow branch, for what domains share, and a wide one, for what is of the present
one (`rankwise.tuning.VidaConfig`). For each batch ``x``, with a student ``s`` and its moving average, the teacher
``t``:

    U = 0.1 · mean over batch and classes of Var_n t(view n)          unbiased, over N augmented views
    U ≥ Θ:  s_high = 1 + U, s_low = 1 − U      else  s_high = 1 − U, s_low = 1 + U       (homeostasis)
    ŷ = t(x), and one step of s on −Σ_c softmax(ŷ) log softmax(s(x)),  backbone and adapters each at a rate of their own
    t ← α t + (1 − α) s, with an α of its own for adapters;  each number of s returns to its start with probability rst

The prediction is ŷ, made before the step. No labels, and nothing of the source data unless adapters are warmed up.

Source: Liu, Yang et al., ICLR 2024, arXiv 2306.04344, and its released code. Where they differ: the paper's uncertainty
is of each picture, by dropout (``uncertainty="mc_dropout", per_sample=True``), the code's of the batch, by views. The
released code never sets the wide branch's scale (``compat="released"``). Its adapters come warmed up on the source
data, by a script that is not released; `warm_up` is ours.

What people get wrong: ``Θ`` is in units of the logits' variance: at twice the temperature U is a quarter. It is per
batch: a batch of mixed domains has one scale. And restoring a tenth of all numbers after every batch holds the student
at its start.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import chain
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftModel, PeftType, get_peft_model
from torch import Tensor, nn

from rankwise.continual.accepted import refuse_adapters
from rankwise.continual.settings import Settings
from rankwise.continual.stream import Inputs, rows
from rankwise.continual.teacher import TeacherAdapter, soft_cross_entropy
from rankwise.tuning.vida import VidaConfig, VidaLayer, VidaModel

__all__ = ["TestTimeAdapter", "warm_up"]

Value = float | Tensor  # of a batch, or one a picture


class Adapted(NamedTuple):
    """What the last batch did.

    Attributes
    ----------
    uncertainty, low, high : float or Tensor
        ``U`` and both scales, of the batch or one a picture.

    Examples
    --------
    >>> from rankwise.continual.vida import Adapted
    >>> Adapted(uncertainty=0.1, low=0.9, high=1.1).high
    1.1
    """

    uncertainty: Value
    low: Value
    high: Value


class TestTimeAdapter(TeacherAdapter):
    """A classifier that adapts while it predicts, by low- and high-rank adapters in balance.

    Parameters
    ----------
    model : nn.Module
        An image or text classifier (of transformers, timm, or any module that gives logits), or a PEFT model whose
        active adapter is ViDA's, as `warm_up` trains it. It is changed in place; `release` undoes that.
    adapter : VidaConfig, optional
        The branches, where ``model`` has none yet; rank 1 and 128 by default.
    mean, std : sequence of float, optional
        Of the pixels' colours, where the model takes ``(value - mean) / std``, as its image processor says; by default
        pixels are values in [0, 1].
    preset : {"cifar10c", "cifar100c", "imagenetc", "ours"} or Settings
        The released settings of three streams of thousands of batches (``cifar10c`` by default), or ours, which are
        for small transformers and streams of hundreds: higher rates, a teacher that follows sooner, four views.
    **changes
        Fields of `Settings`, instead of the preset's.

    Raises
    ------
    ValueError
        An unknown preset or setting, a setting outside of its range, a model that gives no logits, another adapter.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import TestTimeAdapter
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> adapter = TestTimeAdapter(ViTForImageClassification(config), preset="cifar10c")
    >>> loader = torch.utils.data.DataLoader(torch.rand(12, 3, 8, 8), batch_size=4)
    >>> [logits.argmax(1).shape for batch, logits in adapter.stream(loader)]
    [torch.Size([4]), torch.Size([4]), torch.Size([4])]
    >>> type(adapter.release()).__name__  # as it was
    'ViTForImageClassification'
    """

    adds = True
    reads = frozenset(f.name for f in fields(Settings)) - {"threshold"}
    presets: ClassVar[dict[str, Settings]] = {
        "cifar10c": Settings(lr=1e-4, lr_vida=1e-5, restore=0.1),
        "cifar100c": Settings(lr=3e-4, lr_vida=1e-6, restore=0.1),
        "imagenetc": Settings(
            optimizer="sgd", lr=5e-7, lr_vida=2e-7, theta=0.2, alpha_vida=0.8, loss="symmetric"
        ),
        "ours": Settings(lr=1e-3, lr_vida=1e-3, alpha=0.99, alpha_vida=0.99, restore=0.01, n_aug=4),
    }  # fmt: skip

    def __init__(
        self,
        model: nn.Module,
        *,
        adapter: VidaConfig | None = None,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        preset: str | Settings = "cifar10c",
        **changes: Any,
    ) -> None:
        self._config = adapter
        self.last: Adapted | None = None
        super().__init__(model, mean=mean, std=std, preset=preset, **changes)

    @property
    def _passes_drop(self) -> bool:
        return self.settings.uncertainty == "mc_dropout" and self.settings.homeostasis != "off"

    def _check(self, model: nn.Module) -> None:
        if isinstance(model, PeftModel):
            kind = model.peft_config[str(model.active_adapter)].peft_type
            if self._config is not None:
                raise ValueError("the model has an adapter and adapter= is given too: leave it out")
            if kind != PeftType["VIDA"]:
                raise ValueError(f"the model has a {PeftType(kind).value} adapter: merge it, or give ViDA's")
        super()._check(model)
        if self._passes_drop and not any(p > 0 for p in self._dropouts(model).values()):
            raise ValueError("the model has no dropout above 0 for uncertainty='mc_dropout': give dropout=0.1, e.g.")

    def _prepared(self, model: nn.Module) -> nn.Module:
        if isinstance(model, PeftModel):
            return model
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            return get_peft_model(cast(Any, model), copy.deepcopy(self._config) or VidaConfig())

    def _unprepared(self, model: nn.Module) -> nn.Module:
        self._set_scales(1.0, 1.0)
        return model if model is self._given else cast(Any, model).unload()

    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        trained = super()._trained(model)
        return trained if self.settings.train == "all" else {n: p for n, p in trained.items() if "vida_" in n}

    def _groups(self) -> list[dict[str, Any]]:
        adapters = [p for n, p in self.trained.items() if "vida_" in n]
        backbone = [p for n, p in self.trained.items() if "vida_" not in n]
        groups = [{"params": backbone, "lr": self.settings.lr}, {"params": adapters, "lr": self.settings.lr_vida}]
        return [group for group in groups if group["params"]]

    def _alpha_of(self, name: str) -> float:
        return self.settings.alpha_vida if "vida_" in name else self.settings.alpha

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (
            symmetric(student, teacher) if self.settings.loss == "symmetric" else soft_cross_entropy(student, teacher)
        )

    def _answers(self, inputs: Inputs) -> Tensor:
        U = 0.0 if self.settings.homeostasis == "off" else self.uncertainty(inputs)
        low, high = balanced(U, self.settings.theta, clip=self.settings.clip)
        if self.settings.homeostasis == "inverted":
            low, high = high, low
        if self.settings.compat == "released":
            high = 1.0
        self._set_scales(low, high)
        self.last = Adapted(U, low, high)
        with self._folded():
            return self.logits(self.teacher, inputs)

    @torch.no_grad()
    def uncertainty(self, inputs: Inputs) -> Value:
        """``U`` of a batch, or of each of its pictures, at the scales of the batch before (of each: at 1)."""
        settings = self.settings
        if settings.per_sample:
            self._set_scales(1.0, 1.0)
        if settings.confident is not None and self._sure(inputs) >= settings.confident:
            return 0.0
        passes = self._dropped(inputs) if settings.uncertainty == "mc_dropout" else self.views(inputs, settings.n_aug)
        with self._folded():
            found = [self.logits(self.teacher, part).unflatten(0, (-1, rows(inputs))) for part in passes]
        U = spread(torch.cat(found), settings.uncertainty)
        if bool((U.mean() if not settings.per_sample else U.max()) >= 1) and not settings.clip:
            warnings.warn("uncertainty of 1 or more makes a scale negative; clip=True bounds it", stacklevel=5)
        return U if settings.per_sample else float(U.mean())

    def _sure(self, inputs: Inputs) -> float:
        """The teacher's mean top probability."""
        return float(self.logits(self.teacher, inputs).softmax(1).amax(1).mean())

    def _dropped(self, inputs: Inputs) -> Iterator[Inputs]:
        """The batch itself again and again, while the teacher drops."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        number, at_once = self.settings.n_aug, max(1, self.settings.chunk // rows(inputs))
        with self._dropping(), torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, number, at_once):
                times = min(at_once, number - start)
                if isinstance(inputs, Tensor):
                    yield inputs.repeat(times, *[1] * (inputs.dim() - 1))
                else:
                    yield {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in inputs.items()}

    def _dropouts(self, model: nn.Module) -> dict[nn.Dropout, float]:
        given = self.settings.dropout
        return {m: m.p if given is None else given for m in model.modules() if isinstance(m, nn.Dropout)}

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        kept = {m: m.p for m in self._dropouts(self.teacher)}
        try:
            for module, p in self._dropouts(self.teacher).items():
                module.p, module.training = p, True
            yield
        finally:
            for module, p in kept.items():
                module.p, module.training = p, False

    def _predicted(self, inputs: Inputs) -> Tensor:
        if self.settings.per_sample:
            self._set_scales(1.0, 1.0)
        return super()._predicted(inputs)

    def _folded(self) -> AbstractContextManager[None]:
        """The teacher's branches in its weights, where scales are of the whole batch."""
        if any(isinstance(scale, Tensor) for scale in self.scales):
            return nullcontext()
        return cast(VidaModel, cast(PeftModel, self.teacher).base_model).folded()

    def _set_scales(self, low: Value, high: Value) -> None:
        for model in (self.model, getattr(self, "teacher", None)):
            if model is not None:
                cast(VidaModel, cast(PeftModel, model).base_model).set_scales(low, high)

    def reset(self) -> None:
        """Student, teacher, scales, optimiser and draws as at the beginning."""
        super().reset()
        self._set_scales(1.0, 1.0)
        self.last = None

    @property
    def scales(self) -> tuple[Value, Value]:
        """``s_low`` and ``s_high`` at present."""
        return next(m for m in self.teacher.modules() if isinstance(m, VidaLayer)).scaling[self._name]

    @property
    def _name(self) -> str:
        return str(cast(PeftModel, self.model).active_adapter)

    @torch.no_grad()
    def norms(self) -> tuple[float, float]:
        """``‖U₁D₁‖`` and ``‖U₂D₂‖`` of the student, root of the sum of squares over layers: what each branch says."""
        total = [0.0, 0.0]
        for layer in (m for m in self.model.modules() if isinstance(m, VidaLayer)):
            for branch, (D, U, _) in layer.branches(self._name).items():
                total[branch == "high"] += float((U @ D).square().sum())
        return total[0] ** 0.5, total[1] ** 0.5

    def _told(self) -> dict[str, Any]:
        low, high = self.scales
        return {} if isinstance(low, Tensor) or isinstance(high, Tensor) else {"scales": [low, high]}

    def _take(self, told: Mapping[str, Any]) -> None:
        low, high = (float(s) for s in told.get("scales", (1.0, 1.0)))
        self._set_scales(low, high)


def spread(logits: Tensor, kind: str) -> Tensor:
    """How far views ``(views, batch, classes)`` of the same pictures lie apart, ``(batch,)``.

    ``released``: a tenth of the mean unbiased variance of logits; ``probs``: the summed unbiased variance of
    probabilities; ``mc_dropout``: the root mean square distance of probabilities from their mean.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.vida import spread
    >>> two = torch.tensor([[[0.0, 0.0]], [[2.0, 2.0]]])  # variance 2
    >>> [round(float(spread(two, kind)), 3) for kind in ("released", "probs")]
    [0.2, 0.0]
    """
    if kind == "released":
        return 0.1 * logits.var(0).mean(-1)
    p = logits.softmax(-1)
    return p.var(0).sum(-1) if kind == "probs" else (p - p.mean(0)).square().sum(-1).mean(0).sqrt()


def balanced(uncertainty: Value, theta: float, *, clip: bool = False) -> tuple[Value, Value]:
    """``s_low`` and ``s_high``: the wide branch is turned up by U from ``theta`` on, the narrow one below it.

    Examples
    --------
    >>> from rankwise.continual.vida import balanced
    >>> balanced(0.25, theta=0.25), balanced(0.125, theta=0.25)
    ((0.75, 1.25), (1.125, 0.875))
    """
    if isinstance(uncertainty, Tensor):
        U = uncertainty.clamp(max=1) if clip else uncertainty
        turned = torch.where(theta <= U, U, -U)
        return 1 - turned, 1 + turned
    U = min(uncertainty, 1.0) if clip else uncertainty
    turned = U if theta <= U else -U
    return 1 - turned, 1 + turned


def symmetric(student: Tensor, teacher: Tensor) -> Tensor:
    """``-½ Σ p_t log p_s - ½ Σ p_s log p_t``, mean over the batch.

    Examples
    --------
    >>> import torch
    >>> from rankwise.continual.vida import symmetric
    >>> a, b = torch.randn(3, 4), torch.randn(3, 4)
    >>> torch.allclose(symmetric(a, b), symmetric(b, a))
    True
    """
    return (soft_cross_entropy(student, teacher) + soft_cross_entropy(teacher, student)) / 2


@torch.inference_mode(False)
def warm_up(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    adapter: VidaConfig | None = None,
    lr: float = 1e-3,
) -> PeftModel:
    """Train the branches alone on labelled source data, before the stream: the paper's first step.

    Parameters
    ----------
    model : nn.Module
        A classifier; it is adapted in place.
    batches : iterable of (inputs, labels)
        Inputs as the model takes them: a tensor, or a mapping of tensors. One step each.
    adapter : VidaConfig, optional
        Rank 1 and 128 by default.
    lr : float
        Of Adam. Default 1e-3.

    Returns
    -------
    PeftModel
        For `TestTimeAdapter`, or to save.

    Raises
    ------
    ValueError
        No batch at all, or a model that has adapters.

    Examples
    --------
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from rankwise.continual import TestTimeAdapter, warm_up
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    ...                    image_size=8, patch_size=4, num_labels=3)
    >>> source = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    >>> adapter = TestTimeAdapter(warm_up(ViTForImageClassification(config), source))
    """
    refuse_adapters(model)
    coming = iter(batches)
    if (first := next(coming, None)) is None:
        raise ValueError("batches is empty: nothing was trained")
    warmed = cast(PeftModel, get_peft_model(cast(Any, model), copy.deepcopy(adapter) or VidaConfig()))
    mode = {m: m.training for m in warmed.modules()}
    optimizer = torch.optim.Adam([p for n, p in warmed.named_parameters() if "vida_" in n], lr=lr)
    warmed.eval()  # the backbone stands still: no dropout, no statistics
    with torch.enable_grad():
        for inputs, labels in chain([first], coming):
            out = warmed(**inputs) if isinstance(inputs, Mapping) else warmed(inputs)
            F.cross_entropy(getattr(out, "logits", out).float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for module, training in mode.items():
        module.training = training
    return warmed
