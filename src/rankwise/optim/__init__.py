"""Optimisers that train every parameter in a fraction of AdamW's memory."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="models")
