"""Synthetic speech: real sentences spoken by eSpeak NG, for a bench that needs a low-resource domain of speech.

This is not recorded speech. The sentences are real (New York Times editorials, of `rankwise.data.sentiment`); the
voices are eSpeak NG 1.52's formant synthesis, out of the package espeakng-loader. A corpus is the same, bit for bit,
whenever it is made on one kind of processor: the synthesiser is seeded and runs in a process of its own.

* ``child``: high pitch, wide pitch range, slow, formants and pitch raised by a shorter vocal tract (resampling by 1.10
  to 1.30), a small room (RT60 0.1 to 0.3 s, direct sound 10 dB above the tail), pink noise at 15 to 25 dB SNR.
* ``adult``: American and British voices, ordinary pitch and rate, RT60 0.1 to 0.2 s (13 dB), noise at 25 to 35 dB.
* ``accents``: Scottish, Lancastrian, West Midlands, Caribbean, New York and received pronunciation, like ``adult``.

A document of sentences is on the same side of the split in all corpora, and each side has voices of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.archive import cache_folder
from rankwise.data.audio import RATE
from rankwise.data.corpus import Corpus, side
from rankwise.data.texts import sentiment
from rankwise.files import cached, write_json
from rankwise.nearest import unknown
from rankwise.reading import read_json

VERSION = 1  # of the recipe below; part of the cache folder's name
SECONDS = 3600  # for all of a domain; it takes a minute or two
SHORTEST, LONGEST = 4, 9  # words


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker: eSpeak voice and variant, words a minute, pitch and range (0 to 99), vocal-tract factor.

    Examples
    --------
    >>> from rankwise.data.synthesis import DOMAINS
    >>> voice = DOMAINS["child"].voices["train"][0]
    >>> voice.name, voice.rate, voice.tract
    ('gmw/en-US+f2', 115, 1.15)
    """

    name: str
    rate: int
    pitch: int
    range: int
    tract: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Voices by side of the split, and the room they speak in (see `reverberated`, `with_noise`; drawn a sentence).

    Examples
    --------
    >>> from rankwise.data.synthesis import DOMAINS
    >>> {side: len(voices) for side, voices in DOMAINS["child"].voices.items()}, DOMAINS["child"].snr
    ({'train': 6, 'validation': 2, 'test': 3}, (15.0, 25.0))
    """

    voices: dict[str, list[Voice]]
    rt60: tuple[float, float]
    direct: float
    snr: tuple[float, float]


def _child(name: str, rate: int, pitch: int, range: int, tract: float) -> Voice:
    return Voice(name=name, rate=rate, pitch=pitch, range=range, tract=tract)


def _adult(name: str, rate: int = 150, pitch: int = 45) -> Voice:
    return Voice(name=name, rate=rate, pitch=pitch, range=50)


DOMAINS = {
    "child": Domain(
        voices={
            "train": [
                _child("gmw/en-US+f2", 115, 75, 75, 1.15),
                _child("gmw/en-US+f4", 105, 85, 90, 1.25),
                _child("gmw/en+f3", 110, 80, 80, 1.20),
                _child("gmw/en-US+m4", 120, 89, 70, 1.30),
                _child("gmw/en+f5", 100, 70, 95, 1.10),
                _child("gmw/en-US+belinda", 112, 78, 85, 1.23),
            ],
            "validation": [_child("gmw/en-US+f1", 108, 82, 80, 1.25), _child("gmw/en+f4", 118, 74, 88, 1.13)],
            "test": [
                _child("gmw/en-US+f3", 106, 86, 85, 1.27),
                _child("gmw/en+f2", 112, 76, 92, 1.17),
                _child("gmw/en-US+linda", 116, 80, 72, 1.22),
            ],
        },
        rt60=(0.1, 0.3),
        direct=10.0,
        snr=(15.0, 25.0),
    ),
    "adult": Domain(
        voices={
            "train": [_adult("gmw/en-US+m1"), _adult("gmw/en+m2", 160), _adult("gmw/en-US+f1", 145, 55)],
            "validation": [_adult("gmw/en-US+m5", 155, 40), _adult("gmw/en+f1", 150, 55)],
            "test": [_adult("gmw/en-US+m3", 155, 40), _adult("gmw/en+m7"), _adult("gmw/en-US+f5", 150, 55)],
        },
        rt60=(0.1, 0.2),
        direct=20.0,
        snr=(25.0, 35.0),
    ),
    "accents": Domain(
        voices={
            "train": [_adult("gmw/en-GB-scotland+m1"), _adult("gmw/en-029+m2"), _adult("gmw/en-GB-x-gbclan+m4")],
            "validation": [_adult("gmw/en-US-nyc+m5"), _adult("gmw/en-GB-x-gbcwmd+f1", 145, 55)],
            "test": [
                _adult("gmw/en-GB-scotland+m3", 155, 40),
                _adult("gmw/en-029+f2", 145, 55),
                _adult("gmw/en-GB-x-rp+m7"),
                _adult("gmw/en-GB-x-gbclan+m2"),
            ],
        },
        rt60=(0.1, 0.2),
        direct=20.0,
        snr=(25.0, 35.0),
    ),
}


def speech(domain: str) -> Corpus:
    """One synthetic domain as a `Corpus` of audio files with transcripts; made on first use (some seconds), cached.

    Raises
    ------
    ValueError
        Unknown domain (the nearest is offered).
    ImportError
        The extra ``speech`` is not installed.

    Examples
    --------
    >>> from rankwise.data import speech
    >>> speech("chidl")  # speech("child") gives recordings, whose files are in its `audio`
    Traceback (most recent call last):
    ValueError: ...child...
    """
    if domain not in DOMAINS:
        raise unknown("speech domain", domain, DOMAINS)
    folder = cache_folder() / "data" / f"speech-{VERSION}" / domain
    rows = read_json(cached(folder, partial(_spoken, domain)) / "manifest.json", list)
    return Corpus(
        name=f"speech:{domain}",
        texts=[r["text"] for r in rows],
        labels=[],
        groups=[r["group"] for r in rows],
        audio=[folder / r["path"] for r in rows],
    )


def _spoken(domain: str, folder: Path) -> None:
    """Fill ``folder``; the synthesiser keeps state between sentences: a fresh process says them in a fixed order."""
    _speaker_available()
    call = f"from rankwise.data.synthesis import synthesise; synthesise({domain!r}, {str(folder)!r})"
    try:
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"speech:{domain} is not synthesised within {SECONDS:,} seconds") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise OSError(f"speech could not be synthesised: {reason}")


def sentences() -> list[tuple[str, str]]:
    """``(document, sentence)``: New York Times editorial sentences of 4 to 9 plain words."""
    corpus = sentiment("nyt", task="rating")
    plain = re.compile(r"[A-Za-z',.!? -]+")
    rows = zip(corpus.groups, corpus.texts, strict=True)
    return [(g, t) for g, t in rows if SHORTEST <= len(t.split()) <= LONGEST and plain.fullmatch(t)]


def synthesise(domain: str, folder: str | Path) -> None:
    """Write the audio files (16 kHz, 16 bit, FLAC) and ``manifest.json`` of a domain."""
    import soundfile
    import soxr

    chosen, speaker, manifest = DOMAINS[domain], _Espeak(), []
    for i, (document, text) in enumerate(sentences()):
        rng = np.random.default_rng(list(hashlib.sha256(f"{domain}|{i}|{text}".encode()).digest()[:8]))
        voices = chosen.voices[side(document)]
        voice = voices[rng.integers(len(voices))]
        dry = soxr.resample(speaker.say(text, voice), speaker.rate * voice.tract, RATE)
        room, ratio = rng.uniform(*chosen.rt60), rng.uniform(*chosen.snr)
        wet = with_noise(reverberated(dry, rt60=room, direct=chosen.direct, rng=rng), snr=ratio, rng=rng)
        path = f"{i:04d}.flac"
        soundfile.write(Path(folder) / path, 0.5 * wet / np.abs(wet).max(), RATE, subtype="PCM_16")
        about = {"voice": voice.name, "snr": ratio, "rt60": room}
        manifest.append({"path": path, "text": text, "group": document, **about})
    write_json(Path(folder) / "manifest.json", manifest)


def reverberated(
    dry: NDArray[np.floating], *, rt60: float, direct: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A signal in a room: convolved with exponentially decaying noise (Polack's model) behind the direct sound.

    Parameters
    ----------
    rt60 : float
        Seconds until the tail has lost 60 dB.
    direct : float
        Energy of the direct sound over that of the tail (10 is 10 dB).

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data.synthesis import reverberated
    >>> wet = reverberated(np.eye(1, 16000)[0], rt60=0.2, direct=10.0, rng=np.random.default_rng(0))
    >>> round(1 / np.sum(wet[1:] ** 2))  # the direct sound over the tail
    10
    """
    from scipy.signal import fftconvolve

    t = np.arange(int(rt60 * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60)
    tail[: RATE // 200] = 0  # the first reflection comes after 5 ms
    tail /= np.sqrt(np.sum(tail**2) * direct)
    tail[0] = 1.0
    return fftconvolve(dry, tail)[: len(dry) + RATE // 4]


def with_noise(clean: NDArray[np.floating], *, snr: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A signal with pink (1/f power) noise at an SNR in dB over the whole signal.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.data.synthesis import with_noise
    >>> clean = np.sin(np.arange(16000) / 5)
    >>> noise = with_noise(clean, snr=20.0, rng=np.random.default_rng(0)) - clean
    >>> round(10 * np.log10(np.mean(clean**2) / np.mean(noise**2)))
    20
    """
    spectrum = np.fft.rfft(rng.standard_normal(len(clean)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(clean))
    return clean + noise * np.sqrt(np.mean(clean**2) / (np.mean(noise**2) * 10 ** (snr / 10)))


def _speaker_available() -> None:
    try:
        import espeakng_loader  # noqa: F401
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except ImportError as error:
        raise ImportError(f"synthetic speech needs {error.name}: pip install 'rankwise[speech]'") from error


class _Espeak:
    """The eSpeak NG library behind one method; a process should have one."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._chunks: list[NDArray[np.int16]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)
        synchronous = 2
        self.rate = self._library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
        self._library.espeak_SetSynthCallback(self._callback)
        pointer = ctypes.c_void_p
        self._library.espeak_Synth.argtypes = (
            [ctypes.c_char_p, ctypes.c_size_t] + [ctypes.c_uint, ctypes.c_int] + [ctypes.c_uint] * 2 + [pointer] * 2
        )

    def _take(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> NDArray[np.float64]:
        """Samples in [-1, 1] at ``self.rate``."""
        self._chunks.clear()
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"eSpeak NG has no voice {voice.name}")
        for parameter, value in ((1, voice.rate), (3, voice.pitch), (4, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        by_character, utf8 = 1, 1
        if self._library.espeak_Synth(data, len(data), 0, by_character, 0, utf8, None, None):
            raise OSError(f"eSpeak NG could not say '{text}'")
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks) / 32768.0
