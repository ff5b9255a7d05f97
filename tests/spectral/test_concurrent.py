import threading
import time

import pytest
import torch

from rankwise.spectral import each


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_restored(two_threads):
    assert list(each(lambda i: (i, torch.get_num_threads()), range(20), workers=3)) == [(i, 1) for i in range(20)]
    assert torch.get_num_threads() == 2


def test_an_exception_is_raised_where_its_result_would_be():
    results = each(lambda i: 1 // (3 - i), range(10), workers=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("workers", [2, 3])
def test_items_are_read_lazily_one_more_than_there_are_workers(workers):
    read = []

    def items():
        for i in range(50):
            read.append(i)
            yield i

    results = each(lambda i: i, items(), workers=workers)
    assert read == []
    next(results)
    assert len(read) == workers + 1
    next(results)
    assert len(read) == workers + 2
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_are_not_recorded_with_any_number_of_workers(workers):
    x = torch.ones(2, requires_grad=True)
    assert not any(y.requires_grad for y in each(lambda i: x * i, range(4), workers=workers))
    assert torch.is_grad_enabled()


def test_one_worker_is_the_calling_thread():
    here = threading.get_ident()
    assert set(each(lambda i: threading.get_ident(), range(4), workers=1)) == {here}


def seen_at_once(workers):
    """The most calls that run at a time, and the threads they run on."""
    lock, now, most, threads = threading.Lock(), 0, 0, set()

    def call(i):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            threads.add(threading.get_ident())
        time.sleep(0.02)
        with lock:
            now -= 1

    list(each(call, range(12), workers=workers))
    return most, threads


def test_as_many_calls_run_at_once_as_there_are_workers(two_threads):
    assert seen_at_once(3)[0] == 3
    most, threads = seen_at_once(None)  # as many as torch has threads
    assert most == 2
    assert threading.get_ident() not in threads
    torch.set_num_threads(1)
    assert seen_at_once(None) == (1, {threading.get_ident()})
