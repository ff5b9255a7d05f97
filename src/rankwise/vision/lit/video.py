"""Videos frame by frame, the map of light smoothed over frames so that it does not flicker.

i_t ← β i_{t-1} + (1 - β) network(copy_t),   begun anew where the copy's luma jumps: a cut
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rankwise.reading import check_regular
from rankwise.vision.lit.illumination import luma
from rankwise.vision.lit.pictures import check_size

if TYPE_CHECKING:
    from rankwise.vision.clip_lit import BacklitEnhancer

CUT = 0.15  # mean change of luma from one frame to the next
KEPT = (".mp4", ".m4v", ".mov", ".mkv")  # containers that take what is written; others become .mkv


class Smoothed:
    """A network over frames in order, whose maps are averaged over time.

    Parameters
    ----------
    network : callable
        Of a frame ``(1, 3, h, w)``: its map.
    share : float
        ``β``, from 0 (each frame by itself) to below 1.

    Raises
    ------
    ValueError
        Another share.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.lit.video import Smoothed
    >>> smoothed = Smoothed(lambda frame: frame[:, :1], 0.5)
    >>> [round(float(smoothed(torch.full((1, 3, 4, 4), v)).mean()), 3) for v in (0.5, 0.6, 1.0)]
    [0.5, 0.55, 1.0]
    """

    def __init__(self, network: Callable[[Tensor], Tensor], share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"smooth={share}; from 0 to below 1")
        self.network, self.share = network, share
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, frame: Tensor) -> Tensor:
        found, light = self.network(frame), luma(frame)
        if self.last is not None:
            before, was = self.last
            if before.shape == found.shape and float((light - was).abs().mean()) < CUT:
                found = self.share * before + (1 - self.share) * found
        self.last = found, light
        return found


def enhance_video(
    enhancer: BacklitEnhancer,
    source: str | Path,
    target: str | Path,
    *,
    smooth: float = 0.8,
    each: Callable[[Any, int], Any] = lambda frames, count: frames,
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """A video with its light, in H.264; its sound is copied.

    Parameters
    ----------
    enhancer : BacklitEnhancer
        That has learned.
    source, target : str or Path
        Files; the target's container is as its name says.
    smooth : float
        ``β``.
    each : callable
        Of the frames and their number, which it hands on, e.g. with a bar.

    Returns
    -------
    list of (ndarray, ndarray)
        The first, the middle and the last frame, before and after.

    Raises
    ------
    ValueError
        No such file, no video in it, frames below 32 pixels, or one that cannot be read.
    ImportError
        PyAV is not installed.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ImportError("videos are read by PyAV: pip install 'rankwise[video]'") from error
    check_regular(Path(source))
    by = Smoothed(enhancer._learned()[0], smooth)
    try:
        with av.open(str(source)) as given, av.open(str(target), "w") as made:
            if not given.streams.video:
                raise ValueError(f"{source} has no video stream")
            shown = given.streams.video[0]
            check_size(shown.width, shown.height, str(source))
            written = None
            sound = {s: made.add_stream_from_template(s) for s in given.streams.audio}
            kept, count = [], 0
            marks = {0, shown.frames // 2, max(0, shown.frames - 1)}
            for packet, frame in each(_decoded(given, shown, list(sound)), shown.frames):
                if frame is None:
                    packet.stream = sound[packet.stream]
                    made.mux(packet)
                    continue
                before = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                after = enhancer.enhance_by(by, before)
                if written is None:
                    written = made.add_stream("libx264", rate=shown.average_rate or 25, options={"crf": "18"})
                    written.height, written.width = after.shape[:2]
                    written.pix_fmt = "yuv420p" if after.shape[0] % 2 == after.shape[1] % 2 == 0 else "yuv444p"
                    if shown.time_base is not None:
                        written.codec_context.time_base = shown.time_base
                new = av.VideoFrame.from_ndarray(after, format="rgb24")
                new.pts, new.time_base = frame.pts, frame.time_base
                made.mux(written.encode(new))
                if count in marks or not kept:
                    kept.append((before, after))
                count += 1
            if written is None:
                raise ValueError(f"{source} has no frames that can be decoded")
            made.mux(written.encode(None))
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{source} cannot be read as a video, or {target} not be written: {error}") from error
    return kept


def _decoded(given: Any, shown: Any, sound: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Frames of the video, and packets of sound as they are."""
    for packet in given.demux(shown, *sound):
        if packet.stream is not shown:
            if packet.dts is not None:
                yield packet, None
            continue
        for frame in packet.decode():
            yield packet, frame
