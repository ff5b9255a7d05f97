"""How many tokens leave after which block, what that saves, and the schedule that meets a target.

A block of width d and MLP width m costs, on N tokens, in multiply-accumulates (what papers of this field call FLOPs)

    4 N d² + 2 N d m + 2 N² d,        for m = 4d:  12 N d² + 2 N² d

Tokens leave between blocks, so that a block is paid for with the tokens that enter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

__all__ = ["PRESETS", "TokenFlops", "TokenSchedule", "TowerShape", "planned"]

PRESETS = {"a": 0.653, "b": 0.549, "c": 0.873}  # shares of the dense cost of the paper's three models, DeiT-S
_DEPTH = tuple(n / 12 for n in (1, 3, 6, 9, 11))  # of the paper's pruning layers, as shares of all blocks
_KEEP, _SIMILAR = (1.0, 0.9, 0.8, 0.7, 1.0), 10 / 196  # kept by importance; dropped as similar, of all patches
_STRENGTHS = np.arange(0, 2500) / 100  # of the paper's schedule, tried in order


class TokenFlops(NamedTuple):
    """Multiply-accumulates of one image: without and with pruning, and what choosing the tokens adds to the latter.

    Examples
    --------
    >>> from rankwise.compression import TokenFlops
    >>> TokenFlops(dense=1000, pruned=650, choosing=10).share
    0.65
    """

    dense: int
    pruned: int
    choosing: int

    @property
    def share(self) -> float:
        """What is left of the dense cost, as papers count it: without what choosing costs."""
        return self.pruned / self.dense


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Sizes of an image transformer.

    Attributes
    ----------
    depth, width, heads, inner, hidden : int
        Blocks; channels of a token; attention heads and the channels of all of them; channels inside the MLP.
    patches, prefix : int
        Patch tokens of an image, and tokens before them that always stay (CLS, distillation, registers).
    embedding : int
        Multiply-accumulates of the patch embedding, an image.

    Examples
    --------
    >>> from rankwise.compression import TowerShape
    >>> deit_s = TowerShape(depth=12, width=384, heads=6, inner=384, hidden=1536, patches=196, prefix=1,
    ...                     embedding=196 * 768 * 384)
    >>> round(deit_s.macs([197] * 13) / 1e9, 2)  # published: 4.55
    4.6
    """

    depth: int
    width: int
    heads: int
    inner: int
    hidden: int
    patches: int
    prefix: int
    embedding: int

    def macs(self, counts: Sequence[int]) -> int:
        """Of an image whose blocks get ``counts`` tokens; one more, what leaves the last block, is not counted."""
        d, a, m = self.width, self.inner, self.hidden
        return self.embedding + sum(4 * n * d * a + 2 * n * d * m + 2 * n * n * a for n in counts[: self.depth])


@dataclass(frozen=True, kw_only=True)
class TokenSchedule:
    """After which blocks how many tokens leave.

    Attributes
    ----------
    layers : tuple of int
        Tokens leave after this many blocks, ascending.
    keep : tuple of float
        Share of the patch tokens, of those that similarity left, that stay for their importance; rounded down.
    similar : tuple of int
        How many leave before that because another token is like them.
    iterations : tuple of int
        Rounds of voting that importance takes.

    Examples
    --------
    >>> from rankwise.compression import TokenSchedule
    >>> s = TokenSchedule(layers=(1, 3), keep=(1.0, 0.9), similar=(10, 10), iterations=(30, 5))
    >>> s.counts(patches=196, prefix=1, depth=5)  # entering each block, and leaving the last
    [197, 187, 187, 159, 159, 159]
    """

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    similar: tuple[int, ...]
    iterations: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("layers", "similar", "iterations"):
            if wrong := [n for n in getattr(self, name) if not isinstance(n, Integral)]:
                raise ValueError(f"{name}={wrong[0]!r}: whole numbers are accepted")
        for name in ("keep", "similar", "iterations"):
            if (n := len(getattr(self, name))) != len(self.layers):
                raise ValueError(f"{name} has {n} entries for {len(self.layers)} pruning layers {self.layers}")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers={self.layers}: ascending, each once, is accepted")
        if wrong := [k for k in self.keep if not 0 < k <= 1]:
            raise ValueError(f"keep={wrong[0]}: a share above 0 and at most 1 is accepted; 1 keeps all")
        if wrong := [s for s in self.similar if s < 0]:
            raise ValueError(f"similar={wrong[0]}: a number of tokens, 0 or more, is accepted")
        if wrong := [t for t in self.iterations if t < 1]:
            raise ValueError(f"iterations={wrong[0]}: 1 or more is accepted")

    def left(self, which: int, patches: int) -> int:
        """Patch tokens after the ``which``-th pruning layer, of those that reach it.

        Raises
        ------
        ValueError
            More similar tokens than half of what is there, or none left at all.
        """
        if self.similar[which] > patches // 2:
            raise ValueError(
                f"similar={self.similar[which]} after block {self.layers[which]}: only the less important half of its "
                f"{patches} patch tokens can leave as similar, {patches // 2}"
            )
        # 0.29 · 100 is 28.999…: what is whole but for rounding counts as whole
        kept = int(self.keep[which] * (patches - self.similar[which]) + 1e-9)
        if kept < 1:
            raise ValueError(f"keep={self.keep[which]} after block {self.layers[which]} removes every patch token")
        return kept

    def counts(self, *, patches: int, prefix: int, depth: int) -> list[int]:
        """Tokens that enter each block, and at the end those that leave the last.

        Raises
        ------
        ValueError
            A pruning layer that is not between blocks, and what `left` refuses.
        """
        if wrong := [n for n in self.layers if not 1 <= n < depth]:
            raise ValueError(f"layer {wrong[0]} of {depth} blocks: tokens can leave after block 1 to {depth - 1}")
        found, which = [], 0
        for block in range(depth + 1):
            if which < len(self.layers) and self.layers[which] == block:
                patches, which = self.left(which, patches), which + 1
            found.append(prefix + patches)
        return found


