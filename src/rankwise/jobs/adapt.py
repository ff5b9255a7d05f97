"""The main job: adapt one pretrained model by several methods under one budget, side by side.

For every method, validation on the first seed picks the learning rate from the method's stated grid; the other seeds
use it; test corpora are scored once a seed, after that choice. The run folder holds

    config.yaml         the resolved configuration
    results.json        everything measured (schema in the documentation)
    trials/NAME/        one finished training run each: result.json, and adapter/ in PEFT's format
    adapters/METHOD/    the first seed's adapter of each method; of a method that trains the model itself, the whole
                        model, which `transformers` loads

A killed job continues where it was: finished trials are read back, an unfinished one resumes from its checkpoint.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from rankwise import data as corpora
from rankwise.data import Corpus
from rankwise.files import whole_folder, write_json, write_text
from rankwise.jobs.lama import LAMA_RATES, build_lama, lama_variants
from rankwise.jobs.methods import METHODS, Projection, affordable_rank, method, parse_budget
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import Task, TextTask, batches
from rankwise.jobs.trial import Training, TrialResult, build, describe, set_seed, train
from rankwise.ledger import count_parameters
from rankwise.models import load, load_tokenizer, target_modules
from rankwise.models.whisper import shorten
from rankwise.reading import read_json

SCHEMA = 1
VALIDATION_CURVE_ROWS = 200  # of a validation loss taken during training; the choice of learning rate uses all
OnEvent = Callable[[str, str, int, int, float], None]  # trial, phase, step, steps, loss
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


class AdaptConfig(BaseModel):
    """What a job is asked to do; the keys of a YAML file and the options of ``rankwise adapt``."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["classification", "regression", "causal-lm", "text-to-label", "asr"] = Field(
        default="classification", description="what to train"
    )
    model: str = Field(
        default="minilm",
        description="minilm, smollm2, whisper-tiny.en, a model folder (compressed ones too), a hub id, or lama",
    )
    data: str = Field(
        default="sentiment:movies",
        description="sentiment:DOMAIN, or a csv, tsv, jsonl or parquet file; for causal-lm also text:DOMAIN, for asr "
        "speech:DOMAIN or a manifest",
    )
    methods: list[str] = Field(default=["bitfit", "lora", "adalora", "s2lora", "eva"], description="methods to compare")
    budget: str = Field(default="0.5%", description="trainable parameters: share, count (100k) or bytes (400KB)")
    target: str = Field(default="auto", description="layers: auto, attention, mlp, all-linear, or names and patterns")
    eval: list[str] = Field(default=[], description="further corpora to score (out of domain)")
    seeds: int = Field(default=1, ge=1, description="training runs a method")
    steps: int = Field(default=200, ge=1, description="optimiser steps")
    batch_size: int = Field(default=16, ge=1, description="examples a step, over all processes")
    max_length: int = Field(default=64, ge=2, description="tokens an example")
    train_limit: int | None = Field(default=None, ge=1, description="most training examples")
    eval_limit: int | None = Field(default=None, ge=1, description="most examples scored a corpus")
    optimizer: Literal["adamw", "galore", "owlore", "lisa"] = Field(
        default="adamw", description="of full-parameter training; owlore alone is the method of that name"
    )
    projection_rank: int | None = Field(default=None, ge=1, description="of projected gradients; hidden size / 16")
    update_gap: int | None = Field(default=None, ge=1, description="steps between refreshes of the projection")
    active_layers: int | None = Field(default=None, ge=1, description="blocks that train at a time; 15% of them")
    interval: int | None = Field(default=None, ge=1, description="steps between draws of blocks; 50")
    question: str = Field(default="\nLabel:", description="for text-to-label: what stands between text and label")
    learning_rates: dict[str, list[float]] = Field(
        default={}, description="grids by method, instead of the built-in ones"
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout of the pretrained model; its own if unset"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast, by default on GPUs that have it"
    )
    baseline: bool = Field(default=True, description="also train the head alone on the frozen model")
    reference: Literal["none", "full"] = Field(default="none", description="also fine-tune everything")
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
        if str(given.get("model", "")) in lama_variants():
            given = {"methods": ["full"], "baseline": False, "learning_rates": {"full": LAMA_RATES}, **given}
        return {**DEFAULTS[given.get("task", "classification")], **given}

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError(f"no method given; accepted: {', '.join(METHODS)}")
        for name in names:
            method(name)
        return list(dict.fromkeys(names))

    @property
    def all_methods(self) -> list[str]:
        """The methods, after the frozen-model baseline (where there is a head) and before the reference."""
        headless = self.task in ZERO_SHOT or "head" in self.methods
        baseline = ["head"] if self.baseline and not headless else []
        full = self.optimizer if self.optimizer != "adamw" else "full"
        methods = [full if m == "full" else m for m in self.methods]
        reference = [full] if self.reference == "full" and full not in methods else []
        return list(dict.fromkeys([*baseline, *methods, *reference]))


