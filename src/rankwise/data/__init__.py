"""Bundled real data sets and user files behind one small type, `Corpus`."""

from rankwise.data.corpus import Corpus, Splits, load
from rankwise.data.files import read_file
from rankwise.data.sentiment import DOMAINS, sentiment

__all__ = ["DOMAINS", "Corpus", "Splits", "load", "read_file", "sentiment"]