def planned(
    shape: TowerShape,
    *,
    target_flops: float | None = None,
    layers: Sequence[int] | None = None,
    keep: float | Sequence[float] | None = None,
    similar: int | Sequence[int] | None = None,
    iterations: int | Sequence[int] | None = None,
) -> TokenSchedule:
    """The paper's schedule at this model's depth, stretched to a target; what is given is taken as it is.

    Parameters
    ----------
    shape : TowerShape
        The model's.
    target_flops : float, optional
        Up to 1 a share of the dense cost, above 1 multiply-accumulates an image. Whichever of ``keep`` and ``similar``
        is not given is strengthened until the target is met: ``keep=1`` drops similar tokens alone, ``similar=0``
        unimportant ones alone. Without a target and without either: the paper's schedule as it is.
    layers, keep, similar, iterations
        As in `TokenSchedule`; a number counts for every layer.

    Raises
    ------
    ValueError
        A target that is no positive number, both ``keep`` and ``similar`` beside it, or one out of reach (the least
        that these layers can reach is named); a model of one block.

    Examples
    --------
    >>> from rankwise.compression import TowerShape, planned
    >>> vit = TowerShape(depth=6, width=192, heads=3, inner=192, hidden=768, patches=64, prefix=1, embedding=10**6)
    >>> schedule = planned(vit, target_flops=0.65)
    >>> schedule.counts(patches=64, prefix=1, depth=6)
    [65, 57, 45, 32, 32, 23, 23]
    """
    at = _default_layers(shape.depth) if layers is None else tuple(layers)
    _check_target(target_flops, keep, similar)
    rounds = _per_layer("iterations", iterations, at) or tuple(_rounds(n, shape.depth) for n in at)
    shares, drops = _per_layer("keep", keep, at), _per_layer("similar", similar, at)
    free = target_flops is not None or (shares is None and drops is None)

    def strengthened(c: float) -> TokenSchedule:
        c = c if free else 0.0
        kept = shares or tuple(round(float(np.interp(n / shape.depth, _DEPTH, _KEEP)) ** c, 4) for n in at)
        alike = drops or _within(shape.patches, kept, int(c * _SIMILAR * shape.patches + 0.5))
        return TokenSchedule(layers=at, keep=kept, similar=alike, iterations=rounds)

    if target_flops is None:
        schedule = strengthened(1.0)
        schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)
        return schedule
    return _reached(shape, target_flops, strengthened)


def _reached(shape: TowerShape, target: float, strengthened) -> TokenSchedule:
    """The weakest schedule within the target."""
    dense = shape.macs([shape.patches + shape.prefix] * shape.depth)
    allowed, least = target * dense if target <= 1 else target, dense
    strengthened(0.0).counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)  # what no strength mends
    for c in _STRENGTHS:
        schedule = strengthened(float(c))
        try:
            counts = schedule.counts(patches=shape.patches, prefix=shape.prefix, depth=shape.depth)
        except ValueError:
            break  # no patch token is left
        least = min(least, shape.macs(counts))
        if least <= allowed:
            return schedule
    raise ValueError(
        f"target_flops={target:g} is out of reach: pruning after blocks {', '.join(map(str, schedule.layers))} leaves "
        f"at least {least / dense:.2f} of the dense cost ({least:.3g} multiply-accumulates); prune earlier with layers="
    )


def _within(patches: int, keep: Sequence[float], similar: int) -> tuple[int, ...]:
    """So many similar tokens at each layer, but never more than half of those that are there."""
    found = []
    for share in keep:
        found.append(min(similar, patches // 2))
        patches = int(share * (patches - found[-1]))
    return tuple(found)


def _check_target(target: float | None, keep: object, similar: object) -> None:
    if target is None:
        return
    if not 0 < target < float("inf"):
        raise ValueError(f"target_flops={target}: a share of the dense cost, or multiply-accumulates above 1")
    if keep is not None and similar is not None:
        raise ValueError("keep and similar decide the cost: leave out one of them, or target_flops")


def _per_layer(name: str, given, layers: tuple[int, ...]) -> tuple | None:
    """One entry a pruning layer."""
    if given is None or isinstance(given, Real):
        given = None if given is None else (given,) * len(layers)
    if given is None:
        return None
    if isinstance(given, str) or not all(isinstance(n, Real) and n == n for n in given):
        raise ValueError(f"{name}={given!r}: a number, or one for each pruning layer, is accepted")
    if len(given) != len(layers):
        raise ValueError(f"{name} has {len(given)} entries for {len(layers)} pruning layers {layers}")
    return tuple(given)


def _default_layers(depth: int) -> tuple[int, ...]:
    """The paper's blocks 1, 3, 6, 9 and 11 of 12, at another depth."""
    if depth < 2:
        raise ValueError(f"{depth} block: tokens leave between blocks, and two are needed")
    at = {max(1, int(share * depth + 0.5)) for share in _DEPTH}
    return tuple(sorted(n for n in at if n < depth))


def _rounds(layer: int, depth: int) -> int:
    """Rounds of voting: early attention needs many, late attention points at what matters by itself."""
    return 30 if 4 * layer < depth else 1 if 4 * layer >= 3 * depth else 5
