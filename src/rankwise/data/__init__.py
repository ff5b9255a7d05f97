"""Bundled real data sets and user files behind two small types, `Corpus` and `Images`."""

from rankwise.data.audio import read_audio, read_manifest
from rankwise.data.corpus import Corpus, Splits
from rankwise.data.files import read_file
from rankwise.data.images import Images, read_image, write_image
from rankwise.data.literature import papers
from rankwise.data.loading import load, read_images
from rankwise.data.synthesis import speech
from rankwise.data.texts import DOMAINS, documents, sentiment

__all__ = [
    "DOMAINS",
    "Corpus",
    "Images",
    "Splits",
    "documents",
    "load",
    "papers",
    "read_audio",
    "read_file",
    "read_image",
    "read_images",
    "read_manifest",
    "sentiment",
    "speech",
    "write_image",
]
