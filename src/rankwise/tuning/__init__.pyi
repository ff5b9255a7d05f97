from rankwise.tuning.bitfit import BitFitConfig as BitFitConfig
from rankwise.tuning.eva import ActivationSpectra as ActivationSpectra
from rankwise.tuning.eva import EvaConfig as EvaConfig
from rankwise.tuning.eva import activation_spectra as activation_spectra
from rankwise.tuning.eva import initialize as initialize
from rankwise.tuning.export import export_lora as export_lora
from rankwise.tuning.export import low_rank_factors as low_rank_factors
from rankwise.tuning.s2lora import S2LoraConfig as S2LoraConfig
