"""A folder of pictures by class made into a few pictures and what makes their labels; students of such a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.events import OnEvent
from rankwise.files import whole_folder, write_json
from rankwise.jobs.early import DISTILLED, STUDENTS, check_distillation, check_student, there
from rankwise.nearest import unknown
from rankwise.reading import read_json, read_tensors

if TYPE_CHECKING:
    from torch import nn

    from rankwise.data import Images
    from rankwise.vision import DistilledDataset

EPOCHS = 300  # for which stored labels are counted


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What was made.

    Attributes
    ----------
    few : DistilledDataset
    real_bytes, stored_bytes : int
        Of the real pictures, uint8 at the same size, and of a label of every view of 300 epochs in float16.
    pictures : int
        That were distilled.
    """

    few: DistilledDataset
    real_bytes: int
    stored_bytes: int
    pictures: int

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people."""
        held = self.few.nbytes
        return ["kept", "bytes"], [
            [f"{len(self.few):,} pictures", f"{held.images:,}"],
            ["what makes their labels", f"{held.projector:,}"],
            ["their classes", f"{held.labels:,}"],
            ["names, texts, shapes", f"{held.described:,}"],
            [f"instead: labels of {EPOCHS} epochs in float16", f"{self.stored_bytes:,}"],
            [f"instead: all {self.pictures:,} pictures", f"{self.real_bytes:,}"],
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        held = self.few.nbytes
        told = {"pictures": len(self.few), "classes": self.few.label_names, "ipc": self.few.ipc}
        told |= {"images": held.images, "projector": held.projector, "labels": held.labels, "total": held.total}
        return told | {"stored_labels": self.stored_bytes, "real": self.real_bytes, "notes": self.few.notes}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A student and what it says of test pictures.

    Attributes
    ----------
    accuracy : float
        Share of test pictures named right, after the last epoch.
    by_class : dict of str to float
        The same of each class that occurs.
    tested, trained : int
        Test pictures, and distilled ones.
    notes : list of str
        What the user should know.
    """

    accuracy: float
    by_class: dict[str, float]
    tested: int
    trained: int
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people."""
        return ["class", "accuracy"], [[name, f"{share:.1%}"] for name, share in self.by_class.items()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"accuracy": self.accuracy, "by_class": self.by_class, "tested": self.tested, "trained": self.trained,
                "notes": self.notes}  # fmt: skip


def distill_pictures(
    data: str, out: Path, *, model: str = "clip-cifar10", template: str = "a photo of {}", ipc: int = 10,
    tiles: int = 2, rank: int = 8, head_rank: int = 64, teachers: int = 3, epochs: int = 10, lr: float = 5e-3,
    update_images: bool = False, empty: bool = False, flip: bool = True, split: str | None = None,
    limit: int | None = None, seed: int = 0,
    report: Callable[[Path, Distilled], None] = lambda folder, done: None, on_event: OnEvent | None = None,
) -> Distilled:  # fmt: skip
    """Write the distilled data set of a folder whose folders are classes.

    Parameters
    ----------
    data : str
        As `rankwise.data.read_images` takes it.
    out : Path
        A folder: ``distilled.safetensors``, ``distilled.json``, and what ``report`` adds.
    model, template : str
        The base and the text of a class, as of `rankwise.vision.Distiller`.
    ipc, tiles, rank, head_rank, teachers, epochs, lr, update_images, empty
        As of `rankwise.vision.Distiller`.
    flip : bool
        Whether views are mirrored.
    split : str, optional
        Of the data, where there are several.
    limit : int, optional
        Most pictures, chosen by their content.
    seed : int
        Of all draws.
    report : callable
        Writes pages into the draft.
    on_event : callable, optional
        Told what goes on.

    Raises
    ------
    ValueError
        As `check_distillation`, `rankwise.data.read_images` and `rankwise.vision.Distiller`.
    """
    options: dict[str, Any] = {"ipc": ipc, "tiles": tiles, "rank": rank, "head_rank": head_rank, "teachers": teachers}
    options |= {"epochs": epochs, "seed": seed}
    check_distillation(data, out, model=model, template=template, limit=limit, lr=lr, **options)
    from rankwise.data import read_images
    from rankwise.vision import Distiller, Views
    from rankwise.vision.distilled.rivals import label_bytes

    images = read_images(data, split=split).head(limit)
    options |= {"update_images": update_images, "empty": empty}
    distiller = Distiller(model, template, views=Views(flip=flip), lr=lr, **options)
    few = distiller.fit(images, on_event=on_event)
    few.told["content"] = images.fingerprint()
    classes, one = len(few.label_names), few.images[0].numel()
    done = Distilled(few=few, real_bytes=len(images) * one, stored_bytes=label_bytes(len(few), classes, epochs=EPOCHS),
                     pictures=len(images))  # fmt: skip
    with whole_folder(out, made_by=DISTILLED, inputs=there(data, model)) as draft:
        few.write(draft)
        report(draft, done)
    return done


def train_from(
    run: Path, data: str, *, out: Path | None = None, split: str | None = None, student: str = "convnet",
    width: int = 32, epochs: int = EPOCHS, seed: int = 0, on_event: OnEvent | None = None,
) -> Judged:  # fmt: skip
    """Train a student from a distilled data set alone, and judge it on test pictures.

    Parameters
    ----------
    run : Path
        A folder of `distill_pictures`.
    data : str
        Test pictures by class, as `rankwise.data.read_images` takes them.
    out : Path, optional
        A folder for the student, which `load_student` reads.
    split : str, optional
        Of the test pictures.
    student : {"convnet", "resnet"}
        See `rankwise.vision.distilled.networks.network`.
    width, epochs, seed : int
        Channels of its first stage, passes over the distilled pictures, of all draws.
    on_event : callable, optional
        Told of every epoch.

    Raises
    ------
    ValueError
        As `check_student`; test pictures of classes that were not distilled.
    """
    check_student(run, data, out, student=student, width=width, epochs=epochs, seed=seed)
    import torch

    from rankwise.data import read_images
    from rankwise.vision import DistilledDataset, train_student
    from rankwise.vision.distilled.networks import network
    from rankwise.vision.distilled.pictures import collected
    from rankwise.vision.distilled.teachers import colours, logits_of

    few = DistilledDataset.load(run)
    test = _of_classes(read_images(data, split=split), few.label_names)
    real = collected(test, few.images.shape[-1], whole=False)
    mean, std = colours(few.images)
    torch.manual_seed(seed)
    model = network(student, len(few.label_names), width=width, mean=mean, std=std)
    tell = on_event or (lambda *_: None)
    train_student(model, few, epochs=epochs, seed=seed,
                  on_epoch=lambda e, of, loss: tell(f"{student} from {run.name}", "train", e, of, loss))  # fmt: skip
    with torch.no_grad():
        said = torch.cat([logits_of(model, p.float() / 255).argmax(1) for p in real.images.split(500)])
    right = (said == real.classes).float()
    by_class = {n: float(right[real.classes == i].mean()) for i, n in enumerate(real.names) if i in real.classes}
    notes = list(dict.fromkeys([*few.notes, *real.notes]))
    if few.told.get("content") == test.fingerprint():
        notes.append("the test pictures are the very ones that were distilled: this is no test")
    if out is not None:
        _write_student(model, out, {"student": student, "width": width, "label_names": few.label_names, "mean": mean,
                                    "std": std, "size": few.images.shape[-1]}, inputs=[run, *there(data)])  # fmt: skip
    return Judged(accuracy=float(right.mean()), by_class=by_class, tested=len(right), trained=len(few), notes=notes)


def _of_classes(images: Images, names: list[str]) -> Images:
    """Labels by the distilled data's order of classes."""
    from dataclasses import replace

    import numpy as np

    if images.labels is None:
        raise ValueError(f"{images.name}: no classes: folders are classes")
    used = sorted({images.label_names[i] for i in images.labels.tolist()})
    if strange := [n for n in used if n not in names]:
        raise unknown("class", strange[0], names)
    at = np.array([names.index(n) if n in names else -1 for n in images.label_names])
    return replace(images, labels=at[images.labels].astype(np.int64), label_names=names)


def _write_student(model: nn.Module, out: Path, told: Mapping[str, Any], *, inputs: list[Path | str]) -> None:
    from safetensors.torch import save_file

    with whole_folder(out, made_by=STUDENTS, inputs=inputs) as draft:
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, draft / "student.safetensors")
        write_json(draft / "student.json", dict(told))


def load_student(folder: str | Path) -> tuple[nn.Module, list[str]]:
    """A student that `train_from` wrote, and the names of its classes.

    Raises
    ------
    ValueError
        No student, or a damaged one.
    """
    from rankwise.vision.distilled.networks import network

    folder = Path(folder)
    told, held = read_json(folder / "student.json"), read_tensors(folder / "student.safetensors")
    try:
        names = [str(n) for n in told["label_names"]]
        model = network(told["student"], len(names), width=int(told["width"]), mean=told["mean"], std=told["std"])
        model.load_state_dict(held)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no student that can be read: {error}") from error
    return model.eval(), names
