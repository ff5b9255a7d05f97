"""Lists that a simulated network shows: how they are made, which place is clicked, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.ranking.click_models import PBM, attraction
from rankwise.ranking.peers.world import BEST, Array, Ints, World

__all__ = ["positional_distance"]


def positional_distance(shown: Sequence[object], reference: Sequence[object]) -> int:
    """How many places the items that both lists hold stand apart, in all; places are counted among these items.

    Parameters
    ----------
    shown, reference : sequence
        Items, each once.

    Returns
    -------
    int
        0 exactly where both have what they share in the same order.

    Examples
    --------
    >>> from rankwise.ranking import positional_distance
    >>> positional_distance(["c", "a", "b"], ["a", "b", "x", "c"])
    4
    """
    common = set(shown) & set(reference)
    places = {item: at for at, item in enumerate(x for x in reference if x in common)}
    return sum(abs(at - places[item]) for at, item in enumerate(x for x in shown if x in common))


def listed(scores: Array, otherwise: Array, length: int) -> Ints:
    """Columns ``(rows, length)`` by falling score, then those of score 0 by ``otherwise`` (inf: never); -1 for none."""
    keys = np.where(scores > 0, -scores, otherwise)
    order = keys.argsort(1, kind="stable")[:, :length]
    return np.where(np.take_along_axis(keys, order, 1) < np.inf, order, -1)


def swapped(shown: Ints, chance: float, draws: Array) -> Ints:
    """The lists, with two places of some changing hands; ``(rows, 3)`` draws: whether, and which two."""
    number = (shown >= 0).sum(1)
    rows = np.flatnonzero((draws[:, 0] < chance) & (number > 1))
    n = number[rows]
    a = (draws[rows, 1] * n).astype(np.int64)
    b = (a + 1 + (draws[rows, 2] * (n - 1)).astype(np.int64)) % n
    shown = shown.copy()
    shown[rows, a], shown[rows, b] = shown[rows, b], shown[rows, a]
    return shown


class Clicks:
    """Which place of a list is clicked: always exactly one.

    Parameters
    ----------
    model : {"first", "interest", "position"}
        "first", the paper's: what stands first, which is the lowest id among equal top scores. "interest": in
        proportion to how attractive an item of that grade is to the node's taste. "position": in proportion to that
        and to how likely the place is looked at (`PBM`).
    world : World
        Whose grades count.
    length : int
        Places of a list.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking.peers.shown import Clicks
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> shown, terms = np.array([[1, 0], [0, 1]]), np.array([0, 0])
    >>> Clicks("first", world, 2).places(world.taste, terms, shown, np.array([0.3, 0.9]))
    array([0, 0])
    """

    def __init__(self, model: str, world: World, length: int) -> None:
        self.model = model
        self._attraction = np.where(world.columns >= 0, attraction(world.grades, max_grade=BEST), 0)
        self._examined = PBM().of(length) if model == "position" else np.ones(length)

    def places(self, taste: Ints, terms: Ints, shown: Ints, draws: Array) -> Ints:
        """The place in each row of ``shown``."""
        if self.model == "first":
            return np.zeros(len(shown), np.int64)
        weights = self._attraction[taste[:, None], terms[:, None], shown] * self._examined[: shown.shape[1]]
        until = weights.cumsum(1)
        return np.minimum((until <= draws[:, None] * until[:, -1:]).sum(1), (shown >= 0).sum(1) - 1)


class Worth:
    """nDCG of lists shown, and their distance from the order by all honest clicks.

    Parameters
    ----------
    world : World
        Whose grades count.
    length : int
        Places of a list.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.ranking.peers.shown import Worth
    >>> from rankwise.ranking.peers.world import make_world
    >>> world = make_world(nodes=2, attackers=0, items=9, terms=3, tastes=2, owned=0.5, seed=0)
    >>> best = (-world.grades[world.taste, 0]).argsort(1, kind="stable")[:, :3]
    >>> Worth(world, 3).ndcg(world.taste, np.array([0, 0]), best)
    array([1., 1.])
    """

    def __init__(self, world: World, length: int) -> None:
        gains = 2.0**world.grades - 1
        self._discount = 1 / np.log2(np.arange(length) + 2)
        best = -np.sort(-gains, -1)[..., :length]
        ideal = (best * self._discount[: best.shape[-1]]).sum(-1, keepdims=True)
        self._gains, self._here = gains / ideal, world.columns >= 0

    def ndcg(self, taste: Ints, terms: Ints, shown: Ints) -> Array:
        """Of each row, with gains 2^grade - 1."""
        return self._gains[taste[:, None], terms[:, None], shown] @ self._discount[: shown.shape[1]]

    def ranks(self, counts: Ints) -> Ints:
        """Places ``(terms, columns)`` by clicks, then by id; those that nobody clicked stand behind, by id."""
        keys = np.where(self._here, -counts.astype(float), np.inf)
        return keys.argsort(1, kind="stable").argsort(1)

    def distance(self, terms: Ints, shown: Ints, ranks: Ints) -> Array:
        """`positional_distance` of each row from the order that ``ranks`` gives."""
        at = np.where(shown >= 0, ranks[terms[:, None], shown], 2**31 + np.arange(shown.shape[1]))
        return np.abs(at.argsort(1).argsort(1) - np.arange(shown.shape[1])).sum(1)
