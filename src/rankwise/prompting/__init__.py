"""A frozen language model does better when its examples and its answer are chosen well."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="prompting")
