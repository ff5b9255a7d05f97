"""Many pictures with labels: decoded when they are asked for, or held as one array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from rankwise.data.corpus import side
from rankwise.data.images.decoding import decoded, resized
from rankwise.data.images.layout import SPLITS, canonical
from rankwise.files import content_of, fingerprint
from rankwise.nearest import unknown

if TYPE_CHECKING:
    from PIL import Image

MOST_CLASSES = 100_000  # that have no names; a larger label is an identifier, not a class
SHOWN = 5  # pictures named in one message


@dataclass(frozen=True)
class Encoded:
    """Pictures as files or as the bytes of files, decoded one by one.

    Attributes
    ----------
    sources : sequence of Path or bytes
        Files, or what files hold.
    names : list of str
        What messages call them.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> from rankwise.data.images.collection import Encoded
    >>> stream = io.BytesIO()
    >>> Image.new("RGB", (4, 2), "red").save(stream, "PNG")
    >>> Encoded([stream.getvalue()], ["red.png"]).pixels(0)[0, 0].tolist()
    [255, 0, 0]
    """

    sources: Sequence[Path | bytes]
    names: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """A picture, ``(height, width, 3)``.

        Raises
        ------
        ValueError
            It cannot be decoded; it is named.
        """
        try:
            return decoded(self.sources[row])
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{self.names[row]} {error}") from error

    def digest(self, row: int) -> str:
        """SHA-256 of the file."""
        source = self.sources[row]
        return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else content_of(source)

    def taken(self, rows: NDArray[np.intp]) -> Encoded:
        """Some of them, in this order."""
        return Encoded([self.sources[i] for i in rows], [self.names[i] for i in rows])


@dataclass(frozen=True, eq=False)
class Stack:
    """Pictures of one size, as an array.

    Attributes
    ----------
    array : ndarray
        ``(pictures, height, width, 3)``, uint8, RGB.
    digests : list of str, optional
        Content of each; by default the hash of its pixels.

    Raises
    ------
    ValueError
        Another shape or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data.images import Stack
    >>> len(Stack(np.zeros((10, 8, 8, 3), np.uint8)))
    10
    """

    array: NDArray[np.uint8]
    digests: list[str] | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[3] != 3 or self.array.dtype != np.uint8:
            raise ValueError(
                f"an array of shape {self.array.shape}, {self.array.dtype}; pictures are (N, height, width, 3), uint8: "
                "np.repeat(grey[..., None], 3, -1) makes three channels of one"
            )

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """A picture, ``(height, width, 3)``: a view."""
        return self.array[row]

    def digest(self, row: int) -> str:
        """SHA-256 of the file that it was decoded from, or of shape and pixels."""
        if self.digests is not None:
            return self.digests[row]
        picture = np.ascontiguousarray(self.array[row])
        return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()

    def taken(self, rows: NDArray[np.intp]) -> Stack:
        """Some of them, in this order: a copy."""
        return Stack(self.array[rows], None if self.digests is None else [self.digests[i] for i in rows])


class Batch(NamedTuple):
    """Some pictures.

    Attributes
    ----------
    pixels : ndarray
        ``(n, height, width, 3)``, uint8.
    labels : ndarray or None
        ``(n,)``, int64; ``None`` where there are none.
    rows : ndarray
        ``(n,)``, where they stand in the collection.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data import Images
    >>> images = Images.of(np.zeros((10, 8, 8, 3), np.uint8), labels=np.arange(10) % 2, label_names=["even", "odd"])
    >>> next(images.batches(4)).labels
    array([0, 1, 0, 1])
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    rows: NDArray[np.intp]


