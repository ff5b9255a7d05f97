"""HeLlO: a training set becomes a few pictures and a tiny generator of their labels.

Distilled pictures alone teach little; what teaches is a soft label of every view of every epoch, and those take more
room than the pictures: 300 epochs of one picture for each of 1,000 classes are 572 MiB of labels in float16. Here
labels are made when they are asked for, by a pretrained CLIP whose weights everybody has and adapters of low rank
(PEFT's LoRA on convolutions, linear layers and the head), which are all that is stored:

    f(x) = W · E(x) / |E(x)|,   W = W₀ + BA,   W₀ = exp(logit scale) · unit embeddings of the classes' texts
    adapters:  mean (f(x) - mean_t t(x))² + λ CE(f(x), y)       on the real pictures, over several weak teachers t
    pictures:  of each class the squares that a teacher names best, of those that show something, tiled 2 x 2 (RDED)
    student s: mean (s(v) - f(v))² + β CE(s(v), y)              on a view v, whose label is made for v itself

Source: Yu, Liu, Chen, Ye & Wang, Heavy Labels Out!, ICCV 2025, arXiv 2408.08201; no code was released. λ, β, rates and
what a teacher's checkpoints are the paper does not say: 0.1, 5e-3 and evenly spaced ones are ours, and so are the logit
scale in W₀, the float16 of what is stored, and B's and A's start at a least-squares fit: from B = 0, as published, a
small CLIP of narrow features hardly learns (``start="texts"``). RDED takes squares that show nothing where a teacher is
surest of them (``empty=True``).

What people get wrong: the loss is of logits, not of probabilities, and teachers' logits are averaged. A label belongs
to one view: that of the whole picture is another. A base that was trained on the very classes needs no adapters to name
them, and shows little of what they add.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.data.loading import CIFAR10
from rankwise.data.looks import article
from rankwise.events import OnEvent
from rankwise.nearest import unknown
from rankwise.vision.distilled import projector as projectors
from rankwise.vision.distilled.dataset import DistilledDataset
from rankwise.vision.distilled.losses import LOSSES, distance, hard
from rankwise.vision.distilled.pictures import Real, collected
from rankwise.vision.distilled.projector import Projector, Seeing
from rankwise.vision.distilled.rivals import rows_of, shown
from rankwise.vision.distilled.start import MOST, least_squares
from rankwise.vision.distilled.teachers import Mean, check_answers, check_teachers, snapshots
from rankwise.vision.distilled.tiles import as_bytes, best_squares, shrunk, tiled
from rankwise.vision.distilled.update import updated
from rankwise.vision.distilled.views import Views

__all__ = ["Distiller"]

STARTS = ("fitted", "texts")
LOOKED = 500  # real pictures on which labels are compared with the teachers'


class Distiller:
    """Makes a `DistilledDataset` of a labelled one.

    Parameters
    ----------
    base : str or nn.Module
        A CLIP of transformers by name (``clip-cifar10``, a folder, a hub id) or as an object; or any image encoder that
        gives ``(n, d)``.
    class_texts : str, sequence of str, or Tensor
        A text for each class, in order; one text in which ``{}`` stands for a class's name with its article; or, for an
        encoder alone, a head ``(classes, d)``.
    rank : int
        Of the adapters of convolutions and linear layers, at most what a layer can have. Default 8.
    head_rank : int
        Of the head's. Default 64.
    teachers : int or sequence of nn.Module
        Modules that give logits of pictures in [0, 1], whose logits are averaged; or how many snapshots of a small
        network are taken, which is trained first. Default 3.
    ipc : int
        Pictures of a class. Default 10.
    tiles : int
        Rows and columns of squares in a picture. Default 2.
    update_images : bool
        Change the tiles' pixels until the base reads a tile as the square it was made of. Default ``False``.
    start : {"fitted", "texts"}
        Where the head's adapter starts: at the least squares to the teachers' logits on the base's features, drawn to
        the texts (ours: features in a narrow cone are hardly learned from otherwise); or at nothing, so that the texts
        alone decide (published).
    epochs, lr, batch_size : int, float, int
        Of the adapters' training: 10, 5e-3 (ours; adapters of wide encoders need less), 64.
    weight : float
        λ, of the cross-entropy. Default 0.1.
    loss : {"mse", "centred", "kl"}
        The distance to the teachers' logits: squares of the differences (published); those less the mean over the
        classes, which changes no answer (ours: where the base's logits lie far from the teachers' as a whole, adapters
        would learn that first); the divergence of answers at temperature 4.
    crops, candidates : int
        Squares drawn of each picture, and pictures of each class: 5 and 300.
    empty : bool
        Whether squares that show nothing may be chosen, as published. Default ``False``: one whose spread is below a
        quarter of its picture's comes after all others of the class, since a teacher may be surest of a class where it
        sees nothing, as of the digit 1 on black.
    size : int, optional
        Pixels of a side; the base's own by default.
    views : Views, optional
        How pictures are shown while adapters and students learn; only the latter see shuffled tiles. The tiles'
        number is ``tiles``.
    tokenizer, seeing
        Of a base that is an object: its tokenizer, and a `Seeing` with size, mean and deviation of its pictures.
    device : str
        Where the base works and the adapters learn; what is returned is on the CPU. Default ``cpu``.
    precision : {"fp32", "bf16"}
        Of the adapters' training: ``bf16`` is autocast, faster where the processor has bfloat16.
    seed : int
        Of all draws.

    Raises
    ------
    ValueError
        A value out of range, a base that is no CLIP, options of another kind of base.

    Examples
    --------
    >>> from rankwise.vision import Distiller
    >>> distiller = Distiller("clip-cifar10", "a photo of {}", ipc=10)  # .fit(read_images("photos"))
    """

    def __init__(
        self,
        base: str | nn.Module,
        class_texts: str | Sequence[str] | Tensor,
        *,
        rank: int = 8,
        head_rank: int = 64,
        teachers: int | Sequence[nn.Module] = 3,
        ipc: int = 10,
        tiles: int = 2,
        update_images: bool = False,
        start: str = "fitted",
        epochs: int = 10,
        lr: float = 5e-3,
        batch_size: int = 64,
        weight: float = 0.1,
        loss: str = "mse",
        crops: int = 5,
        candidates: int = 300,
        empty: bool = False,
        size: int | None = None,
        views: Views | None = None,
        tokenizer: Any = None,
        seeing: Seeing | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        whole = {"rank": rank, "head_rank": head_rank, "ipc": ipc, "tiles": tiles, "epochs": epochs, "seed": seed}
        whole |= {"batch_size": batch_size, "crops": crops, "candidates": candidates, "size": size}
        check_options(**whole, lr=lr, weight=weight, loss=loss)
        check_teachers(teachers)
        _check_device(device)
        if views is not None and not isinstance(views, Views):
            raise ValueError(f"views={views!r}: a Views is accepted")
        if precision not in ("fp32", "bf16"):
            raise unknown("precision", precision, ("fp32", "bf16"))
        if start not in STARTS:
            raise unknown("start", start, STARTS)
        if isinstance(class_texts, str) and class_texts.count("{}") != 1:
            raise ValueError(f"class_texts='{class_texts}': one text has {{}} where a class's name goes, once")
        if isinstance(base, str) and tokenizer is not None:
            raise ValueError(f"{base} has a tokenizer of its own: leave tokenizer out")
        self.base, self.class_texts, self.tokenizer, self.seeing = base, class_texts, tokenizer, seeing
        self.rank, self.head_rank, self.teachers = rank, head_rank, teachers
        self.ipc, self.tiles, self.update_images = ipc, tiles, update_images
        self.epochs, self.lr, self.batch_size, self.weight, self.loss = epochs, lr, batch_size, weight, loss
        self.crops, self.candidates, self.empty, self.size, self.seed = crops, candidates, empty, size, seed
        self.device, self.precision, self.start = device, precision, start
        given = views or Views()
        self.views = Views(tiles=tiles, scale=given.scale, flip=given.flip, cutmix=given.cutmix)

    def fit(self, dataset: Any, *, on_event: OnEvent | None = None) -> DistilledDataset:
        """Distil.

        Parameters
        ----------
        dataset : Images or torch Dataset
            Pictures with classes; grey ones become three equal colours. Of a torch Dataset: pairs of a picture and a
            class index.
        on_event : callable, optional
            Told phase, step, steps and loss.

        Raises
        ------
        ValueError
            A class without pictures or with too few, texts that do not fit the classes, values that are no pictures.
        FloatingPointError
            The loss became NaN or infinite.
        """
        seeing = projectors.seeing_of(self.base, self.seeing)
        real = collected(dataset, self.size or seeing.size)
        self._enough(real)
        texts = _texts(self.class_texts, real.names)
        encoder, rows = projectors.based(self.base, texts, self.tokenizer)
        _fits(rows, real.names)
        notes = [*real.notes, *_doubts(self.base, rows, real.names)]
        base_hash = projectors.weights_hash(encoder)
        plain = Projector(encoder, rows, seeing)
        plain.check(real.images[:1].float() / 255)
        teachers = self._taught(real)
        squares = self.squares(real, teachers[-1], on_event)
        model = projectors.projected(plain, self.rank, self.head_rank, self.seed).to(self.device)
        if projectors.numbers(model):
            if self.start == "fitted" and self.head_rank:
                self._begin(model, real, Mean(teachers))
            self._learn(model, real, Mean(teachers), on_event)
        notes.append(self._compared(model, real, Mean(teachers)))
        images = self._pictures(model, squares)
        told = {
            "base": self.base if isinstance(self.base, str) else None,
            "texts": None if isinstance(texts, Tensor) else list(texts),
            "weights": base_hash,
            "head": projectors.checksum(rows),
            "seeing": asdict(seeing),
            **{k: getattr(self, k) for k in ("rank", "head_rank", "ipc", "update_images", "start", "epochs", "lr",
                                             "batch_size", "weight", "loss", "crops", "candidates", "empty", "seed")},
            "teachers": len(teachers),
            "pictures": len(real.images),
        }  # fmt: skip
        classes = torch.arange(len(real.names)).repeat_interleave(self.ipc)
        return DistilledDataset(
            images, classes, model.cpu(), label_names=real.names, views=self.views, told=told, notes=notes
        )

    def _enough(self, real: Real) -> None:
        need = self.ipc * self.tiles**2
        counts = torch.bincount(real.classes, minlength=len(real.names)).clamp(max=self.candidates)
        least = int(counts.argmin())
        if (has := int(counts[least])) < need:
            fix = f"ipc={has // self.tiles**2}" if has >= self.tiles**2 else f"tiles=1 and ipc={has} at most"
            raise ValueError(
                f"class '{real.names[least]}' gives {has} squares, one a picture, and ipc={self.ipc} with {self.tiles} "
                f"x {self.tiles} tiles needs {need}: {fix}, more pictures, or more candidates"
            )
        if self.tiles > real.images.shape[-1]:
            raise ValueError(f"tiles={self.tiles}: pictures have {real.images.shape[-1]} pixels a side")

    def _taught(self, real: Real) -> list[nn.Module]:
        if not isinstance(self.teachers, int):
            check_answers(self.teachers, real.images[:1].float() / 255, len(real.names))
            return list(self.teachers)
        return snapshots(real.images, real.classes, len(real.names), number=self.teachers, seed=self.seed,
                         views=Views(scale=self.views.scale, flip=self.views.flip, cutmix=0.0))  # fmt: skip

    def squares(self, real: Real, teacher: nn.Module, on_event: OnEvent | None = None) -> Tensor:
        """The best squares, ``(tiles², classes, ipc, 3, s, s)``: the first ``ipc`` of a class come first."""
        found = []
        for label in range(len(real.names)):
            rng = np.random.default_rng([self.seed, label])
            rows = torch.from_numpy(rng.permutation((real.classes == label).nonzero()[:, 0].numpy()))
            pictures = real.images[rows[: self.candidates]].float() / 255
            keep = self.ipc * self.tiles**2
            best = best_squares(pictures, label, Mean([teacher]), crops=self.crops, keep=keep, rng=rng,
                                empty=self.empty)  # fmt: skip
            found.append(best.unflatten(0, (self.tiles**2, self.ipc)))
            if on_event:
                on_event("squares", "train", label + 1, len(real.names), float("nan"))
        return torch.stack(found, 1)

    @torch.no_grad()
    def _begin(self, model: nn.Module, real: Real, teacher: nn.Module) -> None:
        """Put the head's adapter at the least squares on one view of each picture, the first ones of the training."""
        inner, views = projectors.within(model), self._training_views()
        features, taught = [], []
        order = rows_of(len(real.images), self.batch_size, self.seed, 0)
        for step, rows in enumerate(order[: math.ceil(MOST / self.batch_size)]):
            pixels = shown(real.images, rows, views, (self.seed, 0, step)).pixels.to(self.device)
            with self._precisely(pixels):
                features.append(inner.features(pixels).float().cpu())
            taught.append(teacher(pixels).cpu())
        head = cast(Any, inner.head)
        down, up = head.lora_A["default"].weight, head.lora_B["default"].weight
        found = least_squares(torch.cat(features), torch.cat(taught), head.base_layer.weight.cpu(), len(down))
        for held, value in zip((down, up), found, strict=True):
            held.copy_(value)

    def _training_views(self) -> Views:
        return Views(scale=self.views.scale, flip=self.views.flip, cutmix=self.views.cutmix)

    def _precisely(self, pixels: Tensor) -> torch.autocast:
        return torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _learn(self, model: nn.Module, real: Real, teacher: nn.Module, on_event: OnEvent | None) -> None:
        """Fit the adapters to the mean of the teachers' logits, on views of real pictures."""
        trained = list(projectors.numbers(model).values())
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        steps = self.epochs * math.ceil(len(real.images) / self.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps))
        views, done = self._training_views(), 0
        for epoch in range(self.epochs):
            for step, rows in enumerate(rows_of(len(real.images), self.batch_size, self.seed, epoch)):
                view = shown(real.images, rows, views, (self.seed, epoch, step))
                pixels, truth = view.pixels.to(self.device), real.classes[rows].to(self.device)
                with self._precisely(pixels):
                    said = model(pixels).float()
                value = projector_loss(said, teacher(pixels), truth, view.other, view.share,
                                       weight=self.weight, loss=self.loss)  # fmt: skip
                value.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                done += 1
                if not math.isfinite(loss := float(value.detach())):
                    raise FloatingPointError(f"the loss became {loss}: lower lr={self.lr}")
                if on_event:
                    on_event("labels", "train", done, steps, loss)
        projectors.halved(model)

    @torch.no_grad()
    def _compared(self, model: nn.Module, real: Real, teacher: nn.Module) -> str:
        """How often labels name what the teachers name, of real pictures as they are."""
        rows = rows_of(len(real.images), LOOKED, self.seed, 0)[0]
        parts = [part.float() / 255 for part in real.images[rows].split(self.batch_size)]
        said, taught = (torch.cat([m(p.to(self.device)).cpu().argmax(1) for p in parts]) for m in (model, teacher))
        same, right, best = (float((a == b).float().mean()) for a, b in ((said, taught), (said, real.classes[rows]),
                                                                        (taught, real.classes[rows])))  # fmt: skip
        return (f"of {len(rows):,} of the pictures that were distilled, labels name {same:.0%} as the teachers do, and "
                f"{right:.0%} rightly (teachers {best:.0%})")  # fmt: skip

    def _pictures(self, model: nn.Module, squares: Tensor) -> Tensor:
        """Tiled pictures ``(classes · ipc, 3, s, s)``, uint8, class by class."""
        whole = squares.flatten(1, 2)  # (tiles², classes · ipc, 3, s, s)
        parts = shrunk(whole.flatten(0, 1), self.tiles)
        if self.update_images:
            parts = [self._updated(small, large, model) for small, large in zip(parts, whole, strict=True)]
        return as_bytes(tiled(parts))

    def _updated(self, small: Tensor, large: Tensor, model: nn.Module) -> Tensor:
        inner = projectors.within(model)
        pairs = zip(small.split(self.batch_size), large.split(self.batch_size), strict=True)
        return torch.cat([updated(s, p, lambda x: inner.features(x.to(self.device)).cpu()) for s, p in pairs])


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over a tenth of the steps, down by half a period of a cosine.

    Examples
    --------
    >>> from rankwise.vision.hello import rate
    >>> [round(rate(step, 100), 3) for step in (0, 9, 50, 99)]
    [0.1, 0.98, 0.5, 0.0]
    """
    return min((step + 1) / max(1, steps // 10), 0.5 * (1 + math.cos(math.pi * step / steps)))


def projector_loss(
    logits: Tensor, taught: Tensor, classes: Tensor, other: Tensor, share: float, *, weight: float, loss: str = "mse"
) -> Tensor:
    """``mean (f - t)² + λ CE``, the latter on the classes of mixed pictures.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.hello import projector_loss
    >>> two, truth, self = torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([0])
    >>> [float(projector_loss(two, k * two, truth, self, 1.0, weight=0.0)) for k in (1, 2)]  # of logits, not of answers
    [0.0, 2.0]
    """
    return distance(logits, taught, loss) + weight * hard(logits, classes, other, share)


def check_options(**given: Any) -> None:
    """``ValueError`` for a value out of range."""
    least = {"rank": 0, "head_rank": 0, "seed": 0, "size": 2}
    for name, value in given.items():
        if name in ("lr", "weight", "loss") or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
            raise ValueError(f"{name}={value}: a whole number of at least {least.get(name, 1)} is accepted")
    if not 0 < given["lr"] < math.inf or not 0 <= given["weight"] < math.inf:
        raise ValueError(f"lr={given['lr']}, weight={given['weight']}: a rate above 0, a weight of at least 0")
    if given["loss"] not in LOSSES:
        raise unknown("loss", given["loss"], LOSSES)


def _check_device(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device!r} is none that this torch can use: {error}".split("\n")[0]) from error


def _texts(given: str | Sequence[str] | Tensor, names: Sequence[str]) -> Sequence[str] | Tensor:
    if isinstance(given, np.ndarray):
        raise ValueError("class_texts is an array of numpy: texts, or a head as a Tensor, are accepted")
    if isinstance(given, str):
        return [given.replace("{}", article(name)) for name in names]
    if not isinstance(given, Tensor) and (strange := [t for t in given if not isinstance(t, str) or not t.strip()]):
        raise ValueError(f"class_texts hold {strange[0]!r}: a text for each class is needed")
    return given


def _fits(rows: Tensor, names: Sequence[str]) -> None:
    if len(rows) != len(names):
        raise ValueError(f"{len(rows)} class texts for {len(names)} classes ({', '.join(names[:5])}, …)")


def _doubts(base: Any, rows: Tensor, names: Sequence[str]) -> list[str]:
    """Classes of equal texts, and a base that knows the classes already."""
    notes = []
    for i, j in projectors.same_rows(rows):
        said = f"the base reads the texts of '{names[i]}' and '{names[j]}' alike: only adapters tell them apart"
        warnings.warn(said, stacklevel=3)
        notes.append(said)
    if base == "clip-cifar10" and set(names) <= set(CIFAR10):
        notes.append("leak: clip-cifar10 was trained on CIFAR-10, pictures and names of these very classes; another "
                     "base would be worse")  # fmt: skip
    return notes
