"""What a job leaves: an adapter in PEFT's format, or a whole model, with all that is needed to use it.

Beside the weights lie the tokenizer (of Whisper, the processor) and ``rankwise.json``: task, classes, length, and which
base model this belongs to, by a name that holds on other machines and by content. What is found elsewhere is checked
before PEFT acts on it: weights only as safetensors, ranks no larger than the weights, patterns that end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankwise.files import check_output, write_json
from rankwise.jobs.adapt.config import WITH_CLASSES
from rankwise.jobs.models import base_of
from rankwise.models.names import check_own_files, located, model_fingerprint
from rankwise.nearest import unknown
from rankwise.reading import matching, read_json, read_tensors, tensor_shapes

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="nn.Module")
ABOUT, CONFIG, WEIGHTS = "rankwise.json", "adapter_config.json", "adapter_model.safetensors"
MADE_BY = "export"
TRAINED = "trained.safetensors"  # of a method without an adapter: what was trained
SIZES = ("r", "init_r", "target_r", "num_virtual_tokens", "encoder_hidden_size", "adapter_len")  # PEFT makes so much


class About(BaseModel):
    """What ``rankwise.json`` says of an adapter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    task: Literal["classification", "regression", "causal-lm", "text-to-label", "asr"]
    method: str = Field(max_length=200)
    base: str = Field(min_length=1, max_length=4096, description="a bundled name, a hub id or a folder as given")
    base_content: str = Field(pattern=r"^[0-9a-f]{64}$")
    labels: list[str] = Field(default=[], max_length=100_000, description="the classes, in order")
    max_length: int = Field(default=64, ge=2, le=10_000_000)
    question: str = Field(default="", max_length=100_000)
    text_column: str = "text"
    audio_column: str = "path"
    chat: bool = Field(default=False, description="trained on chats: a prompt is one message of the user")
    language: str | None = None
    silence_stride: int = Field(default=1, ge=1, le=1500)

    @model_validator(mode="after")
    def _has_its_classes(self) -> About:
        if self.task in WITH_CLASSES and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"the labels of {self.task} must be two or more, and differ")
        return self


def read_about(folder: Path) -> About | None:
    """What the folder's ``rankwise.json`` says, where it has one.

    Raises
    ------
    ValueError
        A file that says something else; what, and where.
    """
    path = folder / ABOUT
    if not path.is_file():
        return None
    try:
        return About(**read_json(path))
    except (ValidationError, TypeError) as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise ValueError(f"{path}: {'.'.join(map(str, said['loc'])) or 'its content'}: {said['msg']}") from error


def adapter_folder(run: Path, method: str | None = None) -> Path:
    """The folder of a run's adapter, or an adapter's folder as it is.

    Raises
    ------
    ValueError
        No run and no adapter, an unknown method, or several and none named.
    """
    if (run / ABOUT).is_file():
        if method is not None and (named := read_about(run)) is not None and named.method != method:
            raise ValueError(f"{run} is the adapter of {named.method}, not of {method}")
        return run
    have = sorted(p.parent.name for p in (run / "adapters").glob(f"*/{ABOUT}"))
    if not (run / "config.yaml").is_file() and not have:
        raise ValueError(f"{run} is not a run, nor an adapter that rankwise made: it has no {ABOUT}")
    if method is None and len(have) > 1:
        raise ValueError(f"{run} has several adapters: give --adapter, one of {', '.join(have)}")
    if not have or (method is not None and method not in have):
        raise unknown("adapter", method or "", have or ["none finished yet"])
    return run / "adapters" / (method or have[0])


def checked_base(folder: Path, about: About, model: str | None) -> str:
    """The base model's name or place, if it is the one trained on.

    Raises
    ------
    ValueError
        It is not there, or another one by content.
    """
    base = model or about.base
    try:
        content = model_fingerprint(base_of(base), weights_only=True)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        raise ValueError(
            f"the base model of {folder}, {about.base}, is not here ({error}); give its place with --model"
        ) from error
    if content != about.base_content:
        what = f"{base} is another" if base != about.base else f"{base} has changed since"
        raise ValueError(f"{folder} was made for another model than this: for {about.base}, and {what}")
    return base


def check_base(folder: Path, model: str | None) -> None:
    """As `checked_base` for a folder that needs a base model; ask before anything is loaded."""
    about = read_about(folder)
    if about is not None and not (folder / "config.json").is_file():
        checked_base(folder, about, model)


def check_export(folder: Path, out: Path, *, to: str, model: str | None = None) -> About | None:
    """What the folder says of itself, if it can be exported and written there; ask before anything is loaded.

    Raises
    ------
    ValueError
        Nothing in it to export ``to`` that, an output that is not replaced, or another base model.
    """
    check_output(out, made_by=MADE_BY, inputs=[folder, *([model] if model else [])])
    check_own_files(str(folder))
    if to == "dense":
        located(str(folder))
        return None
    about, has_adapter = read_about(folder), (folder / CONFIG).is_file()
    if not has_adapter and not (to == "merged" and about is not None and (folder / TRAINED).is_file()):
        raise ValueError(_no_adapter(folder))
    check_own_files(checked_base(folder, about, model) if about is not None else model or named_base(folder))
    return about


def named_base(folder: Path) -> str:
    """The base model that a foreign adapter names; ``ValueError`` where it names none."""
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ValueError(f"{folder / CONFIG} names no base model (base_model_name_or_path): give --model")
    return named


