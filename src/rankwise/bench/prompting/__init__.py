"""Recipes of the family `rankwise.prompting`."""
