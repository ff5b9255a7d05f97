"""Data on a circle in ten dimensions: which noise level gives samples nearest to held-out rows?"""

import numpy as np

from rankwise.distributions import SingularGenerativeEstimator

rng = np.random.default_rng(0)
angle, basis = rng.uniform(0, 2 * np.pi, 500), np.linalg.qr(rng.standard_normal((10, 2)))[0]
X = np.column_stack([np.cos(angle), np.sin(angle)]) @ basis.T
axes = SingularGenerativeEstimator(2, hidden=(64, 64), epochs=200, lr=3e-3, random_state=0).fit(X).plot_noise_path()
axes.figure.savefig("noise_path.png", bbox_inches="tight", dpi=120)
