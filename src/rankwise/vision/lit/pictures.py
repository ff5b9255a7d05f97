"""Pictures as they are given, as tensors from 0 to 1, and back in the form in which they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.data.images import read_image
from rankwise.vision.lit.network import LEAST
from rankwise.vision.lit.towers import resized


@dataclass(frozen=True)
class Opened:
    """A picture, and how it came.

    Attributes
    ----------
    pixels : Tensor
        ``(1, 3, H, W)``, from 0 to 1.
    back : callable
        Of such a tensor: the form in which it was given; a file is an array of its depth.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.vision.lit.pictures import opened
    >>> grey = np.full((40, 50), 51, np.uint8)
    >>> picture = opened(grey)
    >>> picture.pixels.shape, round(float(picture.pixels.mean()), 3), picture.back(picture.pixels).shape
    (torch.Size([1, 3, 40, 50]), 0.2, (40, 50))
    """

    pixels: Tensor
    back: Callable[[Tensor], Any]


def opened(picture: Any, *, name: str = "") -> Opened:
    """A picture of any of the accepted kinds.

    Parameters
    ----------
    picture : str, Path, ndarray or PIL.Image.Image
        A file, turned as EXIF says, transparency over white; an array ``(H, W)``, ``(H, W, 3)`` or, with an alpha
        channel that stays as it is, ``(H, W, 4)``, of uint8, uint16 or floats from 0 to 1; a picture of Pillow's.
    name : str
        What messages call it.

    Raises
    ------
    ValueError
        Another kind, shape or dtype, floats beyond 0 to 1, NaN, a side below 32 pixels, or a file that cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.vision.lit.pictures import opened
    >>> opened(np.zeros((40, 20), np.uint8))
    Traceback (most recent call last):
    ValueError: the picture has 20 x 40 pixels; at least 32 on each side
    """
    if isinstance(picture, str | Path):
        name = name or str(picture)
        picture = of_its_depth(Path(picture))
    elif not isinstance(picture, np.ndarray):
        return _of_pillow(picture, name or "the picture")
    name = name or "the picture"
    whole, most = _checked(picture, name)
    colours = torch.from_numpy(np.ascontiguousarray(whole[..., :3]).astype(np.float32) / most)
    pixels = colours.permute(2, 0, 1)[None]

    def back(result: Tensor) -> NDArray[Any]:
        values = result[0].permute(1, 2, 0).cpu().numpy()
        found = (values * most + 0.5).astype(picture.dtype) if most > 1 else values.astype(picture.dtype)
        if picture.ndim == 2:
            return found[..., 0]
        return np.concatenate([found, picture[..., 3:]], -1) if picture.shape[-1] == 4 else found

    return Opened(pixels, back)


def of_its_depth(path: Path) -> NDArray[Any]:
    """A file's pixels, ``(height, width, 3)``: uint16 where 16 bits say more than 8 would, else uint8."""
    deep = read_image(path, bits=16)
    return deep if (deep % 257).any() else (deep // 257).astype(np.uint8)


def _of_pillow(picture: Any, name: str) -> Opened:
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise ValueError(f"{name} is a {type(picture).__name__}; a path, an array or a picture of Pillow's is needed")
    if picture.mode in ("F", "I", "LAB", "HSV"):
        raise ValueError(f"{name} is of Pillow's mode {picture.mode}; RGB, RGBA, L, P, CMYK or I;16 is accepted")
    mode = "RGBA" if picture.has_transparency_data else "L" if picture.mode in ("1", "L") else "RGB"
    whole = np.asarray(picture if picture.mode.startswith("I;16") else picture.convert(mode))
    found = opened(whole.astype(np.uint16) if picture.mode.startswith("I;16") else whole, name=name)
    return Opened(found.pixels, lambda result: Image.fromarray(found.back(result)))


def _checked(array: NDArray[Any], name: str) -> tuple[NDArray[Any], float]:
    """With three or four channels, and the value of white."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"{name} is an array of shape {array.shape}; (H, W), (H, W, 3) or (H, W, 4) is accepted")
    if array.dtype in (np.uint8, np.uint16):
        most = float(np.iinfo(array.dtype).max)
    elif np.issubdtype(array.dtype, np.floating):
        most = 1.0
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} has values from {low:g} to {high:g}; floats from 0 to 1, or uint8, are accepted")
    else:
        raise ValueError(f"{name} is of {array.dtype}; uint8, uint16 or floats from 0 to 1 are accepted")
    check_size(array.shape[1], array.shape[0], name)
    return (np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array), most


def check_size(width: int, height: int, name: str) -> None:
    """``ValueError`` where a picture is too small for the network's pooling to mean anything."""
    if min(width, height) < LEAST:
        raise ValueError(f"{name} has {width} x {height} pixels; at least {LEAST} on each side")


def several(pictures: Any, what: str) -> Iterator[tuple[str, Any]]:
    """Names and pictures: of a folder, a stack ``(N, H, W, 3)``, or a sequence of any kinds.

    Raises
    ------
    ValueError
        No folder, no pictures, or some that cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.vision.lit.pictures import several
    >>> [name for name, _ in several(np.zeros((2, 40, 40, 3), np.uint8), "dark")]
    ['dark picture 0', 'dark picture 1']
    """
    if isinstance(pictures, str | Path):
        from rankwise.data import read_images

        if not Path(pictures).is_dir():
            raise ValueError(f"{pictures} is no folder; {what} pictures are a folder, or a list of pictures")
        found = read_images(Path(pictures).absolute(), labelled=False)
        yield from ((found.keys[i], found[i]) for i in range(len(found)))
        return
    if not isinstance(pictures, Sequence | np.ndarray) or (isinstance(pictures, np.ndarray) and pictures.ndim < 3):
        kind = type(pictures).__name__
        raise ValueError(
            f"{what} pictures are a {kind}; a folder, a list of pictures or an array (N, H, W, 3) is needed"
        )
    if isinstance(pictures, np.ndarray) and pictures.ndim == 3 and pictures.shape[2] in (3, 4):
        raise ValueError(f"{what} pictures are one of shape {pictures.shape}; [picture] is a list of one")
    if not len(pictures):
        raise ValueError(f"no {what} pictures")
    for i, picture in enumerate(pictures):
        yield (str(picture) if isinstance(picture, str | Path) else f"{what} picture {i}"), picture


def squares(pictures: Any, sizes: Sequence[int], what: str) -> list[Tensor]:
    """All pictures squeezed to squares, for each size ``(N, 3, size, size)``, uint8.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.vision.lit.pictures import squares
    >>> [tuple(s.shape) for s in squares(np.zeros((2, 40, 60, 3), np.uint8), [64, 32], "dark")]
    [(2, 3, 64, 64), (2, 3, 32, 32)]
    """
    kept: list[list[Tensor]] = [[] for _ in sizes]
    for name, picture in several(pictures, what):
        pixels = opened(picture, name=name).pixels
        for found, size in zip(kept, sizes, strict=True):
            found.append(as_bytes(resized(pixels, size)))
    return [torch.cat(found) for found in kept]


def as_bytes(pictures: Tensor) -> Tensor:
    """From 0 … 1 to uint8, rounded."""
    return (pictures * 255 + 0.5).to(torch.uint8)
