"""Ratios against the tools that people use, side by side in one run."""