class Job:
    """A configured comparison and the folder it lives in."""

    def __init__(self, config: AdaptConfig, out: Path, *, on_event: OnEvent | None = None) -> None:
        from accelerate import PartialState

        self.config, self.out, self.on_event = config, Path(out), on_event or (lambda *_: None)
        self.process = PartialState()
        self.notes: list[str] = []  # what the user should know of the data
        self.precision = config.precision if config.precision != "auto" else _fastest_precision()

    # what the trials share, made once

    @cached_property
    def task(self) -> Task:
        c = self.config
        if c.task == "asr":
            return SpeechTask.of(c.model, language=c.language)
        if c.task == "text-to-label" and not self.corpus.label_names:
            raise ValueError(f"{c.data} has no label names to answer with")
        names = tuple(self.corpus.label_names) if c.task == "text-to-label" else ()
        return TextTask(
            kind=c.task, tokenizer=self.tokenizer, max_length=c.max_length, label_names=names, question=c.question
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's, or MiniLM's for models that are made of its word embeddings."""
        return load_tokenizer("minilm" if self.config.model in lama_variants() else self.config.model)

    @cached_property
    def corpus(self) -> Corpus:
        return self._corpus(self.config.data)

    @cached_property
    def examples(self) -> dict[str, list]:
        """Encoded rows: ``train``, ``validation``, and every test corpus by name (the first is in-domain)."""
        c = self.config
        splits = self.corpus.split()
        tests = {self.corpus.name: splits.test}
        for spec in c.eval:
            tests[spec] = self._corpus(spec).split().test
            if c.task in ("classification", "text-to-label") and tests[spec].label_names != self.corpus.label_names:
                raise ValueError(
                    f"{spec} has classes {', '.join(tests[spec].label_names)}; {c.data} has "
                    f"{', '.join(self.corpus.label_names)}"
                )
        rows = {"train": splits.train.head(c.train_limit), "validation": splits.validation.head(c.eval_limit)}
        rows |= {name: corpus.head(c.eval_limit) for name, corpus in tests.items()}
        for name, part in rows.items():
            if len(part) == 0:
                raise ValueError(f"{name}: no rows are left in this split of {len(self.corpus)}; more data is needed")
        return {name: self.task.encode(part) for name, part in rows.items()}

    @cached_property
    def tests(self) -> list[str]:
        return [n for n in self.examples if n not in ("train", "validation")]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each method under the budget; raises before anything is trained."""
        model, methods = self.fresh_model(), self.config.all_methods
        adapters = any(method(m).config is not None for m in methods)
        names = target_modules(model, self.config.target) if adapters else []
        total = count_parameters(getattr(model, str(model.base_model_prefix), model))
        self.targets, self.total, self.budget = names, total, parse_budget(self.config.budget, total)
        return {m: affordable_rank(m, self.budget, model, names) for m in methods}

    def fresh_model(self) -> nn.Module:
        """The pretrained model with a new head (drawn from the current random state)."""
        c = self.config
        if c.task == "asr":
            return shorten(load(c.model, task="asr", dropout=c.dropout), stride=c.silence_stride)
        kind = "causal-lm" if c.task in ("causal-lm", "text-to-label") else "classification"
        labels = 1 if c.task == "regression" else max(len(self.corpus.label_names), 2)
        if c.model in lama_variants():
            if kind != "classification":
                raise ValueError(f"{c.model} classifies: its task is classification or regression, not {c.task}")
            model = build_lama(c.model, num_labels=labels)
        else:
            model = load(c.model, task=kind, num_labels=labels, dropout=c.dropout)
        if c.task == "classification" and self.corpus.label_names:
            model.config.id2label = dict(enumerate(self.corpus.label_names))
            model.config.label2id = {n: i for i, n in enumerate(self.corpus.label_names)}
        return model

    def _corpus(self, spec: str) -> Corpus:
        c = self.config
        columns = {"text_column": c.text_column, "label_column": c.label_column, "audio_column": c.audio_column}
        speech = {}
        if c.task == "asr":  # asked of the configuration: other tasks need the corpus before they can be made
            assert isinstance(self.task, SpeechTask)
            speech = {"normalize": self.task.normalize, "skip_bad": c.skip_bad}
        corpus = corpora.load(spec, task=c.task, **columns, **speech)
        self.notes = list(dict.fromkeys([*self.notes, *corpus.notes]))
        return corpus

    # the job

    def run(self) -> dict:
        """All trials, then ``results.json``; returns its content."""
        self._check_folder()
        ranks, _ = self.ranks, self.examples  # everything that can be wrong with the input is said here
        if self.process.is_main_process:
            write_text(self.out / "config.yaml", yaml.safe_dump(self.config.model_dump(), sort_keys=False))
        if self.config.task in ZERO_SHOT:
            self._zero_shot()
        methods = [self._compare(name, ranks[name]) for name in self.config.all_methods]
        results = {
            "schema": SCHEMA,
            "config": self.config.model_dump(),
            "environment": environment(self.precision, self.process.num_processes),
            "model": {"name": self.config.model, "parameters": self.total, "targets": self.targets},
            "budget": self.budget,
            "in_domain": self.tests[0],
            "out_of_domain": self.tests[1:],
            "examples": {n: len(e) for n, e in self.examples.items()},
            "notes": self.notes,
            "methods": methods,
        }
        if self.config.task in ZERO_SHOT:
            results["zero_shot"] = read_json(self.out / "zero_shot.json")
        if self.process.is_main_process:
            write_json(self.out / "results.json", results)
        self.process.wait_for_everyone()
        return results

    def _check_folder(self) -> None:
        path, mine = self.out / "config.yaml", self.config.model_dump()
        if path.exists():
            theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
            differ = [k for k in mine if (theirs or {}).get(k) != mine[k]]
            if differ:
                raise ValueError(
                    f"{self.out} belongs to another configuration ({', '.join(differ)} differ); "
                    "choose another --out, or delete the folder"
                )
        elif self.out.exists() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} exists, is not empty and is not a run; choose another --out")
        self.process.wait_for_everyone()

    def _compare(self, name: str, rank: int) -> dict:
        """One method: the grid on the first seed, then the other seeds at the best learning rate."""
        grid = self.config.learning_rates.get(name, list(method(name).grid(self.config.task)))
        first = [self.trial(name, rank, lr, 0) for lr in grid]
        done = [t for t in first if t.status == "done"]
        entry = {
            "name": name,
            "title": method(name).title,
            "rank": rank,
            "grid": [
                {"learning_rate": t.learning_rate, **t.scores.get("validation", {}), "status": t.status} for t in first
            ],
        }
        if not done:
            return {**entry, "status": "diverged", "message": first[0].message, "trials": []}
        best = max(done, key=lambda t: (t.scores["validation"]["score"], -t.learning_rate))
        trials = [best, *(self.trial(name, rank, best.learning_rate, s) for s in range(1, self.config.seeds))]
        trials = [self._tested(t) for t in trials]
        good = [t for t in trials if t.status == "done"]
        if self.process.is_main_process:
            self._publish(name, best)
            if method(name).whole_model:  # published once; the others are scored, not kept
                for t in [*first, *trials]:
                    shutil.rmtree(self.trial_folder(name, t.learning_rate, t.seed) / "adapter", ignore_errors=True)
        return {
            **entry,
            "status": "done" if len(good) == len(trials) else "partly diverged",
            "message": "; ".join(t.message for t in trials if t.message),
            "learning_rate": best.learning_rate,
            "scores": {n: spread([t.scores[n]["score"] for t in good]) for n in ["validation", *self.tests]},
            "cost": good[0].cost.as_dict(),
            "seconds": spread([t.cost.seconds for t in good]),
            "trials": [t.as_dict() for t in trials],
        }

    def trial_folder(self, name: str, lr: float, seed: int) -> Path:
        """Where one training run lives."""
        return self.out / "trials" / f"{name}-lr{lr:g}-seed{seed}"

    def trial(self, name: str, rank: int, lr: float, seed: int) -> TrialResult:
        """Train once and score on validation; a finished trial is read back."""
        folder = self.trial_folder(name, lr, seed)
        if (folder / "result.json").exists():
            return TrialResult.from_dict(read_json(folder / "result.json"))
        c, result = self.config, TrialResult(method=name, learning_rate=lr, seed=seed, rank=rank)
        label, examples = f"{name} lr={lr:g} seed={seed}", self.examples
        self.on_event(label, "start", 0, c.steps, float("nan"))
        set_seed(seed)
        model = self.fresh_model()
        try:
            model = self._adapted(model, name, rank, seed, result)
            result.cost.total_parameters = self.total
            train(
                model,
                examples["train"],
                training=self.training,
                learning_rate=lr,
                seed=seed,
                task=self.task,
                folder=folder,
                result=result,
                on_step=lambda step, steps, loss: self.on_event(label, "train", step, steps, loss),
                validation=examples["validation"][:VALIDATION_CURVE_ROWS],
                optimizer=method(name).optimizer,
            )
            describe(model, result)
            bf16 = self.precision == "bf16"
            result.scores["validation"] = self.task.evaluate(model, examples["validation"], bf16=bf16)
        except FloatingPointError as error:
            result.status, result.message = "diverged", f"{name} lr={lr:g} seed={seed}: {error}"
        self._save(folder, model, result)
        self.on_event(label, result.status, c.steps, c.steps, float("nan"))
        return result

    @property
    def training(self) -> Training:
        c = self.config
        return Training(
            steps=c.steps,
            batch_size=c.batch_size,
            max_length=c.max_length,
            precision=self.precision,
            checkpoint_steps=c.checkpoint_steps,
            validation_points=c.validation_points,
            projection=Projection(
                rank=c.projection_rank, update_gap=c.update_gap, active=c.active_layers, interval=c.interval
            ),
        )

    def _adapted(self, model: nn.Module, name: str, rank: int, seed: int, result: TrialResult) -> nn.Module:
        c, start = self.config, time.perf_counter()
        rows = self.examples["train"]
        if elsewhere := method(name).initialise_on:
            other = self._corpus(elsewhere).split().train.head(c.train_limit)
            rows = self.task.encode(other)
        mine = rows[self.process.process_index :: self.process.num_processes]
        loader = batches(self.task, mine, max(1, 32 // self.process.num_processes))
        model = build(model, name, rank=rank, targets=self.targets, steps=c.steps, task=self.task, data=loader)
        result.cost.setup_seconds = time.perf_counter() - start
        return model

    def _save(self, folder: Path, model: nn.Module, result: TrialResult) -> None:
        """Adapter first, then the result whose presence says that the trial is finished; checkpoints go last."""
        if self.process.is_main_process:
            if result.status == "done":
                with whole_folder(folder / "adapter", made_by="adapt") as draft:
                    save_adapted(model, draft)
                    result.cost.adapter_bytes = sum(p.stat().st_size for p in draft.glob("*.safetensors"))
            write_json(folder / "result.json", result.as_dict())
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.process.wait_for_everyone()

    def _tested(self, result: TrialResult) -> TrialResult:
        """Score the test corpora once, from the saved adapter; the scores join the trial's result."""
        missing = [n for n in self.tests if n not in result.scores]
        if result.status != "done" or not missing:
            return result
        folder = self.trial_folder(result.method, result.learning_rate, result.seed)
        label = f"{result.method} lr={result.learning_rate:g} seed={result.seed}"
        set_seed(result.seed)
        model = load_adapted(self.fresh_model(), folder / "adapter")
        for name in missing:
            self.on_event(label, f"score {name}", self.config.steps, self.config.steps, float("nan"))
            bf16 = self.precision == "bf16"
            result.scores[name] = self.task.evaluate(model, self.examples[name], bf16=bf16)
        self.process.wait_for_everyone()
        if self.process.is_main_process:
            write_json(folder / "result.json", result.as_dict())
        return result

    def _publish(self, name: str, best: TrialResult) -> None:
        source = self.trial_folder(name, best.learning_rate, best.seed) / "adapter"
        if not source.is_dir():
            return
        with whole_folder(self.out / "adapters" / name, made_by="adapt") as draft:
            if method(name).whole_model and self.config.task != "asr":
                set_seed(best.seed)
                load_adapted(self.fresh_model(), source).save_pretrained(draft)  # type: ignore[operator]
                self.tokenizer.save_pretrained(draft)
            else:
                shutil.copytree(source, draft, dirs_exist_ok=True)

    def _zero_shot(self) -> None:
        path = self.out / "zero_shot.json"
        if self.process.is_main_process and not path.exists():
            model, scores = self.fresh_model(), {}
            for name in self.tests:
                self.on_event("zero-shot", f"score {name}", 0, self.config.steps, float("nan"))
                scores[name] = self.task.evaluate(model, self.examples[name])
            write_json(path, scores)
        self.process.wait_for_everyone()


def save_adapted(model: nn.Module, folder: Path) -> None:
    """A PEFT adapter in PEFT's format; of a model without one, the trained tensors as ``trained.safetensors``."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder))
    else:
        trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")


def load_adapted(model: nn.Module, folder: Path) -> nn.Module:
    """Put what `save_adapted` wrote on the base model it was trained from.

    Raises
    ------
    ValueError
        The file is broken, or belongs to another base model.
    """
    try:
        whole = sorted(folder.glob("model*.safetensors"))
        for file in [*whole, *folder.glob("trained.safetensors")]:
            strange = model.load_state_dict(load_file(file), strict=False).unexpected_keys
            if strange:
                raise RuntimeError(f"it has no {', '.join(strange[:3])}")
        if whole or (folder / "trained.safetensors").exists():
            return model
        return PeftModel.from_pretrained(model, str(folder))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the adapter in {folder} cannot be loaded on this model: {error}") from error


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (0 for one value), extremes and count."""
    if not values:
        return {"mean": float("nan"), "std": float("nan"), "min": float("nan"), "max": float("nan"), "n": 0}
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values), "n": len(values)}


def environment(precision: str, processes: int) -> dict[str, str | int]:
    """Versions and hardware a result depends on."""
    from importlib.metadata import version

    packages = {p: version(p) for p in ("rankwise", "torch", "transformers", "peft", "accelerate")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (platform.processor() or platform.machine())
    return {
        **packages,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "processes": processes,
    }


def _fastest_precision() -> str:
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
