"""What a job is asked to do: the keys of a YAML file and the options of ``rankwise adapt``, checked without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rankwise.data.corpus import BUILT_IN
from rankwise.jobs.methods import METHODS, method, parse_budget
from rankwise.jobs.models import UNTRAINED

# what a task starts from where the user names nothing else
DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"model": "minilm", "data": "sentiment:movies"},
    "regression": {"model": "minilm", "data": "sentiment:movies"},
    "causal-lm": {"model": "smollm2", "data": "sentiment:movies"},
    "text-to-label": {"model": "smollm2", "data": "sentiment:movies"},
    "asr": {
        "model": "whisper-tiny.en",
        "data": "speech:child",
        "batch_size": 8,
        "steps": 60,
        "methods": ["bitfit", "lora", "adalora", "s2lora"],
        "budget": "1%",
    },
}
ZERO_SHOT = ("causal-lm", "text-to-label", "asr")  # tasks that the pretrained model can do without training a head
WITH_CLASSES = ("classification", "text-to-label")
MOST = 10**18  # parameters of a model
HIGHEST_RATE = 1e30  # float32 holds it, and a multiple of it

MOST_EXAMPLES = 100_000_000  # of a run, steps times batch: their order is drawn at the start


class AdaptConfig(BaseModel):
    """What a job is asked to do; the keys of a YAML file and the options of ``rankwise adapt``."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["classification", "regression", "causal-lm", "text-to-label", "asr"] = Field(
        default="classification",
        description="what to learn: classification, regression, causal-lm, text-to-label or asr",
    )
    model: str = Field(
        default="minilm",
        description="base model: minilm, smollm2, whisper-tiny.en, a folder (compressed ones too), a hub id, or lama",
    )
    data: str | None = Field(
        default="sentiment:movies",
        description="what is split into training, validation and test rows: sentiment:DOMAIN, or a csv, tsv, jsonl, "
        "json or parquet file; for causal-lm also text:DOMAIN, for asr speech:DOMAIN or a manifest",
    )
    train: str | None = Field(default=None, description="training rows, instead of data; needs a test file")
    validation: str | None = Field(
        default=None, description="validation rows, beside train; a share of the training rows if unset"
    )
    test: str | None = Field(default=None, description="test rows, beside train")
    methods: list[str] = Field(default=["bitfit", "lora", "adalora", "s2lora", "eva"], description="methods to compare")
    budget: str = Field(default="0.5%", description="trainable parameters: share, count (100k) or bytes (400KB)")
    target: str = Field(default="auto", description="layers: auto, attention, mlp, all-linear, or names and patterns")
    eval: list[str] = Field(
        default=[], description="further corpora to score (out of domain): all rows of a file, of others the test part"
    )
    seeds: int = Field(default=1, ge=1, description="training runs a method")
    steps: int = Field(default=200, ge=1, le=1_000_000, description="optimiser steps")
    batch_size: int = Field(default=16, ge=1, le=65_536, description="examples a step, over all processes")
    max_length: int = Field(default=64, ge=2, description="tokens an example; longer texts are cut, and counted")
    train_limit: int | None = Field(default=None, ge=1, description="most training examples")
    eval_limit: int | None = Field(default=None, ge=1, description="most examples scored a corpus")
    optimizer: Literal["adamw", "galore", "owlore", "lisa"] = Field(
        default="adamw",
        description="of full-parameter training: adamw, galore, owlore or lisa; given alone, the method of that name",
    )
    projection_rank: int | None = Field(default=None, ge=1, description="of projected gradients; hidden size / 16")
    update_gap: int | None = Field(default=None, ge=1, description="steps between refreshes of the projection")
    scale: float | None = Field(
        default=None, gt=0, description="factor of a projected step; of galore 1, of owlore as long as a full step"
    )
    rest: float | None = Field(
        default=None, gt=0, description="learning rate of what is not projected, as a multiple of the learning rate; 1"
    )
    active_layers: int | None = Field(default=None, ge=1, description="blocks that train at a time; 15% of them")
    interval: int | None = Field(default=None, ge=1, description="steps between draws of blocks; 50")
    label_prompt: str = Field(default="\nLabel:", description="for text-to-label: what stands between text and label")
    learning_rates: dict[str, list[float]] = Field(
        default={}, description="grids by method, instead of the built-in ones"
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout of the pretrained model; its own if unset"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the forward pass: auto, fp32 or bf16; auto takes bf16 on GPUs that have it"
    )
    baseline: bool = Field(default=True, description="also train the head alone on the frozen model")
    reference: Literal["none", "full"] = Field(default="none", description="none or full: also fine-tune everything")
    text_column: str = Field(default="text", description="column of a data file")
    label_column: str = Field(default="label", description="column of a data file")
    audio_column: str = Field(default="path", description="column of a manifest")
    language: str | None = Field(default=None, description="language of a multilingual Whisper; English if unset")
    skip_bad: bool = Field(default=False, description="leave unusable recordings out, named and counted")
    silence_stride: int = Field(
        default=2, ge=1, description="every how many positions of padding silence one is computed; 1 for all"
    )
    checkpoint_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    validation_points: int = Field(default=0, ge=0, description="validation losses taken during training")

    @model_validator(mode="before")
    @classmethod
    def _task_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("task", "classification") not in DEFAULTS:
            return given
        if given.get("optimizer", "adamw") != "adamw" and "methods" not in given:
            given = {"methods": [given["optimizer"]], "baseline": False, **given}
        if (own := UNTRAINED.get(str(given.get("model", "")))) is not None:
            given = {"methods": ["full"], "baseline": False, "learning_rates": {"full": own.learning_rates}, **given}
        if given.get("train") is not None:
            given = {"data": None, **given}
        return {**DEFAULTS[given.get("task", "classification")], **given}

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError(f"no method given; accepted: {', '.join(METHODS)}")
        for name in names:
            method(name)
        return list(dict.fromkeys(names))

    @field_validator("budget")
    @classmethod
    def _understood(cls, budget: str) -> str:
        parse_budget(budget, MOST)
        return budget

    @field_validator("learning_rates")
    @classmethod
    def _usable_rates(cls, grids: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, rates in grids.items():
            method(name)
            if not rates or not all(0 < r <= HIGHEST_RATE for r in rates):
                raise ValueError(f"{name}: {rates} is no grid; one number or more in (0, {HIGHEST_RATE:g}] is needed")
        return grids

    @field_validator("eval")
    @classmethod
    def _named_once(cls, specs: list[str]) -> list[str]:
        return list(dict.fromkeys(specs))

    @model_validator(mode="after")
    def _bounded(self) -> AdaptConfig:
        if self.steps * self.batch_size > MOST_EXAMPLES:
            seen = f"{self.steps:,} steps of {self.batch_size:,} examples"
            raise ValueError(f"steps, batch_size: {seen} are more than the {MOST_EXAMPLES:,} that a run may see")
        return self

    @model_validator(mode="after")
    def _whole(self) -> AdaptConfig:
        if self.train is None and (self.validation or self.test):
            raise ValueError("validation and test belong to train; data is split")
        if self.train is not None and self.data is not None:
            raise ValueError("data is split into parts, train is one of them: give one of the two")
        if self.train is not None and self.test is None:
            raise ValueError("train needs a test file beside it; to have one file split, give it as data")
        if self.data is None and self.train is None:
            raise ValueError("no data: give data, or train and test")
        if self.train is not None and len({self.train, self.validation, self.test}) < 3:
            raise ValueError("train, validation and test must be different files")
        if again := [s for s in self.eval if s in (self.source, self.validation, self.test)]:
            raise ValueError(f"eval: {again[0]} is among the data already")
        for option, (applies, need) in _NEEDS.items():
            if getattr(self, option) != type(self).model_fields[option].default and not applies(self):
                raise ValueError(f"{option} has no effect here: it needs {need}")
        return self

    @property
    def source(self) -> str:
        """Where the training rows come from."""
        return self.train or self.data or ""

    @property
    def asked(self) -> list[str]:
        """The methods to compare; ``full`` is by the optimiser that was named."""
        return list(dict.fromkeys(self._full if m == "full" else m for m in self.methods))

    @property
    def all_methods(self) -> list[str]:
        """Those, after the frozen-model baseline (where there is a head) and before the reference."""
        baseline = ["head"] if self.baseline and self.task not in ZERO_SHOT else []
        reference = [self._full] if self.reference == "full" else []
        return list(dict.fromkeys([*baseline, *self.asked, *reference]))

    @property
    def _full(self) -> str:
        return self.optimizer if self.optimizer != "adamw" else "full"


def _trains_by(*names: str) -> Callable[[AdaptConfig], bool]:
    return lambda c: any(m.partition("-")[0] in names for m in c.all_methods)


def _reads_a_file(c: AdaptConfig) -> bool:
    return any(not s.startswith(BUILT_IN) for s in (c.source, c.validation, c.test, *c.eval) if s)


def _speech(c: AdaptConfig) -> bool:
    return c.task == "asr"


# options that only some jobs use: with others they would be accepted and ignored
_NEEDS: dict[str, tuple[Callable[[AdaptConfig], bool], str]] = {
    "optimizer": (lambda c: c.optimizer in c.all_methods, "full among the methods, or no methods"),
    "projection_rank": (_trains_by("galore", "owlore"), "galore or owlore"),
    "update_gap": (_trains_by("galore", "owlore"), "galore or owlore"),
    "scale": (_trains_by("galore", "owlore"), "galore or owlore"),
    "rest": (_trains_by("galore", "owlore"), "galore or owlore"),
    "active_layers": (_trains_by("owlore", "lisa"), "owlore or lisa"),
    "interval": (_trains_by("owlore", "lisa"), "owlore or lisa"),
    "label_prompt": (lambda c: c.task == "text-to-label", "the task text-to-label"),
    "dropout": (lambda c: c.model not in UNTRAINED, "a pretrained model"),
    "max_length": (lambda c: not _speech(c), "a task on texts"),
    "text_column": (_reads_a_file, "a data file"),
    "label_column": (lambda c: _reads_a_file(c) and (c.task in (*WITH_CLASSES, "regression")), "a file with labels"),
    "audio_column": (_speech, "the task asr"),
    "language": (_speech, "the task asr"),
    "skip_bad": (_speech, "the task asr"),
    "silence_stride": (_speech, "the task asr"),
}
