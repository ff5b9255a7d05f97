"""The ways to train by name, and the largest rank each affords under a budget of trainable parameters.

Names and grids are known without torch or PEFT: those are imported when a configuration is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rankwise.nearest import unknown

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import nn

Shapes = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Settings of the optimisers that project gradients or sample layers; ``None`` is the method's default.

    ``scale`` is the factor of a projected step; ``rest`` the rate of what is not projected, as a multiple of the
    learning rate.
    """

    rank: int | None = None
    update_gap: int | None = None
    scale: float | None = None
    rest: float | None = None
    active: int | None = None
    interval: int | None = None
    weight_decay: float = 0.0
    seed: int = 0

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named settings that are set."""
        return {n: v for n in names if (v := getattr(self, n)) is not None}


ADALORA_START = 1.5  # initial over final rank, as in the AdaLoRA paper


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune.

    Attributes
    ----------
    title : str
    learning_rates : tuple of float
        The grid that validation chooses from.
    speech_rates : tuple of float
        The same for speech recognition, where it differs.
    price : callable, optional
        Trainable parameters for a rank and the targeted shapes ``(out, in)``; ``None`` when there is no rank to choose.
    config : callable, optional
        ``(rank, target names, training steps) -> PeftConfig``; ``None`` trains without an adapter.
    least : int
        The lowest rank there is.
    initialise_on : str
        A corpus whose activations start the adapter instead of the training data's (an ablation of EVA).
    trains : {"all", "head", "lrc", "n-lrc"}
        What trains where there is no adapter: everything, the task head, or of a compressed model the factors or the
        matrices left dense.
    optimizer : callable, optional
        ``(model, learning rate, settings) -> Optimizer``; AdamW by default.
    ablation : bool
        A variant for experiments, not offered first.
    """

    title: str
    learning_rates: tuple[float, ...]
    price: Callable[[int, Shapes], int] | None = None
    config: Callable[[int, list[str], int], PeftConfig] | None = None
    least: int = 1
    initialise_on: str = ""
    ablation: bool = False
    speech_rates: tuple[float, ...] = ()
    trains: Literal["all", "head", "lrc", "n-lrc"] = "all"
    optimizer: Callable[[nn.Module, float, Projection], torch.optim.Optimizer] | None = None

    @property
    def whole_model(self) -> bool:
        """Whether what is trained is the model itself: no adapter, and more than a head."""
        return self.config is None and self.trains != "head"

    def grid(self, task: str) -> tuple[float, ...]:
        """Learning rates to try for a task."""
        return (task == "asr" and self.speech_rates) or self.learning_rates


def _lora_price(r: int, shapes: Shapes) -> int:
    return sum(r * (o + i) for o, i in shapes)


def _adalora_price(r: int, shapes: Shapes) -> int:
    return sum(r * (o + i + 1) for o, i in shapes)


def _s2lora_price(r: int, shapes: Shapes) -> int:
    return sum(r * (o + i) for o, i in set(shapes)) + r * len(shapes)


def _lora(r: int, names: list[str], steps: int) -> PeftConfig:
    from peft import LoraConfig

    return LoraConfig(r=r, lora_alpha=r, target_modules=names)


def _adalora(r: int, names: list[str], steps: int) -> PeftConfig:
    """The budget is what is trainable at the start (``init_r``); the average final rank is two thirds of it."""
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        init_r=r,
        target_r=max(1, int(r / ADALORA_START)),
        lora_alpha=r,
        target_modules=names,
        tinit=steps // 10,
        tfinal=steps * 3 // 10,
        deltaT=max(1, steps // 50),
        total_step=steps,
        orth_reg_weight=0.1,
    )


def _s2lora(**options: Any) -> Callable[[int, list[str], int], PeftConfig]:
    def config(r: int, names: list[str], steps: int) -> PeftConfig:
        from rankwise.tuning.s2lora import S2LoraConfig

        return S2LoraConfig(r=r, target_modules=names, **options)

    return config


def _eva(**options: Any) -> Callable[[int, list[str], int], PeftConfig]:
    def config(r: int, names: list[str], steps: int) -> PeftConfig:
        from rankwise.tuning.eva import EvaConfig

        return EvaConfig(r=r, lora_alpha=r, target_modules=names, max_batches=16, **options)

    return config


