"""How much of its rank does each layer of MiniLM use?"""

from rankwise.report.plots.compression import spectra
from rankwise.report.plots.shared import save

from rankwise.models.spectra import layer_spectra

save(spectra(layer_spectra("minilm")), "layer_spectra.png")
