"""Bundled real data sets and user files behind one small type, `Corpus`."""

from rankwise.data.audio import read_audio, read_manifest
from rankwise.data.corpus import Corpus, Splits
from rankwise.data.files import read_file
from rankwise.data.loading import load
from rankwise.data.synthesis import speech
from rankwise.data.texts import DOMAINS, documents, sentiment

__all__ = [
    "DOMAINS",
    "Corpus",
    "Splits",
    "documents",
    "load",
    "read_audio",
    "read_file",
    "read_manifest",
    "sentiment",
    "speech",
]
