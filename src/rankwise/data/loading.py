"""A corpus by name or path: which reader serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rankwise.data.corpus import Corpus
from rankwise.data.files import read_file
from rankwise.data.texts import documents, sentiment
from rankwise.nearest import unknown


def load(
    spec: str,
    *,
    task: str = "polarity",
    text_column: str = "text",
    label_column: str | None = "label",
    audio_column: str = "path",
    classes: Sequence[str] | None = None,
    chat: Callable[[list[dict[str, str]]], str] | None = None,
    normalize: Callable[[str], str] = str.strip,
    check: Callable[[str], None] | None = None,
    skip_bad: bool = False,
) -> Corpus:
    """A corpus by name or path.

    Parameters
    ----------
    spec : str
        ``sentiment:movies`` (or ``tweets``, ``amazon``, ``nyt``), ``text:nyt`` (or ``amazon``: whole documents),
        ``speech:child`` (or ``adult``, ``accents``), or a csv, tsv, jsonl, json or parquet file; for ``asr`` a manifest
        of audio, or the folder of one.
    task : {"polarity", "rating", "classification", "text-to-label", "regression", "causal-lm", "asr"}
        ``rating`` and ``regression`` give numbers, ``classification`` and ``text-to-label`` classes; ``causal-lm`` and
        ``asr`` ignore labels.
    text_column, label_column, audio_column : str
        What the columns of a user's file are called.
    classes, chat
        Of a user file, see `rankwise.data.files.read_file`.
    normalize, check, skip_bad
        For speech, see `rankwise.data.audio.read_manifest`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rankwise.data import load
    >>> with tempfile.TemporaryDirectory() as folder:  # or load("sentiment:movies")
    ...     path = Path(folder, "reviews.csv")
    ...     _ = path.write_text("text,label\\na fine film,good\\ndull,bad\\n")
    ...     corpus = load(str(path), task="classification")
    >>> corpus.texts, corpus.labels, corpus.label_names
    (['a fine film', 'dull'], [1, 0], ['bad', 'good'])
    """
    if task == "asr":
        options = {"normalize": normalize, "check": check, "skip_bad": skip_bad}
        return _speech(spec, text_column=text_column, audio_column=audio_column, **options)
    if spec.startswith("text:"):
        if task != "causal-lm":
            raise ValueError(f"{spec} has no labels: it is for causal-lm; sentiment:{spec[5:]} has them")
        return documents(spec.partition(":")[2])
    if spec.startswith("sentiment:"):
        return sentiment(spec.partition(":")[2], task="rating" if task in ("rating", "regression") else "polarity")
    path = Path(spec).expanduser()
    if not path.is_file():
        if path.suffix or path.exists():
            raise ValueError(f"no such data file: {path}" if not path.exists() else f"{path} is no regular file")
        known = [f"sentiment:{d}" for d in ("movies", "tweets", "amazon", "nyt")]
        raise unknown("data", spec, [*known, "text:nyt", "text:amazon"])
    return read_file(
        path,
        text_column=text_column,
        label_column=None if task == "causal-lm" else label_column,
        regression=task in ("rating", "regression"),
        classes=classes,
        chat=chat if task == "causal-lm" else None,
    )


def _speech(spec: str, **options) -> Corpus:
    from rankwise.data.audio import read_manifest
    from rankwise.data.synthesis import DOMAINS, speech

    if spec.startswith("speech:"):
        return speech(spec.partition(":")[2])
    path = Path(spec).expanduser()
    if not path.exists():
        if path.suffix:
            raise ValueError(f"no such manifest: {path}")
        raise unknown("speech data", spec, [f"speech:{d}" for d in DOMAINS])
    return read_manifest(path, **options)
