"""Recipes of the family `rankwise.merging`."""
