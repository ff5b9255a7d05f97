"""Recipes of the image models."""
