"""Several fine-tunes of one base become one model, without training."""

from rankwise.family import namespace
from rankwise.merging import methods as methods  # they enter the registry before anything asks for it

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="models")
