"""How far will diabetes have progressed in a year? Bands of 50, 80 and 90% for patients that nothing was fitted on."""

from pathlib import Path

from quantile_forest import RandomForestQuantileRegressor
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from rankwise.distributions import LinearQuantile, QuantileAggregator
from rankwise.report.plots.distributions import quantile_fan
from rankwise.report.plots.shared import save

levels = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
X, X_new, y, y_new = train_test_split(*load_diabetes(return_X_y=True), test_size=100, random_state=0)
bases = [("linear", LinearQuantile()), ("forest", RandomForestQuantileRegressor(100, random_state=0))]
model = QuantileAggregator(bases, quantiles=levels, random_state=0).fit(X, y)
save(quantile_fan(y_new, model.predict(X_new), levels, unit="progression"), Path("prediction_intervals.png"))
