"""How much of its rank does each layer of MiniLM use?"""

from pathlib import Path

from rankwise.models.spectra import layer_spectra
from rankwise.report.plots.compression import spectra
from rankwise.report.plots.shared import save

save(spectra(layer_spectra("minilm")), Path("layer_spectra.png"))
