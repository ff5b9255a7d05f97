"""What a job reads: training, validation and test rows, how they were told apart, and what they are by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rankwise import data as corpora
from rankwise.data import Corpus
from rankwise.data.corpus import BUILT_IN, TEST, VALIDATION
from rankwise.files import check_claim
from rankwise.jobs.adapt.config import WITH_CLASSES, AdaptConfig
from rankwise.jobs.models import base_of
from rankwise.models.names import BUNDLED, check_model, check_own_files, located, model_fingerprint

VERSION = 2  # of what decides a result besides configuration and data: the order of examples, samples, scores


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The rows of a job.

    Attributes
    ----------
    train, validation : Corpus
    tests : dict of str to Corpus
        By name; the first is in-domain.
    label_names : list of str
        The training rows' classes; empty where there are none.
    splits : dict of str to dict
        Of every part: ``from``, ``rows``, ``groups``, ``used`` (rows within the limit) and ``how`` it was made.
    contents : dict of str to str
        Fingerprint of every part.
    notes : list of str
        What the user should know of all that.
    """

    train: Corpus
    validation: Corpus
    tests: dict[str, Corpus]
    label_names: list[str]
    splits: dict[str, dict[str, Any]]
    contents: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, Corpus]:
        """All rows by the name of their part."""
        return {"train": self.train, "validation": self.validation, **self.tests}


def read_inputs(config: AdaptConfig, **reading: Any) -> Inputs:
    """Read and split the data of a job.

    Parameters
    ----------
    config : AdaptConfig
        The resolved configuration: what to read, its columns, and how it is split.
    reading
        ``chat`` of `rankwise.data.read_file`, or ``normalize``, ``check`` and ``skip_bad`` of
        `rankwise.data.read_manifest`.

    Raises
    ------
    ValueError
        A file or rows that cannot be used, a part without rows, texts or labels that are all equal, a corpus with other
        classes: which, and where.
    """
    c = config
    columns = {"text_column": c.text_column, "label_column": c.label_column, "audio_column": c.audio_column}
    read = partial(corpora.load, task=c.task, **columns, **reading)
    source = read(c.source)
    _check_source(source, c)
    names = source.label_names if c.task in WITH_CLASSES else []
    more = partial(_another, read, names=names, source=c.source)
    whole: dict[str, tuple[Corpus, Corpus, str]] = {}  # by part: where it comes from, its rows, how they were chosen
    if c.train is None:
        shares = f"by a hash of each row's group: {TEST:.0%} of the groups test, {VALIDATION:.0%} validation"
        split = source.split()
        whole = {"train": (source, split.train, shares), "validation": (source, split.validation, shares)}
        whole[source.name] = (source, split.test, shares)
    else:
        whole["train"] = (source, source, "all rows")
        if c.validation is None:
            split, share = source.split(), f"by a hash of each row's group: {VALIDATION:.0%} of the groups"
            kept = set(split.validation.groups)
            rest = source.where(lambda i: source.groups[i] not in kept)
            whole = {"train": (source, rest, "what validation leaves"), "validation": (source, split.validation, share)}
        else:
            validation = more(c.validation)
            whole["validation"] = (validation, validation, "all rows")
        assert c.test is not None
        test = more(c.test)
        whole[test.name] = (test, test, "all rows")
    for spec in c.eval:
        corpus = more(spec)
        built_in = spec.startswith(BUILT_IN)
        whole[spec] = (corpus, corpus.split().test, "its test part") if built_in else (corpus, corpus, "all rows")
    return _limited(whole, names, c)


def told(config: AdaptConfig, inputs: Inputs | None, **more: Any) -> dict[str, Any]:
    """What decides the numbers of a job: options, rows and the model by content, and what else is given.

    Without ``inputs``, and for a model that is still to be fetched, those are left out.
    """
    versions = {package: version(package) for package in ("rankwise", "torch", "transformers", "peft")}
    decided = {**config.model_dump(), "version": VERSION, "versions": versions, **more}
    if inputs is not None:
        decided |= {f"content of {name}": content for name, content in inputs.contents.items()}
    base = base_of(config.model)
    if base in BUNDLED or Path(located(base)).is_dir():
        decided["content of the model"] = model_fingerprint(base)
    return decided


def check_early(config: AdaptConfig, out: Path) -> Inputs | None:
    """What can be said against a job without importing torch; the rows, where they need no tokenizer or processor.

    Raises
    ------
    ValueError
        As `read_inputs`; a model that is not there or not for the task; a folder that holds something else.
    """
    kinds = {"asr": "asr", "causal-lm": "causal-lm", "text-to-label": "causal-lm"}
    check_model(base_of(config.model), kinds.get(config.task, "classification"))
    check_own_files(base_of(config.model))
    check_claim(out, made_by="adapt", told=config.model_dump())
    inputs = None if config.task == "asr" else read_inputs(config, chat=partial(chat_of, config.model))
    check_claim(out, made_by="adapt", told=told(config, inputs))
    return inputs


