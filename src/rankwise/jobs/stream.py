"""A folder or a list of pictures through a classifier that adapts to them as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.data.tables import write_rows
from rankwise.jobs.early import STREAM_METHODS, check_stream
from rankwise.jobs.interrupts import uninterrupted
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from rankwise.continual.stream import StreamAdapter
    from rankwise.data import Images

LISTED = "-"  # names of pictures on standard input


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What was predicted.

    Attributes
    ----------
    rows : list of dict
        One a picture, in the order seen: ``image``, ``predicted``, ``probability``, ``source`` (what the model says
        that never adapts), ``batch``, and ``uncertainty`` where the method measures it.
    error, source_error : float or None
        Share of pictures predicted wrongly, adapting and not; ``None`` where nothing says what they are.
    skipped : int
        Batches that taught nothing.
    notes : list of str
        What the user should know.
    """

    rows: list[dict[str, Any]]
    error: float | None
    source_error: float | None
    skipped: int
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people."""
        other = sum(r["predicted"] != r["source"] for r in self.rows)
        found = [["pictures", f"{len(self.rows):,}"], ["predicted otherwise than by the source model", f"{other:,}"]]
        if self.error is not None and self.source_error is not None:
            found += [
                ["error, adapting", f"{self.error:.1%}"],
                ["error of the source model", f"{self.source_error:.1%}"],
            ]
        return ["stream", ""], found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"pictures": len(self.rows), "error": self.error, "source_error": self.source_error}
        return told | {"skipped": self.skipped, "notes": self.notes, "rows": self.rows}


def adapt_to_pictures(
    images: str,
    *,
    model: str,
    out: Path,
    method: str = "vida",
    preset: str = "cifar10c",
    batch_size: int = 40,
    classes: bool = False,
    state: Path | None = None,
    seed: int = 0,
    listed: Iterable[str] = (),
    each: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, _: items,
) -> Streamed:
    """Predict pictures batch by batch with a model that adapts to them, and write a table of what it said.

    Parameters
    ----------
    images : str
        A folder of pictures, which come in the order of their names, or ``-`` for ``listed``.
    model : str
        An image classifier: a bundled name, a folder, or a hub id.
    out : Path
        A csv, tsv, jsonl, json or parquet file.
    method : {"vida", "tent", "cotta"}
    preset : str
        Of the method.
    batch_size : int
        Pictures a step.
    classes : bool
        Folders are the model's classes: the error is told, and pictures come in a drawn order, since a stream sorted by
        class misleads what adapts to it.
    state : Path, optional
        A folder: what was learned is read from it, if it is there, and written to it at the end.
    seed : int
        Of all draws.
    listed : iterable of str
        Names of picture files, as they come.
    each : callable
        Wraps the batches, to show progress.

    Raises
    ------
    ValueError
        As `check_stream`; pictures that cannot be read; a state of another model, method or preset. Where a listed
        picture cannot be read, the table and the state of those before it are written first.
    KeyboardInterrupt
        After the batch at hand; the table and the state of what was predicted are written first.
    """
    check_stream(images, out, model=model, method=method, preset=preset, batch_size=batch_size, state=state, seed=seed)
    from rankwise.models import load, load_image_processor
    from rankwise.models.loading import placed

    network, processor = placed(load(model, task="image-classification").eval()), load_image_processor(model)
    names = {int(i): str(name) for i, name in (network.config.id2label or {}).items()}
    found = None if images == LISTED else _folder(images, list(names.values()) if classes else None)
    adapter = _adapter(network, processor, method, preset, seed)
    if state is not None and (state / "state.json").is_file():
        adapter.load(state)
    source = placed(load(model, task="image-classification").eval())
    batches: Iterable[list[tuple[str, Image, str | None]]]
    stopped: list[ValueError | KeyboardInterrupt] = []
    if found is None:
        batches = _batches(_opened(listed, stopped), batch_size)
    else:
        order = np.random.default_rng(seed).permutation(len(found)) if classes else np.arange(len(found))
        batches = list(_batches(_taken(found, order), batch_size))
    rows = _predicted(each(batches, "adapting"), processor, source, adapter, names, stopped)
    if not rows:
        raise stopped[0] if stopped else ValueError("no picture was listed: nothing was predicted")
    write_rows(out, [{k: v for k, v in row.items() if k != "label"} for row in rows])
    if state is not None:
        adapter.save(state)
    if stopped and isinstance(stopped[0], KeyboardInterrupt):
        raise KeyboardInterrupt(f"the {len(rows)} pictures predicted until then are in {out}") from stopped[0]
    if stopped:
        raise ValueError(f"{stopped[0]}; the {len(rows)} pictures listed before it are in {out}") from stopped[0]
    return _judged(rows, adapter, [] if found is None else found.notes)


def _predicted(
    batches: Iterable[Any], processor: Any, source: Any, adapter: StreamAdapter, names: dict[int, str],
    stopped: list[Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of all batches, or of those up to an interrupt, which is put into ``stopped``."""
    import torch

    rows: list[dict[str, Any]] = []
    try:
        for number, batch in enumerate(batches, 1):
            with uninterrupted():  # half a step is no state to go on from
                pixels = processor([picture for _, picture, _ in batch], return_tensors="pt")["pixel_values"]
                pixels = pixels.to(source.device)
                with torch.no_grad():
                    plain = source(pixel_values=pixels).logits
                rows += _rows(batch, adapter.predict({"pixel_values": pixels}), plain, names, number, adapter)
    except KeyboardInterrupt as stop:
        stopped.append(stop)
    return rows


