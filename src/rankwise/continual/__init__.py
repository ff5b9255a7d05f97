"""Continual learning: a model that learns, adapts and forgets without its old data and without growing."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="tuning")
