"""Recipes of the family `rankwise.continual`."""
