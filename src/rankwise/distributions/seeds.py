"""scikit-learn's ``random_state`` as the seed of torch's and numpy's generators."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """A seed: the integer itself, one drawn from a generator, or for None a fresh one.

    Raises
    ------
    ValueError
        A negative integer, or anything else.
    """
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        if not 0 <= int(random_state) < 2**32:
            raise ValueError(f"random_state is {random_state}; a seed from 0 to 2^32 - 1, or None, is accepted")
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
