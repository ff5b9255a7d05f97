from rankwise.optim.galore import GaLoreAdamW as GaLoreAdamW
from rankwise.optim.groups import galore_groups as galore_groups
from rankwise.optim.owlore import OwLore as OwLore
from rankwise.optim.sampling import MODES as MODES
from rankwise.optim.sampling import LayerSampler as LayerSampler
from rankwise.optim.sampling import sampling_probabilities as sampling_probabilities
