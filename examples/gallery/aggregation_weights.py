"""Which of three quantile models counts at which level, when they are stacked?"""

from lightgbm import LGBMRegressor
from quantile_forest import RandomForestQuantileRegressor
from sklearn.datasets import load_diabetes

from rankwise.distributions import LinearQuantile, QuantileAggregator

X, y = load_diabetes(return_X_y=True)
bases = [
    ("linear", LinearQuantile()),
    ("boosting", LGBMRegressor(objective="quantile", n_estimators=80, verbose=-1)),
    ("forest", RandomForestQuantileRegressor(100, random_state=0)),
]
model = QuantileAggregator(bases, quantiles=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95), random_state=0).fit(X, y)
axes = model.plot_weights()
axes.figure.savefig("aggregation_weights.png", bbox_inches="tight", dpi=120)
