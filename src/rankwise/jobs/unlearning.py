"""Forgetting requests on disk: a folder of state that grows request by request, gives any back, and answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.continual.o3 import O3Unlearner
from rankwise.continual.unlearning import state
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.continual.unlearning.names import MADE_BY
from rankwise.continual.unlearning.rows import content_of_rows, rows_from
from rankwise.continual.unlearning.settings import UnlearningSettings
from rankwise.continual.unlearning.state import State
from rankwise.data.tables import read_table
from rankwise.files import check_output, content_of, drafted, whole_folder
from rankwise.jobs.early import check_asking, check_forgetting
from rankwise.models import load, load_tokenizer, model_fingerprint
from rankwise.models.loading import placed

TRAINING = "training.safetensors"  # in the draft, while a request trains
OF_SCHEDULE = ("steps", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What came of a request.

    Attributes
    ----------
    entry : dict
        Of the log.
    requests : list of str
        What is forgotten now.
    notes : list of str
        What the user should know.
    """

    entry: dict[str, Any]
    requests: list[str]
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people."""
        header, rows = ["measured on", "nats a token", "then", "right", "then", "switched"], []
        for what, s in self.entry.get("scores", {}).items():
            a, b = s["before"], s["after"]
            shares = [f"{100 * v:.1f} %" for v in (a["right"], b["right"], b["switched"])]
            rows.append([what, f"{a['nll']:.3f}", f"{b['nll']:.3f}", *shares])
        return header, rows

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**self.entry, "requests": self.requests, "notes": self.notes}


def forget_file(
    data: Path,
    out: Path,
    *,
    name: str,
    model: str | None = None,
    measured: Mapping[str, Path] | None = None,
    encoder: str | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    **options: Any,
) -> Forgotten:
    """Forget a file's rows; what is forgotten in ``out`` stays so.

    Parameters
    ----------
    data : path
        Rows with ``question`` and ``answer``, or ``prompt`` and ``completion``.
    out : path
        Folder of the state, new or with earlier requests; it changes when the request is forgotten.
    model : str, optional
        Name, folder or hub id; of a folder with requests the one that they are of, which need not be named again.
    measured : mapping, optional
        Files of rows that are measured before and after, by name.
    encoder : str, optional
        Of the detectors. Default ``minilm``.
    on_step : callable
        Told each step, of how many, and its loss.
    **options
        Fields of `UnlearningSettings` and of its schedule; ``None`` is the default, or what the folder has.

    Raises
    ------
    ValueError
        As `check_forgetting` and `O3Unlearner.forget`; an option other than that of the earlier requests; a name that
        is taken, unless it is of the same rows: then it was done before.
    """
    check_forgetting(data, out, name=name, model=model, measured=measured or {}, **options)
    rows, others = _rows(data, name), {n: _rows(path, n) for n, path in (measured or {}).items()}
    first = content_of(out) if (out / "o3.json").is_file() else ""
    kept = state.read(out) if first else None
    settings = _settings(kept, options)
    named = _model(kept, model, out)
    encoder = _encoder(kept, encoder, out)
    given = content_of_rows(rows_from(rows, name))
    if kept is not None and (same := [r for r in kept.requests if r.name == name]):
        if same[0].data != given:
            raise ValueError(f"'{name}' is forgotten already, with other rows: give another name, or relearn it first")
        return _again(out, kept, next(e for e in reversed(kept.log) if e.get("name") == name))
    scored = {n: content_of_rows(rows_from(part, n)) for n, part in others.items()}
    told = [model_fingerprint(named), model_fingerprint(encoder), state.said(settings), name, given, scored, first]
    inputs = [data, *(measured or {}).values(), named, encoder]
    with drafted(out, made_by=MADE_BY, told=told, inputs=inputs) as draft, _noted(name) as notes:
        if first != (content_of(out) if (out / "o3.json").is_file() else ""):
            raise ValueError(f"another command changed {out} meanwhile: give this one again")
        parts = placed(load(named, task="causal-lm").eval()), load_tokenizer(named)
        if kept is None:
            unlearner = O3Unlearner(*parts, settings=settings, encoder=encoder, measured=others)
        else:
            unlearner = O3Unlearner.of(kept, *parts, encoder=LayerEncoder(encoder), source=str(out), measured=others)
        entry = unlearner.forget(
            rows, name=name, checkpoint=draft / TRAINING, every=25,
            on_step=lambda step, loss: on_step(step + 1, settings.schedule.steps, loss),
        )  # fmt: skip
        state.write(draft, unlearner.state(out, state.beside(named, out)))
    return Forgotten(entry=entry, requests=unlearner.requests, notes=notes)


def relearn_request(folder: Path, *, name: str) -> Forgotten:
    """Take a request back; no model is loaded, and nothing measured."""
    check_output(folder, made_by=MADE_BY)
    kept = state.read(folder)
    last = kept.log[-1] if kept.log else {}
    if name not in [r.name for r in kept.requests] and (last.get("what"), last.get("name")) == ("relearn", name):
        return _again(folder, kept, last)
    kept = kept.taken_back(name)
    with whole_folder(folder, made_by=MADE_BY) as draft:
        state.write(draft, kept)
    return Forgotten(entry=kept.log[-1], requests=[r.name for r in kept.requests], notes=[])


def ask(
    folder: Path,
    *,
    texts: Sequence[str] = (),
    data: Path | None = None,
    model: str | None = None,
    encoder: str | None = None,
    max_new_tokens: int = 64,
) -> list[dict[str, Any]]:
    """Answers of the model that has forgotten, with the request that each prompt was known by and its weight.

    Parameters
    ----------
    folder : path
        What `forget_file` wrote.
    texts : sequence of str
        Prompts.
    data : path, optional
        Rows with ``question`` or ``prompt``, instead.
    model : str, optional
        Where the model is now, if it was moved.
    encoder : str, optional
        Where the detectors' encoder is now, if it was moved.
    max_new_tokens : int
        Tokens of an answer at most.
    """
    check_asking(folder, texts=texts, data=data, model=model, max_new_tokens=max_new_tokens)
    asked = list(texts) if data is None else _prompts(data)
    kept = state.read(folder)
    named = _model(kept, model, folder)
    reads = LayerEncoder(_encoder(kept, encoder, folder))
    parts = placed(load(named, task="causal-lm").eval()), load_tokenizer(named)
    unlearner = O3Unlearner.of(kept, *parts, encoder=reads, source=str(folder))
    weights, said = unlearner.weights(asked), unlearner.generate(asked, max_new_tokens=max_new_tokens)
    names = unlearner.requests
    return [
        {
            "question": q,
            "answer": a,
            "request": names[int(w.argmax())] if w.any() else None,
            "weight": float(max(w, default=0)),
        }
        for q, a, w in zip(asked, said, weights, strict=True)
    ]


def _rows(path: Path, name: str) -> list[dict[str, Any]]:
    """Of any table that is read; a row without question and answer is named by its place."""
    table, out = read_table(path), []
    for number, row in table.rows:
        own = {k: v for k, v in row.items() if not (k == "choices" and v in (None, ""))}
        try:
            rows_from([own], name)
        except ValueError as error:
            raise ValueError(f"{table.at(number)}: {str(error).partition('row 1')[2].lstrip(' :')}") from error
        out.append(own)
    if not out:
        raise ValueError(f"{path} has no rows")
    return out


def _prompts(path: Path) -> list[str]:
    table, out = read_table(path), []
    for number, row in table.rows:
        column = next((c for c in ("question", "prompt") if c in row), "question")
        out.append(table.text(number, row, column))
        if not out[-1]:
            raise ValueError(f"{table.at(number)}: {column} is empty")
    if not out:
        raise ValueError(f"{path} has no rows")
    return out


def _settings(kept: State | None, options: Mapping[str, Any]) -> UnlearningSettings:
    """The defaults with what was given; of earlier requests theirs, from which nothing may differ."""
    given = {k: v for k, v in options.items() if v is not None}
    if kept is not None:
        theirs = vars(kept.settings) | vars(kept.settings.schedule)
        for name, value in given.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name} is {value}, and {theirs[name]} for the earlier requests: leave it out, or give another "
                    "folder"
                )
        return kept.settings
    settings = UnlearningSettings(**{k: v for k, v in given.items() if k not in OF_SCHEDULE})
    return replace(settings, schedule=replace(settings.schedule, **{k: given[k] for k in OF_SCHEDULE if k in given}))


def _model(kept: State | None, model: str | None, out: Path) -> str:
    """What to load: a folder is kept by its way from the state, so that both can be moved together."""
    if model is not None:
        return model
    if kept is None or not kept.model:
        raise ValueError("the requests do not say of which model they are: say so with --model")
    return state.found(kept.model, out)


def _encoder(kept: State | None, given: str | None, out: Path) -> str:
    """What the detectors read; another place than the state's is taken where that is no more, by its weights."""
    if kept is None:
        return given or "minilm"
    theirs = state.found(kept.encoder, out)
    gone = bool(kept.encoder_identity) and kept.encoder.startswith("..") and not Path(theirs).is_dir()
    if given is None and gone:
        raise ValueError(f"the encoder of {out} is no more at {theirs}: say where it is with --encoder")
    if given is not None and not gone and state.beside(given, out) != state.beside(theirs, out):
        raise ValueError(f"encoder is {given}, and that of {out} is {theirs}: leave it out")
    return given or theirs


def _again(out: Path, kept: State, entry: dict[str, Any]) -> Forgotten:
    """What was done already, as the log has it; what a kill left beside the folder goes."""
    with whole_folder(out, made_by=MADE_BY) as draft:
        state.write(draft, kept)
    return Forgotten(entry=entry, requests=[r.name for r in kept.requests], notes=["this was done before"])


@contextmanager
def _noted(name: str) -> Iterator[list[str]]:
    """What is warned of a request in the block, as notes."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(w.message) for w in seen if str(w.message).startswith(f"'{name}'"))
