"""The job itself: every method trained, compared and kept in one run folder.

For every method, validation on the first seed picks the learning rate from the method's stated grid; the other seeds
use it; test corpora are scored once a seed, after that choice. The run folder holds

    config.yaml         the resolved configuration
    results.json        everything measured (schema in the documentation)
    trials/NAME/        one finished training run each: result.json, and adapter/ in PEFT's format
    adapters/METHOD/    the first seed's adapter of each method, with all that its use needs; of a method that trains
                        the model itself, the whole model, which `transformers` loads

A killed job continues where it was: finished trials are read back, an unfinished one resumes from its checkpoint. The
folder belongs to one configuration, the rows it was given and the model, all by content: with others it is refused.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from rankwise import data as corpora
from rankwise.events import OnEvent, environment
from rankwise.files import MARKER, check_claim, claimed, whole_folder, write_json, write_text
from rankwise.jobs.adapt.adapters import About, load_adapted, save_adapted, with_labels, write_about
from rankwise.jobs.adapt.config import ZERO_SHOT, AdaptConfig
from rankwise.jobs.adapt.inputs import Inputs, base_of, chat_of, read_inputs, told
from rankwise.jobs.lama import build_lama, lama_variants
from rankwise.jobs.methods import Projection, affordable_rank, method, parse_budget
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import Example, Task, TextTask, batches, check_lengths, sample
from rankwise.jobs.trial import Training, TrialResult, build, describe, set_seed, train
from rankwise.ledger import count_parameters
from rankwise.models import load, load_tokenizer, model_fingerprint, target_modules
from rankwise.models.loading import quiet_loading
from rankwise.models.names import check_own_files
from rankwise.models.whisper import shorten
from rankwise.reading import read_json

SCHEMA = 1
VALIDATION_CURVE_ROWS = 200  # of a validation loss taken during training; the choice of learning rate uses all


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained: adapted layers, the model's parameters, those allowed, and each method's rank."""

    targets: list[str]
    total: int
    budget: int
    ranks: dict[str, int]


