"""A compression plan: which rank every matrix gets, and what that makes of the model's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from rankwise.models.activations import Batch


@dataclass(frozen=True, kw_only=True)
class Component:
    """One matrix of a plan.

    Attributes
    ----------
    name : str
    shape : tuple of int
        ``(out, in)``.
    rank : int
        Directions kept by the threshold, out of ``full_rank``.
    low_rank : bool
        Whether it is factorised (LRC); else it stays as it is.
    spectrum : Tensor
        Singular values, descending, float64 (of ``W C^½`` when calibrated).
    item_size : int
        Bytes an entry, of the weight and of the factors.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    low_rank: bool
    spectrum: Tensor
    item_size: int = 4

    @property
    def parameters_before(self) -> int:
        """Entries of the dense weight."""
        return self.shape[0] * self.shape[1]

    @property
    def parameters(self) -> int:
        """Entries of the weight as it will be."""
        return self.rank * sum(self.shape) if self.low_rank else self.parameters_before

    @property
    def bytes_before(self) -> int:
        """Of the dense weight."""
        return self.parameters_before * self.item_size

    @property
    def bytes(self) -> int:
        """Of the weight as it will be written: factors carry one number more, their mark (`LowRankLinear`)."""
        return (self.parameters + self.low_rank) * self.item_size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which rank every matrix gets; `rankwise.compression.apply` carries it out.

    Attributes
    ----------
    components : tuple of Component
        In the model's order.
    threshold : float
        The one below which directions go (NaN for the methods without one).
    method : str
    other_parameters, other_bytes : int
        Parameters outside the components, each tensor once; their bytes, with the buffers that are saved.
    calibration : tuple of dict of Tensor
        The batches of inputs that the spectra belong to; empty without calibration.
    directions : dict of Tensor
        Leading directions of the low-rank components, where planning could keep them.
    """

    components: tuple[Component, ...]
    threshold: float
    method: str
    other_parameters: int
    other_bytes: int
    calibration: tuple[Batch, ...] = ()
    directions: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def reduction(self) -> float:
        """ERR: the share of all directions that falls below the threshold."""
        return 1 - sum(c.rank for c in self.components) / sum(c.full_rank for c in self.components)

    @property
    def applied_reduction(self) -> float:
        """The share of directions that is really removed: that of the low-rank components."""
        removed = sum(c.full_rank - c.rank for c in self.components if c.low_rank)
        return removed / sum(c.full_rank for c in self.components)

    @property
    def parameters_before(self) -> int:
        """Of the whole model."""
        return self.other_parameters + sum(c.parameters_before for c in self.components)

    @property
    def parameters(self) -> int:
        """Of the whole model, afterwards."""
        return self.other_parameters + sum(c.parameters for c in self.components)

    @property
    def bytes_before(self) -> int:
        """Of the whole model's weights, in the dtypes that it has."""
        return self.other_bytes + sum(c.bytes_before for c in self.components)

    @property
    def bytes(self) -> int:
        """Of the whole model's weights, afterwards."""
        return self.other_bytes + sum(c.bytes for c in self.components)

    def as_dict(self) -> dict:
        """Everything but the spectra, for JSON."""
        rows = [{k: v for k, v in asdict(c).items() if k != "spectrum"} for c in self.components]
        keys = ("reduction", "applied_reduction", "parameters_before", "parameters", "bytes_before", "bytes")
        return {
            "method": self.method,
            "threshold": self.threshold,
            **{k: getattr(self, k) for k in keys},
            "components": [{**r, "parameters": c.parameters} for r, c in zip(rows, self.components, strict=True)],
        }
