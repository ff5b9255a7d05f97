"""Several methods on one model."""
