"""Does one hazard fit the arrests of 432 released prisoners? Cox-Snell residuals should follow the line."""

from lifelines.datasets import load_rossi

from rankwise.distributions import PGWRegressionFitter

df = load_rossi()
axes = PGWRegressionFitter().fit(df, "week", "arrest").plot_qq(df)
axes.figure.savefig("survival_residuals.png", bbox_inches="tight", dpi=120)
