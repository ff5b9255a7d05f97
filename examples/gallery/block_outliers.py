"""Which blocks of SmolLM2 have outliers in their weights? OwLore trains those most often."""

from pathlib import Path

from rankwise.models.spectra import block_outliers
from rankwise.report.plots.optim import outliers
from rankwise.report.plots.shared import save

save(outliers(block_outliers("smollm2")), Path("block_outliers.png"))
