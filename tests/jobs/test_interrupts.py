"""An interrupt waits until the block has ended."""

import signal
import threading

import pytest

from rankwise.jobs.interrupts import uninterrupted


def test_an_interrupt_comes_when_the_block_has_ended_and_the_handler_is_the_one_before():
    before, done = signal.getsignal(signal.SIGINT), []

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is before
    with uninterrupted():
        done.append("nothing asked")
    assert len(done) == 2


def test_an_error_within_is_the_error_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)

    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        work()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_run_as_they_are():
    done = []

    def work():
        with uninterrupted():
            done.append(threading.current_thread() is threading.main_thread())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]
