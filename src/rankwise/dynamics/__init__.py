"""Dynamics of learning: measures, estimators and experiments beside their theory."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(
    __name__, __path__[0], needs={"sklearn": "distributions", "numpy": "distributions", "torch": "models"}
)
