from rankwise.dynamics.low_rank.denoising import MoLRGDenoiser as MoLRGDenoiser
from rankwise.dynamics.low_rank.jacobians import intrinsic_dimension as intrinsic_dimension
from rankwise.dynamics.low_rank.recovery import MixtureSample as MixtureSample
from rankwise.dynamics.low_rank.recovery import PhaseTransition as PhaseTransition
from rankwise.dynamics.low_rank.recovery import low_rank_mixture as low_rank_mixture
from rankwise.dynamics.low_rank.recovery import phase_transition as phase_transition
from rankwise.dynamics.low_rank.recovery import recovery_threshold as recovery_threshold
from rankwise.dynamics.low_rank.recovery import subspace_error as subspace_error