class ImageSplits(NamedTuple):
    """The three parts of a collection.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data import Images
    >>> noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    >>> sum(map(len, Images.of(noise).split()))
    100
    """

    train: Images
    validation: Images
    test: Images


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Images:
    """Pictures with labels.

    Attributes
    ----------
    name : str
        Where they come from, as the user wrote it.
    store : Encoded or Stack
        The pictures.
    labels : ndarray or None
        ``(pictures,)``, int64, class indices; ``None`` where there are none.
    label_names : list of str
        Names of the classes, by index.
    keys : list of str
        Name of each picture: its path below the folder, or its row; e.g. to group the shots of one scene.
    groups : list of str
        Pictures of one group never straddle a split; empty: equal files are a group.
    notes : list of str
        What the user should know of how they were read.

    Raises
    ------
    ValueError
        Labels that do not fit pictures and classes.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data import Images
    >>> noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    >>> images = Images.of(noise, labels=np.arange(100) % 2, label_names=["even", "odd"])
    >>> train, validation, test = images.split()
    >>> len(train) + len(validation) + len(test), images[3].shape
    (100, (8, 8, 3))
    >>> for pixels, labels, rows in train.batches(32, seed=0):
    ...     pass  # torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    """

    name: str
    store: Encoded | Stack
    labels: NDArray[np.int64] | None = None
    label_names: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.labels is not None:
            check_labels(self.labels, len(self), self.label_names, self.name)
        for what, given in (("keys", self.keys), ("groups", self.groups)):
            if given and len(given) != len(self):
                raise ValueError(f"{self.name}: {len(given)} {what} for {len(self)} pictures")

    @classmethod
    def of(
        cls,
        array: NDArray[np.uint8],
        *,
        labels: Sequence[int] | NDArray[np.integer] | None = None,
        label_names: Sequence[str] = (),
        name: str = "array",
    ) -> Images:
        """Pictures that are an array already.

        Parameters
        ----------
        array : ndarray
            ``(N, height, width, 3)`` or, grey, ``(N, height, width)``; uint8.
        labels : array of int, optional
            Class indices.
        label_names : sequence of str
            The classes; by default the indices.
        name : str
            What messages call it.
        """
        array = np.repeat(array[..., None], 3, -1) if array.ndim == 3 else array
        found = None if labels is None else np.asarray(labels)
        if found is not None and (np.issubdtype(found.dtype, np.integer) or not found.size):
            found = found.astype(np.int64)
        names = list(label_names)
        if found is not None and not names and found.size and np.issubdtype(found.dtype, np.integer):
            names = numbered(found, name)
        return cls(name=name, store=Stack(array), labels=found, label_names=names)

    def __repr__(self) -> str:
        classes = "no labels" if self.labels is None else f"{len(self.label_names)} classes"
        return f"Images({self.name!r}, {len(self):,} pictures, {classes})"

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        if isinstance(row, slice):
            raise TypeError("one picture by its row; images.taken(range(…)) is a part of them")
        if not -len(self) <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        return self.store.pixels(row % len(self))

    def pil(self, row: int) -> Image.Image:
        """A picture for Pillow, and for the image processors of transformers."""
        from PIL import Image

        return Image.fromarray(self[row])

    def noting(self, *notes: str) -> Images:
        """The same with further notes."""
        return replace(self, notes=[*self.notes, *notes])

    def grouped(self, by: Callable[[str], str]) -> Images:
        """The same, pictures whose keys ``by`` maps to the same text being a group (a scene, a patient)."""
        if not self.keys:
            raise ValueError(f"{self.name} has no keys to group by; Images(…, keys=…) gives them")
        return replace(self, groups=[by(key) for key in self.keys])

    def where(self, keep: Callable[[int], bool]) -> Images:
        """The pictures whose row passes ``keep``."""
        return self.taken([i for i in range(len(self)) if keep(i)])

    def taken(self, rows: Sequence[int] | NDArray[np.integer]) -> Images:
        """These rows, in this order."""
        at = np.asarray(rows, np.intp)
        return replace(
            self,
            store=self.store.taken(at),
            labels=None if self.labels is None else self.labels[at],
            keys=[self.keys[i] for i in at] if self.keys else [],
            groups=[self.groups[i] for i in at] if self.groups else [],
        )

    def head(self, limit: int | None) -> Images:
        """``limit`` pictures chosen by their content's hash (not the first ones, which may be of one class)."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise ValueError(f"limit={limit}; at least 1 picture")
        # not the hash that decides the sides of a split: the lowest of those are all on one side
        order = sorted(range(len(self)), key=lambda i: hashlib.sha256(f"head|{self.digests[i]}".encode()).digest())
        return self.taken(sorted(order[:limit]))

    def split(self) -> ImageSplits:
        """Train, validation and test pictures, by a hash of each one's group: the same on every machine."""
        sides = [side(g) for g in self.groups or self.digests]
        return ImageSplits(*(self.where(lambda i, part=part: sides[i] == part) for part in ImageSplits._fields))

    def part(self, split: str | None) -> Images:
        """One of the three parts by the hash of content, told in ``notes``; all of it for ``None``."""
        if split is None:
            return self
        if canonical(split) not in SPLITS:
            raise unknown("split", split, SPLITS)
        found = self.split()._asdict()[canonical(split)]
        how = f"{len(found)} of {len(self)} pictures, by a hash of their content"
        return found.noting(f"{self.name} has no splits: {how}")

    @cached_property
    def digests(self) -> list[str]:
        """Content of each picture (SHA-256); every file is read once."""
        return [self.store.digest(i) for i in range(len(self))]

    def fingerprint(self) -> str:
        """What they are by content: pictures in order, labels, classes, groups; not where they lie."""
        labels = None if self.labels is None else self.labels.tolist()
        return fingerprint([self.digests, labels, self.label_names, self.groups])

    def check(self) -> Images:
        """The same, after every picture has been decoded once.

        Raises
        ------
        ValueError
            Some cannot be; the first five are named.
        """
        bad = []
        for i in range(len(self)):
            try:
                self.store.pixels(i)
            except ValueError as error:
                bad.append(str(error))
        complain(self.name, bad, len(self))
        return self

    def stacked(self, size: int | None = None) -> Images:
        """The same as one array in memory, for many passes.

        Parameters
        ----------
        size : int, optional
            The middle square of each picture, scaled to this side; by default pictures stay as they are, and are of
            one size.

        Raises
        ------
        ValueError
            Pictures of several sizes, or an array that does not fit into the memory that is free.
        """
        if size is not None and size < 1:
            raise ValueError(f"size={size}; at least 1 pixel")
        if isinstance(self.store, Stack) and size is None:
            return self
        if not len(self):
            raise ValueError(f"{self.name} has no pictures")
        first = self._sized(0, size)
        if (needed := len(self) * first.nbytes) > psutil.virtual_memory().available:
            raise ValueError(f"{self.name}: {len(self):,} pictures of {_said(first)} need {needed / 1e9:.1f} GB")
        array = np.empty((len(self), *first.shape), np.uint8)
        for i in range(len(self)):
            array[i] = self._like(first, i, size)
        return replace(self, store=Stack(array, self.digests if size is None else None))

    def batches(self, size: int, *, side: int | None = None, seed: int | None = None) -> Iterator[Batch]:
        """Pictures, labels and rows, ``size`` at a time; the last batch may be smaller.

        Parameters
        ----------
        size : int
            Pictures a batch.
        side : int, optional
            The middle square of each picture, scaled to this side; by default they stay as they are.
        seed : int, optional
            Shuffles; another seed for each pass. By default they come in order.

        Yields
        ------
        Batch
            ``pixels`` (n, height, width, 3) uint8, ``labels`` (n,) or ``None``, ``rows`` (n,).

        Raises
        ------
        ValueError
            Pictures of several sizes in one batch.
        """
        if size < 1 or (side is not None and side < 1) or (seed is not None and seed < 0):
            raise ValueError(
                f"size={size}, side={side}, seed={seed}; at least 1 picture, 1 pixel and seed 0 are needed"
            )
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), size):
            rows = order[start : start + size]
            if isinstance(self.store, Stack) and side is None:
                pixels = self.store.array[rows]
            else:
                first = self._sized(rows[0], side)
                pixels = np.stack([first, *(self._like(first, i, side) for i in rows[1:])])
            yield Batch(pixels, None if self.labels is None else self.labels[rows], rows)

    def _sized(self, row: int, side: int | None) -> NDArray[np.uint8]:
        return self.store.pixels(row) if side is None else resized(self.store.pixels(row), side)

    def _like(self, first: NDArray[np.uint8], row: int, side: int | None) -> NDArray[np.uint8]:
        picture = self._sized(row, side)
        if picture.shape != first.shape:
            key = self.keys[row] if self.keys else f"picture {row}"
            raise ValueError(
                f"{self.name}: pictures of several sizes, {_said(first)} and, {key}, {_said(picture)}; give a side to "
                "scale them to"
            )
        return picture


def _said(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]} pixels"


def numbered(labels: NDArray[np.int64], where: str) -> list[str]:
    """Names of classes that have none: their indices."""
    if (most := int(labels.max(initial=-1))) >= MOST_CLASSES:
        raise ValueError(f"{where}: label {most:,}; without names there are classes 0 to {MOST_CLASSES - 1:,}")
    return [str(i) for i in range(most + 1)]


def check_labels(labels: NDArray[np.int64], count: int, names: Sequence[str], where: str) -> None:
    """``ValueError`` where labels are no class indices, one a picture, or two classes have one name."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where}: labels of shape {labels.shape}, {labels.dtype}; {count} integers are needed")
    if twice := sorted({n for n in names if list(names).count(n) > 1}):
        raise ValueError(f"{where}: two classes are called '{twice[0]}'; rename one")
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        row = int(outside[0])
        raise ValueError(f"{where}, picture {row}: label {labels[row]}, there are classes 0 to {len(names) - 1}")


def complain(where: str, bad: Sequence[str], count: int) -> None:
    """``ValueError`` that names the first of bad pictures, where there are any."""
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError(f"{where}: {len(bad)} of {count} pictures are bad: {'; '.join(bad[:SHOWN])}{more}")
