"""A corpus or pictures by name or path: which reader serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.data.corpus import Corpus
from rankwise.data.files import read_file
from rankwise.data.images.decoding import SUFFIXES
from rankwise.data.images.layout import chosen, shards
from rankwise.data.literature import papers
from rankwise.data.texts import documents, sentiment
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from rankwise.data.images import Images

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PICTURES = ("digits", "mnist", "cifar10")


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
        ``sentiment:movies`` (or ``tweets``, ``amazon``, ``nyt``), ``text:nyt`` (``amazon``, ``papers``: whole texts),
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
        return papers() if spec == "text:papers" else documents(spec.partition(":")[2])
    if spec.startswith("sentiment:"):
        return sentiment(spec.partition(":")[2], task="rating" if task in ("rating", "regression") else "polarity")
    path = Path(spec).expanduser()
    if not path.is_file():
        if path.suffix or path.exists():
            raise ValueError(f"no such data file: {path}" if not path.exists() else f"{path} is no regular file")
        known = [f"sentiment:{d}" for d in ("movies", "tweets", "amazon", "nyt")]
        raise unknown("data", spec, [*known, "text:nyt", "text:amazon", "text:papers"])
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


def read_images(
    source: str | Path,
    *,
    split: str | None = None,
    data: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] = (),
    labelled: bool | None = None,
) -> Images:
    """Pictures by name or path.

    Parameters
    ----------
    source : str or Path
        ``digits`` (scikit-learn's, 8 x 8), ``mnist`` (5,000 of them), ``cifar10``; a folder of picture files, with or
        without a folder a class and a folder a split; a parquet file, or a folder of them in the hub's layout; or a
        hub id of a data set in parquet, where there is internet. ``./digits`` is a folder of that name.
    split : str, optional
        ``train``, ``validation``, ``test``, or how else a split is called; needed where there are several. Of pictures
        without splits it is the part that a hash of their content puts there (70, 15 and 15 %), which ``notes`` says.
    data : str or Path, optional
        For ``cifar10``: the folder that holds it; by default it is fetched from the hub (``uoft-cs/cifar10``).
    image_column, label_column, class_names
        Of parquet, see `rankwise.data.images.parquet.read_parquet`.
    labelled, class_names
        Of folders, see `rankwise.data.images.folders.read_folder`.

    Raises
    ------
    ValueError
        An unknown name, nothing there, bad pictures (named), bad labels, an option that does not apply.
    ImportError
        Pillow, pyarrow, scikit-learn or huggingface_hub is needed and not installed.

    Examples
    --------
    >>> from rankwise.data import read_images
    >>> images = read_images("digits", split="test")
    >>> images[0].shape, images.label_names[:3]
    ((8, 8, 3), ['0', '1', '2'])
    >>> pixels, labels, rows = next(images.batches(32, seed=0))
    >>> pixels.shape, pixels.dtype, labels.dtype
    ((32, 8, 8, 3), dtype('uint8'), dtype('int64'))
    """
    columns = {"image_column": image_column, "label_column": label_column}
    if data is not None and source != "cifar10":
        raise ValueError(f"data={data} is for cifar10; '{source}' is a source itself")
    if source in ("digits", "mnist"):
        _refuse(str(source), {**columns, "class_names": class_names, "labelled": labelled})
        return (_digits() if source == "digits" else _mnist()).part(split)
    if source == "cifar10":
        class_names = class_names or CIFAR10
        source = Path(data) if data is not None else "uoft-cs/cifar10"
    path = Path(source).expanduser()
    if not str(source) or (data is not None and not path.exists()):
        raise ValueError(f"no such file or folder: '{source}'")
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(f"{path}: pictures are read from a folder or a parquet file; read_image reads one file")
    if not path.exists():
        path = _from_hub(str(source), split)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        from rankwise.data.images.folders import read_folder

        _refuse(f"{path}, a folder of pictures,", columns)
        return read_folder(path, split=split, labelled=labelled, class_names=class_names)
    from rankwise.data.images.parquet import read_parquet

    _refuse(f"{path}, which is parquet,", {"labelled": labelled})
    return read_parquet(path, split=split, class_names=class_names, **columns)


def _refuse(where: str, options: dict[str, Any]) -> None:
    if given := [name for name, value in options.items() if value not in (None, ())]:
        raise ValueError(f"{where} has no use for {', '.join(given)}")


def _digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels, 17 greys scaled to 0 to 255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits are scikit-learn's: pip install 'rankwise[images]'") from error
    from rankwise.data.images import Images

    found: Any = load_digits()
    return Images.of((found.images * 255 / 16).round().astype(np.uint8), labels=found.target, name="digits")


def _mnist() -> Images:
    from rankwise.data.images import Images
    from rankwise.data.moving import digits

    pixels, labels = digits()
    return Images.of(pixels, labels=labels, name="mnist")


def _from_hub(name: str, split: str | None) -> Path:
    """The folder of a data set's parquet files, those of the split alone; fetched, or cached where there is no net."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).suffix.lower() in (*SUFFIXES, ".parquet"):
        raise ValueError(f"no such file or folder: {name}") if "/" in name else unknown("pictures", name, PICTURES)
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise ImportError("data sets on the hub need: pip install 'rankwise[images]'") from error
    try:
        for revision in (None, "refs/convert/parquet"):  # where the hub keeps its own conversion
            there = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
            if files := [Path(f) for f in there if f.endswith(".parquet")]:
                break
    except Exception as error:
        try:
            return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
        except Exception:
            why = str(error).partition("\n")[0]
            raise OSError(f"{name} is no folder here and cannot be fetched from the hub: {why}") from error
    if not files:
        raise ValueError(f"{name} has no parquet files on the hub")
    wanted = [str(f) for f in chosen(shards(files, Path()), split, name)]
    return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
