"""The numerics every method shares: SVD, spectra, subspaces and rank budgets, as pure functions on tensors."""

from rankwise.spectral.budget import allocate, allocate_threshold, proportional
from rankwise.spectral.concurrent import each
from rankwise.spectral.polar import joined_polar, nearly_orthogonal_qr, polar_factor
from rankwise.spectral.spectrum import (
    effective_rank,
    explained_variance,
    gini,
    hill_index,
    outlier_ratio,
    power_law_fit,
    stable_rank,
)
from rankwise.spectral.streaming import StreamingSVD
from rankwise.spectral.subspace import (
    orthogonality_error,
    principal_angles,
    procrustes,
    projection,
    subspace_overlap,
)
from rankwise.spectral.svd import (
    TruncatedSVD,
    balanced_factors,
    leading_right_vectors,
    singular_values,
    spectrum_and_directions,
    truncated_eigh,
    truncated_svd,
)
from rankwise.spectral.symmetric import gram, symmetric_eigh

__all__ = [
    "StreamingSVD",
    "TruncatedSVD",
    "allocate",
    "allocate_threshold",
    "balanced_factors",
    "each",
    "effective_rank",
    "explained_variance",
    "gini",
    "gram",
    "hill_index",
    "joined_polar",
    "leading_right_vectors",
    "nearly_orthogonal_qr",
    "orthogonality_error",
    "outlier_ratio",
    "polar_factor",
    "power_law_fit",
    "principal_angles",
    "procrustes",
    "projection",
    "proportional",
    "singular_values",
    "spectrum_and_directions",
    "stable_rank",
    "subspace_overlap",
    "symmetric_eigh",
    "truncated_eigh",
    "truncated_svd",
]
