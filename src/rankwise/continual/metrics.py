"""What a table of accuracies says of a stream of tasks: what was kept, what was lost, what was there before.

``a[t, d]`` is the accuracy on domain d after task t; domain d is what task d teaches, and further columns are domains
that no task teaches. Measures as in the benchmarks MTIL and X-TAIL (Zheng et al., arXiv 2303.06628; Xu et al., arXiv
2406.18868). Published code drops an accuracy of exactly zero from Transfer, since it masks by value; here it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["StreamScores", "stream_scores"]


class StreamScores(NamedTuple):
    """What `stream_scores` finds, in the table's unit.

    Attributes
    ----------
    transfer : float
        Accuracy on what is not yet learned: the mean over domains of the mean over earlier tasks; the first domain has
        none. NaN for one domain.
    average : float
        Mean of the whole table.
    last : float
        Mean of the last row.
    forgetting : float
        Accuracy when a domain was learned less that at the end, mean over all domains that were learned but the last;
        negative where it rose. NaN for one task.

    Examples
    --------
    >>> from rankwise.continual import stream_scores
    >>> stream_scores([[0.9, 0.2], [0.7, 0.8]])._asdict()
    {'transfer': 0.2, 'average': 0.65, 'last': 0.75, 'forgetting': 0.2}
    """

    transfer: float
    average: float
    last: float
    forgetting: float


def stream_scores(table: ArrayLike | Sequence[Sequence[float]]) -> StreamScores:
    """Transfer, Average, Last and forgetting of accuracies ``(tasks, domains)``.

    Parameters
    ----------
    table : array_like
        ``(tasks, domains)``, row t after task t, column t the domain that it teaches; at least as many columns as rows.

    Raises
    ------
    ValueError
        No such table, or an entry that is not finite.

    Examples
    --------
    >>> from rankwise.continual import stream_scores
    >>> stream_scores([[1.0, 0.0], [1.0, 1.0]]).transfer  # a true zero counts
    0.0
    """
    a: NDArray[np.float64] = np.asarray(table, dtype=np.float64)
    if a.ndim != 2 or not a.size or a.shape[1] < a.shape[0]:
        raise ValueError(f"accuracies of shape {a.shape}; (tasks, domains) with a domain for every task is needed")
    if not np.isfinite(a).all():
        raise ValueError("an accuracy is not finite; every domain is to be measured after every task")
    tasks, domains = a.shape
    before = [a[: min(d, tasks), d].mean() for d in range(1, domains)]
    lost = [a[d, d] - a[-1, d] for d in range(tasks - 1)]
    return StreamScores(_mean(before), float(a.mean()), float(a[-1].mean()), _mean(lost))


def _mean(values: list[np.float64]) -> float:
    return round(float(np.mean(values)), 15) if values else float("nan")
