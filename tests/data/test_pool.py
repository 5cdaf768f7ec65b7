"""Tasks in processes: order, processes that are used again, and workers that die."""

import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

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


def test_a_ray_that_does_not_start_is_no_fault_of_ours(monkeypatch):
    def init(**options):
        raise TimeoutError("the raylet did not answer")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(PunaError, match="engine=local"), executor("ray", 1) as run:
        list(run(abs, [1]))