def _bitfit(r: int, names: list[str], steps: int) -> PeftConfig:
    from rankwise.tuning.bitfit import BitFitConfig

    return BitFitConfig()


# EVA's rows have norm 1 along the largest activations, LoRA's about 0.6 in random directions: EVA wants smaller steps
_LORA_RATES, _EVA_RATES, _S2LORA_RATES = (1e-3, 4e-3), (1e-3, 2e-3), (2e-3, 4e-3)


def _s2(title: str, *, price=_s2lora_price, rates: tuple[float, ...] = _S2LORA_RATES, **options: object) -> Method:
    return Method(title=title, learning_rates=rates, price=price, config=_s2lora(**options), ablation=True)


def _ev(title: str, *, rates: tuple[float, ...] = _EVA_RATES, initialise_on: str = "", **options: object) -> Method:
    config = _eva(**options)
    return Method(
        title=title,
        learning_rates=rates,
        price=_lora_price,
        config=config,
        initialise_on=initialise_on,
        ablation=True,
    )


def _galore(**options: Any) -> Callable[[nn.Module, float, Projection], torch.optim.Optimizer]:
    def make(model: nn.Module, lr: float, p: Projection) -> torch.optim.Optimizer:
        from rankwise.optim import GaLoreAdamW, galore_groups

        groups = galore_groups(model)
        rank = p.rank or max(1, max(min(w.shape) for w in groups[0]["params"]) // 16)
        groups[0] |= {"rank": rank, **p.given("update_gap")}
        if p.rest is not None:
            for group in groups[1:]:
                group["lr"] = lr * p.rest
        options_now = {"scale": 1.0, **p.given("scale"), **options}
        optimizer = GaLoreAdamW(groups, lr, weight_decay=p.weight_decay, seed=p.seed, **options_now)
        optimizer.step_in_backward(model=model)
        return optimizer

    return make


def _owlore(**options: Any) -> Callable[[nn.Module, float, Projection], torch.optim.Optimizer]:
    def make(model: nn.Module, lr: float, p: Projection) -> torch.optim.Optimizer:
        from rankwise.optim import OwLore

        given = p.given("active", "interval", "weight_decay", "seed")
        if options.get("rank") != 0:  # LISA projects nothing
            given |= p.given("rank", "update_gap", "scale")
            given["rest_lr"] = None if p.rest is None else lr * p.rest
        return OwLore(model, lr, **given, **options)

    return make


def _low_memory(title: str, optimizer: Callable, *, ablation: bool = False) -> Method:
    return Method(title=title, learning_rates=(1e-4, 4e-4), optimizer=optimizer, ablation=ablation)


METHODS: dict[str, Method] = {
    "head": Method(title="head only", learning_rates=(3e-3, 1e-2), trains="head"),
    "bitfit": Method(title="BitFit", learning_rates=(2e-3, 5e-3), config=_bitfit),
    "lora": Method(title="LoRA", learning_rates=_LORA_RATES, price=_lora_price, config=_lora),
    "adalora": Method(
        title="AdaLoRA", learning_rates=(1e-2, 3e-2), price=_adalora_price, config=_adalora, least=2
    ),  # from rank 1 there is nothing to take away
    "s2lora": Method(title="S2-LoRA", learning_rates=_S2LORA_RATES, price=_s2lora_price, config=_s2lora()),
    "eva": Method(title="EVA", learning_rates=_EVA_RATES, price=_lora_price, config=_eva()),
    "full": Method(title="full tuning", learning_rates=(1e-4, 4e-4), speech_rates=(3e-5, 1e-4)),
    "galore": _low_memory("GaLore", _galore()),
    "owlore": _low_memory("OwLore", _owlore()),
    "lisa": _low_memory("LISA", _owlore(mode="uniform", rank=0)),
    "lrc": Method(title="factors only", learning_rates=(1e-4, 4e-4), trains="lrc"),
    "n-lrc": Method(title="dense matrices only", learning_rates=(1e-4, 4e-4), trains="n-lrc"),
    "galore-reset": _low_memory("GaLore, moments reset", _galore(on_refresh="reset"), ablation=True),
    "galore-rotate": _low_memory("GaLore, moments rotated", _galore(on_refresh="rotate"), ablation=True),
    "galore-full-svd": _low_memory("GaLore, full SVD", _galore(svd="full"), ablation=True),
    "galore-random": _low_memory("GaLore, random directions", _galore(svd="random"), ablation=True),
    "owlore-uniform": _low_memory("OwLore, uniform draws", _owlore(mode="uniform"), ablation=True),
    "owlore-reverse": _low_memory("OwLore, reversed draws", _owlore(mode="owl_reverse"), ablation=True),
    "owlore-keep": _low_memory("OwLore, state kept", _owlore(keep_state=True), ablation=True),
    "s2lora-dense": _s2("S2-LoRA, no L1", sparsity=0.0),
    "s2lora-penalty": _s2("S2-LoRA, L1 as penalty", l1="penalty"),
    "s2lora-unshared": _s2("S2-LoRA, not shared", price=_adalora_price, rates=(2e-3, 8e-3), share="none"),
    "s2lora-frozen": _s2("S2-LoRA, P and Q frozen", rates=(2e-3, 8e-3), train_shared=False),
    "eva-uniform": _ev("EVA, equal ranks", rho=1.0),
    "eva-uncentred": _ev("EVA, uncentred", center=False),
    "eva-random": _ev("EVA ranks, random start", rates=_LORA_RATES, directions="random"),
    "eva-elsewhere": _ev("EVA of another domain", initialise_on="sentiment:nyt"),
    "eva-bottom": _ev("EVA, least variance", directions="bottom"),
}


def method(name: str) -> Method:
    """The method of that name; an unknown one is an error that offers the nearest."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def parse_budget(text: str, total: int) -> int:
    """A budget as a number of trainable parameters.

    Parameters
    ----------
    text : str
        A share (``0.5%``), a count (``100000``, ``100k``, ``2M``), or the size of float32 weights (``400KB``, ``1MB``).
    total : int
        Parameters of the model.

    Raises
    ------
    ValueError
        Another form, nothing at all, or more than the model has.
    """
    match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?)\s*(%|k|M|KB|MB)?\s*", text, re.ASCII)
    if not match:
        raise ValueError(f"budget '{text}' is not understood; write 0.5% of the parameters, 100k parameters, or 400KB")
    number, unit = float(match[1]), match[2]
    scale = {"%": total / 100, "k": 1e3, "M": 1e6, "KB": 1024 / 4, "MB": 1024**2 / 4, None: 1.0}[unit]
    count = int(number * scale)
    if count < 1:
        raise ValueError(f"budget '{text}' is not even one of the model's {total:,} parameters")
    if count > total:
        raise ValueError(f"budget '{text}' is {count:,} parameters, more than the model's {total:,}")
    return count


def affordable_rank(name: str, budget: int, model: nn.Module, names: list[str]) -> int:
    """The largest rank of a method on the targeted layers within ``budget`` trainable parameters; 0 if it has no rank.

    Raises
    ------
    ValueError
        Rank 1 (or the model's biases) costs more than the budget; the price is named.
    """
    from peft.tuners.tuners_utils import _get_in_out_features

    from rankwise.ledger import count_parameters
    from rankwise.tuning.bitfit import biased_modules

    chosen = method(name)
    sides = [_get_in_out_features(model.get_submodule(n)) for n in names]
    shapes: Shapes = [(int(o or 0), int(i or 0)) for i, o in sides]
    if name == "bitfit":
        price = sum(b.numel() for b in biased_modules(model).values())
        if price == 0:
            raise ValueError("bitfit trains biases and this model has none; leave it out")
        if price > budget:
            raise ValueError(f"bitfit trains all {price:,} biases, the budget is {budget:,} parameters")
    if chosen.price is None:
        return 0
    rank, least = budget // chosen.price(1, shapes), chosen.least
    if rank < least:
        price = chosen.price(least, shapes)
        raise ValueError(
            f"{name} at rank {least} on {len(shapes)} layers trains {price:,} parameters, the budget is {budget:,} "
            f"({100 * price / count_parameters(model):.2g}% would do; fewer layers, e.g. --target attention, cost less)"
        )
    return min(rank, *(min(s) for s in shapes))
