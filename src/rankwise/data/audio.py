"""Speech of one's own: audio files and a manifest that names each with its transcript.

A manifest is a csv, tsv, jsonl, json or parquet file with the columns ``path`` (relative to the manifest) and ``text``,
or a folder that holds one as ``manifest.*`` or ``metadata.*``. What cannot be used is an error that names row and file,
or, on request, is skipped and counted. Stereo is mixed to mono and other sampling rates are resampled to 16 kHz: said,
and done. Nothing is cut: a recording over 30 s, Whisper's window, is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.data.corpus import Corpus
from rankwise.data.tables import READERS, rows

RATE = 16_000  # Hz
LONGEST = 30.0  # seconds
RATES, CHANNELS = (1_000, 768_000), 16  # Hz, and channels, of files that are read
SHOWN = 5  # rows named in one message


def read_audio(path: str | Path) -> NDArray[np.float32]:
    """Samples in [-1, 1], mono, 16 kHz, shape ``(samples,)``, of a file that libsndfile reads (wav, flac, ogg, mp3).

    Raises
    ------
    ValueError
        Missing, unreadable, empty, silent, not finite, or longer than 30 s.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import soundfile
    >>> from rankwise.data import read_audio
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)  # a second at 8 kHz, in stereo
    ...     soundfile.write(f"{folder}/tone.wav", np.stack([tone, tone], 1), 8000)
    ...     read_audio(f"{folder}/tone.wav").shape  # mono, 16 kHz
    (16000,)
    """
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise ImportError(f"reading audio needs {error.name}: pip install 'rankwise[speech]'") from error
    if not Path(path).is_file():
        raise ValueError("no such file")
    try:
        with soundfile.SoundFile(path) as stream:
            rate, channels, declared = stream.samplerate, stream.channels, stream.frames
            if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= CHANNELS:
                raise ValueError(
                    f"has {rate} Hz and {channels} channels; {RATES[0]} to {RATES[1]} Hz and up to {CHANNELS} channels "
                    "are read"
                )
            longest = int(LONGEST * rate)
            if declared > longest:
                raise ValueError(_too_long(f"{declared / rate:.1f} s"))
            samples = stream.read(longest + 1, dtype="float32", always_2d=True)  # whatever its header declares
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"cannot be read as audio ({str(error).rpartition(': ')[2]})") from error
    if len(samples) == 0:
        raise ValueError("has no samples")
    if len(samples) > longest:
        raise ValueError(_too_long("longer than it says"))
    mono = samples.mean(1)
    if not np.isfinite(mono).all():
        raise ValueError("has samples that are not finite")
    if not mono.any():
        raise ValueError("is silent: every sample is zero")
    return soxr.resample(mono, rate, RATE).astype(np.float32) if rate != RATE else mono


def _too_long(lasts: str) -> str:
    return f"lasts {lasts}; at most {LONGEST:.0f} s fit Whisper's window: split it"


def read_manifest(
    path: str | Path,
    *,
    text_column: str = "text",
    audio_column: str = "path",
    normalize: Callable[[str], str] = str.strip,
    check: Callable[[str], None] | None = None,
    skip_bad: bool = False,
) -> Corpus:
    """A manifest as a `Corpus` with ``audio``; every file is decoded once to see that it can be.

    Parameters
    ----------
    path : path
        Manifest, or a folder with ``manifest.csv`` (tsv, jsonl, json, parquet) or ``metadata.csv``.
    text_column, audio_column : str
        Columns of the transcript and of the audio file. A column ``group`` (speaker, session), where there is one,
        keeps its rows on one side of the split; otherwise equal transcripts share one.
    normalize : callable
        A transcript that this leaves empty is bad.
    check : callable, optional
        Raises ``ValueError`` for another bad transcript, e.g. one that is too long for a model.
    skip_bad : bool
        Leave bad rows out, named in the corpus's ``notes``, instead of raising.

    Raises
    ------
    ValueError
        Bad rows, the first of them named by row and file; no good row; a missing column.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import soundfile
    >>> from pathlib import Path
    >>> from rankwise.data import read_manifest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/one.wav", np.sin(np.arange(16000)), 16000)
    ...     _ = Path(folder, "manifest.csv").write_text("path,text\\none.wav,Hello there.\\n")
    ...     corpus = read_manifest(Path(folder))
    >>> corpus.texts, corpus.audio[0].name
    (['Hello there.'], 'one.wav')
    """
    path = _manifest_of(Path(path))
    kept: list[tuple[str, str, Path]] = []
    bad: list[str] = []
    converted: Counter[str] = Counter()
    for number, row in rows(path, [audio_column, text_column]):
        text, name = row[text_column], row[audio_column]
        file = path.parent / name
        try:
            _check_recording(name, file)
            _check_transcript(text, normalize, check)
        except ValueError as error:
            bad.append(f"row {number}, {name or '(empty)'}: {error}")
            continue
        kept.append((text, row.get("group") or text.casefold(), file))
        converted.update(_conversions(file))
    if bad and not skip_bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError(f"{path}: {'; '.join(bad[:SHOWN])}{more}. --skip-bad leaves such rows out")
    if not kept:
        raise ValueError(f"{path} has no usable row" + (f": {'; '.join(bad[:SHOWN])}" if bad else ""))
    notes = [f"{path}: {n} recording{'s' if n > 1 else ''} {what}" for what, n in converted.items()]
    if bad:
        notes.append(f"{path}: skipped {len(bad)} of {len(bad) + len(kept)} rows: {'; '.join(bad)}")
    return Corpus(
        name=str(path),
        texts=[t for t, _, _ in kept],
        labels=[],
        groups=[g for _, g, _ in kept],
        audio=[f for _, _, f in kept],
        notes=notes,
    )


def _check_recording(name: str, file: Path) -> None:
    if not name:
        raise ValueError("no audio file is named")
    read_audio(file)


def _check_transcript(text: str, normalize: Callable[[str], str], check: Callable[[str], None] | None) -> None:
    if not normalize(text):
        raise ValueError(f"the transcript '{text}' is empty after normalisation")
    if check is not None:
        check(text)


def _manifest_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for stem in ("manifest", "metadata"):
        for suffix in READERS:
            if (path / f"{stem}{suffix}").is_file():
                return path / f"{stem}{suffix}"
    raise ValueError(f"{path} has no manifest.csv, .tsv, .jsonl, .json or .parquet with columns path and text")


def _conversions(file: Path) -> list[str]:
    """What reading changes about a good file."""
    import soundfile

    info = soundfile.info(file)
    done = []
    if info.channels > 1:
        done.append(f"mixed from {info.channels} channels to mono")
    if info.samplerate != RATE:
        low = ", nothing above half of that was recorded" if info.samplerate < RATE else ""
        done.append(f"resampled from {info.samplerate} Hz to {RATE} Hz{low}")
    return done
