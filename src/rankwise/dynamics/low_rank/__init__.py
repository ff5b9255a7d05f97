"""Mixtures of low-rank Gaussians: what clusters and denoises them, and from how many rows they are learned."""

from rankwise.family import namespace

__all__, __getattr__, __dir__ = namespace(__name__, __path__[0], needs="models")
