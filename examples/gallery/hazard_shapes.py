"""One family of hazards: γ decides how it begins and κ how it ends; below κ = 0 a share is cured."""

import matplotlib.pyplot as plt
import numpy as np

from rankwise.distributions.survival.power_weibull import hazard_shape, log_hazard

figure, axes = plt.subplots(figsize=(6, 3.2))
t = np.linspace(0.02, 3, 300)
for gamma, kappa in ((1.0, 1.0), (1.5, 1.0), (0.7, 3.0), (2.0, 0.2), (2.0, -0.3)):
    h = np.exp(log_hazard(t, gamma=gamma, kappa=kappa))
    axes.plot(t, h, label=f"γ = {gamma}, κ = {kappa}: {hazard_shape(gamma, kappa)}")
axes.set(xlabel="time", ylabel="hazard", ylim=(0, 3))
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figure.savefig("hazard_shapes.png", bbox_inches="tight", dpi=120)
