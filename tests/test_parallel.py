"""Many runs: the same results wherever they ran, and none lost with a worker."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from rankwise import parallel
from rankwise.parallel import fan_out, on_one_gpu, spread_over


def test_a_trainer_beside_two_gpus_takes_the_batch_it_was_given(tmp_path):
    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=4, use_cpu=True)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 2  # what a machine with two says
    assert arguments.train_batch_size == 8
    assert on_one_gpu(arguments).train_batch_size == 4


def square(x):
    return x * x


def dies_once(args):
    """Kills its own process the first time that it is asked for 3."""
    x, mark = args
    if x == 3 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def fails(x):
    raise ValueError(f"no {x}")


@pytest.mark.parametrize("jobs", [1, 2, -1])
def test_results_are_those_of_a_plain_loop_in_its_order(jobs):
    told = {}
    found = fan_out(square, list(range(7)), jobs=jobs, on_done=told.__setitem__)
    assert found == [0, 1, 4, 9, 16, 25, 36]
    assert told == dict(enumerate(found))


def test_what_a_dead_worker_took_with_it_is_run_again(tmp_path):
    mark = str(tmp_path / "died")
    assert fan_out(dies_once, [(x, mark) for x in range(5)], jobs=2) == [0, 1, 4, 9, 16]
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_reaches_the_caller(jobs):
    with pytest.raises(ValueError, match="no 1"):
        fan_out(fails, [1, 1], jobs=jobs)


def test_no_process_and_no_scheduler_are_refused():
    with pytest.raises(ValueError, match="jobs=0"):
        fan_out(square, [1, 2], jobs=0)


SLOW = """
import os, sys, time
from rankwise import parallel
from rankwise.parallel import fan_out, spread_over
import slow_work
fan_out(slow_work.wait, [1, 2], jobs=2)
"""


def interrupt(process):
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does


@pytest.mark.parametrize("end", [interrupt, subprocess.Popen.terminate, subprocess.Popen.kill])
def test_workers_end_with_the_one_that_started_them(tmp_path, end):
    (tmp_path / "slow_work.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        f"def wait(x):\n    (Path({str(tmp_path)!r}) / f'pid-{{os.getpid()}}').touch()\n    time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", SLOW], env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(600):
        if len(list(tmp_path.glob("pid-*"))) == 2:
            break
        time.sleep(0.1)
    end(process)
    process.wait(timeout=60)
    pids = [int(p.name[4:]) for p in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    for _ in range(200):
        if not any(alive(p) for p in pids):
            break
        time.sleep(0.1)
    assert not any(alive(p) for p in pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_cluster_of_two_workers_gives_the_same(tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert fan_out(square, list(range(6)), scheduler=cluster.scheduler_address) == [0, 1, 4, 9, 16, 25]


def test_an_address_without_a_scheduler_is_said():
    pytest.importorskip("dask.distributed")
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        fan_out(square, [1, 2], scheduler="tcp://127.0.0.1:1")


def warns(x):
    warnings.warn(f"mind {x}", UserWarning, stacklevel=1)
    return x


@pytest.mark.parametrize("jobs", [1, 2])
def test_warnings_of_workers_reach_the_caller(jobs):
    with pytest.warns(UserWarning, match="mind") as caught:
        fan_out(warns, [1, 2], jobs=jobs)
    assert sorted(str(w.message) for w in caught) == ["mind 1", "mind 2"]


def pid(_):
    return os.getpid()


def test_a_block_decides_where_runs_go_and_an_argument_decides_otherwise():
    with spread_over(jobs=2):
        assert os.getpid() not in fan_out(pid, [1, 2])
        assert fan_out(pid, [1, 2], jobs=1) == [os.getpid()] * 2
    assert fan_out(pid, [1, 2]) == [os.getpid()] * 2
    with pytest.raises(ValueError, match="jobs=0"), spread_over(jobs=0):
        pass


def test_a_worker_that_another_started_has_nobody_to_watch(monkeypatch):
    started = []
    monkeypatch.setattr(parallel, "Thread", lambda **options: SimpleNamespace(start=lambda: started.append(1)))
    parallel._ends_with.__wrapped__(os.getppid() + 1)
    assert not started
    parallel._ends_with.__wrapped__(os.getppid())
    assert started == [1]
