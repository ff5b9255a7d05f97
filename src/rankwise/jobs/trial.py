"""One training run: a model, a method, a learning rate and a seed in; scores, cost and an adapter out.

Training is `transformers.Trainer`'s. Added to it: an order of examples fixed by the seed alone (the same for every
method, and for any number of processes), what a method does around a step, and checkpoints that hold exactly the
trainable tensors, so that a killed run ends with the numbers of an unbroken one.
"""

# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from rankwise.compression import train_only
from rankwise.jobs.checkpoints import MarkComplete, last_checkpoint
from rankwise.jobs.methods import Projection, method
from rankwise.jobs.tasks import Example, Task
from rankwise.ledger import Cost, count_parameters, measure
from rankwise.models.whisper import encoder_of
from rankwise.optim import GaLoreAdamW
from rankwise.parallel import on_one_gpu
from rankwise.reading import read_json
from rankwise.tuning.eva import EvaConfig, initialize
from rankwise.tuning.s2lora import S2LoraModel

OnStep = Callable[[int, int, float], None]


# JSON has no NaN: it is null there
Number: TypeAlias = Annotated[float, BeforeValidator(lambda v: float("nan") if v is None else v)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings that all runs of a job share.

    Attributes
    ----------
    steps, batch_size, max_length : int
        Optimiser steps, examples a step over all processes, tokens an example.
    warmup, weight_decay : float
        Share of the steps with a rising learning rate (linear decay follows); decay of all but λ.
    precision : {"fp32", "bf16"}
    checkpoint_steps : int
        Steps between checkpoints.
    validation_points : int
        Validation losses taken along the way; 0 for none.
    projection : Projection
        Settings of GaLore and OwLore.
    """

    steps: int
    batch_size: int
    max_length: int
    warmup: float = 0.06
    weight_decay: float = 0.0
    precision: str = "fp32"
    checkpoint_steps: int = 100
    validation_points: int = 0
    projection: Projection = field(default_factory=Projection)


@dataclass(kw_only=True)
class TrialResult:
    """What one run gave.

    Attributes
    ----------
    status : {"done", "diverged"}
    scores : dict
        By corpus name, each a dict of metrics (``score`` is the one to rank by, higher is better).
    loss_curve, validation_curve : list of (step, loss)
    ranks, mass : dict
        Rank, and (S2-LoRA) coefficient mass, of every adapted layer.
    """

    method: str
    learning_rate: float
    seed: int
    rank: int = 0
    status: Literal["done", "diverged"] = "done"
    message: str = ""
    cost: Cost = field(default_factory=Cost)
    scores: dict[str, dict[str, Number]] = field(default_factory=dict)
    loss_curve: list[tuple[int, Number]] = field(default_factory=list)
    validation_curve: list[tuple[int, Number]] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    mass: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return f"{self.method} lr={self.learning_rate:g} seed={self.seed}"

    def as_dict(self) -> dict:
        """All fields, for JSON."""
        return {**asdict(self), "cost": self.cost.as_dict()}

    @classmethod
    def read(cls, path: Path) -> TrialResult:
        """What `as_dict` gave to a JSON file; another file is refused by name."""
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except ValidationError as error:
            said = error.errors()[0]
            raise ValueError(f"{path}: {'.'.join(map(str, said['loc']))}: {said['msg']}") from error


def ordered(examples: list[Example], *, task: Task, steps: int, batch_size: int, seed: int) -> list[Example]:
    """``steps · batch_size`` examples in the order of training: shuffled passes, batches of similar length.

    Shuffling, then sorting within pools of 16 batches, then shuffling the batches: little padding, little order.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        order += torch.randperm(len(examples), generator=generator).tolist()
    order, batches = order[: steps * batch_size], []
    for start in range(0, len(order), 16 * batch_size):
        pool = sorted(order[start : start + 16 * batch_size], key=lambda i: task.length(examples[i]))
        batches += [pool[b : b + batch_size] for b in range(0, len(pool), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [examples[i] for b in shuffled for i in batches[b]]


def dataset(examples: list[Example]) -> Dataset:
    """A list as Trainer's annotations want it; it has the length and the items that are read."""
    return cast(Dataset, examples)


def build(
    model: nn.Module, name: str, *, rank: int, targets: list[str], steps: int, task: Task, data: Iterator, config=None
) -> nn.Module:
    """The model with a method's adapter on it, trainable parts marked; ``config`` replaces the method's own."""
    chosen = method(name)
    if chosen.config is None:
        body = getattr(model, str(model.base_model_prefix), model)
        if chosen.trains == "head":
            body.requires_grad_(False)
        elif chosen.trains != "all":
            train_only(model, chosen.trains)
        return model
    config = config or chosen.config(rank, targets, steps)
    config.task_type = task.peft_type
    if isinstance(config, EvaConfig):
        return initialize(model, data, config)
    return get_peft_model(model, config)


def train(
    model: nn.Module,
    examples: list[Example],
    *,
    training: Training,
    learning_rate: float,
    seed: int,
    task: Task,
    folder: Path,
    result: TrialResult,
    on_step: OnStep | None = None,
    validation: list[Example] | None = None,
    optimizer: Callable[[nn.Module, float, Projection], torch.optim.Optimizer] | None = None,
) -> None:
    """Train in place and fill in the result's loss curve and cost; resumes from ``folder`` where it can.

    ``optimizer`` makes the optimiser of a method that has its own.

    Raises
    ------
    FloatingPointError
        The loss became NaN or infinite.
    """
    from accelerate import PartialState

    processes = PartialState().num_processes
    if training.batch_size % processes:
        raise ValueError(f"batch_size={training.batch_size} cannot be shared by {processes} processes")
    if optimizer is not None and processes > 1:
        raise ValueError(
            f"{result.method} updates weights in the backward pass: it runs in one process, not {processes}"
        )
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=training.batch_size // processes,
        max_steps=training.steps,
        learning_rate=learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=max(1, round(training.warmup * training.steps)),
        lr_scheduler_type="linear",
        logging_steps=max(1, training.steps // 40),
        logging_nan_inf_filter=False,
        save_steps=training.checkpoint_steps,
        save_total_limit=2,
        seed=seed,
        bf16=training.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        log_level="error",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        # updates in the backward pass leave nothing to clip
        max_grad_norm=1.0 if optimizer is None else 0.0,
    )
    watch = _Watch(training, validation, task, on_step)
    callbacks: list[TrainerCallback] = [watch, MarkComplete()]
    if _is_adalora(model):
        callbacks.append(_AdaLoraCallback())
    trainer = AdapterTrainer(
        model=model,
        args=on_one_gpu(arguments),
        train_dataset=dataset(
            ordered(examples, task=task, steps=training.steps, batch_size=training.batch_size, seed=seed)
        ),
        data_collator=task.collate,
        callbacks=callbacks,
    )
    # a loss that the model averages over its own rows would be multiplied by the number of processes
    trainer.model_accepts_loss_kwargs &= task.counts_tokens
    if optimizer is not None:
        settings = replace(training.projection, weight_decay=training.weight_decay, seed=seed)
        trainer.make_optimizer = lambda: optimizer(model, learning_rate, settings)
    trainer.remove_callback(_printer())
    encoder = encoder_of(model)
    if encoder:
        cast(Any, model).config.use_cache = False  # keys and values for decoding, which training would build and drop
    with measure(result.cost), encoder.keeping() if encoder else nullcontext():
        trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    # Trainer's estimate counts tokens; of speech it would count the numbers in the spectrogram
    result.cost.flops = float("nan") if encoder else float(trainer.state.total_flos)
    for curve, key in ((result.loss_curve, "loss"), (result.validation_curve, "validation_loss")):
        curve += [(int(e["step"]), float(e[key])) for e in trainer.state.log_history if key in e]


class AdapterTrainer(Trainer):
    """`transformers.Trainer` with a fixed order of examples and checkpoints of exactly what is trained."""

    make_optimizer: Callable[[], torch.optim.Optimizer] | None = None

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(cast(Sized, self.train_dataset if train_dataset is None else train_dataset))

    def create_optimizer(self, *args, **kwargs):
        """AdamW, or the method's own."""
        if self.optimizer is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer()
            if isinstance(self.optimizer, GaLoreAdamW):
                self.add_callback(self.optimizer.callback())
            return self.optimizer
        return super().create_optimizer(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        """One step; a loss that is not finite ends the run."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def save_model(self, output_dir: Any = None, _internal_call: bool = False):
        """For checkpoints, exactly what trains; PEFT's own saving drops state that resuming needs."""
        if self.is_fsdp_enabled or not _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(
                _training_state(cast(nn.Module, self.model), self.optimizer), Path(output_dir) / "trainable.safetensors"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        path = Path(resume_from_checkpoint) / "trainable.safetensors"
        with _named(resume_from_checkpoint):
            if not path.exists():
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            _restore(cast(nn.Module, self.model), load_file(path))

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with _named(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _named(checkpoint: str | None) -> Iterator[None]:
    """Whatever reading a broken checkpoint ends in is one `ValueError` that names it."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{checkpoint} cannot be read: {said}; delete it, and the run goes on from before") from error


def _is_adalora(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.active_peft_config, AdaLoraConfig)


def _training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser knows, frozen at the moment or not."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    state = {
        f"p|{n}": p.detach().cpu().clone(memory_format=torch.contiguous_format)
        for n, p in model.named_parameters()
        if id(p) in known
    }
    if _is_adalora(model):
        allocator = cast(Any, model).base_model.rankallocator
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            state |= {f"{kind}|{n}": t.detach().cpu().clone() for n, t in getattr(allocator, kind).items()}
        pattern = cast(Any, model).active_peft_config.rank_pattern or {}
        state |= {f"pattern|{n}": torch.as_tensor(mask).flatten() for n, mask in pattern.items()}
    return state


@torch.no_grad()
def _restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    adapted: Any = model
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        kind, _, name = key.partition("|")
        if kind == "p":
            parameters[name].copy_(value)
        elif kind == "pattern":
            pattern = adapted.active_peft_config.rank_pattern or {}
            adapted.active_peft_config.rank_pattern = {**pattern, name: value.tolist()}
        else:
            getattr(adapted.base_model.rankallocator, kind)[name] = value


class _AdaLoraCallback(TrainerCallback):
    """AdaLoRA moves its budget between the optimiser step and the clearing of the gradients."""

    def on_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        tuner = (model.module if hasattr(model, "module") else model).base_model
        tuner.update_and_allocate(state.global_step)


class _Watch(TrainerCallback):
    """Progress, and validation losses along the way."""

    def __init__(self, training: Training, validation, task: Task, on_step: OnStep | None) -> None:
        self.training, self.validation, self.task = training, validation, task
        self.on_step, self.loss = on_step, float("nan")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args, state, control, model: Any = None, **kwargs):
        step, points = state.global_step, self.training.validation_points
        if self.on_step is not None:
            self.on_step(step, self.training.steps, self.loss)
        if points and self.validation and step % max(1, self.training.steps // points) == 0:
            bf16 = self.training.precision == "bf16"
            loss = self.task.loss(model, self.validation, bf16=bf16)
            state.log_history.append({"step": step, "validation_loss": loss})  # kept in checkpoints


def _printer():
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def describe(model: nn.Module, result: TrialResult) -> None:
    """Fill in ranks, mass and parameter counts of a trained model."""
    result.ranks, result.mass = rank_map(model)
    head = [p for n, p in model.named_parameters() if p.requires_grad and _is_head(n)]
    result.cost.head_parameters = sum(p.numel() for p in head)
    result.cost.trainable_parameters = count_parameters(model, trainable=True) - result.cost.head_parameters


def _is_head(name: str) -> bool:
    return any(part in ("classifier", "score") for part in name.split("."))


def rank_map(model: nn.Module) -> tuple[dict[str, int], dict[str, float]]:
    """Rank, and coefficient mass for S2-LoRA and AdaLoRA, of every adapted layer of a PEFT model (empty for others)."""
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.lora import LoraLayer

    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, S2LoraModel):
        entries = tuner.rank_map()
        return {n: e.rank for n, e in entries.items()}, {n: e.mass for n, e in entries.items()}
    ranks: dict[str, int] = {}
    mass: dict[str, float] = {}
    for name, module in model.named_modules():
        short = name.removeprefix("base_model.model.")
        if isinstance(module, AdaLoraLayer):
            values = next(iter(module.lora_E.values())).detach().abs().flatten()
            ranks[short], mass[short] = int((values > 0).sum()), float(values.sum())
        elif isinstance(module, LoraLayer):
            ranks[short] = int(next(iter(module.r.values())))
    return ranks, mass


__all__ = [
    "AdapterTrainer",
    "Training",
    "TrialResult",
    "build",
    "describe",
    "last_checkpoint",
    "ordered",
    "rank_map",
    "set_seed",
    "train",
]
