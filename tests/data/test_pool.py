"""Tasks in processes: order, processes that are used again, and workers that die."""

import os
import signal
from functools import partial

import pytest

from puna.core.errors import PunaError
from puna.data.pool import executor, in_order


def _square(x):
    return x * x


def _pid(_):
    return os.getpid()


def _dies_once(flag, x):
    if x == 3 and not flag.exists():
        flag.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def _dies(x):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_results_come_in_order_and_processes_serve_again(tmp_path):
    with executor("local", 2) as run:
        assert list(run(_square, range(40))) == [x * x for x in range(40)]
        first, second = set(run(_pid, range(20))), set(run(_pid, range(20)))
        assert os.getpid() not in first and len(first | second) <= 2
        early = run(_square, range(100))
        assert next(early) == 0
        early.close()
        assert list(run(_square, range(3))) == [0, 1, 4]
        assert list(run(partial(_dies_once, tmp_path / "flag"), range(8))) == list(range(8))
        assert list(run(_pid, [0])) == [os.getpid()]


def test_a_task_whose_worker_always_dies_ends_in_an_error():
    with pytest.raises(PunaError, match="a worker died 3 times at 1: out of memory, or killed"):
        list(in_order(_dies, [0, 1], workers=2))
