"""What a stream is: the keys of the YAML file that ``rankwise continual learn`` reads, checked without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rankwise.data.corpus import BUILT_IN
from rankwise.files import check_output
from rankwise.models.names import check_own_files, located
from rankwise.nearest import unknown
from rankwise.reading import read_yaml

MADE_BY = "continual learn"
PICTURES = ("digits", "mnist", "cifar10")
MOST = 1_000_000  # steps, or examples a step


def _word(value: object) -> object:
    """A whole number as YAML reads it, as the word that stands in the file; other values have more than one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool | float) or value is None:
        raise ValueError(f"YAML reads a {type(value).__name__}, {value}: put the word in quotes")
    return value


Word = Annotated[str, BeforeValidator(_word)]


class TaskConfig(BaseModel):
    """One task of a stream."""

    model_config = ConfigDict(extra="forbid")

    name: Word = Field(min_length=1, max_length=200, description="what it is called; each task its own")
    data: str = Field(
        min_length=1,
        description="pictures: digits, mnist, cifar10, or a folder; texts: sentiment:DOMAIN, or a csv, tsv, jsonl, "
        "json or parquet file",
    )
    classes: list[Word] | None = Field(default=None, description="those of the data's classes that are of the task")
    words: dict[Word, Word] = Field(default={}, description="for a class, how captions and labels call it")
    shots: int | None = Field(default=None, ge=1, description="most training examples a class")

    @field_validator("classes")
    @classmethod
    def _several(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and (len(set(classes)) < len(classes) or not classes):
            raise ValueError(f"classes {', '.join(classes) or 'none'}: at least one, each once")
        return classes


class StreamConfig(BaseModel):
    """A stream: its model, its tasks in order, and how each is learned."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        default="clip-cifar10",
        description="a CLIP, an image classifier, a text encoder or a causal language model: a bundled name, a folder, "
        "a hub id",
    )
    tasks: list[TaskConfig] = Field(min_length=1, max_length=1000, description="in the order of learning")
    template: str | None = Field(
        default=None, description="caption of a class, with {}; of a CLIP 'a photo of a {}', of a text encoder '{}'"
    )
    r: int = Field(default=16, ge=1, le=4096, description="directions of each weight before pruning")
    max_kappa: float = Field(default=0.005, ge=0, le=1e6, description="the last threshold")
    dense_share: float = Field(default=0.5, ge=0, le=1, description="share of the steps before the first threshold")
    freeze_zero: bool = Field(default=False, description="whether a gate that is closed stays so")
    released: bool = Field(default=False, description="threshold and schedule of the authors' code")
    steps: int = Field(default=500, ge=1, le=MOST, description="of each task")
    batch_size: int = Field(default=64, ge=1, le=MOST, description="examples a step")
    learning_rate: float = Field(default=5e-4, gt=0, le=1e6, description="at the start; it falls by a cosine")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="of products while a task is learned; bf16 is the fast one where a CPU or GPU has it",
    )
    shots: int | None = Field(default=None, ge=1, description="most training examples a class, of every task")
    test_limit: int = Field(default=1000, ge=1, description="most test examples a task")
    max_length: int = Field(default=64, ge=2, le=100_000, description="tokens of a text")
    target: Literal["auto", "attention", "mlp"] = Field(default="auto", description="layers: auto, attention or mlp")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of every draw")

    @model_validator(mode="after")
    def _sound(self) -> StreamConfig:
        names = [t.name for t in self.tasks]
        if twice := [n for i, n in enumerate(names) if n in names[:i]]:
            raise ValueError(f"two tasks are called '{twice[0]}': each its own name")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"template '{self.template}' needs {{}} once, where the class stands")
        for task in self.tasks:
            for name in task.words:
                if task.classes is not None and name not in task.classes:
                    raise unknown(f"class of words in task '{task.name}'", name, task.classes)
        return self


def read_stream(path: Path) -> StreamConfig:
    """A stream's file; paths in it are meant from where the command runs.

    Raises
    ------
    ValueError
        Not YAML, unknown keys, values out of range, by name.
    """
    given = read_yaml(path)
    if not isinstance(given, dict):
        raise ValueError(f"{path}: a mapping with the key 'tasks' is needed, found a {type(given).__name__}")
    if strange := [k for k in given if k not in StreamConfig.model_fields]:
        raise unknown("key", str(strange[0]), StreamConfig.model_fields)
    return StreamConfig.model_validate(given)


def check_stream(path: Path, out: Path, data: Path | None = None) -> StreamConfig:
    """All that can be refused before anything heavy is imported; the stream."""
    config = read_stream(path)
    files = [t.data for t in config.tasks if Path(t.data).exists()]
    check_output(out, made_by=MADE_BY, inputs=[path, config.model, *files])
    if Path(located(config.model)).is_dir():
        check_own_files(config.model)
    if data is not None and not data.is_dir():
        raise ValueError(f"no such data folder: {data}")
    if data is not None and not any(t.data == "cifar10" for t in config.tasks):
        raise ValueError(f"no task reads cifar10: leave out the data folder {data}")
    for task in config.tasks:
        _check_data(task)
    return config


def _check_data(task: TaskConfig) -> None:
    if task.data in PICTURES or task.data.startswith(BUILT_IN) or Path(task.data).exists():
        return
    if Path(task.data).suffix or "/" in task.data:
        raise ValueError(f"task '{task.name}': no such file or folder of data: {task.data}")
    known = [*PICTURES, *(f"sentiment:{d}" for d in ("movies", "tweets", "amazon", "nyt"))]
    raise unknown(f"data of task '{task.name}'", task.data, known)
