"""Using what a job made: loading adapters, merging them into whole models, predicting."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# (attributes of torch modules and of PEFT's containers are only known at run time)

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from peft import PeftModel
from torch import nn

from rankwise import compression
from rankwise.data import read_audio
from rankwise.files import whole_folder
from rankwise.jobs.adapt import AdaptConfig, Job, load_adapted
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import TextTask
from rankwise.models import load, load_processor, load_tokenizer
from rankwise.nearest import unknown
from rankwise.reading import read_json


def load_adapter(folder: Path, *, model: str | None = None) -> PeftModel:
    """A PEFT adapter on its base model.

    Parameters
    ----------
    folder : Path
        Holding ``adapter_config.json``.
    model : str, optional
        The base model by name, folder or hub id, instead of the one named in the adapter.

    Raises
    ------
    ValueError
        No adapter there, a broken file, or an adapter of another base model.
    """
    if not (folder / "adapter_config.json").is_file():
        near = (
            sorted(p.parent.name for p in folder.parent.glob("*/adapter_config.json")) if folder.parent.is_dir() else []
        )
        if (folder / "config.json").is_file():
            raise ValueError(f"{folder} is a whole model already: transformers loads it as it is")
        raise ValueError(
            f"{folder} holds no adapter_config.json" + (f"; adapters beside it: {', '.join(near)}" if near else "")
        )
    config = read_json(folder / "adapter_config.json")
    base = model or config["base_model_name_or_path"]
    task = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}.get(config.get("task_type") or "")
    labels = _outputs(folder)
    adapted = load_adapted(load(base, task=task, num_labels=labels or 2), folder)
    if not isinstance(adapted, PeftModel):
        raise ValueError(f"{folder} is not a PEFT adapter")
    return adapted.eval()


def export_merged(model: PeftModel, folder: Path) -> None:
    """Merge the adapter and write the whole model with its tokenizer or processor: `from_pretrained` reads it."""
    base = model.active_peft_config.base_model_name_or_path
    merged = model.merge_and_unload(safe_merge=True)
    with whole_folder(folder, made_by="export") as draft:
        merged.save_pretrained(draft)
        speech = merged.config.model_type == "whisper"
        (load_processor if speech else load_tokenizer)(base).save_pretrained(draft)


def export_dense(compressed: Path, folder: Path) -> None:
    """Multiply a compressed model's factors out: a model that `transformers` loads by itself."""
    model = compression.to_dense(compression.load(str(compressed)))
    with whole_folder(folder, made_by="export") as draft:
        model.save_pretrained(draft)
        load_tokenizer(str(compressed)).save_pretrained(draft)


@torch.no_grad()
def attention_maps(run: Path, method: str, texts: list[str]) -> list[tuple[list[str], np.ndarray, str]]:
    """Words, attention ``(heads, words)`` and predicted class of every text, by a run's LAMA classifier.

    Raises
    ------
    ValueError
        The run's model has no attention pooling.
    """
    job, model = _trained(run, method)
    if not isinstance(model, compression.LamaClassifier) or not isinstance(job.task, TextTask):
        raise ValueError(f"{run} has no attention pooling to draw; its model is {job.config.model}, not a lama")
    maps = []
    for text in texts:
        batch = job.task.tokenizer(text, return_tensors="pt", truncation=True, max_length=job.config.max_length)
        out = model(**batch)
        if out.attentions is None:
            raise ValueError(f"{job.config.model} pools without attention: there is nothing to draw")
        tokens = job.task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        names = job.corpus.label_names
        title = names[int(out.logits.argmax())] if names else f"{float(out.logits):.2f}"
        maps.append((tokens, out.attentions[0][0].numpy(), title))
    return maps


@torch.no_grad()
def predict_texts(run: Path, method: str, texts: list[str]) -> list[dict]:
    """Predictions of a run's adapter: ``label`` and ``probability``, ``value`` (regression) or ``continuation``."""
    job, model = _trained(run, method)
    config, task = job.config, job.task
    if not isinstance(task, TextTask):
        raise ValueError(f"{run} recognises speech: give --audio")
    tokenizer = task.tokenizer
    if config.task == "causal-lm":
        return [_continued(model, tokenizer, t) for t in texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=config.max_length)
    logits = model(**batch).logits.float()
    if config.task == "regression":
        return [{"text": t, "value": float(v)} for t, v in zip(texts, logits.flatten(), strict=True)]
    best = logits.softmax(-1).max(-1)
    names = job.corpus.label_names
    return [
        {"text": t, "label": names[int(i)], "probability": float(p)}
        for t, p, i in zip(texts, best.values, best.indices, strict=True)
    ]


def predict_audio(run: Path, method: str, files: list[Path]) -> list[dict]:
    """``transcript`` of every recording by a run's adapter."""
    job, model = _trained(run, method)
    if not isinstance(job.task, SpeechTask):
        raise ValueError(f"{run} is about text: give --text")
    examples = []
    for file in files:
        try:
            examples.append({**job.task.features(read_audio(file)), "tokens": [], "text": ""})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    heard = job.task.transcribe(model, examples)
    return [{"audio": str(f), "transcript": t} for f, t in zip(files, heard, strict=True)]


def _trained(run: Path, method: str) -> tuple[Job, nn.Module]:
    """A run's job, and its model with one method's adapter, in evaluation mode."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run: it has no config.yaml")
    have = [p.name for p in (run / "adapters").glob("*")] if (run / "adapters").is_dir() else []
    if method not in have:
        raise unknown("adapter", method, have or ["none finished yet"])
    job = Job(AdaptConfig(**yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))), run)
    return job, load_adapted(job.fresh_model(), run / "adapters" / method).eval()


def _continued(model: nn.Module, tokenizer, text: str) -> dict:
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)  # type: ignore[operator]
    return {
        "text": text,
        "continuation": tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True),
    }


def _outputs(folder: Path) -> int | None:
    """Outputs of the saved classification head, where there is one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
            heads = [k for k in opened.keys() if k.endswith(("classifier.weight", "score.weight", "out_proj.weight"))]  # noqa: SIM118
            return opened.get_slice(heads[0]).get_shape()[0] if heads else None
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / 'adapter_model.safetensors'} cannot be read: {error}. Is the file whole?"
        ) from error
