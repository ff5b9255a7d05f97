"""A compression plan: which rank every matrix gets, and what that makes of the model's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from rankwise.models.activations import Batch

__all__ = ["Component", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One matrix of a plan.

    Attributes
    ----------
    name : str
        The layer's name in the model.
    shape : tuple of int
        ``(out, in)`` of the dense weight.
    rank : int
        Directions kept, out of ``full_rank``: those above the threshold, rounded up to the multiple that was asked for.
    low_rank : bool
        Whether it is factorised (LRC); else it stays as it is.
    spectrum : Tensor
        Singular values, descending, float64 (of ``W C^½`` when calibrated).
    item_size : int
        Bytes an entry takes, in the weight and in the factors.
    content : str
        What the weight is by content, so that `rankwise.compression.apply` knows it again; empty: whichever it is.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import plan
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> first = plan(LlamaForCausalLM(config), parameters=0.6).components[0]
    >>> first.name, first.shape, first.full_rank, 1 <= first.rank <= 16
    ('model.layers.0.self_attn.q_proj', (16, 16), 16, True)
    """

    name: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    low_rank: bool
    spectrum: Tensor = field(repr=False)
    item_size: int = 4
    content: str = field(default="", repr=False)

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """Which rank every matrix gets; `rankwise.compression.apply` carries it out.

    Attributes
    ----------
    components : tuple of Component
        The matrices that were looked at, in the model's order.
    threshold : float
        The worth below which directions go, before ranks are rounded up (NaN for the methods without one).
    method : str
        What directions were compared by, see `rankwise.compression.plan`.
    other_parameters, other_bytes : int
        Parameters outside the components, each tensor once; their bytes, with the buffers that are saved.
    calibration : tuple of dict of Tensor
        The batches of inputs that the spectra belong to; empty without calibration.
    directions : dict of Tensor
        Leading directions of the low-rank components, where planning could keep them.
    note : str
        That the model's size, or with rounded ranks the reduction, is more than a hundredth away from what was asked,
        and what would come nearer; empty where it is not.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.compression import plan
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> chosen = plan(LlamaForCausalLM(config), parameters=0.6)
    >>> len(chosen.components), chosen.parameters <= 0.6 * chosen.parameters_before
    (14, True)
    """

    components: tuple[Component, ...]
    threshold: float
    method: str
    other_parameters: int
    other_bytes: int
    calibration: tuple[Batch, ...] = ()
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    note: str = ""

    def __repr__(self) -> str:
        """A table, a row a matrix."""
        rows = [
            (c.name, f"{c.shape[0]}x{c.shape[1]}", f"{c.rank} of {c.full_rank}", "factors" if c.low_rank else "dense")
            for c in self.components
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        total = f"{self.method}: {self.parameters:,} of {self.parameters_before:,} parameters, {self.bytes:,} of "
        return "\n".join([*lines, f"{total}{self.bytes_before:,} bytes", *([self.note] if self.note else [])])

    @property
    def reduction(self) -> float:
        """ERR: the share of all directions that the ranks leave out."""
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
        """Everything but spectra and what weights are by content, for JSON."""
        left = ("spectrum", "content")
        rows = [{k: v for k, v in asdict(c).items() if k not in left} for c in self.components]
        keys = ("reduction", "applied_reduction", "parameters_before", "parameters", "bytes_before", "bytes")
        return {
            "method": self.method,
            "note": self.note,
            "threshold": self.threshold,
            **{k: getattr(self, k) for k in keys},
            "components": [{**r, "parameters": c.parameters} for r, c in zip(rows, self.components, strict=True)],
        }
