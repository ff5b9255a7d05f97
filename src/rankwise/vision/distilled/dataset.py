"""A few pictures and what makes their labels: looked at, streamed, kept as two files, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from rankwise.files import whole_folder
from rankwise.reading import read_json, read_tensors
from rankwise.vision.distilled import projector as projectors
from rankwise.vision.distilled.projector import Projector, Seeing, based, projected
from rankwise.vision.distilled.rivals import rows_of, shown
from rankwise.vision.distilled.views import Views

__all__ = ["DistilledDataset"]

MADE_BY = "distill"
TENSORS, TOLD = "distilled.safetensors", "distilled.json"


@dataclass(frozen=True)
class Bytes:
    """What a distilled data set takes on disk.

    Attributes
    ----------
    images, projector, labels : int
        The pictures, the adapters' numbers, the classes.
    described : int
        Everything else of both files: names, texts, shapes.
    """

    images: int
    projector: int
    labels: int
    described: int

    @property
    def total(self) -> int:
        """Of both files."""
        return self.images + self.projector + self.labels + self.described


class DistilledDataset(Dataset):
    """A few pictures and what makes their labels.

    Attributes
    ----------
    images : Tensor
        ``(classes · ipc, 3, s, s)``, uint8, class by class.
    classes : Tensor
        ``(classes · ipc,)``, int64.
    label_names : list of str
        Of the classes.
    projector : nn.Module
        Pictures in [0, 1] to logits, a `Projector`, wrapped by PEFT where it has adapters.
    views : Views
        How pictures are shown to a student, by default.
    told : dict
        How it was made: base, texts, ranks, seeds.
    notes : list of str
        What the user should know.

    Examples
    --------
    >>> from rankwise.data import Images
    >>> import numpy as np
    >>> from rankwise.vision import Distiller
    >>> noise = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    >>> images = Images.of(noise, labels=np.arange(12) % 2, label_names=["cat", "dog"])
    >>> few = Distiller("clip-cifar10", "a photo of {}", rank=1, teachers=1, ipc=1, epochs=1).fit(images)
    >>> picture, label = few[0]
    >>> picture.shape, few.labels(picture[None]).shape, few.nbytes.images
    (torch.Size([3, 32, 32]), torch.Size([1, 2]), 6144)
    """

    def __init__(
        self, images: Tensor, classes: Tensor, projector: nn.Module, *, label_names: Sequence[str], views: Views,
        told: Mapping[str, Any], notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.images, self.classes, self.projector, self.views = images, classes, projector, views
        self.label_names, self.told, self.notes = list(label_names), dict(told), list(notes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """A picture in [0, 1] and its class."""
        return self.images[row].float() / 255, int(self.classes[row])

    @property
    def ipc(self) -> int:
        """Pictures of a class."""
        return len(self.images) // len(self.label_names)

    @torch.no_grad()
    def labels(self, view: Tensor) -> Tensor:
        """Logits of pictures ``(n, 3, s, s)`` in [0, 1], as they are given: augmented and mixed before, not after."""
        return self.projector(view.to(next(self.projector.parameters()).device))

    def stream(self, batch_size: int = 50, *, epoch: int = 0, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Views and their labels of one epoch, for a training loop of one's own.

        Parameters
        ----------
        batch_size : int
            Pictures a step.
        epoch, seed : int
            Together they decide order and views.

        Yields
        ------
        tuple of Tensor
            ``(n, 3, s, s)`` in [0, 1] and ``(n, classes)`` logits.
        """
        for step, rows in enumerate(rows_of(len(self), batch_size, seed, epoch)):
            view = shown(self.images, rows, self.views, (seed, epoch, step)).pixels
            yield view, self.labels(view)

    @property
    def nbytes(self) -> Bytes:
        """What `save` writes, by kind."""
        tensors, text = self._tensors(), self._text()
        sizes = {n: t.numel() * t.element_size() for n, t in tensors.items()}
        adapters = sum(v for n, v in sizes.items() if n.startswith("projector."))
        rest = len(save(tensors)) + len(text.encode()) - sum(sizes.values())
        return Bytes(sizes["images"], adapters, sizes["classes"], rest)

    def _tensors(self) -> dict[str, Tensor]:
        kind = torch.int16 if len(self.label_names) < 2**15 else torch.int32
        held = {f"projector.{n}": p.detach().half().cpu() for n, p in projectors.numbers(self.projector).items()}
        held |= {"images": self.images, "classes": self.classes.to(kind)}
        return {n: t.contiguous() for n, t in held.items()}

    def _text(self) -> str:
        told = {"views": asdict(self.views), "label_names": self.label_names, "notes": self.notes, **self.told}
        return json.dumps(told, indent=1, ensure_ascii=False)

    def save(self, folder: str | Path, *, inputs: Sequence[Path | str] = ()) -> Path:
        """Write pictures and adapters (``distilled.safetensors``) and ``distilled.json``; nothing of the base.

        Parameters
        ----------
        folder : str or Path
            Made when it is whole; what `save` wrote before is replaced, anything else refused.
        inputs : sequence of path
            What must not be replaced.
        """
        with whole_folder(Path(folder), made_by=MADE_BY, inputs=inputs) as draft:
            self.write(draft)
        return Path(folder)

    def write(self, folder: str | Path) -> None:
        """Both files into a folder that is there."""
        (Path(folder) / TENSORS).write_bytes(save(self._tensors()))
        (Path(folder) / TOLD).write_text(self._text(), encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: str | nn.Module | None = None,
        head: Tensor | None = None,
        tokenizer: Any = None,
        seeing: Seeing | None = None,
    ) -> DistilledDataset:
        """What `save` wrote, its head rebuilt from the base and the texts.

        Parameters
        ----------
        folder : str or Path
            Of `save`.
        base : str or nn.Module, optional
            By default the model that was named when it was made; needed where it was given as an object.
        head : Tensor, optional
            Where it was made with numbers instead of texts.
        tokenizer, seeing
            As of `Distiller`, for a base that is an object.

        Raises
        ------
        ValueError
            A damaged folder, or another base, head or ranks than it was made with.
        """
        folder = Path(folder)
        if not (folder / TOLD).is_file():
            raise ValueError(f"{folder} holds no distilled data set: {TOLD} is missing")
        told, tensors = read_json(folder / TOLD), read_tensors(folder / TENSORS)
        names, views, notes, images, classes = _checked(folder, told, tensors)
        if base is None and (base := told["base"]) is None:
            raise ValueError(f"{folder} was made with a base that has no name: give it as base=…")
        if told["texts"] is None and head is None:
            raise ValueError(f"{folder} was made with a head of numbers: give it as head=…")
        if told["texts"] is not None and head is not None:
            raise ValueError(f"{folder} was made with texts: leave head out")
        texts: Any = head if told["texts"] is None else told["texts"]
        encoder, rows = based(base, texts, tokenizer)
        if told["weights"] != projectors.weights_hash(encoder):
            raise ValueError(f"{folder} was made with a base of other weights: labels would be others")
        projectors.check_rows(rows, told["head"])
        seen = projectors.seeing_of(base, seeing)
        if asdict(seen) != {k: tuple(v) if isinstance(v, list) else v for k, v in told["seeing"].items()}:
            raise ValueError(f"{folder} was made with a base that takes pictures as {told['seeing']}, not as {seen}")
        model = projected(Projector(encoder, rows, seen), told["rank"], told["head_rank"], told["seed"])
        held = {n.removeprefix("projector."): t for n, t in tensors.items() if n.startswith("projector.")}
        projectors.give(model, held)
        return cls(images, classes, model, label_names=names, views=views, notes=notes, told=told)


