from rankwise.distributions.density.estimator import HighDimKDE as HighDimKDE
from rankwise.distributions.density.regimes import critical_bandwidths as critical_bandwidths
