"""Ranking: rankers from click logs, and how summaries follow their readers."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0])
