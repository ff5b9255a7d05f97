"""Recipes of the family `rankwise.optim`."""