def _no_adapter(folder: Path) -> str:
    if (folder / TRAINED).is_file():
        return f"{folder} has no low-rank part: it holds trained weights of the model; export it with --to merged"
    if (folder / "config.json").is_file():
        return f"{folder} is a whole model already: transformers loads it as it is"
    near = sorted(p.parent.name for p in folder.parent.glob(f"*/{CONFIG}")) if folder.parent.is_dir() else []
    return f"{folder} holds no {CONFIG}" + (f"; adapters beside it: {', '.join(near)}" if near else "")


def write_about(folder: Path, about: About, tokenizer: Any) -> None:
    """Make a folder of weights self-contained: the description, and the tokenizer or processor."""
    write_json(folder / ABOUT, about.model_dump())
    tokenizer.save_pretrained(str(folder))


def with_labels(model: Model, about: About) -> Model:
    """The model with its classes in its configuration, as other tools read them."""
    config: Any = model.config
    if about.task == "classification":
        config.id2label = dict(enumerate(about.labels))
        config.label2id = {name: i for i, name in enumerate(about.labels)}
    config._name_or_path = about.base
    return model


def save_adapted(model: nn.Module, folder: Path) -> None:
    """A PEFT adapter in PEFT's format; of a model without one, the trained tensors as ``trained.safetensors``."""
    from peft import PeftModel
    from safetensors.torch import save_file

    if isinstance(model, PeftModel):
        # embeddings never change here; PEFT would look at the hub to find that out
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in
    else:
        trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / TRAINED)


def load_adapted(model: PreTrainedModel, folder: Path) -> PreTrainedModel | PeftModel:
    """Put what `save_adapted` wrote on the base model it was trained from.

    Raises
    ------
    ValueError
        The file is broken, belongs to another base model, or is one that is not read (which, and why).
    """
    from peft import PeftModel

    plain = [*sorted(folder.glob("model*.safetensors")), *folder.glob(TRAINED)]
    try:
        for file in plain:
            if strange := model.load_state_dict(read_tensors(file), strict=False).unexpected_keys:
                raise RuntimeError(f"it has no {', '.join(strange[:3])}")
        if plain:
            return model
        check_patterns(folder / CONFIG, checked_config(folder), [n for n, _ in model.named_modules() if n])
        adapted = PeftModel.from_pretrained(model, str(folder))
        _check_loaded(adapted, set(shapes(folder / WEIGHTS)))
        return adapted
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"the adapter in {folder} cannot be loaded on this model: {error}") from error
    except (RuntimeError, TypeError, LookupError, AttributeError, re.error) as error:
        raise ValueError(f"the adapter in {folder} cannot be loaded on this model: {error}") from error


def _check_loaded(model: Any, saved: set[str]) -> None:
    """``RuntimeError`` where the adapter's weights are not those of its layers; PEFT passes over them."""
    from peft import get_peft_model_state_dict

    prefix = getattr(model.base_model, "prefix", None)
    if prefix is None:  # prompts: their weights are one tensor
        return
    wanted = {k for k in get_peft_model_state_dict(model, save_embedding_layers=False) if prefix in k}
    held = {k for k in saved if prefix in k}
    if held != wanted:
        raise RuntimeError(f"{', '.join(sorted(held ^ wanted)[:3])}: in the weights or in the model, not in both")


def checked_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, after the checks that need no model.

    Raises
    ------
    ValueError
        No adapter, a kind that PEFT does not know, weights that are not safetensors, or a rank that they do not have.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}: no adapter")
    config, kinds = read_json(file), [str(getattr(k, "value", k)) for k in PEFT_TYPE_TO_CONFIG_MAPPING]
    if not isinstance(kind := config.get("peft_type"), str) or kind not in kinds:
        raise ValueError(f"{file}: {unknown('peft_type', str(kind), kinds)}")
    if not (folder / WEIGHTS).is_file():
        pickled = next((p.name for p in sorted(folder.glob("adapter_model*")) if p.suffix in (".bin", ".pt")), None)
        if pickled:
            raise ValueError(f"{folder / pickled}: pickled weights are not read; save the adapter as safetensors")
        raise ValueError(f"{folder} has no {WEIGHTS}")
    patterns = config.get("rank_pattern")
    ranks = [v for v in patterns.values() if isinstance(v, int)] if isinstance(patterns, dict) else []
    largest = max((side for shape in shapes(folder / WEIGHTS).values() for side in shape), default=0)
    for size in [*(config.get(key) for key in SIZES), *ranks]:
        if isinstance(size, int) and size > largest:
            raise ValueError(f"{file} declares a size of {size:,}, which no tensor in {WEIGHTS} has")
    return config


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file; nothing else is read.

    Raises
    ------
    ValueError
        A file that is cut short or of another kind.
    """
    return tensor_shapes(file)


def check_patterns(file: Path, config: dict[str, Any], names: list[str]) -> None:
    """``ValueError`` for a regular expression that PEFT would match for ever against these names."""
    for key, pattern in _patterns(config):
        if re.search(r"[*+?{(|]", pattern):  # what holds none of these is matched in one pass
            matching(pattern, names, source=f"{file}: {key}")


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Regular expressions as PEFT composes them out of a configuration, with the key each comes from."""
    for key, value in config.items():
        several = value if isinstance(value, list | dict) else [value]
        parts = [part for part in several if isinstance(part, str)]
        if key in ("target_modules", "exclude_modules") and isinstance(value, str):
            yield key, value
        elif key.endswith("_pattern") and isinstance(value, dict):
            yield from ((key, rf"(.*\.)?({part})") for part in parts)
        elif key == "layers_pattern":
            yield from ((key, rf"(?:^|.*?\.){part}\.(\d+)\..*") for part in parts)
        elif key == "modules_to_save":
            yield from ((key, rf"(^|.*\.){part}($|\..*)") for part in parts)
