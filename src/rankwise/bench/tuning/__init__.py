"""Recipes of the family `rankwise.tuning`."""
