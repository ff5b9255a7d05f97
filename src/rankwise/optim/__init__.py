"""Optimisers that train every parameter in a fraction of AdamW's memory."""

from rankwise.optim.galore import GaLoreAdamW, galore_groups
from rankwise.optim.owlore import OwLore
from rankwise.optim.sampling import MODES, LayerSampler, sampling_probabilities

__all__ = ["MODES", "GaLoreAdamW", "LayerSampler", "OwLore", "galore_groups", "sampling_probabilities"]
