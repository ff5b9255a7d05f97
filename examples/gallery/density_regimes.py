"""On how many points does a density estimate in 30 dimensions rest, and where do the critical bandwidths lie?"""

import matplotlib.pyplot as plt
import numpy as np

from rankwise.distributions import HighDimKDE

X = np.random.default_rng(0).standard_normal((2_000, 30))
figure, axes = plt.subplots(figsize=(10, 4))
HighDimKDE().fit(X).plot_regimes(axes)
figure.savefig("density_regimes.png", bbox_inches="tight", dpi=120)
