"""From spectra to ranks: what the directions of different matrices are compared by, and which go first.

A direction j of matrix m, with singular values ``σ_1 ≥ … ≥ σ_n``, is worth

    energy   σ_j² / Σ σ²                    its share of the matrix' squared norm
    top      σ_j / σ_1                      its size beside the largest
    welore   (σ_j - σ_n) / (σ_1 - σ_n)      WeLore's: the smallest is worth 0, however large it is

and one threshold serves all matrices. ``uniform`` and ``owl`` look at no spectrum: they take a share of every matrix.

What people get wrong: ``welore`` takes a direction of every matrix before it takes a second one of any, also of small
matrices with a flat spectrum, such as the values of grouped attention, whose every direction matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.models.outliers import outlier_scores
from rankwise.models.targets import blocks

Method = Literal["energy", "top", "welore", "uniform", "owl"]
OWL_SPREAD = 0.08  # OWL's λ: how far a block's ratio may lie from the target


def energy_spectrum(S: Tensor) -> Tensor:
    """``σ_j² / Σ σ²``; zeros of a matrix that is zero."""
    squares = top_spectrum(S).square()
    return squares / squares.sum().clamp(min=1.0)


def top_spectrum(S: Tensor) -> Tensor:
    """``σ_j / σ_1``; zeros of a matrix that is zero."""
    return S / S[0] if S[0] > 0 else torch.zeros_like(S)


def normalized_spectrum(S: Tensor) -> Tensor:
    """WeLore's ``σ̃``: mapped to [0, 1]; all ones where all are equal (none is removed first), zeros where all are 0."""
    if S[0] <= 0:
        return torch.zeros_like(S)
    gap = S[0] - S[-1]
    return (S - S[-1]) / gap if gap > 1e-6 * S[0] else torch.ones_like(S)


WORTH: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": energy_spectrum,
    "top": top_spectrum,
    "welore": normalized_spectrum,
}


class Rule(Protocol):
    """How a method gives out ranks; ``full`` is how many directions every matrix has.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.ranks import rule
    >>> spectra = [torch.tensor([4.0, 1.0, 0.5]), torch.tensor([2.0, 2.0, 2.0])]
    >>> given = rule("energy", torch.nn.Identity(), ["steep", "flat"], spectra)
    >>> given.ranks(removed=2).tolist()
    [1, 3]
    """

    @property
    def full(self) -> np.ndarray: ...

    def ranks(self, removed: int) -> np.ndarray:
        """The rank of every matrix, when so many directions are removed in all."""
        ...

    def threshold(self, removed: int) -> float:
        """The least worth that is kept, or NaN."""
        ...


class Threshold(NamedTuple):
    """Directions in the order in which they go: their matrix, and their worth.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.ranks import rule
    >>> spectra = [torch.tensor([4.0, 1.0, 0.5]), torch.tensor([2.0, 2.0, 2.0])]
    >>> given = rule("top", torch.nn.Identity(), ["steep", "flat"], spectra)
    >>> given.ranks(removed=2).tolist(), given.threshold(removed=2)
    ([1, 3], 1.0)
    """

    full: np.ndarray
    owner: np.ndarray
    values: np.ndarray

    def ranks(self, removed: int) -> np.ndarray:
        return self.full - np.bincount(self.owner[:removed], minlength=len(self.full))

    def threshold(self, removed: int) -> float:
        return float(self.values[removed]) if removed < len(self.values) else 1.0


class Shares(NamedTuple):
    """Every matrix loses the same share, more or less by ``offsets``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.ranks import rule
    >>> spectra = [torch.tensor([4.0, 1.0, 0.5]), torch.tensor([2.0, 2.0, 2.0])]
    >>> given = rule("uniform", torch.nn.Identity(), ["steep", "flat"], spectra)
    >>> given.ranks(removed=2).tolist()
    [2, 2]
    """

    full: np.ndarray
    offsets: np.ndarray

    def ranks(self, removed: int) -> np.ndarray:
        kept = 1 - removed / int(self.full.sum()) + self.offsets
        return np.clip(np.rint(self.full * kept), 1, self.full).astype(int)

    def threshold(self, removed: int) -> float:
        return float("nan")


def rule(method: str, model: nn.Module, names: Sequence[str], spectra: Sequence[Tensor]) -> Rule:
    """The rule of a method for matrices of these names and spectra."""
    full = np.array([len(S) for S in spectra])
    if method in WORTH:
        return Threshold(full, *removal_order(spectra, method))
    return Shares(full, np.zeros(len(full)) if method == "uniform" else owl_offsets(model, names))


def removal_order(spectra: Sequence[Tensor], method: str = "energy") -> tuple[np.ndarray, np.ndarray]:
    """All directions but the first of every matrix, by rising worth (ties in the model's order).

    Returns
    -------
    (array, array)
        The matrix that each removal takes a direction from, and what that direction is worth.
    """
    rising = [WORTH[method](S).flip(0)[:-1].cpu().numpy() for S in spectra]
    owner = np.repeat(np.arange(len(spectra)), [len(r) for r in rising])
    values = np.concatenate(rising)
    order = np.argsort(values, kind="stable")
    return owner[order], values[order]


def owl_offsets(model: nn.Module, names: Sequence[str]) -> np.ndarray:
    """What a block's matrices keep above (or below) the mean share: up to ±λ by outlier score, zero on average."""
    stack = blocks(model)[0]
    scores = outlier_scores(model).numpy()
    spread = scores.max() - scores.min()
    by_block = 2 * OWL_SPREAD * (scores - scores.min()) / spread if spread > 0 else 0 * scores
    index = [int(n.removeprefix(f"{stack}.").split(".")[0]) if n.startswith(f"{stack}.") else 0 for n in names]
    kept = by_block[index]
    return kept - kept.mean()
