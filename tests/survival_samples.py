"""Survival data drawn from a known model."""

import numpy as np
import pandas as pd

from rankwise.distributions.survival import power_weibull as pgw


def drawn(n=400, *, seed=0, kappa=0.4, gamma=1.5, effect=0.5, lambda_=1.0):
    """Two covariates, the first moving φ; censored at random."""
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"x": rng.normal(size=n), "z": rng.integers(0, 2, n).astype(float)})
    phi = np.exp(-1 + effect * df["x"].to_numpy())
    t = pgw.quantile(rng.exponential(size=n), phi=phi, gamma=gamma, kappa=kappa, lambda_=lambda_)
    c = rng.exponential(scale=8, size=n)
    return df.assign(t=np.minimum(t, c), e=(t <= c).astype(float))
