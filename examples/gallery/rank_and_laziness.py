"""Recurrent networks that start at three ranks of equal norm, trained as one batch: how lazy they stay."""

from pathlib import Path

from rankwise.dynamics import RichLazyExperiment
from rankwise.report.plots.dynamics import along_training
from rankwise.report.plots.shared import save

ranks = (1, 10, 60)
rows = RichLazyExperiment(task="decision", units=60, ranks=ranks, seeds=4, steps=600, probes=100, rows=16).run()
curves = {f"rank {rank}": [row for row in rows if row["rank"] == rank] for rank in ranks}
save(along_training(curves), Path("rank_and_laziness.png"))