def _checked(folder: Path, told: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Names, views, notes, pictures and classes; ``told`` keeps the rest."""
    needed = {
        "views",
        "label_names",
        "notes",
        "base",
        "texts",
        "weights",
        "head",
        "seeing",
        "rank",
        "head_rank",
        "seed",
    }
    if missing := sorted(needed - told.keys()):
        raise ValueError(f"{folder / TOLD} has no {missing[0]}")
    for name, kind in (("base", str), ("texts", list), ("seeing", dict), ("head", dict)):
        if not isinstance(told[name], kind) and not (told[name] is None and kind in (str, list)):
            raise ValueError(f"{folder / TOLD}: {name} is a {type(told[name]).__name__}, not a {kind.__name__}")
    if told["head"].keys() != {"sha256", "sums"} or not all(isinstance(t, str) for t in told["texts"] or ()):
        raise ValueError(f"{folder / TOLD}: no sums of the head, or texts that are none")
    try:
        held: dict[str, Any] = told.pop("views")
        held["scale"] = tuple(held["scale"])
        views = Views(**held)
        names, notes = [str(n) for n in told.pop("label_names")], [str(n) for n in told.pop("notes")]
        ranks = [int(told[k]) for k in ("rank", "head_rank", "seed")]
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / TOLD}: {error}") from error
    images, classes = (tensors.get(name) for name in ("images", "classes"))
    if images is None or classes is None or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{folder / TENSORS} holds no pictures with classes")
    counts = torch.bincount(classes.long().clamp(min=0), minlength=len(names))
    if len(classes) != len(images) or len(counts) != len(names) or len(set(counts.tolist())) > 1 or min(ranks) < 0:
        raise ValueError(f"{folder}: not as many pictures of every class, or ranks below 0")
    return names, views, notes, images, classes.long()
