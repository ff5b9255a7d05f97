"""Writing a picture: whole or not at all, with what the original's camera noted, 8 or 16 bits a value."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.files import check_file, whole_file
from rankwise.nearest import unknown
from rankwise.reading import check_regular

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_ORIENTATION, _EXIF, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003


def write_image(
    path: str | Path, pixels: NDArray[np.unsignedinteger], *, like: str | Path | None = None, quality: int = 95
) -> Path:
    """A picture as a file, by its name a PNG, JPEG, WebP or TIFF file, in one step.

    Parameters
    ----------
    path : str or Path
        The file; another is replaced.
    pixels : ndarray
        ``(height, width, 3)`` or, grey, ``(height, width)``; uint8, or uint16 in a PNG file.
    like : str or Path, optional
        The original, already turned upright: its EXIF data (without orientation and preview) and its colour profile
        are kept.
    quality : int
        Of JPEG and WebP, 1 to 100.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        Another file type, shape or dtype, a quality beyond 1 to 100, or ``path`` and ``like`` are one file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from rankwise.data import read_image
    >>> from rankwise.data.images import write_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_image(Path(folder, "ramp.png"), np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4))
    ...     read_image(path, bits=16)[0, :, 0].tolist()
    [0, 4096, 8192, 12288]
    """
    path, pixels = Path(path), np.asarray(pixels)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise unknown("file type to write", path.suffix or path.name, _FORMATS)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"pixels of shape {pixels.shape}, {pixels.dtype}; (height, width, 3), uint8 or uint16, is needed"
        )
    if not pixels.size:
        raise ValueError(f"pixels of shape {pixels.shape}: no pixels")
    if pixels.dtype == np.uint16 and kind != "PNG":
        raise ValueError(f"{path}: 16 bits a value are written as .png; or give uint8")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}; 1 to 100")
    check_file(path, inputs=[] if like is None else [like])
    kept = {} if like is None else _kept(Path(like), pixels)
    with whole_file(path) as draft:
        if pixels.dtype == np.uint16:
            draft.write_bytes(_png(pixels, **kept))
        else:
            from PIL import Image

            options = {"quality": quality} if kind in ("JPEG", "WEBP") else {}
            Image.fromarray(np.ascontiguousarray(pixels)).save(draft, kind, **options, **kept)
    return path


def _kept(like: Path, pixels: NDArray[Any]) -> dict[str, bytes]:
    """EXIF data and colour profile of the original that still hold."""
    from rankwise.data.images.decoding import opened

    check_regular(like)
    kept = {}
    with opened(like) as image:
        image.load()  # of PNG files EXIF may stand behind the pixels
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        details = exif.get_ifd(_EXIF)
        for tag, size in ((_WIDTH, pixels.shape[1]), (_HEIGHT, pixels.shape[0])):
            if tag in details:
                details[tag] = size
        if len(exif):
            kept["exif"] = exif.tobytes()
        profile = image.info.get("icc_profile") or b""
        if profile[16:20] == (b"GRAY" if pixels.ndim == 2 else b"RGB "):
            kept["icc_profile"] = profile
    return kept


def _png(pixels: NDArray[np.uint16], *, exif: bytes = b"", icc_profile: bytes = b"") -> bytes:
    """A PNG file of 16 bits a value; Pillow writes such files in grey only."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # filter 2: the difference from the row above
    data = np.concatenate([np.full((height, 1), 2, np.uint8), rows], 1).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0))]
    chunks += [(b"iCCP", b"profile\0\0" + zlib.compress(icc_profile))] if icc_profile else []
    chunks += [(b"eXIf", exif.removeprefix(b"Exif\0\0"))] if exif else []
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
