"""Distributions as estimators: survival, aggregated quantiles, densities in large dimension, singular laws."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="distributions")
