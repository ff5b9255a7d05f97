"""Plots, a file a family; `shared` holds the style, and what families share."""