class Job:
    """A configured comparison and the folder it lives in.

    Parameters
    ----------
    config : AdaptConfig
    out : Path
    inputs : Inputs, optional
        The rows, where they have been read already.
    on_event : callable, optional
        Told of every step.
    """

    def __init__(
        self, config: AdaptConfig, out: Path, *, inputs: Inputs | None = None, on_event: OnEvent | None = None
    ) -> None:
        from accelerate import PartialState

        self.config, self.out, self.on_event = config, Path(out), on_event or (lambda *_: None)
        self.process = PartialState(cpu=not torch.cuda.is_available())  # without it, processes on CPUs would not meet
        self.precision = config.precision if config.precision != "auto" else _fastest_precision()
        self.notes: list[str] = []  # what the user should know of the data
        if inputs is not None:
            self.inputs = inputs

    # what the trials share, made once

    @cached_property
    def inputs(self) -> Inputs:
        """The rows of every part."""
        c = self.config
        if c.task != "asr":
            return read_inputs(c, chat=partial(chat_of, c.model))
        speech = self.speech
        return read_inputs(c, normalize=speech.normalize, check=speech.check, skip_bad=c.skip_bad)

    @cached_property
    def speech(self) -> SpeechTask:
        """The task of a job on speech; it is needed to read the data."""
        return SpeechTask.of(self.config.model, language=self.config.language)

    @cached_property
    def task(self) -> Task:
        """How rows become batches and outputs scores."""
        c = self.config
        if c.task == "asr":
            return self.speech
        names = tuple(self.inputs.label_names)
        if c.task == "text-to-label" and not names:
            raise ValueError(f"{c.source} has no label names to answer with")
        return TextTask(
            kind=c.task, tokenizer=self.tokenizer, max_length=c.max_length, label_names=names, question=c.label_prompt
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's, or MiniLM's for models that are made of its word embeddings."""
        return load_tokenizer(base_of(self.config.model))

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """Encoded rows: ``train``, ``validation``, and every test corpus by name (the first is in-domain)."""
        encoded = {name: self.task.encode(part) for name, part in self.inputs.parts.items()}
        notes = list(self.inputs.notes)
        for name, rows in encoded.items():
            given = len(self.inputs.parts[name])
            if not rows:
                raise ValueError(
                    f"{name}: none of its {given} texts has two tokens; there is nothing to learn or score"
                )
            if len(rows) < given:
                notes.append(f"{name}: {given - len(rows)} of {given} texts have one token only and are left out")
            if cut := sum(bool(e.get("cut")) for e in rows):
                notes.append(f"{name}: {cut} of {len(rows)} texts are longer than {self.config.max_length} tokens: cut")
        self.notes = list(dict.fromkeys(notes))
        return encoded

    @property
    def tests(self) -> list[str]:
        """Names of the test corpora."""
        return list(self.inputs.tests)

    @cached_property
    def plan(self) -> Plan:
        """Targets and ranks under the budget; raises before anything is trained."""
        model, methods = self.fresh_model(), self.config.all_methods
        if isinstance(self.task, TextTask):
            for rows in self.examples.values():
                check_lengths(self.task, model, rows)
        adapters = any(method(m).config is not None for m in methods)
        targets = target_modules(model, self.config.target) if adapters else []
        total = count_parameters(getattr(model, str(model.base_model_prefix), model))
        budget = parse_budget(self.config.budget, total)
        ranks = {m: affordable_rank(m, budget, model, targets) for m in methods}
        return Plan(targets=targets, total=total, budget=budget, ranks=ranks)

    def fresh_model(self) -> nn.Module:
        """The pretrained model with a new head (drawn from the current random state)."""
        c = self.config
        if c.task == "asr":
            model: nn.Module = shorten(load(c.model, task="asr", dropout=c.dropout), stride=c.silence_stride)
        else:
            kind = "causal-lm" if c.task in ("causal-lm", "text-to-label") else "classification"
            labels = 1 if c.task == "regression" else max(len(self.inputs.label_names), 2)
            if c.model in lama_variants():
                if kind != "classification":
                    raise ValueError(f"{c.model} classifies: its task is classification or regression, not {c.task}")
                model = build_lama(c.model, num_labels=labels)
            else:
                model = load(c.model, task=kind, num_labels=labels, dropout=c.dropout)
        model.name_or_path = c.model  # type: ignore[assignment]  (an adapter keeps it: it holds on other machines)
        return with_labels(model, self.about(""))

    def about(self, name: str) -> About:
        """What is to be known of a method's adapter when it is used."""
        c = self.config
        return About(
            task=c.task,
            method=name,
            base=c.model,
            base_content=model_fingerprint(base_of(c.model), weights_only=True),
            labels=self.inputs.label_names,
            max_length=c.max_length,
            question=c.label_prompt if c.task == "text-to-label" else "",
            text_column=c.text_column,
            audio_column=c.audio_column,
            chat=self.inputs.train.chat,
            language=c.language,
            silence_stride=c.silence_stride if c.task == "asr" else 1,
        )

    # the job

    def run(self) -> dict:
        """All trials, then ``results.json``; returns its content."""
        check_claim(self.out, made_by="adapt", told=told(self.config, None))
        check_own_files(base_of(self.config.model))
        plan, examples = self.plan, self.examples  # everything that can be wrong with the input is said here
        with self._claimed():
            if self.process.is_main_process:
                write_text(self.out / "config.yaml", yaml.safe_dump(self.config.model_dump(), sort_keys=False))
            zero_shot = self._zero_shot() if self.config.task in ZERO_SHOT else None
            methods = [self._compare(name, plan.ranks[name]) for name in self.config.all_methods]
            results = {
                "schema": SCHEMA,
                "config": self.config.model_dump(),
                "environment": environment(self.precision, self.process.num_processes),
                "model": {"name": self.config.model, "parameters": plan.total, "targets": plan.targets},
                "budget": plan.budget,
                "in_domain": self.tests[0],
                "out_of_domain": self.tests[1:],
                "examples": {n: len(e) for n, e in examples.items()},
                "splits": self.inputs.splits,
                "notes": self.notes,
                "methods": methods,
            }
            if zero_shot is not None:
                results["zero_shot"] = zero_shot
            if self.process.is_main_process:
                write_json(self.out / "results.json", results)
            self.process.wait_for_everyone()
        return results

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """The run folder, held by the main process for all; a refusal reaches every process."""
        from accelerate.utils import broadcast_object_list

        settings = told(
            self.config,
            self.inputs,
            **{"content of the model": model_fingerprint(base_of(self.config.model))},
            **{"precision used": self.precision, "processes": self.process.num_processes},
        )
        refused: list[Any] = [None]
        with ExitStack() as held:
            if self.process.is_main_process:
                try:
                    held.enter_context(claimed(self.out, made_by="adapt", told=settings))
                except (ValueError, OSError) as error:
                    refused = [error]
            if self.process.num_processes > 1:
                refused = broadcast_object_list(refused)
            if refused[0] is not None:
                raise refused[0]
            yield

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
        return self.out / "trials" / f"{name}-lr{lr!r}-seed{seed}"  # all digits: two rates are two folders

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
            result.cost.total_parameters = self.plan.total
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
                validation=sample(examples["validation"], VALIDATION_CURVE_ROWS, seed=0),
                optimizer=method(name).optimizer,
            )
            describe(model, result)
            bf16 = self.precision == "bf16"
            result.scores["validation"] = self.task.evaluate(model, examples["validation"], bf16=bf16)
            if not math.isfinite(result.scores["validation"]["loss"]):
                raise FloatingPointError("the validation loss is not finite")
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
                rank=c.projection_rank,
                update_gap=c.update_gap,
                scale=c.scale,
                rest=c.rest,
                active=c.active_layers,
                interval=c.interval,
            ),
        )

    def _adapted(self, model: nn.Module, name: str, rank: int, seed: int, result: TrialResult) -> nn.Module:
        c, start, rows = self.config, time.perf_counter(), self.examples["train"]
        if elsewhere := method(name).initialise_on:
            rows = self.task.encode(corpora.load(elsewhere, task=c.task).split().train.head(c.train_limit))
        # activations are seen in the order given, and files are often sorted
        rows = sample(rows, len(rows), seed=seed)[self.process.process_index :: self.process.num_processes]
        loader = batches(self.task, rows, max(1, 32 // self.process.num_processes))
        targets = self.plan.targets
        model = build(model, name, rank=rank, targets=targets, steps=c.steps, task=self.task, data=loader)
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
        """The best trial's adapter, self-contained; what is there of the same trial stays as it is."""
        source = self.trial_folder(name, best.learning_rate, best.seed) / "adapter"
        target, trial = self.out / "adapters" / name, {"learning_rate": best.learning_rate, "seed": best.seed}
        done = (target / MARKER).is_file() and read_json(target / MARKER).get("told") == trial
        if done or not source.is_dir():
            return
        with quiet_loading(), whole_folder(target, made_by="adapt", told=trial) as draft:
            if method(name).whole_model and not isinstance(self.task, SpeechTask):
                set_seed(best.seed)
                load_adapted(self.fresh_model(), source).save_pretrained(draft)  # type: ignore[operator]
            else:
                shutil.copytree(source, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))
            task = self.task
            tokens = task.processor if isinstance(task, SpeechTask) else self.tokenizer
            write_about(draft, self.about(name), tokens)

    def _zero_shot(self) -> dict:
        """Scores of the model as it comes, in the precision that the methods have."""
        path = self.out / "zero_shot.json"
        if self.process.is_main_process and not path.exists():
            model, scores = self.fresh_model(), {}
            for name in self.tests:
                self.on_event("zero-shot", f"score {name}", 0, self.config.steps, float("nan"))
                scores[name] = self.task.evaluate(model, self.examples[name], bf16=self.precision == "bf16")
            write_json(path, scores)
        self.process.wait_for_everyone()
        return read_json(path)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (0 for one value), extremes and count."""
    if not values:
        return {"mean": float("nan"), "std": float("nan"), "min": float("nan"), "max": float("nan"), "n": 0}
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values), "n": len(values)}


def _fastest_precision() -> str:
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
