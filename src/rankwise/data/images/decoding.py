"""One picture: what its header says, and its pixels as they are meant to be seen.

Turned as EXIF says, the first frame where there are many, grey and palettes as RGB, transparency over white, sixteen
bits scaled to eight. What has no agreed range (floats, 32-bit integers) or cannot be decoded whole is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.reading import check_regular

if TYPE_CHECKING:
    from PIL import Image

# decoders that run nothing outside and read no other file (EPS starts a program)
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_NAMES = "avif bmp dib gif jpg jpeg jpe jfif jp2 j2k mpo png apng ppm pgm pbm pnm tif tiff webp"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
MOST_PIXELS = 178_000_000  # half a gigabyte of RGB
_ORIENTATION = 0x0112
_TURNED = range(5, 9)  # orientations that exchange width and height
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Header:
    """What is known of a picture without decoding it.

    Attributes
    ----------
    height, width : int
        As it is seen: after the turn that EXIF asks for.
    notes : tuple of str
        What decoding will change, e.g. ``more frames than one: the first is taken``.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> from rankwise.data.images.decoding import header
    >>> stream = io.BytesIO()
    >>> Image.new("L", (4, 2)).save(stream, "PNG")
    >>> header(stream.getvalue())
    Header(height=2, width=4, notes=())
    """

    height: int
    width: int
    notes: tuple[str, ...] = ()


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A picture file as ``(height, width, 3)``, uint8, RGB.

    Turned as EXIF says; the first frame of an animation or page of a document; transparency over white; sixteen bits
    scaled to eight; CMYK by the plain formula, and no colour profile is applied.

    Parameters
    ----------
    path : str or Path
        AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP, known by its content, whatever its name.

    Raises
    ------
    ValueError
        No such file, no picture, cut short or damaged, more than 178 million pixels, or values without an agreed range.
    ImportError
        Pillow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from rankwise.data.images import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (4, 2), 128).save(Path(folder, "grey.png"))
    ...     pixels = read_image(Path(folder, "grey.png"))
    >>> pixels.shape, pixels[0, 0].tolist()
    ((2, 4, 3), [128, 128, 128])
    """
    check_regular(Path(path))
    try:
        return decoded(Path(path))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def header(source: Path | bytes) -> Header:
    """Size and peculiarities of an encoded picture; errors say what is wrong, not which picture it is.

    Raises
    ------
    ValueError
        No picture, too many pixels, or values without an agreed range.
    """
    with _opened(source) as image:
        width, height = image.size
        # of TIFF files the size is already that of the turned picture
        if _orientation(image) in _TURNED and image.format != "TIFF":
            width, height = height, width
        notes = []
        if image.format != "MPO" and getattr(image, "is_animated", False):  # a camera's second picture is a preview
            notes.append("with more frames or pages than one: the first is taken")
        if image.mode == "CMYK":
            notes.append("in CMYK: turned to RGB by the plain formula, without a colour profile")
        return Header(height, width, tuple(notes))


def decoded(source: Path | bytes) -> NDArray[np.uint8]:
    """Pixels of an encoded picture, ``(height, width, 3)``, uint8; errors do not say which picture it is.

    Raises
    ------
    ValueError
        As `header`; also cut short or damaged.
    """
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    with _opened(source) as image:
        image.load()
        turn = _orientation(image)
        seen = _rgb(image)
        return np.asarray(seen.transpose(turns[turn - 2]) if turn > 1 else seen).copy()


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read by Pillow: pip install 'rankwise[images]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are bounded here, and of odd metadata
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=_installed()) as image:
                _check(image)
                yield image
    except (MemoryError, PermissionError):
        raise
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"has more than {MOST_PIXELS:,} pixels: not read") from error
    except Exception as error:  # decoders raise anything: struct.error, IndexError, SyntaxError …
        known = isinstance(error, Image.UnidentifiedImageError)
        said = f"none of {', '.join(FORMATS)}" if known else str(error) or type(error).__name__
        raise ValueError(f"cannot be read as a picture ({said})") from error


@cache
def _installed() -> list[str]:
    """Of `FORMATS`, what this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


class _Refused(Exception):
    """A picture that Pillow would read, not as it is meant."""


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _Refused(f"has {width} x {height} pixels, more than {MOST_PIXELS:,}: not read")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise _Refused(f"holds {kind}, which have no agreed range; save it with 8 or 16 bits")
    if image.mode in ("LAB", "HSV"):
        raise _Refused(f"has the colours of {image.mode}; save it as RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's number; 1, upright, where there is none or none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata of a good picture
        return 1
    return found if found in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode in (*_GREY_16, "I"):
        grey = np.asarray(image).astype(np.uint32).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def resized(pixels: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """The middle square of a picture, ``(size, size, 3)``: bicubic, with antialiasing, the shorter side kept whole."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))).copy()
