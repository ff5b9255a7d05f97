"""Light for photographs and videos: an enhancer is learned from two folders, and applied to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.events import OnEvent
from rankwise.files import drafted, whole_folder, write_json
from rankwise.jobs.early import ENHANCED, LIGHT, VIDEOS, check_enhancing, check_light, there

if TYPE_CHECKING:
    from rankwise.vision import BacklitEnhancer

HEADER = ["picture", "size", "light before", "light after", "gain"]
SHOWN = 12  # pairs on the page
WRITTEN = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Lit:
    """One picture, or one video by its first frame.

    Attributes
    ----------
    picture, written : str
        Its file below what was given, and the one that was written below the output.
    width, height : int
        Pixels.
    before, after : float
        Mean luma, from 0 to 1.
    """

    picture: str
    written: str
    width: int
    height: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Enhanced:
    """What was enhanced.

    Attributes
    ----------
    fitted : str
        The enhancer's folder.
    files : list of Lit
    pairs : list of (str, ndarray, ndarray)
        Names and pixels before and after, of the first few.
    notes : list of str
        What was changed or passed over when the pictures were read.
    """

    fitted: str
    files: list[Lit]
    pairs: list[tuple[str, NDArray[Any], NDArray[Any]]] = field(repr=False)
    notes: list[str]

    def rows(self) -> list[list[str]]:
        """Of a table under `HEADER`."""
        return [
            [f.picture, f"{f.width} x {f.height}", f"{f.before:.3f}", f"{f.after:.3f}", _ratio(f.after, f.before)]
            for f in self.files
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"with": self.fitted, "files": [asdict(f) for f in self.files], "notes": self.notes}


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.2f}x" if before > 0 else "-"


def fit_enhancer(
    dark: Path,
    well_lit: Path,
    out: Path,
    *,
    model: str = "clip-cifar10",
    preset: str | None = None,
    identity: str = "vit",
    seed: int = 0,
    on_event: OnEvent | None = None,
    **changes: Any,
) -> BacklitEnhancer:
    """An enhancer learned from two folders of pictures, kept as a folder; cut short, it goes on at its last round.

    Parameters
    ----------
    dark, well_lit : Path
        Folders.
    out : Path
        Folder to write, replaced as a whole.
    model : str
        A CLIP: a bundled name, a folder, a hub id.
    preset : {"published", "small"}, optional
        By default ``small`` for the bundled CLIP, else ``published``.
    identity : str
        ``vit``, or a ResNet of open-clip such as ``RN101/openai``.
    seed : int
        Of all draws.
    on_event : callable, optional
        Told of every step.
    **changes
        Fields of `rankwise.vision.LitSettings`; None leaves the preset's.

    Raises
    ------
    ValueError
        As `rankwise.vision.BacklitEnhancer`.
    """
    check_light(dark, well_lit, out, model=model, preset=preset, seed=seed, **changes)
    from rankwise.data import read_images
    from rankwise.models import model_fingerprint
    from rankwise.vision import BacklitEnhancer

    preset = preset or ("small" if model == "clip-cifar10" else "published")
    given = {k: v for k, v in changes.items() if v is not None}
    enhancer = BacklitEnhancer(model, preset=preset, identity=identity, seed=seed, **given)
    pictures = [read_images(folder.absolute(), labelled=False).fingerprint() for folder in (dark, well_lit)]
    told = [model_fingerprint(model), identity, asdict(enhancer.settings), pictures]
    with drafted(out, made_by=LIGHT, told=told, inputs=[dark, well_lit, *there(model)]) as draft:
        checkpoint = draft / "round.safetensors"
        enhancer.fit(dark, well_lit, checkpoint=checkpoint, on_event=on_event).write(draft)
        checkpoint.unlink()
    return enhancer


def enhance_files(
    path: Path,
    out: Path,
    *,
    fitted: Path,
    smooth: float = 0.8,
    each: Callable[[Any, int | None], Any] = lambda items, count: items,
    report: Callable[[Path, Enhanced], None] | None = None,
) -> Enhanced:
    """A picture, all pictures of a folder, or a video with its light, and ``enhance.json``, in a folder.

    Parameters
    ----------
    path : Path
        A picture, a folder of pictures (of any depth), or a video.
    out : Path
        Folder to write, replaced as a whole.
    fitted : Path
        What `fit_enhancer` wrote.
    smooth : float
        How much of a video's map is that of the frame before, from 0 to below 1.
    each : callable
        Of what is gone through and its length, if known; it hands the items on.
    report : callable, optional
        Writes further files into the folder.

    Raises
    ------
    ValueError
        Files that cannot be read, or are too small; two whose results would have one name.
    """
    check_enhancing(path, out, fitted=fitted, smooth=smooth)
    from rankwise.vision import BacklitEnhancer

    enhancer = BacklitEnhancer.load(fitted)
    with whole_folder(out, made_by=ENHANCED, inputs=[path, fitted]) as draft:
        if path.suffix.lower() in VIDEOS and path.is_file():
            files, pairs, notes = _video(enhancer, path, draft, smooth, each)
        else:
            files, pairs, notes = _pictures(enhancer, path, draft, each)
        done = Enhanced(fitted=str(fitted), files=files, pairs=pairs, notes=notes)
        write_json(draft / "enhance.json", done.as_dict())
        if report is not None:
            report(draft, done)
    return done


def _pictures(enhancer: Any, path: Path, out: Path, each: Any) -> tuple[list[Lit], list[Any], list[str]]:
    from rankwise.data.images import write_image
    from rankwise.vision.lit.pictures import check_size, of_its_depth

    names, notes = _names(path)
    files, pairs, taken = [], [], {}
    for name in each(names, len(names)):
        source = path / name if path.is_dir() else path
        pixels = of_its_depth(source)
        check_size(pixels.shape[1], pixels.shape[0], str(source))
        after = enhancer.enhance(pixels)
        written = _written(name, pixels)
        if taken.setdefault(written, name) != name:
            raise ValueError(f"{name} and {taken[written]} would both be written as {written}; rename one")
        (out / written).parent.mkdir(parents=True, exist_ok=True)
        write_image(out / written, after, like=source)
        files.append(_lit(name, written, pixels, after))
        if len(pairs) < SHOWN:
            pairs.append((name, pixels, after))
    return files, pairs, notes


def _names(path: Path) -> tuple[list[str], list[str]]:
    if not path.is_dir():
        return [path.name], []
    from rankwise.data import read_images

    found = read_images(path.absolute(), labelled=False)
    return found.keys, found.notes


def _written(name: str, pixels: NDArray[Any]) -> str:
    """The same name where such a file can hold the pixels, else with .png behind it."""
    suffix = Path(name).suffix.lower()
    return name if suffix in (WRITTEN if pixels.dtype == np.uint8 else (".png",)) else f"{name}.png"


def _video(
    enhancer: Any, path: Path, out: Path, smooth: float, each: Any
) -> tuple[list[Lit], list[Any], list[str]]:  # fmt: skip
    from rankwise.vision.lit.video import KEPT, enhance_video

    written = path.name if path.suffix.lower() in KEPT else f"{path.name}.mkv"
    kept = enhance_video(enhancer, path, out / written, smooth=smooth, each=lambda items, n: each(items, n or None))
    pairs = [(f"{path.name}, {place} frame", *pair) for place, pair in zip(_places(len(kept)), kept, strict=True)]
    return [_lit(path.name, written, *kept[0])], pairs, []


def _places(count: int) -> Iterator[str]:
    yield from {1: ["the only"], 2: ["first", "last"]}.get(count, ["first", "middle", "last"])


def _lit(name: str, written: str, before: NDArray[Any], after: NDArray[Any]) -> Lit:
    height, width = before.shape[:2]
    light = (_light(before), _light(after))
    return Lit(picture=name, written=written, width=width, height=height, before=light[0], after=light[1])


def _light(pixels: NDArray[Any]) -> float:
    """Mean luma."""
    return float(pixels.mean((0, 1)) @ np.array([0.299, 0.587, 0.114]) / np.iinfo(pixels.dtype).max)
