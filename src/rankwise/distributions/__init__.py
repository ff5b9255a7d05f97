"""Distributions as estimators: survival, aggregated quantiles, densities in large dimension and on thin sets."""
