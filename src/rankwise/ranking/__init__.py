"""Ranking: from clicks, of summaries by their readers, and among peers."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs={"ipv8": "peers", "sklearn": "distributions"})
