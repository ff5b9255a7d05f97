"""Recipes of the family `rankwise.distributions`."""
