"""One picture: what its header says, and its pixels as they are meant to be seen.

Turned as EXIF says, the first frame where there are many, grey and palettes as RGB, transparency over white, sixteen
bits scaled to eight. What has no agreed range (floats, 32-bit integers) or cannot be decoded whole is refused.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | Path, *, bits: Literal[8, 16] = 8) -> NDArray[np.unsignedinteger]:
    """A picture file as ``(height, width, 3)``, uint8 or uint16, RGB.

    Turned as EXIF says; the first frame of an animation or page of a document; transparency over white; CMYK by the
    plain formula, and no colour profile is applied.

    Parameters
    ----------
    path : str or Path
        AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP, known by its content, whatever its name.
    bits : {8, 16}
        Values from 0 to 255 or to 65,535; a file of the other depth is scaled.

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
    if bits not in (8, 16):
        raise ValueError(f"bits={bits}; 8 or 16")
    check_regular(Path(path))
    try:
        return decoded(Path(path), bits=bits)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def changed(source: Path | bytes) -> list[str]:
    """What decoding will change of an encoded picture; errors say what is wrong, not which picture it is.

    Raises
    ------
    ValueError
        No picture, too many pixels, or values without an agreed range.
    """
    with opened(source) as image:
        notes = []
        if image.format != "MPO" and getattr(image, "is_animated", False):  # a camera's second picture is a preview
            notes.append("with more frames or pages than one: the first is taken")
        if image.mode == "CMYK":
            notes.append("in CMYK: turned to RGB by the plain formula, without a colour profile")
        return notes


def decoded(source: Path | bytes, *, bits: Literal[8, 16] = 8) -> NDArray[Any]:
    """Pixels of an encoded picture, ``(height, width, 3)``; errors do not say which picture it is.

    Raises
    ------
    ValueError
        As `header`; also cut short or damaged.
    """
    with opened(source) as image:
        halves = _lower_halves(image)
        image.load()
        turn = _orientation(image)
        if halves and "transparency" not in image.info:
            pixels = _deep(np.asarray(image), source, halves)
        elif image.mode in (*_GREY_16, "I"):
            grey = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
            pixels = np.repeat(grey[..., None], 3, -1)
        else:
            pixels = np.asarray(_rgb(image))
    if pixels.dtype == np.uint16 and bits == 8:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif pixels.dtype == np.uint8 and bits == 16:
        pixels = pixels * np.uint16(257)
    return np.ascontiguousarray(upright(pixels, turn)).copy()


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels ``(height, width, …)`` turned as EXIF's number (1 to 8) asks for."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _lower_halves(image: Any) -> list[Any]:
    """Pillow keeps the upper halves of 16-bit colours: its decoder's parts with arguments that keep the lower."""
    if image.mode not in ("RGB", "RGBA"):
        return []
    found = []
    for part in image.tile:
        args = part.args
        raw = args if isinstance(args, str) else next(iter(args or ()), "")
        kind, _, order = str(raw).partition(";16")
        if kind != image.mode or order not in ("B", "L", "N"):
            return []
        little = order == "L" or (order == "N" and sys.byteorder == "little")
        swapped = f"{kind};16{'B' if little else 'L'}"
        found.append(part._replace(args=swapped if isinstance(args, str) else (swapped, *args[1:])))
    return found


def _deep(upper: NDArray[np.uint8], source: Path | bytes, halves: list[Any]) -> NDArray[np.uint16]:
    """Colours of 16 bits, over white."""
    with opened(source) as again:
        again.tile = halves  # pyright: ignore[reportAttributeAccessIssue]  (of the library, typed more narrowly)
        again.load()
        pixels = upper * np.uint16(256) + np.asarray(again)
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint64)
    return ((pixels[..., :3] * alpha + 65535 * (65535 - alpha) + 32767) // 65535).astype(np.uint16)


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """An encoded picture, its pixels not yet decoded; what a decoder raises inside becomes a `ValueError`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read by Pillow: pip install 'rankwise[images]'") from error
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=_installed()) as image:
            _check(image)
            yield image
    except (MemoryError, PermissionError):
        raise
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"has more pixels than Pillow is told to read: {error}") from error
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

    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def resized(pixels: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """The middle square of a picture, ``(size, size, 3)``: bicubic, with antialiasing, the shorter side kept whole."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC)).copy()
