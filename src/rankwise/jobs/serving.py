"""Using what a job made: predicting with an adapter's folder alone, exporting it for other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from rankwise import compression
from rankwise.compression.options import DTYPES
from rankwise.data import read_audio
from rankwise.files import amended, whole_folder
from rankwise.jobs.adapt.adapters import (
    ABOUT,
    MADE_BY,
    TRAINED,
    WEIGHTS,
    About,
    check_export,
    checked_base,
    checked_config,
    load_adapted,
    named_base,
    read_about,
    shapes,
    with_labels,
    write_about,
)
from rankwise.jobs.models import UNTRAINED, base_of, fresh
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import Task, TextTask
from rankwise.models import load, load_processor, load_tokenizer
from rankwise.models.loading import placed, quiet_loading
from rankwise.models.names import Task as ModelTask
from rankwise.models.whisper import shorten
from rankwise.nearest import unknown

AT_ONCE = 64  # texts or recordings between two reports of progress
OnParts = Callable[[list[list[str]], int], Iterable[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model, ready to be asked, with what is known of it."""

    about: About
    model: nn.Module
    task: Task


def load_trained(folder: Path, *, model: str | None = None) -> Trained:
    """The trained model of an adapter's folder, which is all that is needed beside the base model.

    Parameters
    ----------
    folder : Path
        Holding ``rankwise.json``.
    model : str, optional
        Where the base model is now: a name, folder or hub id.

    Raises
    ------
    ValueError
        No such folder, a broken file, or a base model that is not there or not the one trained on.
    """
    about = read_about(folder)
    if about is None:
        raise ValueError(f"{folder} has no {ABOUT}: not an adapter that rankwise made")
    if about.task == "asr":
        base = checked_base(folder, about, model)
        task: Task = SpeechTask.of(base, language=about.language, processor=str(folder))
        loaded: nn.Module = shorten(load(base, task="asr"), stride=about.silence_stride)
        return Trained(about=about, model=load_adapted(loaded, folder).eval(), task=task)
    task = TextTask(
        kind=about.task,
        tokenizer=load_tokenizer(str(folder)),
        max_length=about.max_length,
        label_names=tuple(about.labels),
        question=about.question,
        chat=about.chat,
    )
    return Trained(about=about, model=_whole_or_adapted(folder, about, model).eval(), task=task)


def _whole_or_adapted(folder: Path, about: About, model: str | None) -> nn.Module:
    labels = 1 if about.task == "regression" else len(about.labels) or 2
    kind = "causal-lm" if about.task in ("causal-lm", "text-to-label") else "classification"
    if (folder / "config.json").is_file() and about.base not in UNTRAINED:
        return with_labels(load(str(folder), task=kind, num_labels=labels), about)
    base = checked_base(folder, about, model)
    made = fresh(about.base, task=about.task, num_labels=labels, source=base)
    return with_labels(load_adapted(made, folder), about)


# predicting


def answers(
    trained: Trained, asked: list[str], *, recordings: bool | None = None, progress: OnParts = lambda parts, _: parts
) -> list[dict[str, Any]]:
    """What the model says of each text or recording, on the GPU where torch sees one.

    Parameters
    ----------
    asked : list of str
        Texts; of a speech recogniser, audio files.
    recordings : bool, optional
        Which of the two they are; an adapter for the other is refused.
    progress : callable
        ``(parts, how many) -> parts``, as they are worked on.

    Returns
    -------
    list of dict
        ``label`` and ``probability``, ``value`` (regression), ``continuation`` or ``transcript``.
    """
    speech = isinstance(trained.task, SpeechTask)
    if recordings is not None and recordings != speech:
        raise ValueError(f"this adapter is about {'speech: give --audio' if speech else 'text: give --text'}")
    placed(trained.model)
    parts = [asked[i : i + AT_ONCE] for i in range(0, len(asked), AT_ONCE)]
    return [answer for part in progress(parts, len(parts)) for answer in _answered(trained, part)]


def _answered(trained: Trained, asked: list[str]) -> list[dict[str, Any]]:
    if isinstance(trained.task, TextTask):
        return trained.task.answer(trained.model, asked)
    assert isinstance(trained.task, SpeechTask)
    examples = []
    for name in asked:
        try:
            examples.append({**trained.task.features(read_audio(Path(name))), "tokens": [], "text": ""})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return [{"transcript": text} for text in trained.task.transcribe(trained.model, examples)]


# exporting


