"""Three subspaces in eight dimensions, their number and dimensions unknown: which directions has each cluster?"""

import torch

from rankwise.dynamics import SubspaceClustering, low_rank_mixture
from rankwise.report.plots.dynamics import cluster_spectra

parts = [low_rank_mixture(8, d, samples=150, noise=0.1, seed=d) for d in (1, 2, 3)]
X = torch.cat([part.X for part in parts]).numpy()
model = SubspaceClustering("auto", "auto").fit(X)
sizes = [int((model.labels_ == k).sum()) for k in range(model.n_clusters_)]
figure = cluster_spectra(model.spectra_, model.dims_.tolist(), sizes)
figure.savefig("clusters_as_subspaces.png", bbox_inches="tight", dpi=120)
