"""Recipes of the family `rankwise.ranking`."""
