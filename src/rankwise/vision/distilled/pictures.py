"""Pictures with classes as tensors: read once, squares of one size, three colours."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.data.images import Images
from rankwise.data.images.decoding import resized


class Pictures(NamedTuple):
    """Any few pictures, to train a student from.

    Attributes
    ----------
    images : Tensor
        ``(n, 3, s, s)``, uint8.
    classes : Tensor
        ``(n,)``.
    """

    images: Tensor
    classes: Tensor


class Real(NamedTuple):
    """The pictures that are distilled.

    Attributes
    ----------
    images, classes : Tensor
        ``(n, 3, s, s)``, uint8, and ``(n,)``.
    names : list of str
        Of the classes.
    notes : list of str
        What was done to them.
    """

    images: Tensor
    classes: Tensor
    names: list[str]
    notes: list[str]


def collected(dataset: Any, size: int | None, *, whole: bool = True) -> Real:
    """Pictures at one size, with their classes.

    Parameters
    ----------
    dataset : Images or torch Dataset
        The latter of pairs of a picture (Pillow's, an array ``(h, w[, 3])``, uint8, or a tensor ``(3, h, w)`` in
        [0, 1]) and a class index; its ``classes`` are the names, if it has them.
    size : int, optional
        Of a side; their own by default.
    whole : bool
        Every class must occur, and more than one. Default ``True``.

    Raises
    ------
    ValueError
        No pictures, no classes, fewer than two, a class without pictures, several sizes where none is asked for.
    """
    images = dataset if isinstance(dataset, Images) else _listed(dataset, size)
    if not len(images) or images.labels is None:
        raise ValueError(f"{images.name}: no {'classes: folders are classes' if len(images) else 'pictures'}")
    missing = [name for i, name in enumerate(images.label_names) if i not in set(images.labels.tolist())]
    if whole and (missing or len(images.label_names) < 2):
        raise ValueError(f"{images.name}: no pictures of {missing[0]}" if missing else f"{images.name}: only one class")
    sizes = {images[i].shape[:2] for i in (0, len(images) - 1)}
    notes = list(images.notes)
    if size is not None and sizes != {(size, size)}:
        notes.append(f"pictures are taken at {size} x {size} pixels, their middle square")
    array: Any = images.stacked(None if sizes == {(size, size)} and _of_one_size(images) else size).store
    if array.array.shape[1] != array.array.shape[2]:
        raise ValueError(f"{images.name}: pictures of {array.array.shape[2]} x {array.array.shape[1]} pixels; give a "
                         "size, at which their middle square is taken")  # fmt: skip
    pixels = torch.from_numpy(array.array).permute(0, 3, 1, 2).contiguous()
    return Real(pixels, torch.from_numpy(images.labels), list(images.label_names), notes)


def _of_one_size(images: Images) -> bool:
    return hasattr(images.store, "array")


def _listed(dataset: Any, size: int | None) -> Images:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"the data is a {type(dataset).__name__}: Images, or a torch Dataset with a length, is accepted"
        )
    pictures, labels = [], []
    for i in range(len(dataset)):
        pair = dataset[i]
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(
                f"picture {i} is a {type(pair).__name__}: a pair of a picture and a class index is accepted"
            )
        pictures.append(_bytes(pair[0]))
        labels.append(_index(pair[1], i))
    if not pictures:
        raise ValueError("the data set is empty: no pictures")
    if size is not None:
        pictures = [resized(p, size) for p in pictures]
    if len(shapes := {p.shape for p in pictures}) > 1:
        raise ValueError(f"pictures of several sizes, {sorted(shapes)[:2]}: give a size")
    names: Sequence[str] = [str(name) for name in getattr(dataset, "classes", ())]
    return Images.of(np.stack(pictures), labels=labels, label_names=names, name=type(dataset).__name__)


def _index(label: Any, at: int) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise ValueError(f"picture {at} has the class {label!r:.40}: an index, a whole number, is accepted") from error


def _bytes(picture: Any) -> np.ndarray:
    """``(h, w, 3)``, uint8."""
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] not in (1, 3):
            raise ValueError(f"a picture of shape {tuple(picture.shape)}: (3, height, width) in [0, 1] is accepted")
        if picture.dtype != torch.uint8:
            if not bool(((picture >= 0) & (picture <= 1)).all()):
                raise ValueError("a picture has values outside of [0, 1]: leave out its normalisation")
            picture = (picture * 255).round().to(torch.uint8)
        picture = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
    elif hasattr(picture, "convert"):
        picture = np.asarray(picture.convert("RGB"))
    held = np.asarray(picture)
    held = np.repeat(held[..., None], 3, -1) if held.ndim == 2 else held
    if held.ndim != 3 or held.shape[-1] != 3 or held.dtype != np.uint8:
        raise ValueError(f"a picture of shape {held.shape}, {held.dtype}: (height, width, 3), uint8, is accepted")
    return held
