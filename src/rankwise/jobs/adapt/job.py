"""The job itself: every method trained, compared and kept in one run folder.

For every method, validation on the first seed picks the learning rate from the method's stated grid; the other seeds
use it; test corpora are scored once a seed, after that choice. The run folder holds

    config.yaml         the resolved configuration
    results.json        everything measured (schema in the documentation)
    trials/NAME/        one finished training run each: result.json, adapter/ in PEFT's format, and items.json: what
                        every item of the test corpora got; of the model as it comes, trials/zero-shot/items.json
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn

from rankwise import data as corpora
from rankwise.events import OnEvent, environment
from rankwise.files import MARKER, check_claim, claimed, fingerprint, whole_folder, write_json, write_text
from rankwise.jobs.adapt.adapters import load_adapted, save_adapted, write_about
from rankwise.jobs.adapt.config import ZERO_SHOT, AdaptConfig
from rankwise.jobs.adapt.inputs import Inputs, told
from rankwise.jobs.adapt.preparation import Prepared, prepare
from rankwise.jobs.items import Items, metrics
from rankwise.jobs.methods import Projection, method
from rankwise.jobs.models import base_of
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import TextTask, batches, sample
from rankwise.jobs.trial import Training, TrialResult, build, describe, set_seed, train
from rankwise.models import model_fingerprint
from rankwise.models.loading import quiet_loading
from rankwise.models.names import check_own_files
from rankwise.parallel import fan_out, is_spread
from rankwise.reading import read_json

SCHEMA = 1
ITEMS = "items.json"
VALIDATION_CURVE_ROWS = 200  # of a validation loss taken during training; the choice of learning rate uses all


class Job:
    """A configured comparison and the folder it lives in.

    Parameters
    ----------
    config : AdaptConfig
        The resolved configuration.
    out : Path
        The run folder: new, or that of the same job, which is continued.
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
        self._inputs = inputs
        self._announced: set[str] = set()  # trials

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker: it prepares once, whatever number of trials it is given."""
        return _in_worker, (self.config, self.out.resolve(), self.ready.inputs)

    @cached_property
    def ready(self) -> Prepared:
        """What all trials share; everything that can be wrong with the input is said when it is first asked for."""
        return prepare(self.config, inputs=self._inputs)

    # the job

    def run(self) -> dict:
        """All trials, then ``results.json``; returns its content."""
        if self.process.num_processes > 1 and is_spread():
            raise ValueError("--jobs and --scheduler are of one process; several train each trial together")
        check_claim(self.out, made_by="adapt", told=told(self.config, None))
        check_own_files(base_of(self.config.model))
        ready = self.ready
        with self._claimed():
            if self.process.is_main_process:
                write_text(self.out / "config.yaml", yaml.safe_dump(self.config.model_dump(), sort_keys=False))
            zero_shot = self._zero_shot() if self.config.task in ZERO_SHOT else None
            methods = self._compare()
            results = {
                "schema": SCHEMA,
                "config": self.config.model_dump(),
                "environment": environment(self.precision, self.process.num_processes),
                "model": {"name": self.config.model, "parameters": ready.plan.total, "targets": ready.plan.targets},
                "budget": ready.plan.budget,
                "in_domain": ready.tests[0],
                "out_of_domain": ready.tests[1:],
                "examples": {n: len(e) for n, e in ready.examples.items()},
                "splits": ready.inputs.splits,
                "notes": list(ready.notes),
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
            self.ready.inputs,
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

    def _compare(self) -> list[dict]:
        """Every method's grid on the first seed, then the other seeds at its best learning rate, then the tests."""
        c, names = self.config, self.config.all_methods
        grids = {m: c.learning_rates.get(m, list(method(m).grid(c.task))) for m in names}
        first = self._trained([(m, lr, 0) for m in names for lr in grids[m]])
        best: dict[str, TrialResult] = {}
        for m in names:
            done = [t for t in first if t.method == m and t.status == "done"]
            if done:
                best[m] = max(done, key=lambda t: (t.scores["validation"]["score"], -t.learning_rate))
        more = self._trained([(m, best[m].learning_rate, s) for m in best for s in range(1, c.seeds)])
        tested = self._each(_test, [t for m in best for t in (best[m], *(t for t in more if t.method == m))])
        return [
            self._entry(m, [t for t in first if t.method == m], best.get(m), [t for t in tested if t.method == m])
            for m in names
        ]

    def _trained(self, asked: list[tuple[str, float, int]]) -> list[TrialResult]:
        return self._each(_train, asked)

    def _each(self, work: Callable[[tuple[Job, Any]], TrialResult], asked: list[Any]) -> list[TrialResult]:
        """``work`` of every item, in this process or in several: each draws from a seed of its own."""
        here = [(self, item) for item in asked]
        if self.process.num_processes > 1:  # they train each trial together
            return [work(item) for item in here]
        return fan_out(work, here, on_done=self._told)

    def _told(self, at: int, result: TrialResult) -> None:
        """What another process finished is announced by this one."""
        label = result.label
        if label not in self._announced:
            self._announced.add(label)
            self.on_event(label, result.status, self.config.steps, self.config.steps, float("nan"))

    def _entry(self, name: str, first: list[TrialResult], best: TrialResult | None, trials: list[TrialResult]) -> dict:
        """What the results say of a method; its adapter is published."""
        entry = {
            "name": name,
            "title": method(name).title,
            "rank": self.ready.plan.ranks[name],
            "grid": [
                {"learning_rate": t.learning_rate, **t.scores.get("validation", {}), "status": t.status} for t in first
            ],
        }
        if best is None:
            return {**entry, "status": "diverged", "message": first[0].message, "trials": []}
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
            "scores": {n: spread([t.scores[n]["score"] for t in good]) for n in ["validation", *self.ready.tests]},
            "cost": good[0].cost.as_dict(),
            "seconds": spread([t.cost.seconds for t in good]),
            "trials": [t.as_dict() for t in trials],
        }

    def trial_folder(self, name: str, lr: float, seed: int) -> Path:
        """Where one training run lives."""
        return self.out / "trials" / f"{name}-lr{lr!r}-seed{seed}"  # all digits: two rates are two folders

    def trial(self, name: str, lr: float, seed: int) -> TrialResult:
        """Train once and score on validation; a finished trial is read back."""
        folder = self.trial_folder(name, lr, seed)
        result = TrialResult(method=name, learning_rate=lr, seed=seed, rank=self.ready.plan.ranks[name])
        label = result.label
        self._announced.add(label)
        if (folder / "result.json").exists():
            return TrialResult.read(folder / "result.json")
        c, ready = self.config, self.ready
        examples = ready.examples
        self.on_event(label, "start", 0, c.steps, float("nan"))
        set_seed(seed)
        model = ready.fresh_model()
        try:
            model = self._placed(self._adapted(model, name, result.rank, seed, result))
            result.cost.total_parameters = ready.plan.total
            train(
                model,
                examples["train"],
                training=self.training,
                learning_rate=lr,
                seed=seed,
                task=ready.task,
                folder=folder,
                result=result,
                on_step=lambda step, steps, loss: self.on_event(label, "train", step, steps, loss),
                validation=sample(examples["validation"], VALIDATION_CURVE_ROWS, seed=0),
                optimizer=method(name).optimizer,
            )
            describe(model, result)
            bf16 = self.precision == "bf16"
            result.scores["validation"] = self.ready.task.evaluate(model, examples["validation"], bf16=bf16)
            if not math.isfinite(result.scores["validation"]["loss"]):
                raise FloatingPointError("the validation loss is not finite")
        except FloatingPointError as error:
            result.status, result.message = "diverged", f"{label}: {error}"
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

    def _placed(self, model: nn.Module) -> nn.Module:
        """Where this process trains: what training needs counts from the model there, and tests do not stay behind."""
        return model.to(self.process.device)

    def _adapted(self, model: nn.Module, name: str, rank: int, seed: int, result: TrialResult) -> nn.Module:
        c, ready, start = self.config, self.ready, time.perf_counter()
        rows = ready.examples["train"]
        if elsewhere := method(name).initialise_on:
            rows = ready.task.encode(corpora.load(elsewhere, task=c.task).split().train.head(c.train_limit))
        # activations are seen in the order given, and files are often sorted
        rows = sample(rows, len(rows), seed=seed)[self.process.process_index :: self.process.num_processes]
        loader = batches(ready.task, rows, max(1, 32 // self.process.num_processes))
        targets = ready.plan.targets
        model = build(model, name, rank=rank, targets=targets, steps=c.steps, task=ready.task, data=loader)
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

    def tested(self, result: TrialResult) -> TrialResult:
        """Score the test corpora once, from the saved adapter; the scores join the trial's result."""
        missing = [n for n in self.ready.tests if n not in result.scores]
        if result.status != "done" or not missing:
            return result
        folder = self.trial_folder(result.method, result.learning_rate, result.seed)
        label = result.label
        set_seed(result.seed)
        model = self._placed(load_adapted(self.ready.fresh_model(), folder / "adapter"))
        result.scores |= self._scored(model, missing, label, folder, step=self.config.steps)
        self.process.wait_for_everyone()
        if self.process.is_main_process:
            write_json(folder / "result.json", result.as_dict())
        return result

    def _scored(
        self, model: nn.Module, names: list[str], label: str, folder: Path, *, step: int
    ) -> dict[str, dict[str, float]]:
        """Scores on test corpora; what every item got is kept in ``folder`` first, beside that of other corpora."""
        steps, bf16, found = self.config.steps, self.precision == "bf16", {}
        for name in names:
            self.on_event(label, f"score {name}", step, steps, float("nan"))
            found[name] = self.ready.task.items(model, self.ready.examples[name], bf16=bf16)
        if self.process.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ITEMS, _kept(folder) | found)
        return {name: metrics(items) for name, items in found.items()}

    def items(self, trial: Mapping[str, Any] | None = None) -> dict[str, Items]:
        """What every test item got, by corpus.

        Parameters
        ----------
        trial : mapping, optional
            One of the results; without, the model as it comes.

        Raises
        ------
        ValueError
            It was scored by a release that kept no items.
        """
        folder, done = self.out / "trials" / "zero-shot", self.out / "zero_shot.json"
        if trial is not None:
            folder = self.trial_folder(trial["method"], trial["learning_rate"], trial["seed"])
            done = folder / "result.json"
        kept = _kept(folder)
        if lost := [n for n in self.ready.tests if n not in kept]:
            raise ValueError(
                f"{done}: what each item of {lost[0]} got was not kept when it was scored; delete that file, and the "
                "job makes it again"
            )
        return kept

    def _publish(self, name: str, best: TrialResult) -> None:
        """The best trial's adapter, self-contained; what is there of the same trial stays as it is."""
        source = self.trial_folder(name, best.learning_rate, best.seed) / "adapter"
        target, trial = self.out / "adapters" / name, {"learning_rate": best.learning_rate, "seed": best.seed}
        done = (target / MARKER).is_file() and read_json(target / MARKER).get("told") == trial
        if done or not source.is_dir():
            return
        with quiet_loading(), whole_folder(target, made_by="adapt", told=trial) as draft:
            if method(name).whole_model and not isinstance(self.ready.task, SpeechTask):
                set_seed(best.seed)
                load_adapted(self.ready.fresh_model(), source).save_pretrained(str(draft))
            else:
                shutil.copytree(source, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))
            task = self.ready.task
            tokens = task.processor if isinstance(task, SpeechTask) else cast(TextTask, task).tokenizer
            write_about(draft, self.ready.about(name), tokens)

    def _zero_shot(self) -> dict:
        """Scores of the model as it comes, in the precision that the methods have."""
        path = self.out / "zero_shot.json"
        if self.process.is_main_process and not path.exists():
            folder = self.out / "trials" / "zero-shot"
            scores = self._scored(self._placed(self.ready.fresh_model()), self.ready.tests, "zero-shot", folder, step=0)
            write_json(path, scores)
        self.process.wait_for_everyone()
        return read_json(path)


def _kept(folder: Path) -> dict[str, Items]:
    return read_json(folder / ITEMS) if (folder / ITEMS).is_file() else {}


_prepared: dict[str, Job] = {}  # of this worker, by content


def _in_worker(config: AdaptConfig, out: Path, inputs: Inputs) -> Job:
    key = fingerprint([config.model_dump(), str(out), inputs.contents])
    if key not in _prepared:
        _prepared.clear()
        _prepared[key] = Job(config, out, inputs=inputs)
    return _prepared[key]


def _train(asked: tuple[Job, tuple[str, float, int]]) -> TrialResult:
    job, (name, lr, seed) = asked
    return job.trial(name, lr, seed)


def _test(asked: tuple[Job, TrialResult]) -> TrialResult:
    job, result = asked
    return job.tested(result)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (0 for one value), extremes and count."""
    if not values:
        return {"mean": float("nan"), "std": float("nan"), "min": float("nan"), "max": float("nan"), "n": 0}
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values), "n": len(values)}


def _fastest_precision() -> str:
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
