"""Recipes of the family `rankwise.dynamics`."""