def load_adapter(folder: Path, *, model: str | None = None) -> PeftModel:
    """A PEFT adapter, made here or elsewhere, on its base model.

    Parameters
    ----------
    folder : Path
        Holding ``adapter_config.json``.
    model : str, optional
        The base model by name, folder or hub id, instead of the one named in the adapter.

    Raises
    ------
    ValueError
        No adapter there, a broken file, one that is not read, or an adapter of another base model.
    """
    if (about := read_about(folder)) is not None:
        base = checked_base(folder, about, model)
        tasks: dict[str, ModelTask] = {"asr": "asr", "causal-lm": "causal-lm", "text-to-label": "causal-lm"}
        task = tasks.get(about.task, "classification")
        labels = 1 if about.task == "regression" else len(about.labels) or 2
    else:
        config = checked_config(folder)
        base = model or named_base(folder)
        tasks = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
        task = tasks.get(str(config.get("task_type")))
        labels = _outputs(folder) or 2
    adapted = load_adapted(load(base, task=task, num_labels=labels), folder)
    assert isinstance(adapted, PeftModel)
    if about is not None:
        with_labels(adapted, about)
    return adapted.eval()


def export_merged(adapter: Path, out: Path, *, model: str | None = None, dtype: str = "float32") -> None:
    """Write the whole model, adapter merged, with its classes, tokenizer or processor: `from_pretrained` reads it.

    Parameters
    ----------
    dtype : {"float32", "bfloat16", "float16"}
        Of the weights, which are merged in float32 and rounded once; float32 is what was scored.

    Raises
    ------
    ValueError
        As `load_adapter`; weights beyond what ``dtype`` can say, or not finite.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    about = check_export(adapter, out, to="merged", model=model)
    if about is not None and (adapter / TRAINED).is_file():
        merged: Any = load_trained(adapter, model=model).model
        if about.task == "asr":  # the encoder as transformers has it
            merged = load_adapted(load(checked_base(adapter, about, model), task="asr"), adapter)
    else:
        try:
            merged = load_adapter(adapter, model=model).merge_and_unload(safe_merge=True)
        except NotImplementedError as error:  # what PEFT cannot merge
            raise ValueError(f"{adapter} cannot be merged: {error}") from error
    merged.to(getattr(torch, dtype))
    for name, p in merged.named_parameters():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name} is not finite in {dtype}: nothing is written")
    with quiet_loading(), whole_folder(out, made_by=MADE_BY, inputs=[adapter]) as draft:
        merged.save_pretrained(draft)
        _write_tokens(draft, adapter, about, model)


def export_plain(adapter: Path, out: Path, *, model: str | None = None, **options: Any) -> Any:
    """Write a plain LoRA with its classes and tokenizer; ``options`` are those of `rankwise.tuning.export_lora`."""
    from rankwise.tuning.export import export_lora

    about = check_export(adapter, out, to="lora", model=model)
    written = export_lora(load_adapter(adapter, model=model), out, **options)
    with amended(out) as draft:
        _write_tokens(draft, adapter, about, model)
    return written


def _write_tokens(folder: Path, adapter: Path, about: About | None, model: str | None) -> None:
    """The tokenizer or processor into an exported folder, and the description where there is one."""
    own = str(adapter) if (adapter / "tokenizer_config.json").is_file() else None
    if about is not None:
        tokens = (load_processor if about.task == "asr" else load_tokenizer)(own or base_of(model or about.base))
        write_about(folder, about, tokens)
        return
    base = model or named_base(adapter)
    whisper = (folder / "config.json").is_file() and "whisper" in (folder / "config.json").read_text(encoding="utf-8")
    (load_processor if whisper else load_tokenizer)(own or base).save_pretrained(str(folder))


def export_dense(compressed: Path, folder: Path) -> None:
    """Multiply a compressed model's factors out: a model that `transformers` loads by itself."""
    check_export(compressed, folder, to="dense")
    model = compression.to_dense(compression.load(str(compressed)))
    with quiet_loading(), whole_folder(folder, made_by=MADE_BY, inputs=[compressed]) as draft:
        model.save_pretrained(draft)
        load_tokenizer(str(compressed)).save_pretrained(draft)


@torch.no_grad()
def attention_maps(trained: Trained, texts: list[str]) -> list[tuple[list[str], np.ndarray, str]]:
    """Words, attention ``(heads, words)`` and predicted class of every text, by a LAMA classifier.

    Raises
    ------
    ValueError
        The model has no attention pooling.
    """
    model, task, about = trained.model, trained.task, trained.about
    if not isinstance(model, compression.LamaClassifier) or not isinstance(task, TextTask):
        raise ValueError(f"there is no attention pooling to draw: the model is {about.base}, not a lama")
    maps = []
    for text in texts:
        batch = task.tokenizer(text, return_tensors="pt", truncation=True, max_length=about.max_length)
        out = model(**batch.to(next(model.parameters()).device))
        if out.attentions is None:
            raise ValueError(f"{about.base} pools without attention: there is nothing to draw")
        tokens = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        title = about.labels[int(out.logits.argmax())] if about.labels else f"{float(out.logits):.2f}"
        maps.append((tokens, out.attentions[0][0].cpu().numpy(), title))
    return maps


def _outputs(folder: Path) -> int | None:
    """Outputs of the saved classification head, where there is one."""
    ends = ("classifier.weight", "score.weight", "out_proj.weight")
    return next((shape[0] for key, shape in shapes(folder / WEIGHTS).items() if key.endswith(ends) and shape), None)
