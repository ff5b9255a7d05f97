"""Many runs of one kind, over processes of this machine or a Dask cluster: trials, seeds, folds, base fits.

The work is a function of the module level and picklable items; what it returns is the same wherever it ran, since every
draw has a seed of its own. A worker that dies (killed, out of memory) takes its run with it: what is missing is run
again, once. Ctrl-C stops all of them, and processes of this machine end when the one that started them is killed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import TrainingArguments

Item = TypeVar("Item")
Result = TypeVar("Result")
_where: ContextVar[tuple[int, str | None]] = ContextVar("where", default=(1, None))


@contextmanager
def spread_over(*, jobs: int = 1, scheduler: str | None = None) -> Iterator[None]:
    """Within the block, every `fan_out` that is not told otherwise runs in so many processes, or on that cluster.

    Examples
    --------
    >>> from rankwise.parallel import fan_out, spread_over
    >>> with spread_over(jobs=1):
    ...     fan_out(abs, [-1, 2])
    [1, 2]
    """
    if jobs == 0:
        raise ValueError("jobs=0: 1 (in this process), more, or -1 (one a core) are accepted")
    token = _where.set((jobs, scheduler))
    try:
        yield
    finally:
        _where.reset(token)


def is_spread() -> bool:
    """Whether a `spread_over` around says where runs go."""
    return _where.get() != (1, None)


def on_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """Settings of a `transformers` Trainer whose batch is what was asked for: beside a second GPU it would take one for
    each (DataParallel). Several are used by a process for each, as `accelerate launch` starts them."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def threads_each() -> int:
    """Threads for a run: one where several go on at once, else ``OMP_NUM_THREADS`` or one a core.

    A library that asks the machine instead (LightGBM) starts as many in every process, and they wait for each other.

    Examples
    --------
    >>> from rankwise.parallel import spread_over, threads_each
    >>> with spread_over(jobs=2):
    ...     threads_each()
    1
    """
    if is_spread():
        return 1
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1


def fan_out(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    on_done: Callable[[int, Result], None] = lambda at, result: None,
) -> list[Result]:
    """``[work(item) for item in items]``.

    Parameters
    ----------
    work : callable
        Of a module's top level, so that another process finds it.
    items : sequence
        Picklable.
    jobs : int, optional
        Processes at once; 1 runs everything in this one, -1 takes one a core. `spread_over` decides by default.
    scheduler : str, optional
        Address of a Dask scheduler, e.g. ``tcp://host:8786``, whose workers have rankwise installed and see the same
        files; ``jobs`` is then the scheduler's affair.
    on_done : callable
        Told the place and the result of an item as soon as it is there, in any order, in this process.

    Raises
    ------
    ValueError
        ``jobs`` is 0, or no scheduler answers at that address.
    ImportError
        The extra ``cluster`` is not installed.

    Examples
    --------
    >>> from math import factorial
    >>> from rankwise.parallel import fan_out
    >>> fan_out(factorial, [3, 4, 5])
    [6, 24, 120]
    """
    if jobs is None and scheduler is None:
        jobs, scheduler = _where.get()
    jobs = 1 if jobs is None else jobs
    if jobs == 0:
        raise ValueError("jobs=0: 1 (in this process), more, or -1 (one a core) are accepted")
    if scheduler is None and (jobs == 1 or len(items) < 2):
        return [_told(on_done, at, work(item)) for at, item in enumerate(items)]
    done: dict[int, Result] = {}
    for attempt in (1, 2):
        missing = [(at, item) for at, item in enumerate(items) if at not in done]
        try:
            for at, result, said in _parallel(work, missing, jobs, scheduler):
                for message, category in said:
                    warnings.warn_explicit(message, category, f"item {at}", 1)
                done[at] = _told(on_done, at, result)
        except Exception as error:
            if attempt == 2 or not _worker_died(error):
                raise
    return [done[at] for at in range(len(items))]


def _told(on_done: Callable[[int, Result], None], at: int, result: Result) -> Result:
    on_done(at, result)
    return result


def _parallel(
    work: Callable[[Item], Result], placed: Iterable[tuple[int, Item]], jobs: int, scheduler: str | None
) -> Iterator[tuple[int, Result, list[tuple[str, type[Warning]]]]]:
    from joblib import Parallel, delayed

    with _backend(scheduler):
        caller = None if scheduler else os.getpid()
        calls = (delayed(_placed)(work, at, item, caller) for at, item in placed)
        pool: Any = Parallel(n_jobs=-1 if scheduler else jobs, return_as="generator_unordered", pre_dispatch="all")
        yield from pool(calls)


def _placed(
    work: Callable[[Item], Result], at: int, item: Item, caller: int | None
) -> tuple[int, Result, list[tuple[str, type[Warning]]]]:
    """The result with the warnings that it gave, which would otherwise stay in the worker."""
    if caller not in (None, os.getpid()):
        _ends_with(caller)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work(item)
    return at, result, [(str(w.message), w.category) for w in caught]


@cache  # once a process
def _ends_with(caller: int) -> None:
    """This process ends within a second of its caller, instead of working on for nobody; a child of another (a wrapper
    that started it) has no caller to watch."""
    if os.getppid() != caller:
        return

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _backend(scheduler: str | None) -> Iterator[None]:
    from joblib import parallel_config

    if scheduler is None:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            yield
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError("a Dask scheduler needs: pip install 'rankwise[cluster]'") from error
    try:
        client: Any = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client, parallel_config(backend="dask"):
        yield


def _worker_died(error: Exception) -> bool:
    return type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "CommClosedError")
