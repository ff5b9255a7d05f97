"""What all trials of a job share: rows, encoded examples, targets, ranks, and fresh models; made once, then fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from rankwise.jobs.adapt.adapters import About, with_labels
from rankwise.jobs.adapt.config import AdaptConfig
from rankwise.jobs.adapt.inputs import Inputs, chat_of, read_inputs
from rankwise.jobs.methods import affordable_rank, method, parse_budget
from rankwise.jobs.models import base_of, fresh
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import Example, Task, TextTask, check_lengths
from rankwise.ledger import count_parameters
from rankwise.models import load, load_tokenizer, model_fingerprint, target_modules
from rankwise.models.whisper import shorten


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained: adapted layers, the model's parameters, those allowed, and each method's rank."""

    targets: list[str]
    total: int
    budget: int
    ranks: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that can be trained.

    Attributes
    ----------
    config : AdaptConfig
    inputs : Inputs
        The rows of every part.
    task : Task
        How rows become batches and outputs scores.
    examples : mapping of str to list
        Encoded rows: ``train``, ``validation``, and every test corpus by name (the first is in-domain).
    notes : tuple of str
        What the user should know of the data.
    plan : Plan
    """

    config: AdaptConfig
    inputs: Inputs
    task: Task
    examples: Mapping[str, list[Example]]
    notes: tuple[str, ...]
    plan: Plan

    @property
    def tests(self) -> list[str]:
        """Names of the test corpora."""
        return list(self.inputs.tests)

    def fresh_model(self) -> PreTrainedModel:
        """The pretrained model with a new head (drawn from the current random state)."""
        return fresh_model(self.config, self.inputs)

    def about(self, name: str) -> About:
        """What is to be known of a method's adapter when it is used."""
        return _about(self.config, self.inputs, name)


def prepare(config: AdaptConfig, *, inputs: Inputs | None = None) -> Prepared:
    """Read, encode and plan.

    Raises
    ------
    ValueError
        Everything that can be wrong with the input.
    """
    speech = SpeechTask.of(config.model, language=config.language) if config.task == "asr" else None
    inputs = read_rows(config, speech) if inputs is None else inputs
    task = speech or _text_task(config, inputs)
    examples, notes = _encoded(config, inputs, task)
    return Prepared(
        config=config,
        inputs=inputs,
        task=task,
        examples=examples,
        notes=notes,
        plan=_plan(config, inputs, task, examples),
    )


def read_rows(config: AdaptConfig, speech: SpeechTask | None = None) -> Inputs:
    """The rows of every part; those of speech are checked by the recogniser that will read them."""
    if config.task != "asr":
        return read_inputs(config, chat=partial(chat_of, config.model))
    speech = speech or SpeechTask.of(config.model, language=config.language)
    return read_inputs(config, normalize=speech.normalize, check=speech.check, skip_bad=config.skip_bad)


def _text_task(c: AdaptConfig, inputs: Inputs) -> TextTask:
    names = tuple(inputs.label_names)
    if c.task == "text-to-label" and not names:
        raise ValueError(f"{c.source} has no label names to answer with")
    tokenizer = load_tokenizer(base_of(c.model))
    return TextTask(
        kind=c.task, tokenizer=tokenizer, max_length=c.max_length, label_names=names, question=c.label_prompt
    )


def _encoded(c: AdaptConfig, inputs: Inputs, task: Task) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    encoded = {name: task.encode(part) for name, part in inputs.parts.items()}
    notes = list(inputs.notes)
    for name, rows in encoded.items():
        given = len(inputs.parts[name])
        if not rows:
            raise ValueError(f"{name}: none of its {given} texts has two tokens; there is nothing to learn or score")
        if len(rows) < given:
            notes.append(f"{name}: {given - len(rows)} of {given} texts have one token only and are left out")
        if cut := sum(bool(e.get("cut")) for e in rows):
            notes.append(f"{name}: {cut} of {len(rows)} texts are longer than {c.max_length} tokens: cut")
    return encoded, tuple(dict.fromkeys(notes))


def _plan(c: AdaptConfig, inputs: Inputs, task: Task, examples: Mapping[str, list[Example]]) -> Plan:
    """Targets and ranks under the budget; texts that are too long for the model are refused."""
    model = fresh_model(c, inputs)
    if isinstance(task, TextTask):
        for rows in examples.values():
            check_lengths(task, model, rows)
    adapters = any(method(m).config is not None for m in c.all_methods)
    targets = target_modules(model, c.target) if adapters else []
    total = count_parameters(getattr(model, str(model.base_model_prefix), model))
    budget = parse_budget(c.budget, total)
    ranks = {m: affordable_rank(m, budget, model, targets) for m in c.all_methods}
    return Plan(targets=targets, total=total, budget=budget, ranks=ranks)


def fresh_model(c: AdaptConfig, inputs: Inputs) -> PreTrainedModel:
    """The model of a job with a new head (drawn from the current random state)."""
    if c.task == "asr":
        model = shorten(load(c.model, task="asr", dropout=c.dropout), stride=c.silence_stride)
    else:
        labels = 1 if c.task == "regression" else max(len(inputs.label_names), 2)
        model = fresh(c.model, task=c.task, num_labels=labels, dropout=c.dropout)
    model.name_or_path = c.model  # an adapter keeps it: it holds on other machines
    return with_labels(model, _about(c, inputs, ""))


def _about(c: AdaptConfig, inputs: Inputs, name: str) -> About:
    return About(
        task=c.task,
        method=name,
        base=c.model,
        base_content=model_fingerprint(base_of(c.model), weights_only=True),
        labels=inputs.label_names,
        max_length=c.max_length,
        question=c.label_prompt if c.task == "text-to-label" else "",
        text_column=c.text_column,
        audio_column=c.audio_column,
        chat=inputs.train.chat,
        language=c.language,
        silence_stride=c.silence_stride if c.task == "asr" else 1,
    )
