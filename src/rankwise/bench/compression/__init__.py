"""Recipes of the family `rankwise.compression`."""
