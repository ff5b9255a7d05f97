"""How likely is each position looked at? Learned from simulated clicks alone, beside the truth and the clicks."""

from pathlib import Path

import numpy as np

from rankwise.ranking import PBM, DualLearningRanker, attraction, lists_of, propensity_curve
from rankwise.report.plots.clicks import propensities
from rankwise.report.plots.shared import save

rng, lists = np.random.default_rng(0), 6_000
X = rng.normal(size=(lists, 10, 3))
shown = np.argsort(-(0.4 * X[..., 0] + rng.normal(size=(lists, 10))), 1)  # a weak first ranker
X = np.take_along_axis(X, shown[..., None], 1)
clicks = PBM().simulate(attraction(np.clip(np.round(X[..., 0] + 1), 0, 4)), seed=0)
log = {"query": np.repeat(np.arange(lists), 10)}
model = DualLearningRanker(hidden=(16,), steps=400).fit(X.reshape(-1, 3), clicks.ravel(), **log)
laid = lists_of(clicks.ravel(), **log)
curve = propensity_curve(laid, model.predict(X.reshape(-1, 3))[laid.rows], max_weight=100.0, resamples=500)
clicked = clicks.mean(0) / clicks.mean(0)[0]
curves = {"learned": curve.propensity, "clicks, relative": clicked, "truth": PBM().of(10) / PBM().of(1)}
save(propensities(curves, low=curve.low, high=curve.high), Path("position_bias.png"))
