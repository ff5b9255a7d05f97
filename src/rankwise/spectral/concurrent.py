"""Many small decompositions at a time.

A symmetric eigenproblem of a few hundred rows is bound by memory and hardly gains from a second thread inside LAPACK;
two such problems at once on two threads do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(f: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None) -> Iterator[Result]:
    """``map(f, items)`` in order, several at a time, each on one thread.

    At most ``workers + 1`` results are held before they are consumed. An exception of ``f`` is raised where its result
    would be; gradients are not recorded inside.

    Parameters
    ----------
    f : callable
        Releases the interpreter most of the time, as torch's operations do.
    items : iterable
        What ``f`` is called with; read lazily, from the calling thread.
    workers : int, optional
        ``torch.get_num_threads()`` by default; 1 calls ``f`` directly.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import each
    >>> [float(trace) for trace in each(torch.trace, [torch.eye(1), torch.eye(2), torch.eye(3)])]
    [1.0, 2.0, 3.0]
    """
    threads = torch.get_num_threads()
    workers = workers or threads
    if workers == 1:
        yield from map(torch.no_grad()(f), items)
        return

    @torch.no_grad()
    def alone(item: Item) -> Result:
        torch.set_num_threads(1)
        return f(item)

    waiting: deque[Future[Result]] = deque()
    import scipy.linalg  # noqa: F401  # loads the BLAS whose threads are limited
    from threadpoolctl import threadpool_limits

    if torch.cuda.is_initialized():  # its linear algebra is loaded at the first call, which threads must not share
        torch.linalg.eigvalsh(torch.eye(1, device="cuda"))
    pool, limits = ThreadPoolExecutor(workers), threadpool_limits(1, user_api="blas")
    try:
        for item in items:
            waiting.append(pool.submit(alone, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        limits.restore_original_limits()
        torch.set_num_threads(threads)