def chat_of(model: str, messages: list[dict[str, str]]) -> str:
    """A chat as one text, by the template of the model's tokenizer.

    Raises
    ------
    ValueError
        The model has no template, or its template refuses the messages.
    """
    from jinja2 import TemplateError

    tokenizer = _tokenizer(model)
    if not tokenizer.chat_template:
        raise ValueError(f"{model} has no chat template; give a column of text")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        raise ValueError(f"the chat template of {model} refuses it: {error}") from error
    begin = tokenizer("")["input_ids"]
    # what the tokenizer puts before every text stands in the template's text already
    return text.removeprefix(tokenizer.bos_token) if begin and begin[0] == tokenizer.bos_token_id else text


@cache
def _tokenizer(model: str) -> Any:
    from rankwise.models import load_tokenizer

    return load_tokenizer(base_of(model))


def _check_source(source: Corpus, c: AdaptConfig) -> None:
    if c.task != "asr" and len(source) > 1 and len({t.casefold() for t in source.texts}) == 1:
        raise ValueError(f"{source.name}: all {len(source)} texts are equal; is '{c.text_column}' the column of text?")
    if c.task == "regression" and len(set(source.labels)) == 1:
        raise ValueError(f"{source.name}: column '{c.label_column}' holds one value only; there is nothing to learn")


def _another(read: Callable[..., Corpus], spec: str, *, names: list[str], source: str) -> Corpus:
    """A corpus beside the training rows, with their classes."""
    corpus = read(spec, classes=names or None)
    if names and corpus.label_names != names:
        raise ValueError(f"{spec} has classes {', '.join(corpus.label_names)}; {source} has {', '.join(names)}")
    return corpus


def _limited(whole: dict[str, tuple[Corpus, Corpus, str]], names: list[str], c: AdaptConfig) -> Inputs:
    """The parts within their limits, and what is to be said of them."""
    used: dict[str, Corpus] = {}
    splits: dict[str, dict[str, Any]] = {}
    for name, (origin, rows, how) in whole.items():
        if len(rows) == 0:
            raise ValueError(
                f"{origin.name}: no rows are left for {name}: {len(origin)} rows in {len(set(origin.groups))} groups "
                "are too few to split; more are needed, or files of one's own: train, validation and test"
            )
        used[name] = rows.head(c.train_limit if name == "train" else c.eval_limit)
        groups = len(set(rows.groups))
        splits[name] = {"from": origin.name, "rows": len(rows), "groups": groups, "used": len(used[name]), "how": how}
    notes = [n for origin, _, _ in whole.values() for n in origin.notes]
    notes += [_told_split(n, s) for n, s in splits.items() if not s["from"].startswith(BUILT_IN)]
    notes += _told_classes(used["train"], names) + _told_tests(used, c)
    contents = {n: p.fingerprint() for n, p in used.items()}
    return Inputs(
        train=used.pop("train"),
        validation=used.pop("validation"),
        tests=used,
        label_names=names,
        splits=splits,
        contents=contents,
        notes=list(dict.fromkeys(notes)),
    )


def _told_split(name: str, s: dict[str, Any]) -> str:
    limit = f"{s['used']} drawn from " if s["used"] < s["rows"] else ""
    part = name if name in ("train", "validation") else "test"
    return f"{part}: {limit}{s['rows']} rows ({s['groups']} groups) of {s['from']}, {s['how']}"


def _told_classes(train: Corpus, names: list[str]) -> list[str]:
    seen = {names[int(y)] for y in train.labels} if names else set()
    if names and len(seen) < 2:
        raise ValueError(f"{train.name}: the training rows have one class only, {', '.join(seen)}; two are needed")
    absent = [n for n in names if n not in seen]
    return [f"train: no row of class {', '.join(absent)}, which cannot be learnt"] if absent else []


def _told_tests(parts: dict[str, Corpus], c: AdaptConfig) -> list[str]:
    notes = []
    trained = {t.casefold() for t in parts["train"].texts} if c.task != "asr" else set()
    for name, part in parts.items():
        if name == "train":
            continue
        if shared := sum(t.casefold() in trained for t in part.texts):
            notes.append(f"{name}: {shared} of {len(part)} texts also stand among the training rows")
        if c.task == "regression" and len(set(part.labels)) == 1:
            notes.append(f"{name}: all labels are equal: its correlation says nothing")
    return notes