def _adapter(network: Any, processor: Any, method: str, preset: str, seed: int) -> StreamAdapter:
    from rankwise import continual

    kind = getattr(continual, STREAM_METHODS[method][0])
    colours = {}
    if getattr(processor, "do_normalize", True):
        colours = {"mean": processor.image_mean, "std": processor.image_std}
    return kind(network, preset=preset, seed=seed, **colours)


def _folder(images: str, classes: list[str] | None) -> Images:
    from rankwise.data import read_images

    found = read_images(Path(images).absolute(), labelled=classes is not None).check()
    if classes is not None and (strange := set(found.label_names) - set(classes)):
        raise unknown("class", min(strange), classes)
    if classes is None and len({Path(key).parent for key in found.keys}) > 1:
        found = found.noting("pictures come folder by folder; where folders are classes, --classes draws the order")
    return found


def _taken(images: Images, order: np.ndarray) -> Iterator[tuple[str, Image, str | None]]:
    for i in order.tolist():
        label = None if images.labels is None else images.label_names[int(images.labels[i])]
        yield images.keys[i] if images.keys else str(i), images.pil(i), label


def _opened(listed: Iterable[str], stopped: list[Any]) -> Iterator[tuple[str, Image, str | None]]:
    """Pictures as they are listed, up to the first that cannot be read, whose error is put into ``stopped``."""
    from PIL import Image

    from rankwise.data.images import read_image

    for line in listed:
        if name := line.rstrip("\r\n"):
            try:
                pixels = read_image(Path(name)).astype(np.uint8, copy=False)
            except ValueError as error:
                stopped.append(error)
                return
            yield name, Image.fromarray(pixels).convert("RGB"), None


def _batches(pictures: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows(
    batch: list[tuple[str, Any, str | None]], said: Tensor, plain: Tensor, classes: dict[int, str], number: int,
    adapter: StreamAdapter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    last = getattr(adapter, "last", None)
    p, which = said.softmax(1).max(1)
    for i, (name, _, label) in enumerate(batch):
        row = {
            "image": name,
            "predicted": classes[int(which[i])],
            "probability": round(float(p[i]), 6),
            "source": classes[int(plain[i].argmax())],
            "batch": number,
        }
        if last is not None:
            row["uncertainty"] = round(float(last.uncertainty), 6)
        yield row | {"label": label}


def _judged(rows: list[dict[str, Any]], adapter: StreamAdapter, notes: list[str]) -> Streamed:
    labels = [row.pop("label") for row in rows]
    error = source_error = None
    if None not in labels:
        error, source_error = (
            sum(row[k] != label for row, label in zip(rows, labels, strict=True)) / len(rows)
            for k in ("predicted", "source")
        )
    return Streamed(rows=rows, error=error, source_error=source_error, skipped=adapter.skipped, notes=notes)
